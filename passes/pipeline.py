"""The passes that every compilation runs, and their order: the one place that names them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.passes.activation_dtype import ActivationDtype
from edgec.passes.base import Pass, PassReport
from edgec.passes.cancel_transposes import CancelTransposes
from edgec.passes.difference import Comparison
from edgec.passes.fold_adapters import FoldAdapters
from edgec.passes.fold_affine import FoldAffine
from edgec.passes.fold_borders import FoldBorders
from edgec.passes.fold_branches import FoldBranches
from edgec.passes.fold_norms import FoldNorms
from edgec.passes.fold_padding import FoldPadding
from edgec.passes.fold_sequences import FoldSequences
from edgec.passes.fold_transposed import FoldTransposed
from edgec.passes.fuse_activations import FuseActivations
from edgec.passes.fuse_attention import FuseAttention
from edgec.passes.fuse_heads import FuseHeads
from edgec.passes.fuse_integers import FuseIntegers
from edgec.passes.fuse_norms import FuseNorms
from edgec.passes.fuse_squeeze_excite import FuseSqueezeExcite
from edgec.passes.fuse_weights import FuseWeights
from edgec.passes.move_affine import MoveAffine
from edgec.passes.move_quantisation import MoveQuantisation
from edgec.passes.simplify import Simplify

FLOAT: tuple[Pass, ...] = (
    Simplify(),  # first: the others need constants where a model computes its weights, and no Identity between
    FuseActivations(),  # before the folds, which would take the + 3 of a hard swish into the bias before it
    FuseNorms(),  # likewise
    CancelTransposes(),  # before the maps: a norm between two of them meets the product behind
    FoldPadding(),  # before the maps, while Pad and Conv are still neighbours
    MoveAffine(),  # to where the next folds it
    FoldAffine(),  # before the sums, so that a branch is one node where it can be
    FoldBorders(),  # after the norms went into the convolutions, whose shift the border then is
    FoldBranches(),
    FoldAdapters(),
    FoldNorms(),  # after the scales of branches went into their weights, before the shift it leaves is folded
    FoldSequences(),  # after the sums: alone, a low-rank pair is cheaper as it is
    FoldTransposed(),  # what no operator before it has taken
    FuseAttention(),  # after the folds, which may take a scale into the weights of the queries
    FuseHeads(),
    Simplify(),  # last: merges constants that became equal and removes what the others left unread
)
"""What a model goes through before its quantisation."""


_INTEGER: tuple[Pass, ...] = (
    MoveQuantisation(),  # before the next: an operator and its Quantize meet
    FuseWeights(),  # before the next, which makes constants of the weights that nobody has taken
    FuseIntegers(),
    FuseSqueezeExcite(),  # of what stayed float; before, quantisation and pruning want its layers one by one
    Simplify(),
)


def integer_passes(activation_dtype: str, packs_weights: bool = True) -> tuple[Pass, ...]:
    """What a quantised model goes through, whoever quantised it; others leave as they came.

    Args:
        activation_dtype: in which the target reads 8-bit activations best: "int8" or "uint8".
        packs_weights: whether its products of floats read packed integer weights; else these become floats.
    """
    chosen = [each for each in _INTEGER if packs_weights or not isinstance(each, FuseWeights)]
    # first, while every tensor of bytes lies between Quantize and Dequantize
    return (ActivationDtype(activation_dtype), *chosen)


DEFAULT = FLOAT + integer_passes("int8")

_MOST_REPETITIONS = 8
"""No model has needed more than two; a bound, so that a fault in a pass cannot keep a compilation from ending."""


def pass_names() -> list[str]:
    """What ``--passes`` can name, in the order of the pipeline."""
    return list(dict.fromkeys(each.name for each in DEFAULT))


def select(
    names: Iterable[str] | None = None, stop_after: str | None = None, activation_dtype: str = "int8",
    packs_weights: bool = True,
) -> tuple[Pass, ...]:  # fmt: skip
    """The passes with these names in this order (all by default), up to the last one named ``stop_after``.

    The passes for integers are those of a target (see :func:`integer_passes`).

    Raises:
        EdgecError: there is no pass of a name, or it is not among those chosen.
    """
    every = FLOAT + integer_passes(activation_dtype, packs_weights)
    known = {each.name: each for each in every}
    chosen = every if names is None else tuple(known[name] for name in map(_checked, names) if name in known)
    if stop_after is None:
        return chosen
    places = [index for index, each in enumerate(chosen) if each.name == _checked(stop_after)]
    if not places:
        raise EdgecError(f"--stop-after {stop_after} names a pass that --passes leaves out; add it there.")
    return chosen[: places[-1] + 1]


def _checked(name: str) -> str:
    if name not in pass_names():
        raise EdgecError(f"there is no pass '{name}'; the passes are {', '.join(pass_names())}")
    return name


def run(
    model: ir.Model,
    passes: Sequence[Pass] = DEFAULT,
    samples: Iterable[Mapping[str, np.ndarray]] | None = None,
    score: Callable[[ir.Model], float] | None = None,
) -> list[PassReport]:
    """Apply ``passes`` in order to ``model``, in place, and again while they find work; one report a pass.

    What one pass does can open a place for another before it, so a list of several is repeated until it changes
    nothing; a repetition reports only the passes that did something. With ``samples`` (arrays by input name) each
    report says how far the outputs then are from the original's, and with ``score`` how good the graph is.
    """
    comparison = None if samples is None else Comparison(model, samples)
    difference = None if comparison is None else 0.0
    points = None if score is None else score(model)
    reports: list[PassReport] = []
    for repetition in range(_MOST_REPETITIONS if len(passes) > 1 else 1):
        found = []
        for each in passes:
            report = each.apply(model)
            changed = report.matched > 0 or report.before != report.after
            if changed:
                difference = None if comparison is None else comparison.worst(model)
                points = None if score is None else score(model)
            if changed or repetition == 0:
                found.append(replace(report, difference=difference, score=points))
        reports += found
        if not any(report.matched for report in found):
            break
    return reports
