"""Quantised graphs for the tests: Quantize and Dequantize around an operator, as exporters write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from edgec.graph import load_graph
from edgec.passes.pipeline import run, select
from tests import graphs
from tests.operators import node

Array = np.ndarray
BYTES = ("int8", "uint8")
MOST_OF_WORDS = 60_000
"""Sum of the largest weights of an output channel whose products with int16 fit an int32."""


@dataclass
class Graph:
    """A model under construction, with float inputs that are quantised before anything reads them.

    Attributes:
        dtype: of the activations; "mixed" takes int8, int16 and uint16 at random.
        seed: of the scales, zero points and weights.
    """

    dtype: str = "int8"
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)

    def input(self, *shape: int, scale: float = 0.03, zero: int | None = None) -> str:
        """The dequantised name of a new input."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = shape
        return self.pair(name, scale, zero)

    def pair(self, value: str, scale: float = 0.03, zero: int | None = None) -> str:
        """``value`` quantised and dequantised."""
        dtype = str(self.generator.choice(["int8", "int16", "uint16"])) if self.dtype == "mixed" else self.dtype
        limits = np.iinfo(dtype)
        scale = scale if limits.bits == 8 else scale / 256
        zero = int(self.generator.integers(limits.min // 2, limits.max // 2)) if zero is None else zero
        self.constants |= {f"{value}_s": np.float32(scale), f"{value}_z": np.array(zero, dtype)}
        self.nodes.append(node("QuantizeLinear", f"{value} {value}_s {value}_z", f"{value}_q"))
        self.nodes.append(node("DequantizeLinear", f"{value}_q {value}_s {value}_z", f"{value}_d"))
        return f"{value}_d"

    def weights(self, *shape: int, axis: int | None = 0, dtype: str = "int8") -> str:
        """Dequantised weights, a scale for each index of ``axis`` or one for all; uint8 ones lie around 128."""
        name = f"w{len(self.constants)}"
        middle = 128 if dtype == "uint8" else 0
        most = 127 if self.dtype in BYTES else min(127, MOST_OF_WORDS // max(int(np.prod(shape[1:])), 1))
        values = self.generator.integers(-most, most + 1, shape) + middle
        count = () if axis is None else (shape[axis],)
        scales = self.generator.uniform(0.002, 0.01, count).astype(np.float32)
        zeros = np.full(count, middle, dtype)
        self.constants |= {name: values.astype(dtype), f"{name}_s": np.asarray(scales), f"{name}_z": zeros}
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(node("DequantizeLinear", f"{name} {name}_s {name}_z", f"{name}_d", **attributes))
        return f"{name}_d"

    def scale(self, dequantised: str) -> Array:
        """The scale of what :meth:`input`, :meth:`pair` or :meth:`weights` named."""
        return self.constants[f"{dequantised.removesuffix('_d')}_s"]

    def constant(self, array: Array) -> str:
        """The name of a float constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def add(self, op: str, inputs: str, **attributes: object) -> str:
        """The output of a new node."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, inputs, name, **attributes))
        return name

    def build(self, *outputs: str) -> onnx.ModelProto:
        """The model."""
        opset = 18 if self.dtype in BYTES else 21
        return graphs.build(self.nodes, self.inputs, outputs, self.constants, opset=opset)

    def samples(self) -> dict[str, Array]:
        """Normal inputs that use most of their grids."""
        return {name: self.generator.standard_normal(shape).astype(np.float32) for name, shape in self.inputs.items()}


def operators_after_passes(model: onnx.ModelProto, activation_dtype: str = "int8") -> list[str]:
    """The operators of the graph that is compiled, sorted, without the input's Quantize and the outputs' Dequantize."""
    graph = load_graph(model)
    run(graph, select(activation_dtype=activation_dtype))
    found = graphs.operators(graph)
    for op in ("QuantizeLinear", "DequantizeLinear"):
        found = [name for name in found if name != op]
    return found


def assert_within_one_step(
    found: Mapping[str, Array], wanted: Mapping[str, Array], steps: Sequence[float], share: float = 0.01
) -> None:
    """Every output on its grid, none further than one step from what is wanted, and few that far."""
    for (name, array), step in zip(wanted.items(), steps, strict=True):
        apart = np.abs(found[name].astype(np.float64) - array) / step
        assert apart.max(initial=0) < 1.01, (name, apart.max())
        assert (apart > 0.5).mean() <= share, (name, (apart > 0.5).mean())
