"""A QDQ model taken to pieces, one between integers and the next, for runtimes that round in other places.

Whoever computes with integers hands on a difference of one step, which the layers behind it multiply: the last integers
of a deep network say little about a runtime's arithmetic. So every piece is given the same integers here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
from onnx import numpy_helper

import edgec
from edgec.data.samples import Samples
from edgec.devices.device import open_device


@dataclass(frozen=True)
class Integers:
    """What a QuantizeLinear makes: the names of its input and of its result, its grid, and whether it has 16 bits."""

    real: str
    name: str
    scale: float
    zero: int
    wide: bool

    def reals(self, integers: np.ndarray) -> np.ndarray:
        """float32 that the integers stand for."""
        return ((integers.astype(np.float32) - self.zero) * np.float32(self.scale)).astype(np.float32)


class Pieces:
    """Of an ONNX file with QuantizeLinear and DequantizeLinear, whose input is float."""

    def __init__(self, path: Path) -> None:
        self.path, self.proto = path, onnx.shape_inference.infer_shapes(onnx.load(path))
        graph = self.proto.graph
        constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        self._constants, self._makers = constants, {name: node for node in graph.node for name in node.output}
        made = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants]
        self.integers = {
            n.output[0]: Integers(
                n.input[0], n.output[0], float(constants[n.input[1]]), int(zero := constants[n.input[2]]),
                zero.dtype.itemsize > 1,
            )
            for n in made
        }  # fmt: skip

    def with_integers(self, folder: Path) -> Path:
        """The model with all its integers as outputs, for this machine."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        known = {value.name: value for value in proto.graph.value_info}
        outputs = {value.name for value in proto.graph.output}
        proto.graph.output.extend(known[name] for name in self.integers if name not in outputs)
        onnx.save(proto, folder / "integers.onnx")
        return edgec.compile(folder / "integers.onnx", output=folder / "integers.so").path

    def steps(self, folder: Path, feeds: list[dict[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """By the name of its integers, how many steps each element of a piece in ONNX Runtime is from ours.

        The pieces read our integers of what is before them.
        """
        samples = Samples(len(feeds), None, lambda index: feeds[index])
        path = self.with_integers(folder)
        ours = open_device("local", path).run(path, samples).outputs
        for made in self.integers.values():
            sources = self._sources(made.real)
            session = self._session(made, sources, folder)
            for index, feed in enumerate(feeds):
                given = {
                    name: feed[name] if source is None else source.reals(ours[source.name][index])
                    for name, source in sources.items()
                }
                (found,) = session.run(None, given)
                yield made.name, found.astype(np.int64) - ours[made.name][index]

    def _sources(self, name: str) -> Mapping[str, Integers | None]:
        """The values that a piece begins with: what is quantised there, and inputs of the model."""
        found: dict[str, Integers | None] = {}
        waiting = [name]
        while waiting:
            name = waiting.pop()
            node = self._makers.get(name)
            if name in self._constants or not name:
                continue
            if node is None:
                found[name] = None
            elif node.output[0] in self.integers:
                source = self.integers[node.output[0]]
                found[source.real] = source
            else:
                waiting += node.input
        return found

    def _session(
        self, made: Integers, sources: Mapping[str, Integers | None], folder: Path
    ) -> onnxruntime.InferenceSession:
        part = onnx.utils.Extractor(self.proto).extract_model(list(sources), [made.name])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
