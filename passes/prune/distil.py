"""Distillation in torch: a pruned model learns the original's outputs, from samples without labels.

Every step moves and mirrors images, mixes samples with each other, and asks the original for the mixtures' outputs, so
that few samples go a long way (mixup: Zhang et al. 2018; as a source of inputs to distil on: Beyer et al. 2022).
Beside the outputs, what both models compute where branches meet has to agree, layer for layer (hints: Romero et al.
2015), which leads sooner to the same end. Samples that no step sees judge which weights are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgec.errors import EdgecError, Refusal
from edgec.passes.base import Pass
from edgec.passes.prune.activations import Sample
from edgec.passes.prune.coupling import find_coupling
from edgec.passes.prune.in_torch import Runner, distances, load_torch, reject_unknown, stacked_runner, tensor_of
from edgec.passes.prune.products import drop_zero_biases, own_biases
from edgec.passes.prune.removal import set_constant
from edgec.passes.prune.rules import Linear

BATCH = 64
RATE, WARMUP = 1e-3, 0.05
"""Adam's step at most: it rises over that share of the time given, and falls to zero as a cosine over all of it."""

JUDGED, MOST_JUDGED = 8, 256
"""One sample of so many is kept for judging, and so many at most."""

BETWEEN = 64
"""Steps between two judgements."""

COLOURS, MOVED = 3, 8
"""Inputs of so many channels are taken for images, which are moved by at most this part of their size."""


class Distil(Pass):
    """Trains the weights of a smaller model against the original.

    Attributes:
        original: what the model was made from, whose outputs it learns.
        samples: calibration inputs.
        minutes: how long.
        seed: of all that is drawn.
    """

    name: ClassVar[str] = "distil"

    def __init__(self, original: ir.Model, samples: Sequence[Sample], minutes: float, seed: int = 0) -> None:
        """What can be told before anything is pruned is told here.

        Raises:
            EdgecError: torch is not installed, there are too few samples, or an operator cannot be trained through.
        """
        load_torch()
        if len(samples) < 2 * JUDGED:
            raise EdgecError(f"distillation needs at least {2 * JUDGED} samples, and --calib has {len(samples)}")
        reject_unknown(original)
        self.original, self.samples, self.minutes, self.seed = original, samples, minutes, seed

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        reject_unknown(model)
        own_biases(model)
        linears = find_coupling(model).linears
        distil(model, linears, self.original, self.samples, self.minutes, self.seed)
        drop_zero_biases(model)
        RemoveUnusedNodesPass()(model)
        return len(linears), ()


def distil(
    model: ir.Model, linears: Sequence[Linear], original: ir.Model, samples: Sequence[Sample], minutes: float, seed: int
) -> None:
    """Train the weights and biases of ``linears`` in ``model`` for ``minutes``, in place."""
    torch = load_torch()
    torch.manual_seed(seed)
    learnt = {
        value: torch.nn.Parameter(tensor_of(torch, value))
        for linear in linears
        for value in (linear.weight, linear.bias)
        if value is not None and value.const_value is not None
    }
    judged, seen = samples[::JUDGED][:MOST_JUDGED], [each for index, each in enumerate(samples) if index % JUDGED]
    ours, theirs = _hints(model, original)
    pair = _Pair(stacked_runner(model, learnt, ours), stacked_runner(original, {}, theirs), len(model.graph.outputs))
    trained = _train(torch, pair, list(learnt.values()), _stack(seen), _stack(judged), minutes)
    for value, tensor in zip(learnt, trained, strict=True):
        set_constant(value, tensor.numpy())


def _hints(model: ir.Model, original: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """The sums of computed values that both graphs have by the same name and shape, of the one and of the other."""
    sums = {value.name: value for node in original.graph if node.op_type == "Add" for value in node.outputs}
    pairs = [
        (node.outputs[0], sums[node.outputs[0].name])
        for node in model.graph
        if node.op_type == "Add"
        and all(value is not None and value.const_value is None for value in node.inputs)
        and node.outputs[0].name in sums
        and node.outputs[0].shape == sums[node.outputs[0].name].shape
    ]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _stack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Torch tensors [samples, *shape] by input name."""
    torch = load_torch()
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def _is_image(array: Any) -> bool:
    """Whether float stacked samples [samples, 1, channels, height, width] have the channels of colours."""
    return array.ndim == 5 and array.shape[1:3] == (1, COLOURS) and array.is_floating_point()


@dataclass(frozen=True)
class _Pair:
    """The two models on stacked inputs.

    Attributes:
        student: gives its outputs and then its hints.
        teacher: the same of the original.
        outputs: how many outputs there are.
    """

    student: Runner
    teacher: Runner
    outputs: int

    def losses(self, torch: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """How far the outputs are from the original's, and how far the hints."""
        with torch.no_grad():
            wanted = self.teacher(batch)
        away = distances(torch, self.student(batch), wanted)
        return away[: self.outputs].mean(), away[self.outputs :].sum() / max(1, len(away) - self.outputs)


def _train(
    torch: Any, pair: _Pair, parameters: list[Any], seen: Mapping[str, Any], judged: Mapping[str, Any], minutes: float
) -> list[Any]:
    """The best parameters found, detached. Hints count less and less, the outputs alone in the end."""
    optimiser = torch.optim.Adam(parameters, RATE)
    judge = _judge_of(torch, pair, judged)
    count = len(next(iter(seen.values())))
    best, kept = judge(), [each.detach().clone() for each in parameters]
    start, step = time.monotonic(), 0
    while (spent := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = RATE * min(1, spent / WARMUP) * 0.5 * (1 + np.cos(np.pi * spent))
        optimiser.zero_grad()
        outputs, hints = pair.losses(torch, _mixed(torch, seen, count))
        (outputs + (1 - spent) * hints).backward()
        optimiser.step()
        step += 1
        if step % BETWEEN == 0 and (found := judge()) < best:
            best, kept = found, [each.detach().clone() for each in parameters]
    if judge() < best:
        kept = [each.detach().clone() for each in parameters]
    return kept


def _judge_of(torch: Any, pair: _Pair, judged: Mapping[str, Any]) -> Callable[[], float]:
    """A function that says how far the outputs for ``judged`` are from the original's now."""
    with torch.no_grad():
        wanted = pair.teacher(judged)[: pair.outputs]

    def judge() -> float:
        with torch.no_grad():
            return float(distances(torch, pair.student(judged)[: pair.outputs], wanted).mean())

    return judge


def _mixed(torch: Any, seen: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A batch: samples, half of them mixed with others, integers as they are; images are moved and mirrored first.

    A mixture is a share of the one and the rest of the other.
    """
    first, second = torch.randint(count, (BATCH,)), torch.randint(count, (BATCH,))
    share = torch.rand(BATCH)
    share[::2] = 1
    found = {}
    for name, array in seen.items():
        ours, theirs = array[first], array[second]
        if _is_image(array):
            ours, theirs = _moved(torch, ours), _moved(torch, theirs)
        wide = share.reshape(-1, *(1,) * (array.ndim - 1))
        found[name] = wide * ours + (1 - wide) * theirs if array.is_floating_point() else ours
    return found


def _moved(torch: Any, batch: Any) -> Any:
    """Images [samples, 1, colours, height, width], each moved, mirrored or not, and with its channels last in memory.

    What they show after that is the original's to say, so that nothing has to be known of them.
    """
    samples, _, _, height, width = batch.shape
    far = max(1, min(height, width) // MOVED)
    wide = torch.nn.functional.pad(batch[:, 0], (far, far, far, far), mode="reflect")
    rows = torch.randint(2 * far + 1, (samples, 1)) + torch.arange(height)
    columns = torch.randint(2 * far + 1, (samples, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(samples, 1) < 0.5, columns, columns.flip(1))
    index = torch.arange(samples).reshape(-1, 1, 1)
    return wide.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)[:, None]
