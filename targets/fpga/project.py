"""The HLS project: sources from templates, our stand-ins for the vendor's headers, scripts, a driver and a manifest."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError
from edgec.targets.fpga.board import Board
from edgec.targets.fpga.constants import arranged_weights, constants
from edgec.targets.fpga.dataflow import Dataflow
from edgec.targets.fpga.folding import Folding
from edgec.targets.fpga.layers import Array, WeightedLayer
from edgec.targets.fpga.network import Network

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent
MANIFEST = "manifest.json"
DDR_WEIGHTS = "src/ddr_weights.bin"


@dataclass(frozen=True)
class Vector:
    """One frame and its answer: the bytes of all inputs and of all outputs, as they stream."""

    inputs: Sequence[int]
    outputs: Sequence[int]


@dataclass(frozen=True)
class Project:
    """What is written: a network, how it is folded, for which board."""

    network: Network
    board: Board
    foldings: Mapping[str, Folding]
    flow: Dataflow
    vectors: Sequence[Vector]
    manifest: dict[str, Any]

    @property
    def top(self) -> str:
        """The name of the top function."""
        plain = re.sub(r"\W+", "_", self.network.name).strip("_").lower() or "network"
        return f"edgec_{plain}"

    def files(self) -> dict[str, bytes]:
        """Every file by its path in the project."""
        written = {target: self._render(template) for target, template in self._templates().items()}
        for folder in ("include", "stubs"):
            home = "src" if folder == "include" else folder
            written |= {f"{home}/{path.name}": path.read_text(encoding="utf-8") for path in _sources(folder)}
        written[MANIFEST] = json.dumps(self.manifest, indent=1) + "\n"
        encoded = {path: text.encode() for path, text in written.items()}
        if self.flow.loads:
            encoded[DDR_WEIGHTS] = b"".join(self._ddr_weights())
        return encoded

    def _templates(self) -> dict[str, str]:
        return {
            f"src/{self.top}.h": "network.h.j2",
            f"src/{self.top}.cpp": "network.cpp.j2",
            "src/weights.h": "weights.h.j2",
            "src/vectors.h": "vectors.h.j2",
            "src/testbench.cpp": "testbench.cpp.j2",
            "hls.tcl": "hls.tcl.j2",
            "vivado.tcl": "vivado.tcl.j2",
            "driver.py": "driver.py.j2",
            "README.md": "README.md.j2",
        }

    def _render(self, template: str) -> str:
        ports = [f"input{i}" for i in range(len(self.network.inputs))]
        ports += [f"output{i}" for i in range(len(self.network.outputs))]
        parts = [f"hls::stream<frame_beat>& {port}" for port in ports]
        if self.flow.loads:
            parts.append("const ap_uint<64>* ddr")
        return _environment().get_template(template).render(
            network=self.network, board=self.board, flow=self.flow, top=self.top, ports=ports,
            signature=", ".join(parts), constants=list(constants(self.network, self.foldings)), vectors=self.vectors,
            manifest=self.manifest,
        )  # fmt: skip

    def _ddr_weights(self) -> Iterator[bytes]:
        for name in self.flow.loads:
            layer = next(layer for layer in self.network.layers if layer.name == name)
            assert isinstance(layer, WeightedLayer)
            yield arranged_weights(layer, self.foldings[name]).tobytes()


@cache
def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise EdgecError("FPGA projects are written with Jinja; run: pip install 'edgec[fpga]'") from error
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip


def _sources(folder: str) -> list[Path]:
    return sorted((FOLDER / folder).glob("*.h"))


def is_project(path: Path) -> bool:
    """Whether ``path`` is a folder that holds an FPGA project."""
    return path.is_dir() and (path / MANIFEST).is_file()


def read_project(path: Path) -> dict[str, Any]:
    """The manifest of the project in ``path``.

    Raises:
        EdgecError: the folder holds no project, or its manifest is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {**manifest, "inputs": list(manifest["inputs"]), "outputs": list(manifest["outputs"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgecError(f"'{path}' holds no whole FPGA project; compile it again with edgec compile") from error


def check_project_path(path: Path) -> None:
    """Refuse a folder that cannot be written, or that holds anything but an older project.

    Raises:
        EdgecError: naming the folder and why.
    """
    parent = path.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise EdgecError(f"the folder {parent} of output '{path}' cannot be written; create it or choose another -o")
    if path.exists() and not is_project(path) and (not path.is_dir() or any(path.iterdir())):
        raise EdgecError(f"the output '{path}' exists and is no FPGA project; choose another folder with -o")


def write_project(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a project whole or not at all, in the place of an older one.

    Raises:
        EdgecError: the system refuses; nothing is written then.
    """
    parent = path.resolve().parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=parent) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            for name, data in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(data)
            if path.exists():
                path.rename(old)
            new.rename(path)
    except OSError as error:
        raise EdgecError(
            f"could not write the project '{path}': {error.strerror}; free space or choose another -o"
        ) from error


def streamed(array: Array, shape: Sequence[int]) -> Array:
    """A tensor (1, C, …) as the bytes of its feature: pixels in rows, channels innermost."""
    tensor = array.reshape(shape)
    return tensor.transpose(*_channels_last(len(shape))).reshape(-1) if len(shape) > 2 else tensor.reshape(-1)


def unstreamed(data: Array, shape: Sequence[int]) -> Array:
    """The tensor whose feature streams as ``data``."""
    if len(shape) <= 2:
        return data.reshape(shape)
    order = _channels_last(len(shape))
    inverse = [order.index(axis) for axis in range(len(shape))]
    return data.reshape([shape[axis] for axis in order]).transpose(inverse)


def _channels_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]
