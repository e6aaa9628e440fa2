"""The HLS project: sources from templates, our stand-ins for the vendor's headers, scripts, a driver and a manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError
from edgec.targets.fpga.artifact import MANIFEST
from edgec.targets.fpga.board import Board
from edgec.targets.fpga.constants import arranged_weights, constants
from edgec.targets.fpga.dataflow import Dataflow
from edgec.targets.fpga.folding import Folding
from edgec.targets.fpga.layers import Array, WeightedLayer
from edgec.targets.fpga.network import Network

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent
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
