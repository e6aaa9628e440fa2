"""Tiling on the program: a depthwise convolution and its pointwise neighbours computed a band of rows at a time.

The map between a 1×1 convolution that expands and the depthwise one behind it is the largest of an inverted
residual, and never whole in memory here: for each band of output rows, the rows that the depthwise convolution
needs are expanded into a small buffer, convolved into another, and projected from there. Rows that two bands share
(the halo of the kernel) are moved to the front of the buffer, not computed again, so that the results are the same
to the last bit. The parts are steps like any others: the kernels that sweep the whole map, with fewer rows.

It pays where the maps do not fit the cache and the weights, which every band reads again, do (:func:`pays`). A
microcontroller has no cache and little memory: there it is done where it makes the arena smaller
(:func:`tile_for_memory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgec import scalar
from edgec.nest import bounds, coefficient, terms
from edgec.planning.memory import live_ranges
from edgec.program import ARENA, Buffer, Conv, Depthwise, Fill, Loops, Program, Step
from edgec.scalar import Expr

CACHE_BYTES = 1024 * 1024
"""The second-level cache; maps that fit it are as near as a band would be. (1 MB: the x86 server cores this was
measured on, and a Raspberry Pi 4.)"""
BAND_BYTES = CACHE_BYTES // 2
"""What the bands of a chain may take: the other half is for weights, and for what is read and written outside."""
CALL_BYTES = 16 * 1024
"""Traffic that costs about as much as one more step: its call, and the ends of its tiles."""

MARGIN = 2
"""How many times its cost a band must save."""

SMALL_BAND_BYTES = 32 * 1024
"""Where memory is what counts. Less makes the arena little smaller, and the code larger, of which each height of a
band has its own."""

_EXTENT = {1: "out_height", 2: "out_width"}
"""The field that holds the extent of an axis of rows."""


def tile(program: Program) -> None:
    """Rewrite ``program`` in place; its results stay the same to the last bit."""
    for step in list(program.steps):
        if isinstance(step.kernel, Depthwise):
            chain = find_chain(program, step, BAND_BYTES)
            if chain is not None and pays(chain):
                _replace(program, chain)


def tile_for_memory(program: Program) -> None:
    """Rewrite ``program`` in place where it then needs a smaller arena, the largest maps first."""
    left = [step for step in program.steps if isinstance(step.kernel, Depthwise)]
    least = largest_alive(program)
    while left:
        chains = [chain for step in left if (chain := find_chain(program, step, SMALL_BAND_BYTES)) is not None]
        if not chains:
            return
        chain = max(chains, key=_map_bytes)
        left = [step for step in left if step is not chain.depthwise.step]
        before = list(program.steps)
        _replace(program, chain)
        now = largest_alive(program)
        if now < least:
            least = now
        else:
            program.steps[:] = before


def largest_alive(program: Program) -> int:
    """Bytes of the buffers in the arena at the step at which they are most."""
    lifetimes = live_ranges(program)
    alive = (sum(x.nbytes for x in lifetimes if x.first <= i <= x.last) for i in range(len(program.steps)))
    return max(alive, default=0)


# ---- finding a chain ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A step that walks ``count`` rows in order, ``unit`` iterations of its ``axis`` (1 or 2) to the row."""

    step: Step
    axis: int
    unit: int
    count: int

    @property
    def kernel(self) -> Conv | Depthwise:
        assert isinstance(self.step.kernel, Conv | Depthwise)
        return self.step.kernel

    def part(self, first: int, count: int, bands: Mapping[int, tuple[Buffer, int]]) -> Step:
        """Rows ``first`` to ``first + count``; ``bands``: by root, a buffer's stand-in and the element it starts at."""
        kernel, skip = self.kernel, first * self.unit
        input_step = kernel.stride[self.axis - 1] * kernel.input_strides[self.axis]
        source, input_shift = _stand_in(self.step.inputs[0], bands)
        output, output_shift = _stand_in(self.step.output, bands)

        def later(node: Expr) -> Expr | None:
            return None if node.op != "load" else scalar.load(node.args[0], self._at(node.args[1], skip), node.dtype)

        changes = {
            _EXTENT[self.axis]: count * self.unit,
            "input_offset": kernel.input_offset + skip * input_step + input_shift,
            "epilogue": scalar.rewrite(kernel.epilogue, later),
            "store": self._at(kernel.store, skip) + output_shift,
        }
        return Step(replace(kernel, **changes), [source, *self.step.inputs[1:]], output, self.step.nodes)  # type: ignore[arg-type]

    def _at(self, offset: Expr, skip: int) -> Expr:
        """``offset`` where the axis starts ``skip`` iterations later."""
        return offset + (coefficient(offset, self.axis) or 0) * skip


def _stand_in(buffer: Buffer, bands: Mapping[int, tuple[Buffer, int]]) -> tuple[Buffer, int]:
    """What takes the place of ``buffer``, and how far an offset into it moves."""
    if id(buffer.root) not in bands:
        return buffer, 0
    band, start = bands[id(buffer.root)]
    return band, buffer.root_offset - start


@dataclass(frozen=True)
class Border:
    """What the steps that clear a padded map's border store: ``rows`` (first, count) from end to end, and
    ``columns`` (offset in the row, elements) of all others."""

    value: float
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Chain:
    """A depthwise convolution with what fills its input (``before`` and ``border``) and what reads its output.

    ``first_row`` is the row of the padded map at which ``before`` starts, and ``band_bytes`` what a band may take.
    """

    depthwise: Rows
    before: Rows | None
    after: Rows | None
    border: Border | None
    band_bytes: int
    first_row: int = 0

    @property
    def steps(self) -> list[Step]:
        """Its steps; those of the border among them."""
        own = [rows.step for rows in (self.before, self.depthwise, self.after) if rows is not None]
        return [*(self.border.steps if self.border else ()), *own]

    @property
    def source_stride(self) -> int:
        """Elements from row to row of what the depthwise convolution reads."""
        return self.depthwise.kernel.input_strides[1]

    @property
    def result_stride(self) -> int:
        """Elements from row to row of what it writes."""
        return coefficient(self.depthwise.kernel.store, 1) or 0

    def needed(self, first: int, count: int) -> tuple[int, int]:
        """The rows (first, end) of its input from which rows ``first`` to ``first + count`` are computed."""
        kernel = self.depthwise.kernel
        stride, reach = kernel.stride[0], (kernel.kernel[0] - 1) * kernel.dilation[0] + 1
        return first * stride, (first + count - 1) * stride + reach


def find_chain(program: Program, step: Step, band_bytes: int) -> Chain | None:
    """The chain around a depthwise ``step``; None where it has no pointwise neighbour of its own."""
    kernel = step.kernel
    assert isinstance(kernel, Depthwise)
    own_height = coefficient(kernel.store, 1)
    if kernel.batch != 1 or kernel.out_height < 2 or not own_height or not _in_order(step, 1):
        return None
    rows = Rows(step, 1, 1, kernel.out_height)
    chain = _with_after(program, Chain(rows, None, None, None, band_bytes))
    chain = _with_before(program, chain)
    return None if chain.before is None and chain.after is None else chain


def _touching(program: Program, buffer: Buffer) -> list[Step]:
    """Every step that reads or writes the memory of ``buffer``, if that is in the arena."""
    return [s for s in program.steps if any(b.root is buffer.root for b in s.buffers)] if _inside(buffer) else []


def _inside(buffer: Buffer) -> bool:
    return buffer.root.space == ARENA


def _in_order(step: Step, axis: int) -> bool:
    """Whether ``axis`` moves every offset of the epilogue by a constant and has no part in its values."""
    kernel = step.kernel
    assert isinstance(kernel, Conv | Depthwise)
    offsets = [node.args[1] for node in scalar.loads(kernel.epilogue)]
    values = scalar.rewrite(kernel.epilogue, lambda n: scalar.load(n.args[0], 0, n.dtype) if n.op == "load" else None)
    fixed = all(node.op != "axis" or node.args[0] != axis for node in scalar.walk(values))
    return fixed and all(coefficient(offset, axis) is not None for offset in (kernel.store, *offsets))


def _pointwise_rows(step: Step, stride: int, row: int, count: int) -> Rows | None:
    """How a 1×1 convolution walks ``count`` rows of ``row`` elements, of which a pixel of axis 2 takes ``stride``."""
    kernel = step.kernel
    if not isinstance(kernel, Conv) or kernel.kernel != (1, 1) or kernel.batch != 1 or kernel.weight_strides:
        return None
    axis, unit = (1, 1) if kernel.out_height > 1 else (2, row // stride if stride and row % stride == 0 else 0)
    whole = kernel.extents[axis] == count * unit
    return Rows(step, axis, unit, count) if whole and _in_order(step, axis) else None


def _with_after(program: Program, chain: Chain) -> Chain:
    """With the 1×1 convolution that alone reads the depthwise one's output."""
    step = chain.depthwise.step
    touching = _touching(program, step.output)
    if len(touching) != 2 or touching[0] is not step:
        return chain
    reader = touching[1]
    kernel = reader.kernel
    if not isinstance(kernel, Conv) or kernel.stride != (1, 1) or reader.inputs[0].root is not step.output.root:
        return chain
    if any(buffer.root is step.output.root for buffer in (*reader.inputs[1:], reader.output)):
        return chain
    row_step, column_step = kernel.input_strides[1:3]
    rows = _pointwise_rows(reader, column_step, chain.result_stride, chain.depthwise.count)
    fits = rows is not None and (rows.axis == 2 or row_step == chain.result_stride)
    dense = step.output.root_offset == 0 and _row_of(_store_of(step), 1, chain.depthwise) == 0
    return replace(chain, after=rows) if fits and dense else chain


def _store_of(step: Step) -> Expr:
    """Where a convolution stores."""
    assert isinstance(step.kernel, Conv | Depthwise)
    return step.kernel.store


def _row_of(store: Expr, unit: int, rows: Rows, start: int = 0) -> int | None:
    """The row of the map that the first row of ``rows`` is stored in; None where a row is not stored in one row."""
    factor = coefficient(store, rows.axis)
    parts = terms(store)
    if not factor or parts is None:
        return None
    row = factor * unit
    extents = [unit if axis == rows.axis else extent for axis, extent in enumerate(rows.kernel.extents)]
    inner = bounds(store, extents)
    if inner is None or (inner[0] + start) // row != (inner[1] + start) // row:
        return None
    return (inner[0] + start) // row


def _with_before(program: Program, chain: Chain) -> Chain:
    """With the 1×1 convolution that alone fills the depthwise one's input, but for its border."""
    step, row = chain.depthwise.step, chain.source_stride
    source = step.inputs[0]
    touching = [other for other in _touching(program, source) if other is not step]
    fills = [other for other in touching if isinstance(other.kernel, Fill)]
    writers = [other for other in touching if not isinstance(other.kernel, Fill)]
    if len(writers) != 1 or any(buffer.root is source.root for buffer in (*step.inputs[1:], step.output)):
        return chain
    writer = writers[0]
    if not isinstance(writer.kernel, Conv) or any(buffer.root is source.root for buffer in writer.inputs):
        return chain
    kernel = writer.kernel
    pixel = coefficient(kernel.store, 2) or 0
    height = kernel.out_height if kernel.out_height > 1 else kernel.out_width * pixel // row
    rows = _pointwise_rows(writer, pixel, row, height)
    if rows is None or (coefficient(kernel.store, rows.axis) or 0) * rows.unit != row:
        return chain
    first = _row_of(kernel.store, rows.unit, rows, writer.output.root_offset)
    border = _border(fills, row)
    starts_at_a_row = (chain.depthwise.kernel.input_offset + source.root_offset) == 0
    if first is None or border is None or not starts_at_a_row:
        return chain
    return replace(chain, before=rows, border=border if fills else None, first_row=first)


def _border(fills: Sequence[Step], row: int) -> Border | None:
    """What ``fills`` store, by rows of ``row`` elements; None where that is neither whole rows nor columns."""
    rows, columns, values = [], [], {0.0} if not fills else set()
    for step in fills:
        kernel = step.kernel
        assert isinstance(kernel, Fill)
        values.add(kernel.value)
        for offset, extents, strides in kernel.regions:
            start = offset + step.output.root_offset
            outer = [stride for extent, stride in zip(extents[:-1], strides[:-1], strict=True) if extent > 1]
            if not outer and start % row == 0 and extents[-1] % row == 0:
                rows.append((start // row, extents[-1] // row))
            elif outer == [row] and start % row + extents[-1] <= row:
                columns.append((start % row, extents[-1]))
            else:
                return None
    return Border(values.pop(), tuple(rows), tuple(columns), tuple(fills)) if len(values) == 1 else None


# ---- the estimate -------------------------------------------------------------------------------------------


def _band_rows(chain: Chain) -> int:
    """Rows of a band: as many as fit, in bands of equal height, and no fewer than the halo that moves between two."""
    kernel, itemsize = chain.depthwise.kernel, _itemsize(chain)
    first, end = chain.needed(0, 1)
    halo = max(0, end - first - kernel.stride[0])
    per_row = 0
    if chain.before is not None:
        per_row += kernel.stride[0] * chain.source_stride * itemsize
    if chain.after is not None:
        per_row += chain.result_stride * itemsize
    fixed = halo * chain.source_stride * itemsize if chain.before is not None else 0
    least = max(1, -(-halo // kernel.stride[0]))
    most = max(least, (chain.band_bytes - fixed) // per_row)
    count = -(-chain.depthwise.count // most)
    return max(least, -(-chain.depthwise.count // count))


def _itemsize(chain: Chain) -> int:
    buffer = chain.depthwise.step.inputs[0]
    return buffer.nbytes // buffer.elements


def _map_bytes(chain: Chain) -> int:
    """Of the maps that bands take the place of."""
    count, maps = chain.depthwise.count, 0
    if chain.before is not None:
        maps += chain.needed(0, count)[1] * chain.source_stride * _itemsize(chain)
    if chain.after is not None:
        maps += count * chain.result_stride * chain.after.step.inputs[0].nbytes // chain.after.step.inputs[0].elements
    return maps


def pays(chain: Chain) -> bool:
    """Whether the maps that no longer go through memory outweigh the weights that are read again and the calls."""
    count, rows = chain.depthwise.count, _band_rows(chain)
    bands = -(-count // rows)
    maps = _map_bytes(chain)
    weights = sum(step.inputs[1].nbytes for step in chain.steps if isinstance(step.kernel, Conv | Depthwise))
    again = (bands - 1) * (weights + (len(chain.steps) + 1) * CALL_BYTES)
    return bands > 1 and maps > CACHE_BYTES and 2 * maps > MARGIN * again


# ---- rewriting ----------------------------------------------------------------------------------------------


def _replace(program: Program, chain: Chain) -> None:
    """Put the bands where the last step of the chain stands: all that it reads is ready there."""
    steps = chain.steps
    last = max(program.steps.index(step) for step in steps)
    kept = [step for step in program.steps[:last] if not any(step is own for own in steps)]
    program.steps[:] = [*kept, *_bands(chain), *program.steps[last + 1 :]]


def _bands(chain: Chain) -> Iterator[Step]:
    """The chain's steps, band by band."""
    height, total = _band_rows(chain), chain.depthwise.count
    source = _Source(chain, height) if chain.before is not None else None
    result = _buffer(chain.depthwise.step.output, height * chain.result_stride) if chain.after is not None else None
    for first in range(0, total, height):
        count = min(height, total - first)
        bands: dict[int, tuple[Buffer, int]] = {}
        if source is not None:
            yield from source.advance(first, count)
            bands[id(chain.depthwise.step.inputs[0].root)] = source.band
        if result is not None:
            bands[id(chain.depthwise.step.output.root)] = (result, first * chain.result_stride)
        yield chain.depthwise.part(first, count, bands)
        if chain.after is not None:
            yield chain.after.part(first, count, bands)


def _buffer(like: Buffer, elements: int) -> Buffer:
    return Buffer(f"{like.root.name}_band", like.dtype, elements)


class _Source:
    """The rows of a depthwise convolution's padded input that the band in hand needs."""

    def __init__(self, chain: Chain, height: int) -> None:
        self.chain, self.row = chain, chain.source_stride
        self.slots = chain.needed(0, height)[1]
        self.buffer = _buffer(chain.depthwise.step.inputs[0], self.slots * self.row)
        self.first = self.end = 0

    @property
    def band(self) -> tuple[Buffer, int]:
        """The buffer, and the element of the whole map at which it starts."""
        return self.buffer, self.first * self.row

    def advance(self, first: int, count: int) -> Iterator[Step]:
        """Move on to the output rows ``first`` to ``first + count``."""
        old_first, old_end = self.first, self.end
        self.first, self.end = self.chain.needed(first, count)
        if old_end == 0:
            yield from self._columns()
        if old_end > self.first:
            yield self._move(self.first - old_first, old_end - self.first)
        new = max(old_end, self.first)
        yield from self._rows(new)
        before = self.chain.before
        assert before is not None
        start = max(new, self.chain.first_row) - self.chain.first_row
        end = min(self.end - self.chain.first_row, before.count)
        if end > start:
            root = self.chain.depthwise.step.inputs[0].root
            yield before.part(start, end - start, {id(root): self.band})

    def _move(self, by: int, count: int) -> Step:
        """The halo: ``count`` rows, ``by`` rows towards the front."""
        index = scalar.axis(0)
        body = scalar.load(0, index + by * self.row, self.buffer.dtype)
        nest = Loops((count * self.row,), body, index, self.buffer.dtype)
        return Step(nest, [self.buffer], self.buffer, self.chain.depthwise.step.nodes)

    def _columns(self) -> Iterator[Step]:
        """The border left and right, of every row that the buffer holds: no other step writes there."""
        border = self.chain.border
        if border is not None and border.columns:
            regions = tuple((start, (self.slots, count), (self.row, 1)) for start, count in border.columns)
            yield self._fill(regions, border)

    def _rows(self, new: int) -> Iterator[Step]:
        """The border above and below, from row ``new`` on."""
        border = self.chain.border
        for start, count in border.rows if border is not None else ():
            low, high = max(start, new), min(start + count, self.end)
            if high > low:
                assert border is not None
                yield self._fill((((low - self.first) * self.row, ((high - low) * self.row,), (1,)),), border)

    def _fill(self, regions: Sequence[tuple[int, Sequence[int], Sequence[int]]], border: Border) -> Step:
        kernel = Fill(tuple((o, tuple(e), tuple(s)) for o, e, s in regions), border.value, self.buffer.dtype)
        return Step(kernel, [], self.buffer, border.steps[0].nodes)
