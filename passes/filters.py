"""The algebra of linear operators: sums and compositions of filters, exact away from the borders.

A filter maps x to y_o[p] = Σ_i Σ_t W[o, i, t] · x_i[p·stride + start + t·dilation] + b_o, where x is zero outside
its extents. A convolution is one (start = −its padding), so are average pooling and a map per channel; a matrix
product is a filter without spatial axes. Hence

    sum            taps at the positions of all summands, at the greatest common dilation, zero where a summand
                   has none; possible where the strides agree
    second∘first   W[o, i, t₂·d₂·s₁ + t₁·d₁] = Σ_m W₂[o, m, t₂] · W₁[m, i, t₁],  b = W₂·b₁ + b₂,
                   start = s₁·start₂ + start₁,  stride = s₁·s₂

A filter in G groups is one in any G' groups that divide G, with zeros between the old groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import starmap
from math import gcd, prod

import numpy as np

from edgec.passes.rewriting import Refused

_CHANNELS = (slice(None),) * 3
"""All groups, outputs and inputs of a grouped weight."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a filter: channels, and for each spatial axis the kernel and where its taps lie."""

    outputs: int
    inputs: int
    groups: int
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[outputs, inputs / groups, *kernel]."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def spans(self) -> tuple[int, ...]:
        """Distance from the first tap to the last, for each axis."""
        return tuple((size - 1) * step for size, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_diagonal(self) -> bool:
        """Whether each output is one input, scaled and shifted."""
        pointwise = {*self.kernel, *self.strides} <= {1} and not any(self.starts)
        return pointwise and self.groups == self.inputs == self.outputs

    def macs(self, positions: int) -> int:
        """Multiply-accumulates for ``positions`` outputs a channel."""
        return positions * prod(self.weight_shape)


@dataclass(frozen=True)
class Filter:
    """A geometry with its weight, float64 [outputs, inputs / groups, *kernel], and bias, float64 [outputs]."""

    geometry: Geometry
    weight: np.ndarray
    bias: np.ndarray

    @property
    def is_identity(self) -> bool:
        return self.geometry.is_diagonal and bool((self.weight == 1).all()) and not self.bias.any()

    def grouped(self, groups: int) -> np.ndarray:
        """The weight in fewer groups, [groups, outputs / groups, inputs / groups, *kernel]."""
        old = self.geometry
        finer = old.groups // groups
        rows, columns = old.outputs // old.groups, old.inputs // old.groups
        split = self.weight.reshape(groups, finer, rows, columns, *old.kernel)
        wide = np.zeros((groups, finer, rows, finer, columns, *old.kernel))
        for index in range(finer):
            wide[:, index, :, index] = split[:, index]
        return wide.reshape(groups, finer * rows, finer * columns, *old.kernel)


def diagonal(scale: np.ndarray, shift: np.ndarray, spatial_rank: int) -> Filter:
    """The map per channel, scale·x + shift."""
    ones = (1,) * spatial_rank
    geometry = Geometry(scale.size, scale.size, scale.size, ones, ones, ones, (0,) * spatial_rank)
    return Filter(geometry, scale.reshape(geometry.weight_shape), shift)


def composed_geometry(second: Geometry, first: Geometry) -> Geometry:
    """The geometry of second∘first."""
    far = [step * stride for step, stride in zip(second.dilations, first.strides, strict=True)]
    spans = [
        outer * stride + inner for outer, stride, inner in zip(second.spans, first.strides, first.spans, strict=True)
    ]
    steps = [
        _common_step(each) for each in zip(_used(far, second.kernel), _used(first.dilations, first.kernel), strict=True)
    ]
    return Geometry(
        outputs=second.outputs,
        inputs=first.inputs,
        groups=gcd(second.groups, first.groups),
        kernel=tuple(span // step + 1 for span, step in zip(spans, steps, strict=True)),
        strides=tuple(a * b for a, b in zip(first.strides, second.strides, strict=True)),
        dilations=tuple(steps),
        starts=tuple(
            outer * stride + inner
            for outer, stride, inner in zip(second.starts, first.strides, first.starts, strict=True)
        ),
    )


def compose(second: Filter, first: Filter) -> Filter:
    """second∘first; the caller makes sure that the borders allow it (:func:`border_conflict`)."""
    geometry = composed_geometry(second.geometry, first.geometry)
    bias = second.bias + _scale_inputs(second, first.bias).reshape(geometry.outputs, -1).sum(axis=1)
    if second.geometry.is_diagonal:
        scale = second.weight.reshape(-1, *(1,) * (first.weight.ndim - 1))
        return Filter(geometry, first.weight * scale, bias)
    if first.geometry.is_diagonal:
        return Filter(geometry, _scale_inputs(second, first.weight.reshape(-1)), bias)
    return Filter(geometry, _composed_weight(second, first, geometry), bias)


def _scale_inputs(filter_: Filter, scale: np.ndarray) -> np.ndarray:
    geometry = filter_.geometry
    rows = np.repeat(scale.reshape(geometry.groups, -1), geometry.outputs // geometry.groups, axis=0)
    return filter_.weight * rows.reshape(*rows.shape, *(1,) * len(geometry.kernel))


def _composed_weight(second: Filter, first: Filter, geometry: Geometry) -> np.ndarray:
    groups = geometry.groups
    left, right = second.grouped(groups), first.grouped(groups)
    near = [step // common for step, common in zip(first.geometry.dilations, geometry.dilations, strict=True)]
    far = [
        step * stride // common
        for step, stride, common in zip(
            second.geometry.dilations, first.geometry.strides, geometry.dilations, strict=True
        )
    ]
    shape = (groups, *left.shape[1:2], *right.shape[2:])
    result = np.zeros((*shape[:3], *geometry.kernel))
    for tap in np.ndindex(*second.geometry.kernel):
        chosen: tuple[slice | int, ...] = (*_CHANNELS, *tap)
        product = (left[chosen] @ right.reshape(*right.shape[:2], -1)).reshape(shape)
        begins = [index * step for index, step in zip(tap, far, strict=True)]
        result[_taps(begins, near, first.geometry.kernel)] += product
    return result.reshape(geometry.weight_shape)


def united_geometry(geometries: Sequence[Geometry]) -> Geometry:
    """The geometry of a sum; raises :class:`Refused` where the strides differ."""
    first = geometries[0]
    if any(each.strides != first.strides for each in geometries):
        raise Refused(f"its branches have different strides ({_listed({each.strides for each in geometries})})")
    starts = [min(axis) for axis in zip(*(each.starts for each in geometries), strict=True)]
    steps, kernel = [], []
    for axis, low in enumerate(starts):
        ends = [each.starts[axis] + each.spans[axis] for each in geometries]
        apart = [each.starts[axis] - low for each in geometries]
        step = _common_step(apart + [each.dilations[axis] for each in geometries if each.kernel[axis] > 1])
        steps.append(step)
        kernel.append((max(ends) - low) // step + 1)
    groups = reduce(gcd, (each.groups for each in geometries))
    return replace(first, groups=groups, kernel=tuple(kernel), dilations=tuple(steps), starts=tuple(starts))


def add(filters: Sequence[Filter]) -> Filter:
    """The sum of ``filters``, which read the same value and have outputs of one shape."""
    geometry = united_geometry([each.geometry for each in filters])
    groups = geometry.groups
    result = np.zeros((groups, geometry.outputs // groups, geometry.inputs // groups, *geometry.kernel))
    for each in filters:
        shifts = zip(each.geometry.starts, geometry.starts, geometry.dilations, strict=True)
        begins = [(start - low) // step for start, low, step in shifts]
        steps = [max(a // b, 1) for a, b in zip(each.geometry.dilations, geometry.dilations, strict=True)]
        result[_taps(begins, steps, each.geometry.kernel)] += each.grouped(groups)
    bias = sum((each.bias for each in filters), np.zeros(geometry.outputs))
    return Filter(geometry, result.reshape(geometry.weight_shape), bias)


def border_conflict(
    second: Geometry, first: Filter, inputs: Sequence[int], middle: Sequence[int], outputs: Sequence[int]
) -> str | None:
    """Why second∘first is not exact at the border: ``"bias"``, ``"values"``, or None where it is.

    Where ``second`` reads outside its input, of extents ``middle``, it finds zeros; the composition finds there
    what ``first`` yields beyond the end, which is zero only if it has no bias and reaches nothing of its own
    input, of extents ``inputs``.
    """
    geometry = first.geometry
    for axis, (extent, between, count) in enumerate(zip(inputs, middle, outputs, strict=True)):
        start, stride = geometry.starts[axis], geometry.strides[axis]
        before = second.starts[axis] < 0
        behind = (count - 1) * second.strides[axis] + second.starts[axis] + second.spans[axis] >= between
        if (before or behind) and first.bias.any():
            return "bias"
        if (before and start + geometry.spans[axis] >= stride) or (behind and between * stride + start < extent):
            return "values"
    return None


def _common_step(steps: Sequence[int]) -> int:
    return reduce(gcd, steps, 0) or 1


def _used(steps: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """The steps between taps; 0 along axes with one tap, where there is none."""
    return [step if size > 1 else 0 for step, size in zip(steps, kernel, strict=True)]


def _taps(begins: Sequence[int], steps: Sequence[int], kernel: Sequence[int]) -> tuple[slice, ...]:
    """The index of a smaller kernel's taps in a larger one, for each group, output and input."""

    def taken(begin: int, step: int, size: int) -> slice:
        return slice(begin, begin + (size - 1) * step + 1, max(step, 1))

    return (*_CHANNELS, *starmap(taken, zip(begins, steps, kernel, strict=True)))


def _listed(strides: set[tuple[int, ...]]) -> str:
    return ", ".join("×".join(map(str, each)) for each in sorted(strides))
