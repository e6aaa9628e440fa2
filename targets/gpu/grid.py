"""How work items map to a kernel's iterations, and what all templates share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from edgec.targets.gpu.opencl import Body

GROUPS = ((0, 0), (64, 1), (16, 4), (8, 8), (4, 16), (32, 1), (1, 1), (1, 8), (4, 4))
"""Work groups to try, along the first two axes; (0, 0) leaves them to the driver."""


def groups(items: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Those of :data:`GROUPS` that a device with ``most`` items a group allows and that ``items`` nearly fill."""
    x, y = (*items, 1)[:2]

    def fits(group: tuple[int, int]) -> bool:
        across, down = group
        if not across:
            return True
        wasted = -(-x // across) * across * -(-y // down) * down
        return across * down <= most and wasted <= 2 * x * y

    return [group for group in GROUPS if fits(group)]


def group_of(x: int, y: int) -> tuple[int, int, int] | None:
    """A plan's work group as the runtime takes it."""
    return (x, y, 1) if x else None


def positions(body: Body, items: Sequence[int], group: tuple[int, int, int] | None) -> list[str]:
    """The index of this work item along each axis; items beyond the last, which fill up a work group, end here."""
    names = []
    for axis, extent in enumerate(items):
        whole = group is None or extent % group[axis] == 0
        if extent == 1 and whole:
            names.append("0")
            continue
        names.append(body.index("g", f"get_global_id({axis})"))
        if not whole:
            body.line(f"if ({names[-1]} >= {extent}) return;")
    return names


def unravelled(body: Body, index: str, extents: Sequence[int]) -> list[str]:
    """``index`` into the axes of ``extents``, the innermost last."""
    names = []
    for axis, extent in enumerate(extents):
        inner = prod(extents[axis + 1 :])
        if extent == 1:
            names.append("0")
            continue
        text = f"{index} / {inner}" if inner > 1 else index
        names.append(body.index("a", text if axis == 0 else f"{text} % {extent}"))
    return names
