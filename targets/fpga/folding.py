"""How much of a layer is computed at once: lanes in, lanes out, what multiplies, and where the weights lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgec.targets.fpga.layers import AveragePool, ExactProduct, Layer, Product, Softmax, WeightedLayer

LARGEST_WORD = 512
"""Bytes of weights that one step may read. HLS tools refuse arrays in more than 1024 parts, after an hour of work."""

MULTIPLIERS = ("dsp", "lut", "shift")
"""What a product is made by: a DSP slice, lookup tables, or the shifts and sums of its weight's signed digits."""


@dataclass(frozen=True)
class Folding:
    """What a layer does in one step.

    Attributes:
        simd: input lanes; a layer other than a :class:`Product` has as many output lanes.
        pe: output lanes.
        multiplier: one of :data:`MULTIPLIERS`.
        streamed: the weights come from DDR memory, anew for every pixel.
    """

    simd: int = 1
    pe: int = 1
    multiplier: str = "dsp"
    streamed: bool = False


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [each for each in range(1, number + 1) if number % each == 0]


def lane_choices(layer: Layer) -> Iterator[tuple[int, int]]:
    """Every (simd, pe) that the layer can have."""
    if isinstance(layer, Softmax):
        yield 1, 1
    elif isinstance(layer, Product):
        for simd in divisors(layer.source.channels):
            yield from ((simd, pe) for pe in divisors(layer.result.channels) if simd * pe <= LARGEST_WORD)
    else:
        yield from ((lanes, lanes) for lanes in divisors(layer.source.channels) if lanes <= LARGEST_WORD)


def weight_steps(layer: WeightedLayer, folding: Folding) -> int:
    """Words of weights: simd · pe of them each."""
    return int(layer.weights.size) // (folding.simd * (folding.pe if isinstance(layer, Product) else 1))


def engine_steps(layer: Layer, folding: Folding) -> int:
    """Cycles that the layer's arithmetic takes for a frame, one step a cycle."""
    source, result, lanes = layer.source, layer.result, folding.simd
    if isinstance(layer, WeightedLayer):
        return result.pixels * weight_steps(layer, folding)
    if isinstance(layer, Softmax):
        return 3 * source.elements
    if isinstance(layer, AveragePool) and layer.tiles:
        return 2 * source.elements // lanes
    window = layer.line_window
    return source.elements // lanes if window is None else result.elements // lanes * window.taps


def window_steps(layer: Layer, folding: Folding) -> int:
    """Cycles of the line buffer for a frame: the first rows, then each row's words or the next rows', if more."""
    window = layer.line_window
    if window is None:
        return 0
    source, result = layer.source, layer.result
    row = source.width * source.channels // folding.simd
    emits = result.width * window.taps * source.channels // folding.simd
    wanted = [window.rows_wanted(r, source.height) for r in range(result.height)] + [source.height]
    loaded = wanted[0]
    steps = loaded * row
    for following in wanted[1:]:
        steps += max((max(following, loaded) - loaded) * row, emits)
        loaded = max(following, loaded)
    return steps


def layer_steps(layer: Layer, folding: Folding) -> int:
    """Cycles between one frame and the next that the layer allows: its line buffer and its arithmetic overlap."""
    return max(engine_steps(layer, folding), window_steps(layer, folding))


def is_depthwise_ordered(layer: Layer) -> bool:
    """Whether the layer reads all taps of a word of channels before the next."""
    return layer.line_window is not None and not isinstance(layer, Product)


def sum_lanes(layer: Layer, folding: Folding) -> int:
    """Sums that a weighted layer completes at once."""
    return folding.pe if isinstance(layer, Product) else folding.simd


def output_lanes(layer: Layer, folding: Folding) -> int:
    """Lanes of the output channel.

    Of a weighted layer as few as keep up with its sums, for each costs multipliers; of exact sums the bytes of one.
    """
    if isinstance(layer, ExactProduct):
        return 4
    if not isinstance(layer, WeightedLayer):
        return folding.simd
    sums = sum_lanes(layer, folding)
    steps = engine_steps(layer, folding) // (layer.result.elements // sums)
    return next(lanes for lanes in divisors(sums) if sums // lanes <= steps)


def weights_of(layer: Layer) -> int:
    """Weights of the layer."""
    return int(layer.weights.size) if isinstance(layer, WeightedLayer) else 0


def streamable(layer: Layer) -> bool:
    """Whether weights from DDR memory pay: each is read once for a pixel, so there should be few pixels."""
    return isinstance(layer, Product) and layer.result.pixels == 1 and layer.weights.size % 8 == 0
