"""The program: a straight line of kernel calls on static buffers.

A **buffer** is a run of elements of one dtype: a graph input or output, a constant, or a place in the
arena. A **view** looks at a buffer through a shape, strides and an offset, so that transposes, slices,
splits and most reshapes cost nothing. A **kernel** is a contract: what is computed, on which extents and
strides, said without any target. A **step** binds a kernel to buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar

import numpy as np

from edgec import scalar
from edgec.scalar import Expr

ARENA, INPUT, OUTPUT, CONSTANT = "arena", "input", "output", "constant"
STATE = "state"
"""The part of the arena, at its start, that keeps its content from one run to the next."""


@dataclass(eq=False)
class Buffer:
    """``elements`` values of ``dtype``. ``data`` is set for constants; ``offset`` (bytes) by the planner.

    A buffer with a ``parent`` is a window into it: element 0 stands ``parent_offset`` elements into it.
    """

    name: str
    dtype: str
    elements: int
    space: str = ARENA
    data: np.ndarray | None = None
    offset: int | None = None
    parent: Buffer | None = None
    parent_offset: int = 0

    @property
    def nbytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize

    @property
    def root(self) -> Buffer:
        """The buffer that owns the memory."""
        return self if self.parent is None else self.parent.root

    @property
    def root_offset(self) -> int:
        """Elements from the start of ``root`` to this buffer's element 0."""
        return 0 if self.parent is None else self.parent_offset + self.parent.root_offset


def dense_strides(shape: Sequence[int], order: Sequence[int] | None = None) -> tuple[int, ...]:
    """Strides, in elements, of a dense array whose axes lie in memory in ``order`` (outermost first)."""
    strides, step = [0] * len(shape), 1
    for index in reversed(range(len(shape)) if order is None else order):
        strides[index] = step
        step *= shape[index]
    return tuple(strides)


@dataclass(frozen=True)
class View:
    """A tensor: ``shape`` over ``buffer`` with ``strides`` and ``offset``, in elements."""

    buffer: Buffer
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def dtype(self) -> str:
        return self.buffer.dtype

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def order(self) -> tuple[int, ...]:
        """Axes from the outermost in memory to the innermost; broadcast and unit axes keep their place."""
        large = [i for i, extent in enumerate(self.shape) if extent > 1 and self.strides[i]]
        ranked = iter(sorted(large, key=lambda i: -abs(self.strides[i])))
        return tuple(next(ranked) if i in large else i for i in range(len(self.shape)))

    def is_dense(self, order: Sequence[int] | None = None) -> bool:
        """Whether the view covers its whole buffer without gaps, its axes in ``order``."""
        wanted = dense_strides(self.shape, order)
        strides_fit = all(s == w or e == 1 for s, w, e in zip(self.strides, wanted, self.shape, strict=True))
        return self.offset == 0 and self.elements == self.buffer.elements and strides_fit

    def at(self, *indices: Expr | int) -> Expr:
        """The offset of the element at ``indices``."""
        total = scalar.const(self.offset, scalar.INDEX)
        for index, stride, extent in zip(indices, self.strides, self.shape, strict=True):
            if extent > 1 and stride:
                total = (index if isinstance(index, Expr) else scalar.const(index, scalar.INDEX)) * stride + total
        return total

    def permute(self, axes: Sequence[int]) -> View:
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def drop(self, *axes: int) -> View:
        """The view without ``axes``, whose extents are 1."""
        kept = [i for i in range(len(self.shape)) if i not in axes]
        return replace(self, shape=tuple(self.shape[i] for i in kept), strides=tuple(self.strides[i] for i in kept))

    def broadcast_to(self, shape: Sequence[int]) -> View:
        """The view with leading axes added and unit axes repeated, without a copy."""
        missing = len(shape) - len(self.shape)
        own = (1,) * missing + self.shape
        strides = (0,) * missing + self.strides
        fitted = tuple(0 if e == 1 else s for s, e in zip(strides, own, strict=True))
        return replace(self, shape=tuple(shape), strides=fitted)

    def slice(self, starts: Sequence[int], shape: Sequence[int], steps: Sequence[int] | None = None) -> View:
        """``shape`` elements from ``starts`` on, every ``steps``-th (which may be negative)."""
        steps = steps or [1] * len(shape)
        return View(
            self.buffer,
            tuple(shape),
            tuple(s * step for s, step in zip(self.strides, steps, strict=True)),
            self.offset + sum(a * s for a, s in zip(starts, self.strides, strict=True)),
        )

    def reshape(self, shape: Sequence[int]) -> View | None:
        """The same elements, in row-major order, as ``shape``; None where that needs a copy."""
        strides = _reshaped_strides(self.shape, self.strides, tuple(shape))
        return None if strides is None else replace(self, shape=tuple(shape), strides=strides)


def _reshaped_strides(old: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """Strides of ``new`` over the same memory, found group by group of equal products (as numpy does)."""
    axes = [(e, s) for e, s in zip(old, strides, strict=True) if e != 1]
    result: list[int] = []
    position = 0
    pending = list(new)
    while pending:
        extent = pending.pop(0)
        if extent == 1:
            result.append(0)
            continue
        group = [extent]
        if position >= len(axes):
            return None
        product, inner = extent, [axes[position]]
        old_product = axes[position][0]
        position += 1
        while product != old_product:
            if product < old_product:
                if not pending:
                    return None
                group.append(pending.pop(0))
                product *= group[-1]
            else:
                if position >= len(axes):
                    return None
                if inner[-1][1] != axes[position][0] * axes[position][1]:
                    return None
                inner.append(axes[position])
                old_product *= axes[position][0]
                position += 1
        step, tail = inner[-1][1], []
        for e in reversed(group):
            tail.append(step)
            step *= e
        result.extend(reversed(tail))
    return tuple(result)


@dataclass(frozen=True)
class Loops:
    """A loop nest: the general kernel.

    For every point of ``extents``: with a ``reducer``, ``acc`` starts at its identity and takes in ``body``
    over every point of ``reduce`` (axes numbered after the output axes); then ``epilogue`` (of ``acc``) or,
    without a reducer, ``body`` itself is stored at ``store``. With ``combine`` the value is combined with
    what is stored there ("add", "mul", "max", "min"), in the order of the loops, on one thread.
    """

    extents: tuple[int, ...]
    body: Expr
    store: Expr
    dtype: str
    reduce: tuple[int, ...] = ()
    reducer: str | None = None
    epilogue: Expr | None = None
    combine: str | None = None
    sequential: bool = False

    @property
    def result(self) -> Expr:
        """The expression that is stored."""
        return self.body if self.epilogue is None else self.epilogue

    @property
    def macs(self) -> int:
        products = self.reducer == "sum" and self.body.op == "mul"
        return prod(self.extents) * prod(self.reduce) if products else 0


OVERREAD = 64
"""Bytes past the end of its input that an integer convolution may read and not use; the arena has as many to spare."""


def _accumulator_dtype(kernel: Conv | Depthwise) -> str:
    if kernel.sum_dtype is not None:
        return kernel.sum_dtype
    return "float32" if kernel.input_dtype.startswith("float") else "int32"


@dataclass(frozen=True)
class Packing:
    """How constant integer weights are stored: ``bits`` each (2, 3, 4 or 8), unpacked in the kernel's registers.

    With integer inputs, ``group`` > 0 neighbours along the depth [kh, kw, ci] are, for each output channel, integers of
    ``bits`` around zero times a factor (see :func:`edgec.grid.common_factors`). Operand 1 holds the products; a kernel
    may store both apart. A group is of one tap of the window.

    With float inputs, ``group`` > 0 neighbours along the depth [kh, kw, ci] share a scale for each output channel; it
    is a multiple of 8. Operand 2 then holds these as [group, channel], the channels filled up to a multiple of
    :data:`SCALE_CHANNELS`: float32, or the upper halves of those as uint16, which is bfloat16. Otherwise scales are
    the epilogue's affair.

    ``parts`` are groups of several widths: (bits, how many groups), one after the other; ``bits`` is the largest. The
    depth of operand 1 is then in that order, group by group, and operand 3 has, int32, which group of the input each of
    them multiplies. Scales stay in the order of the input, of which eight neighbours share a tap of the window.

    ``nested`` weights are stored as two signed nibbles, 16 · upper + lower, the lower ones behind all upper ones: a
    kernel of 8 bits reads both, and one of 4 bits the upper ones alone, as 16 · upper.
    """

    bits: int
    group: int = 0
    nested: bool = False
    parts: tuple[tuple[int, int], ...] = ()


SCALE_CHANNELS = 16
"""Output channels of a group's scales come in multiples of this, so that a vector of them can be read whole."""


@dataclass(frozen=True)
class Conv:
    """Convolution over an input that already holds its padding; a GEMM is the 1×1 case with height 1.

    out[n,h,w,c] = epilogue(sum over kh,kw,ci of in[n, h·sh + kh·dh, w·sw + kw·dw, ci] · weight[kh,kw,ci,c])

    With ``grouped`` each n has a weight of its own, [n, kh, kw, ci, co]: the groups of a grouped convolution are the
    "images" of such a batch, ``in_channels`` and ``out_channels`` those of one group.

    A float32 input is summed up in float32; a float16 one, too (on GPUs), or with ``sum_dtype`` in float16 (on
    processors that compute in it, see :mod:`edgec.targets.half`). An int8, uint8 or int16 input, with int8 weights, is
    summed up exactly in int32; zero points are the lowering's affair (a constant in the epilogue, and the value in the
    padding). Such a kernel may read up to :data:`OVERREAD` bytes past its input, which therefore lies in the arena.

    Operand 0 is the input (offset ``input_offset``; strides of n, h, w, c), operand 1 the weight: constant,
    dense [kh, kw, ci, co], packed by the target. With ``packing`` it is int8, also for a float32
    input. With ``weight_strides`` (batch, k, and columns contiguous) it
    is a run-time matrix read in place, and the kernel must be 1×1. Epilogue axes are (n, h, w, c) = axes 0..3;
    its further operands follow. ``store`` is affine in the axes.
    """

    batch: int
    out_height: int
    out_width: int
    out_channels: int
    in_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    input_strides: tuple[int, int, int, int]
    input_offset: int
    epilogue: Expr
    store: Expr
    dtype: str = "float32"
    input_dtype: str = "float32"
    weight_strides: tuple[int, int] | None = None
    weight_offset: int = 0
    packing: Packing | None = None
    sum_dtype: str | None = None
    grouped: bool = False

    @property
    def accumulator_dtype(self) -> str:
        """dtype of the sums."""
        return _accumulator_dtype(self)

    @property
    def own_operands(self) -> int:
        """How many operands the sums take; the epilogue's follow."""
        if self.packing is None or not self.packing.group or self.accumulator_dtype == "int32":
            return 2
        return 4 if self.packing.parts else 3

    @property
    def taps(self) -> list[tuple[int, int]]:
        """The loops over what a sum takes in, rows of the window, columns and channels: (extent, input elements)."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        _, row, column, channel = self.input_strides
        return [(kh, dh * row), (kw, dw * column), (self.in_channels, channel)]

    @property
    def extents(self) -> tuple[int, ...]:
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @property
    def result(self) -> Expr:
        return self.epilogue

    @property
    def macs(self) -> int:
        return prod(self.extents) * self.in_channels * prod(self.kernel)


@dataclass(frozen=True)
class Depthwise:
    """Depthwise convolution, one filter a channel, over an input that already holds its padding.

    out[n,h,w,c] = epilogue(sum over kh,kw of in[n, h·sh + kh·dh, w·sw + kw·dw, c] · weight[kh,kw,c])

    Operands and dtypes as for :class:`Conv`; input channels are contiguous, and the weight is dense [kh, kw, c].

    Attributes:
        weight_dtype: where it is not that of the input: int8 weights for a float32 input, say.
    """

    batch: int
    out_height: int
    out_width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    input_strides: tuple[int, int, int, int]
    input_offset: int
    epilogue: Expr
    store: Expr
    dtype: str = "float32"
    input_dtype: str = "float32"
    weight_dtype: str | None = None
    sum_dtype: str | None = None
    own_operands: ClassVar[int] = 2

    @property
    def accumulator_dtype(self) -> str:
        """dtype of the sums."""
        return _accumulator_dtype(self)

    @property
    def extents(self) -> tuple[int, ...]:
        return (self.batch, self.out_height, self.out_width, self.channels)

    @property
    def result(self) -> Expr:
        return self.epilogue

    @property
    def macs(self) -> int:
        return prod(self.extents) * prod(self.kernel)


@dataclass(frozen=True)
class Fill:
    """Constant regions: each is (offset, extents, strides), contiguous along its last axis.

    It clears the border of a padded feature map; no other step writes there, so it may come before or after
    those that write the inside.
    """

    regions: tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]
    value: float
    dtype: str

    @property
    def extents(self) -> tuple[int, ...]:
        return (sum(prod(extents) for _, extents, _ in self.regions),)

    @property
    def store(self) -> Expr:
        """Where the first region starts."""
        return scalar.const(self.regions[0][0], scalar.INDEX)

    @property
    def result(self) -> Expr:
        return scalar.const(self.value, self.dtype)

    @property
    def macs(self) -> int:
        return 0


def border(
    view: View, start: Sequence[int], extents: Sequence[int]
) -> tuple[tuple[int, tuple[int, ...], tuple[int, ...]], ...]:
    """A dense ``view`` around its inner part, which begins at ``start``, as regions of :class:`Fill`.

    Axis by axis in memory order: what lies before and after the inner part along the axis, inside the inner
    part along the axes further out, and whole along the axes further in, which makes it one run of memory.
    """
    regions = []
    outer: list[int] = []
    for position, axis in enumerate(view.order):
        run = prod(view.shape[a] for a in view.order[position + 1 :])
        corner = sum(start[a] * view.strides[a] for a in outer)
        strides = (*(view.strides[a] for a in outer), 1)
        end = start[axis] + extents[axis]
        for first, count in ((0, start[axis]), (end, view.shape[axis] - end)):
            shape = (*(extents[a] for a in outer), count * run)
            if 0 not in shape:
                regions.append((corner + first * run, shape, strides))
        outer.append(axis)
    return tuple(regions)


Kernel = Loops | Conv | Depthwise | Fill


@dataclass(eq=False)
class Step:
    """One kernel call: ``inputs`` are the kernel's operands in order; ``nodes`` the ONNX nodes it computes."""

    kernel: Kernel
    inputs: list[Buffer]
    output: Buffer
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first node, and how many more it computes."""
        more = len(self.nodes) - 1
        return f"{self.nodes[0]} +{more}" if more else self.nodes[0]

    @property
    def buffers(self) -> Iterator[Buffer]:
        yield from self.inputs
        yield self.output


@dataclass(frozen=True)
class Tensor:
    """An input or output of the program: the ONNX value's name, shape and dtype, and its buffer.

    Integers with a ``scale`` stand for real numbers, scale · (q − zero_point).
    """

    name: str
    shape: tuple[int, ...]
    buffer: Buffer
    scale: float = 0.0
    zero_point: int = 0

    @property
    def dtype(self) -> str:
        return self.buffer.dtype


@dataclass
class Program:
    """The lowered model. Sizes in bytes and buffer offsets are set by :mod:`edgec.planning.memory`.

    ``states`` (see :mod:`edgec.states`) lie in the first ``state_bytes`` of the arena.
    """

    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    steps: list[Step] = field(default_factory=list)
    arena_bytes: int = 0
    arena_lower_bound: int = 0
    states: list[Tensor] = field(default_factory=list)
    state_bytes: int = 0

    @property
    def macs(self) -> int:
        return sum(step.kernel.macs for step in self.steps)

    @property
    def constants(self) -> list[Buffer]:
        """Constant buffers that a step reads, each once, in order of first use."""
        found = {id(b.root): b.root for step in self.steps for b in step.inputs if b.root.space == CONSTANT}
        return list(found.values())
