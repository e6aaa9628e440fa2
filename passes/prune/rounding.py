"""How counts of channels and ranks are rounded, so that kernels' vectors are full."""

from __future__ import annotations

_PARTS, _LEAST = 4, 4
"""A step is at most such a part of what is there, or narrow layers could not be pruned at all, unless it would be
shorter than the shortest vector."""


def vector_step(multiple: int, count: int) -> int:
    """In which steps ``count`` channels go: ``multiple``, or half of it as often as it takes where they are few."""
    step = multiple
    while step > 1 and ((step > _LEAST and step > -(-count // _PARTS)) or 2 * step > count):
        step //= 2
    return step
