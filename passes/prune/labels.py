"""Labels for the indices of every axis of every value: equal labels stay or go together.

An index of an axis (channel 5 of a convolution's output, say) is a label. What an operator does to its operands
makes labels equal: a sum equates its operands' channels, a concatenation lines them up, a product contracts
them. Labels that must stay are pinned, each with a reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import shape_of


class Labels:
    """A union-find forest over the labels of all values, and the reasons why some are pinned."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pins: dict[int, str] = {}
        self._axes: dict[ir.Value, tuple[np.ndarray, ...]] = {}

    def of(self, value: ir.Value) -> tuple[np.ndarray, ...]:
        """One int64 array of labels an axis, as long as the axis; made when they are first asked for."""
        if value not in self._axes:
            self._axes[value] = tuple(self.fresh(extent) for extent in shape_of(value))
        return self._axes[value]

    def values(self) -> Sequence[ir.Value]:
        """Every value that has labels."""
        return list(self._axes)

    def fresh(self, count: int) -> np.ndarray:
        """``count`` labels that equal no other."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Make the labels of two arrays of one length equal, place by place; a pin on one holds for both."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            if one == other:
                continue
            self._parents[other] = one
            reason = self._pins.pop(other, None)
            if reason is not None:
                self._pins.setdefault(one, reason)

    def pin(self, labels: np.ndarray, reason: str) -> None:
        """The labels must stay; the first reason given is kept."""
        for label in labels.tolist():
            self._pins.setdefault(self._root(label), reason)

    def reason(self, label: int) -> str | None:
        """Why the label is pinned; None where it is free."""
        return self._pins.get(self._root(label))

    def pinned(self, labels: np.ndarray) -> np.ndarray:
        """bool, of the shape of ``labels``: which of them must stay."""
        return np.array([self._root(label) in self._pins for label in labels.tolist()], bool)

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """One representative for all labels that are equal, in the shape of ``labels``."""
        return np.array([self._root(label) for label in labels.tolist()], np.int64)

    def _root(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label
