"""Boxes from the output of FastestDet (https://github.com/dog-qiuqiu/FastestDet) and detectors of its shape.

The output is [1, 5 + classes, rows, columns]: for every cell of the grid how sure it is of an object, the centre's
offset in cells (through tanh), the box's width and height as a share of the picture (through a sigmoid), and the share
of each class. A cell's score is objectness^0.6 · class^0.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Box:
    """An object; ``sides`` are left, top, right, bottom as shares of the picture's width and height."""

    label: int
    score: float
    sides: tuple[float, float, float, float]


def find_boxes(output: np.ndarray, threshold: float, overlap: float = 0.45) -> list[Box]:
    """The boxes that score at least ``threshold``, best first.

    Of boxes of one class that overlap by more than ``overlap`` (intersection over union) only the best stays.
    """
    grid = output[0].astype(np.float64)
    rows, columns = grid.shape[1:]
    labels = grid[5:].argmax(axis=0)
    scores = np.maximum(grid[0], 0) ** 0.6 * np.maximum(grid[5:].max(axis=0), 0) ** 0.4
    y, x = np.mgrid[:rows, :columns]
    centre_x, centre_y = (np.tanh(grid[1]) + x) / columns, (np.tanh(grid[2]) + y) / rows
    width, height = 1 / (1 + np.exp(-grid[3])), 1 / (1 + np.exp(-grid[4]))
    sides = np.stack([centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2])
    kept: list[Box] = []
    for place in np.argsort(-scores, axis=None, kind="stable"):
        row, column = divmod(int(place), columns)
        if scores[row, column] < threshold:
            break
        left, top, right, bottom = map(float, sides[:, row, column])
        box = Box(int(labels[row, column]), float(scores[row, column]), (left, top, right, bottom))
        if all(box.label != other.label or _overlap(box, other) <= overlap for other in kept):
            kept.append(box)
    return kept


def _overlap(first: Box, second: Box) -> float:
    (left, top, right, bottom), other = first.sides, second.sides
    width = max(0.0, min(right, other[2]) - max(left, other[0]))
    height = max(0.0, min(bottom, other[3]) - max(top, other[1]))
    areas = (right - left) * (bottom - top) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (areas - width * height)
