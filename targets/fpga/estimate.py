"""The resources of layers, channels and what moves bytes between them, from the engines' formulas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgec.targets.fpga.dataflow import Channel, Dataflow, Process
from edgec.targets.fpga.folding import (
    Folding,
    layer_steps,
    output_lanes,
    sum_lanes,
    weight_steps,
    weights_of,
)
from edgec.targets.fpga.layers import (
    AveragePool,
    Depthwise,
    ExactProduct,
    Layer,
    Lookup,
    MaxPool,
    Requantisation,
    Softmax,
    Sum,
    WeightedLayer,
)
from edgec.targets.fpga.network import Network
from edgec.targets.fpga.resources import Resources, channel, matrix_vector, ram, requantiser, rom, sliding_window

ADDER = Resources(dsp=2, lut=90, ff=120)
"""One lane of a sum: two products by constants of up to 21 bits, a shift and a clamp."""

DIVIDER = Resources(dsp=6, lut=2600, ff=4200)
"""A softmax: a division of 49 bits by 24 every cycle is most of it."""


@dataclass(frozen=True)
class LayerEstimate:
    """A layer of a design: its folding, its cycles a frame, and what it takes.

    ``interval`` is the cycles between two words of its output on average; ``weights`` says where they lie.
    """

    name: str
    node: str
    kind: str
    macs: int
    simd: int
    pe: int
    multiplier: str
    weights: str
    weight_bits: int
    cycles: int
    interval: float
    dsp: int
    lut: int
    ff: int
    bram18: int
    uram: int
    ddr_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a design takes: by layer, for channels and movers between them, and in all."""

    layers: tuple[LayerEstimate, ...]
    movers: Resources
    total: Resources

    @property
    def ddr_bytes(self) -> int:
        """Bytes of weights read from DDR memory for a frame."""
        return sum(layer.ddr_bytes for layer in self.layers)


def estimate(network: Network, foldings: Mapping[str, Folding], flow: Dataflow) -> Estimate:
    """The estimate of a whole design."""
    layers = tuple(_entry(layer, foldings[layer.name]) for layer in network.layers)
    movers = total(_channel(each) for each in flow.channels) + total(map(_mover, flow.processes))
    own = total(Resources(x.dsp, x.lut, x.ff, x.bram18, x.uram) for x in layers)
    return Estimate(layers, movers, own + movers)


def total(parts: Iterable[Resources]) -> Resources:
    """The sum of resources."""
    return sum(parts, Resources())


def _entry(layer: Layer, folding: Folding) -> LayerEstimate:
    weighted = isinstance(layer, WeightedLayer)
    lanes = output_lanes(layer, folding)
    cycles = layer_steps(layer, folding)
    return LayerEstimate(
        name=layer.name, node=layer.node, kind=type(layer).__name__, macs=layer.macs, simd=folding.simd,
        pe=sum_lanes(layer, folding), multiplier=folding.multiplier if weighted else "",
        weights=("DDR" if folding.streamed else "chip") if weighted else "",
        weight_bits=layer.weight_bits if isinstance(layer, WeightedLayer) else 0,
        cycles=cycles, interval=cycles * lanes / layer.result.elements,
        **layer_resources(layer, folding).as_dict(), ddr_bytes=weights_of(layer) if folding.streamed else 0,
    )  # fmt: skip


def layer_resources(layer: Layer, folding: Folding) -> Resources:
    """What a layer takes: its line buffer, its arithmetic and its constants."""
    window = layer.line_window
    own = _engine(layer, folding)
    if window is None:
        return own
    depth = window.rows_held(layer.source.height) * layer.source.width * layer.source.channels // folding.simd
    return own + sliding_window(depth, folding.simd)


def _engine(layer: Layer, folding: Folding) -> Resources:
    lanes = folding.simd
    if isinstance(layer, WeightedLayer):
        return _weighted(layer, folding)
    if isinstance(layer, MaxPool):
        return Resources(lut=30 + 16 * lanes, ff=20 + 8 * lanes)
    if isinstance(layer, AveragePool):
        return _average(layer, lanes)
    if isinstance(layer, Sum):
        return total([ADDER] * lanes)
    if isinstance(layer, Lookup):
        return total([rom(256, 8)] * lanes)
    assert isinstance(layer, Softmax)
    return DIVIDER + total([rom(256, 31)] * 2)


def _weighted(layer: WeightedLayer, folding: Folding) -> Resources:
    lanes, outputs = sum_lanes(layer, folding), output_lanes(layer, folding)
    if isinstance(layer, ExactProduct):
        end = Resources(lut=80, ff=100) + rom(layer.result.channels, 32)
    else:
        end = _requantiser(layer.end, outputs, layer.result.channels // outputs, layer.accumulator_bits)
    steps = weight_steps(layer, folding)
    folds = layer.result.channels // lanes
    # in a depthwise convolution every lane has a sum of its own, and no input is kept
    alone = isinstance(layer, Depthwise)
    shape = (1, lanes, steps, 1) if alone else (folding.simd, folding.pe, steps // folds, folds)
    bits = 8 if folding.streamed else layer.weight_bits
    engine = matrix_vector(
        *shape, bits, layer.accumulator_bits, folding.multiplier, layer.weight_terms, streamed=folding.streamed
    )
    return engine + end


def _requantiser(end: Requantisation, lanes: int, groups: int, accumulator: int) -> Resources:
    return requantiser(lanes, groups, accumulator, end.point, int(end.offsets.max(initial=0)) + 1)


def _average(layer: AveragePool, lanes: int) -> Resources:
    sums = Resources(lut=60 + 40 * lanes, ff=60 + 40 * lanes)
    if layer.tiles:
        sums = sums + ram(layer.result.width * layer.source.channels // lanes, 32 * lanes)
    return sums + _requantiser(layer.end, lanes, layer.end.multiplier.size, 32)


def _channel(each: Channel) -> Resources:
    return channel(each.depth, each.width, each.ultra)


def _mover(process: Process) -> Resources:
    """Converters and duplicators: registers of the wider word, and a selector."""
    if process.layer is not None:
        return Resources()
    if process.function in ("widen", "narrow"):
        wide = 8 * max(int(process.parameters[0]), int(process.parameters[1]))
        return Resources(lut=20 + wide // 2, ff=20 + wide)
    if process.function in ("pack", "unpack"):
        return Resources(lut=120, ff=150)
    return Resources(lut=20, ff=10)
