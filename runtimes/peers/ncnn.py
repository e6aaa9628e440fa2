"""ncnn on the CPU, in float32, on a model that pnnx makes from the ONNX file.

The wheel of pnnx asks for PyTorch, which its converter needs for PyTorch's own models only.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import ncnn
import numpy as np

from edgec.data.samples import Array, TensorSpec
from edgec.errors import EdgecError
from edgec.runtimes.peers import Peer, Shapes
from edgec.runtimes.peers.conversion import convert, prepare


class Adapter(Peer):
    """A net; every inference has an extractor of its own, as ncnn means it."""

    name: ClassVar[str] = "ncnn"

    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        self.version = metadata.version("ncnn")
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        self._net.opt.use_vulkan_compute = False
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self._net.opt, name, False)
        with tempfile.TemporaryDirectory(prefix="edgec-ncnn-") as name:
            folder = Path(name)
            prepared = prepare(model, shapes, folder, self.name)
            self.inputs, self.output_names = prepared.inputs, prepared.output_names
            for spec in self.inputs:
                _require_one_sample(spec, model)
            dimensions = ",".join(f"[{','.join(map(str, spec.shape))}]" for spec in self.inputs)
            command = [_converter(), str(prepared.path), f"inputshape={dimensions}", "fp16=0"]
            convert(command, folder, folder / "model.ncnn.bin", self.name, model)
            loaded = self._net.load_param(str(folder / "model.ncnn.param"))
            loaded |= self._net.load_model(str(folder / "model.ncnn.bin"))
        if loaded != 0:
            raise EdgecError(f"ncnn cannot load what pnnx makes of '{model}'; leave it out of --against")
        self._bound: list[tuple[str, Any]] = []
        self._results: list[Any] = []

    def bind(self, inputs: Mapping[str, Array]) -> None:
        self._bound = [
            (f"in{index}", ncnn.Mat(np.ascontiguousarray(inputs[spec.name][0])).clone())
            for index, spec in enumerate(self.inputs)
        ]

    def invoke(self) -> None:
        extractor = self._net.create_extractor()
        for name, matrix in self._bound:
            extractor.input(name, matrix)
        self._results = [extractor.extract(f"out{index}")[1] for index in range(len(self.output_names))]

    def outputs(self) -> list[Array]:
        return [np.array(matrix)[None] for matrix in self._results]


def _converter() -> str:
    """The program of the package ``pnnx``, which is not imported: that would import PyTorch."""
    found = importlib.util.find_spec("pnnx")
    if found is None or found.origin is None:
        raise EdgecError("ncnn runs ONNX models after pnnx has converted them; run: pip install --no-deps pnnx")
    return str(Path(found.origin).with_name("pnnx"))


def _require_one_sample(spec: TensorSpec, model: Path) -> None:
    if len(spec.shape) < 2 or spec.shape[0] != 1 or spec.dtype != np.float32:
        raise EdgecError(
            f"ncnn takes one sample of float32 at a time, and '{model}' has the input {spec}; leave ncnn out of "
            f"--against, or pin its first dimension to 1"
        )
