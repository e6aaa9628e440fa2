"""Borders that ScatterND writes: folded where they are one constant a channel, refused with a reason where not."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.passes.fold_borders import FoldBorders
from tests.folding import arrays
from tests.graphs import assert_same, build, load, node, operators


def writes(*sides: tuple[list[int], list[int], np.ndarray]) -> tuple[list, dict[str, np.ndarray]]:
    """ScatterND of values [channels] at all pairs of rows and columns, one after the other, of a map of 6 × 7."""
    nodes, constants = [], {}
    for number, (rows, columns, values) in enumerate(sides):
        indices = np.stack(np.meshgrid([0], range(3), rows, columns, indexing="ij"), axis=-1)
        constants[f"i{number}"] = indices
        constants[f"u{number}"] = np.broadcast_to(values.reshape(1, -1, 1, 1), indices.shape[:-1]).astype(np.float32)
        source, result = f"s{number}" if number else "padded", f"s{number + 1}"
        nodes.append(node("ScatterND", [source, f"i{number}", f"u{number}"], [result], name=f"write{number}"))
    nodes[-1].output[0] = "y"
    return nodes, constants


def model(pads: list[int], *sides: tuple[list[int], list[int], np.ndarray]) -> tuple:
    """A map of 6 × 7 once it is padded, and written to."""
    nodes, constants = writes(*sides)
    constants |= {"p": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]])}
    height, width = 6 - pads[0] - pads[2], 7 - pads[1] - pads[3]
    pad = node("Pad", ["x", "p"], ["padded"], name="pad")
    original = build([pad, *nodes], {"x": (1, 3, height, width)}, ["y"], constants)
    return original, load(original)


ROWS, COLUMNS, V = list(range(6)), list(range(7)), arrays(v=(3,))["v"]
FOUR = (([0], COLUMNS, V), ([4, 5], COLUMNS, V), (ROWS, [0, 1], V), (ROWS, [6], V))


@pytest.mark.parametrize(
    ("pads", "sides"),
    [
        ([1, 2, 2, 1], FOUR),
        ([1, 2, 2, 1], ((ROWS, [0, 1, 6], 2 * V), *FOUR)),  # overwritten
        ([0, 0, 2, 0], (([4, 5], COLUMNS, V),)),
        ([1, 0, 0, 0], (([0], [0], 0 * V),)),  # what is not written holds zeros
    ],
)
def test_border(pads: list[int], sides: tuple) -> None:
    original, folded = model(pads, *sides)
    assert FoldBorders().apply(folded).matched == 1
    assert operators(folded) == ["Add", "Pad", "Sub"]
    assert_same(original, folded)


@pytest.mark.parametrize(
    ("pads", "sides", "reason"),
    [
        ([1, 2, 2, 1], (*FOUR, ([1], [2], V)), "what is written into the map of Pad 'pad' reaches beyond its border"),
        ([1, 2, 2, 1], FOUR[1:], "the border of Pad 'pad' holds several values in a channel"),
    ],
)
def test_refused(pads: list[int], sides: tuple, reason: str) -> None:
    _, folded = model(pads, *sides)
    report = FoldBorders().apply(folded)
    assert report.matched == 0
    assert reason in str(report.refusals[0])
