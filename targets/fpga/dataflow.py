"""From layers and their foldings to the processes of a dataflow region and the channels between them.

A convolution is two processes, a line buffer and an engine; between layers of different lanes stand converters, and
where a value is read twice, duplicators. Every process is a call of a template in ``include/edgec_stream.h``.

The channel of a shortcut must hold what arrives on it while the longer way is still filling its line buffers: with
less the region would stand still for ever. Counting in rows of the network's input, T(v, r) is how many must have
been read before row r of v exists; a line buffer reads on while it writes, so that row r may need what row r + 1
needs. At a sum of a and b, a can be ahead of row r of b by the rows r' with T(a, r') ≤ T(b, r).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import ceil, gcd

from edgec.targets.fpga.folding import (
    Folding,
    engine_steps,
    is_depthwise_ordered,
    output_lanes,
    sum_lanes,
    weight_steps,
    weights_of,
    window_steps,
)
from edgec.targets.fpga.layers import (
    AveragePool,
    Depthwise,
    ExactProduct,
    Feature,
    Layer,
    Lookup,
    MaxPool,
    Requantisation,
    Softmax,
    Sum,
    WeightedLayer,
)
from edgec.targets.fpga.network import Network
from edgec.targets.fpga.resources import ultra_memories

SHORT = 4
"""Words of a channel that only couples two processes."""


@dataclass
class Channel:
    """A first-in, first-out channel.

    Attributes:
        name: a C identifier.
        lanes: values in a word.
        bits: of a value: 8, or those of a sum.
        words: that pass in a frame.
        depth: words that it holds.
        ultra: UltraRAM blocks that hold them; 0 for any other memory.
    """

    name: str
    lanes: int
    bits: int
    words: int
    depth: int = SHORT
    ultra: int = 0

    @property
    def width(self) -> int:
        """Bits of a word."""
        return self.lanes * self.bits

    @property
    def element(self) -> str:
        """The C++ type of a word."""
        return f"edgec::word<{self.lanes}>" if self.bits == 8 else f"edgec::sums<{self.lanes}, {self.bits}>"


@dataclass(frozen=True)
class Process:
    """One call in the dataflow region.

    Attributes:
        function: the template.
        parameters: its template arguments, as C++.
        arguments: what it is called with.
        steps: cycles a frame.
        layer: the layer that it belongs to; None for what moves bytes between layers.
    """

    function: str
    parameters: tuple[str, ...]
    arguments: tuple[str, ...]
    steps: int
    layer: str | None = None

    @property
    def call(self) -> str:
        """The statement."""
        return f"edgec::{self.function}<{', '.join(self.parameters)}>({', '.join(self.arguments)});"


@dataclass
class Dataflow:
    """The processes in the order of the data, the channels, and those that weights from DDR arrive on, by layer.

    DDR memory gives ``beats_per_cycle`` words of 64 bits a cycle.
    """

    processes: list[Process] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    loads: dict[str, Channel] = field(default_factory=dict)
    beats_per_cycle: float = 1.0

    @property
    def interval(self) -> int:
        """Cycles between one frame and the next."""
        return max(self.load_steps, *(process.steps for process in self.processes))

    @property
    def load_steps(self) -> int:
        """Cycles that the weights from DDR memory take."""
        return ceil(sum(channel.words for channel in self.loads.values()) / self.beats_per_cycle)


def build(
    network: Network, foldings: Mapping[str, Folding], beats_per_cycle: float = 1.0, ultra: int = 0
) -> Dataflow:
    """The dataflow region of ``network`` with these foldings, by layer name; ``ultra`` UltraRAM blocks are there."""
    builder = _Builder(network, foldings)
    builder.flow.beats_per_cycle = beats_per_cycle
    flow = builder.build()
    _into_ultra(flow.channels, ultra)
    return flow


def _into_ultra(channels: Sequence[Channel], blocks: int) -> None:
    """Put the deepest channels, which shortcuts have, into UltraRAM while there are ``blocks``."""
    for channel in sorted(channels, key=lambda each: -each.depth * each.width):
        taken = ultra_memories(channel.depth, channel.width)
        if taken <= blocks:
            channel.ultra, blocks = taken, blocks - taken


class _Builder:
    def __init__(self, network: Network, foldings: Mapping[str, Folding]) -> None:
        self.network, self.foldings, self.flow = network, foldings, Dataflow()
        self._needs = rows_needed(network)
        self._ready: dict[str, list[Channel]] = {}

    def build(self) -> Dataflow:
        for index, port in enumerate(self.network.inputs):
            raw = self._channel(port.feature, 1)
            self._process("unpack", (port.feature.elements,), (f"input{index}", raw.name), port.feature.elements)
            self._publish(port.value, raw, port.feature)
        for layer in self.network.layers:
            self._layer(layer)
        for index, port in enumerate(self.network.outputs):
            raw = self._converted(self._take(port.value), 1)
            self._process("pack", (port.feature.elements,), (raw.name, f"output{index}"), port.feature.elements)
        return self.flow

    def _channel(self, feature: Feature, lanes: int) -> Channel:
        return self._words(feature.elements // lanes, lanes)

    def _words(self, words: int, lanes: int, bits: int = 8) -> Channel:
        channel = Channel(f"channel{len(self.flow.channels)}", lanes, bits, words)
        self.flow.channels.append(channel)
        return channel

    def _process(
        self, function: str, parameters: tuple[object, ...], arguments: tuple[str, ...], steps: int,
        layer: str | None = None,
    ) -> None:  # fmt: skip
        self.flow.processes.append(Process(function, tuple(map(str, parameters)), arguments, steps, layer))

    def _publish(self, value: str, channel: Channel, feature: Feature) -> None:
        """Make a channel for each reader of ``value``."""
        ready = [channel]
        for _ in range(self.network.readers(value) - 1):
            last = ready.pop()
            first, second = (self._channel(feature, channel.lanes) for _ in range(2))
            self._process("duplicate", (channel.lanes, last.words), (last.name, first.name, second.name), last.words)
            ready += [first, second]
        self._ready[value] = ready

    def _take(self, value: str) -> Channel:
        return self._ready[value].pop(0)

    def _converted(self, channel: Channel, lanes: int) -> Channel:
        """``channel`` in words of ``lanes``, by way of their common divisor."""
        common = gcd(channel.lanes, lanes)
        if channel.lanes != common:
            narrow = self._words(channel.words * channel.lanes // common, common)
            self._process("narrow", (channel.lanes, common, channel.words), (channel.name, narrow.name), narrow.words)
            channel = narrow
        if common != lanes:
            wide = self._words(channel.words * common // lanes, lanes)
            self._process("widen", (common, lanes, wide.words), (channel.name, wide.name), channel.words)
            channel = wide
        return channel

    def _layer(self, layer: Layer) -> None:
        folding = self.foldings[layer.name]
        sources = [self._converted(self._take(value), folding.simd) for value in layer.inputs]
        if isinstance(layer, Sum):
            for channel, depth in zip(sources, shortcut_rows(self._needs, layer), strict=True):
                channel.depth = max(SHORT, depth * layer.source.width * layer.source.channels // channel.lanes)
        source = self._windows(layer, folding, sources[0]) if layer.line_window is not None else sources[0]
        feature = layer.result
        if isinstance(layer, ExactProduct):
            feature = Feature(feature.height, feature.width, 4 * feature.channels)
        result = self._channel(feature, output_lanes(layer, folding))
        if isinstance(layer, WeightedLayer):
            self._weighted(layer, folding, source, result)
        else:
            function, parameters, constants = _engine(layer, folding)
            channels = [channel.name for channel in (source, *sources[1:], result)]
            self._process(function, parameters, (*channels, *constants), engine_steps(layer, folding), layer.name)
        self._publish(layer.output, result, feature)

    def _weighted(self, layer: WeightedLayer, folding: Folding, source: Channel, result: Channel) -> None:
        """Sums of products, and what makes bytes of them."""
        lanes, bits, end = sum_lanes(layer, folding), layer.accumulator_bits, layer.end
        totals = self._words(layer.result.elements // lanes, lanes, bits)
        function, shape = _sums(layer, folding)
        weights = self._weights(layer, folding).name if folding.streamed else f"{layer.name}_weights"
        parameters = (weight_type(layer, folding), *shape, bits)
        arguments = (source.name, totals.name, weights)
        self._process(function, parameters, arguments, engine_steps(layer, folding), layer.name)
        if isinstance(layer, ExactProduct):
            parameters = (totals.words, lanes, layer.result.channels // lanes, bits)
            arguments = (totals.name, result.name, f"{layer.name}_biases")
            self._process("exact_sums", parameters, arguments, result.words, layer.name)
            return
        groups = layer.result.channels // result.lanes
        self._process(
            "requantise", (totals.words, lanes, result.lanes, groups, bits, *_rescaling(end)),
            (totals.name, result.name, f"{layer.name}_scales"), result.words, layer.name,
        )  # fmt: skip

    def _windows(self, layer: Layer, folding: Folding, source: Channel) -> Channel:
        window, x, y = layer.line_window, layer.source, layer.result
        assert window is not None
        windows = self._words(y.pixels * window.taps * x.channels // folding.simd, folding.simd)
        parameters = (
            x.height, x.width, x.channels, *window.kernel, *window.stride, *window.dilation, *window.pads,
            y.height, y.width, folding.simd, window.rows_held(x.height), window.fill,
            "true" if is_depthwise_ordered(layer) else "false",
        )  # fmt: skip
        steps = window_steps(layer, folding)
        self._process("sliding_window", parameters, (source.name, windows.name), steps, layer.name)
        return windows

    def _weights(self, layer: Layer, folding: Folding) -> Channel:
        """The channel on which a layer's weights arrive from DDR memory, eight bytes a beat."""
        arriving = self._words(weights_of(layer) // 8, 8)
        self.flow.loads[layer.name] = arriving
        return self._converted(arriving, folding.simd * folding.pe)


def weight_type(layer: WeightedLayer, folding: Folding) -> str:
    """The C++ class of the layer's weights."""
    if folding.multiplier == "shift":
        return f"edgec::shift_weight<{layer.weight_terms}>"
    return f"edgec::{folding.multiplier}_weight<{8 if folding.streamed else layer.weight_bits}>"


def _engine(layer: Layer, folding: Folding) -> tuple[str, tuple[object, ...], tuple[str, ...]]:
    """Function, template arguments, and constants of the arithmetic of a layer without weights."""
    lanes, result = folding.simd, layer.result
    if isinstance(layer, MaxPool):
        return "max_pool", (result.elements // lanes, layer.window.taps, lanes), ()
    if isinstance(layer, AveragePool):
        return _average(layer, lanes)
    if isinstance(layer, Sum):
        return (
            "add",
            (result.elements // lanes, lanes, *layer.factors, layer.offset, layer.shift, layer.zero, layer.low,
             layer.high),
            (),
        )  # fmt: skip
    if isinstance(layer, Lookup):
        return "lookup", (result.elements // lanes, lanes), (f"{layer.name}_table",)
    assert isinstance(layer, Softmax)
    return (
        "softmax",
        (result.pixels, result.channels, *layer.factor, layer.zero),
        (f"{layer.name}_powers",),
    )


def _sums(layer: WeightedLayer, folding: Folding) -> tuple[str, tuple[int, ...]]:
    """Function and extents of a layer's sums of products."""
    steps = weight_steps(layer, folding)
    if isinstance(layer, Depthwise):
        folds = layer.source.channels // folding.simd
        return "depthwise", (layer.result.pixels, folds, steps // folds, folding.simd)
    outputs = layer.result.channels // folding.pe
    shape = (layer.result.pixels, steps // outputs, outputs, folding.simd, folding.pe)
    return "matrix_vector_streamed" if folding.streamed else "matrix_vector", shape


def _rescaling(end: Requantisation) -> tuple[int, ...]:
    """Where the binary point stands, how many offsets there are, the zero point and the bounds."""
    return end.point, int(end.offsets.max(initial=0)) + 1, end.zero, end.low, end.high


def _average(layer: AveragePool, lanes: int) -> tuple[str, tuple[object, ...], tuple[str, ...]]:
    x, y, window, end = layer.source, layer.result, layer.window, layer.end
    rest = (layer.x_zero, *_rescaling(end))
    if layer.tiles:
        extents = (x.height, x.width, x.channels, *window.kernel, *window.stride, y.height, y.width, lanes)
        return "average_tiles", (*extents, *rest), (f"{layer.name}_scales[0]",)
    shape = (y.pixels, x.channels // lanes, window.taps, lanes, end.multiplier.size)
    return "average_windows", (*shape, *rest), (f"{layer.name}_scales",)


Needs = Callable[[str, int], int]


def shortcut_rows(needs: Needs, layer: Sum) -> tuple[int, int]:
    """Rows that each input's channel must hold."""
    first, second = layer.inputs
    return _ahead(needs, first, second, layer.source.height), _ahead(needs, second, first, layer.source.height)


def _ahead(needs: Needs, own: str, other: str, height: int) -> int:
    """The most rows that exist of one value, and are not used, when a row of the other comes to exist, and one more."""
    wanted = [needs(own, row) for row in range(height)]
    return max(bisect_right(wanted, needs(other, row)) - row for row in range(height)) + 1


def rows_needed(network: Network) -> Needs:
    """T(value, row), as if features went on below their last row: what is needed there is needed of no channel."""
    layers = {layer.output: layer for layer in network.layers}

    @cache
    def needs(value: str, row: int) -> int:
        layer = layers.get(value)
        return row + 1 if layer is None else max(needs(each, _last_row(layer, row)) for each in layer.inputs)

    return needs


def _last_row(layer: Layer, row: int) -> int:
    """The last row of the source that may be read before ``row`` of the result is written."""
    window = layer.line_window
    if isinstance(layer, AveragePool) and layer.tiles:
        return row * layer.window.stride[0] + layer.window.kernel[0] - 1
    if window is None:
        return row if layer.source.height == layer.result.height else layer.source.height - 1
    return max(0, (row + 1) * window.stride[0] - window.pads[0] + window.span - 1)
