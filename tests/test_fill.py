"""Borders are cleared in few runs, and are the same elements."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.targets.cpu.fill import joined


def elements(regions) -> list[int]:
    """The places of all elements, in order."""
    found = []
    for offset, extents, strides in regions:
        steps = np.indices(extents)
        found += (offset + sum(i * s for i, s in zip(steps, strides, strict=True))).ravel().tolist()
    return sorted(found)


def border(height: int, width: int, channels: int, top: int, bottom: int, left: int, right: int) -> list:
    """The regions around the inside of a padded map."""
    row = width * channels
    inside = height - top - bottom
    rows = [(0, (top, row), (row, 1)), ((height - bottom) * row, (bottom, row), (row, 1))]
    first = top * row
    columns = [
        (first, (inside, left, channels), (row, channels, 1)),
        (first + (width - right) * channels, (inside, right, channels), (row, channels, 1)),
    ]
    return [region for region in rows + columns if region[1][0] and region[1][1]]


@pytest.mark.parametrize("height", [3, 4, 7])
@pytest.mark.parametrize(
    ("sides", "regions"),
    [((1, 1, 1, 1), 3), ((2, 1, 1, 2), 3), ((0, 0, 1, 1), 3), ((1, 1, 0, 1), 3), ((1, 0, 2, 0), 2)],
)
def test_a_border_is_few_runs(height, sides, regions):
    top, bottom, *_ = sides
    given = border(height + top + bottom - 1, 9, 5, *sides)
    got = joined(given)
    assert elements(got) == elements(given)
    assert len(got) <= regions


def test_regions_of_more_loops_stay():
    given = [(0, (2, 3, 4), (100, 10, 1)), (7, (3, 2), (10, 1))]
    assert joined(given) == given
