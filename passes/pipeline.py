"""The passes that every compilation runs, and their order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgec.passes.base import Pass, PassReport
from edgec.passes.fold_adapters import FoldAdapters
from edgec.passes.fold_affine import FoldAffine
from edgec.passes.fold_branches import FoldBranches
from edgec.passes.fold_padding import FoldPadding
from edgec.passes.simplify import Simplify

DEFAULT: tuple[Pass, ...] = (
    Simplify(),  # first: the folds need constants where a model computes its weights, and no Identity between
    FoldPadding(),  # before the maps, while Pad and Conv are still neighbours
    FoldAffine(),  # before the sums, so that a branch is one node where it can be
    FoldBranches(),
    FoldAdapters(),
    Simplify(),  # last: merges constants that became equal and removes what the folds left unread
)


def run(model: ir.Model, passes: Sequence[Pass] = DEFAULT) -> list[PassReport]:
    """Apply ``passes`` in order to ``model``, in place; one report a pass."""
    return [each.apply(model) for each in passes]
