"""The constants of a network as the C++ templates index them, and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgec.targets.fpga.dataflow import weight_type
from edgec.targets.fpga.folding import Folding, output_lanes, weight_steps
from edgec.targets.fpga.layers import (
    Array,
    AveragePool,
    Depthwise,
    ExactProduct,
    Layer,
    Lookup,
    Requantisation,
    Softmax,
    WeightedLayer,
    signed_digits,
)
from edgec.targets.fpga.network import Network
from edgec.targets.fpga.resources import in_blocks, stored_bits

VALUES_A_LINE = 24


@dataclass(frozen=True)
class Constant:
    """One array.

    Attributes:
        name: a C identifier.
        node: the ONNX node it belongs to.
        type: of an element, in C++.
        extents: in C++.
        values: in C++.
        storage: the HLS tool's name of where it lies, which is where the estimate has it.
    """

    name: str
    node: str
    type: str
    extents: str
    values: str
    storage: str


def constants(network: Network, foldings: Mapping[str, Folding]) -> Iterator[Constant]:
    """Every array that lies on the chip, in the order of the layers."""
    for layer in network.layers:
        yield from _layer_constants(layer, foldings[layer.name])


def _layer_constants(layer: Layer, folding: Folding) -> Iterator[Constant]:
    if isinstance(layer, WeightedLayer):
        if not folding.streamed:
            words = arranged_weights(layer, folding)
            values = shift_codes(words, layer.weight_terms) if folding.multiplier == "shift" else words
            bits = stored_bits(folding.multiplier, layer.weight_bits, layer.weight_terms) * words[0].size
            yield _array(layer, "weights", f"{weight_type(layer, folding)}::type", values, bits)
        if isinstance(layer, ExactProduct):
            yield _array(layer, "biases", "ap_int<32>", layer.end.bias, 32)
        else:
            yield _scales(layer, layer.end, output_lanes(layer, folding))
    elif isinstance(layer, AveragePool):
        yield _scales(layer, layer.end, None)
    elif isinstance(layer, Lookup):
        yield _array(layer, "table", "edgec::element", layer.table, 8)
    elif isinstance(layer, Softmax):
        yield _array(layer, "powers", "ap_uint<31>", layer.powers, 31)


def arranged_weights(layer: WeightedLayer, folding: Folding) -> Array:
    """int8 weights in the order in which the engine reads them.

    Of a product [steps, pe, simd], outputs fold by fold and within that the sum's terms; of a depthwise convolution
    [steps, lanes], channels fold by fold and within that the taps.
    """
    depth, outputs = layer.weights.shape
    if isinstance(layer, Depthwise):
        lanes = folding.simd
        return layer.weights.reshape(depth, outputs // lanes, lanes).transpose(1, 0, 2).reshape(-1, lanes)
    split = layer.weights.reshape(depth // folding.simd, folding.simd, outputs // folding.pe, folding.pe)
    return split.transpose(2, 0, 3, 1).reshape(weight_steps(layer, folding), folding.pe, folding.simd)


def shift_codes(weights: Array, terms: int) -> Array:
    """Weights as sums of signed powers of two: ``terms`` codes of five bits, each present, negative, shift (3)."""
    digits = signed_digits(weights)
    codes = np.zeros(weights.shape, np.int64)
    filled = np.zeros(weights.shape, np.int64)
    for place in range(digits.shape[-1]):
        digit = digits[..., place]
        code = 16 + 8 * (digit < 0) + place
        codes += np.where(digit != 0, code << (5 * filled), 0)
        filled += digit != 0
    assert filled.max(initial=0) <= terms
    return codes


def _scales(layer: Layer, end: Requantisation, lanes: int | None) -> Constant:
    """Bias, factor and offset of every channel, ``lanes`` of them a row; without ``lanes`` in one row."""
    rows = [f"{{{b},{f},{o}}}" for b, f, o in zip(end.bias, end.factors[0], end.offsets, strict=True)]
    if lanes is None:
        extents, text = f"[{len(rows)}]", _lines(rows)
    else:
        groups = ["{" + ",".join(rows[start : start + lanes]) + "}" for start in range(0, len(rows), lanes)]
        extents, text = f"[{len(groups)}][{lanes}]", ",\n".join(groups)
    storage = _storage(len(rows) // (lanes or 1), 62 * (lanes or 1))
    return Constant(f"{layer.name}_scales", layer.node, "edgec::scaling", extents, text, storage)


def _storage(depth: int, width: int) -> str:
    return "bram" if in_blocks(depth, width) else "lutram"


def _array(layer: Layer, kind: str, c_type: str, values: Array, bits: int) -> Constant:
    """An array whose first axis counts words of ``bits``."""
    extents = "".join(f"[{extent}]" for extent in values.shape)
    text = _lines(list(map(str, values.reshape(-1))))
    return Constant(f"{layer.name}_{kind}", layer.node, c_type, extents, text, _storage(len(values), bits))


def _lines(values: list[str]) -> str:
    starts = range(0, len(values), VALUES_A_LINE)
    return ",\n".join(",".join(values[start : start + VALUES_A_LINE]) for start in starts)
