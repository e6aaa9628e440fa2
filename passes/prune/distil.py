"""Distillation in torch: a pruned model learns the original's outputs, from samples without labels.

The graph is run by torch as it stands, one sample at a time as far as the operators can tell and many at once in
fact. Every step moves and mirrors images, mixes samples with each other, and asks the original for the mixtures'
outputs, so that few samples go a long way (mixup: Zhang et al. 2018; as a source of inputs to distil on: Beyer et al.
2022). Beside the outputs, what both models compute where branches meet has to agree, layer for layer (hints: Romero
et al. 2015), which leads sooner to the same end. Samples that no step sees judge which weights are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.activations import Sample
from edgec.passes.prune.removal import set_constant
from edgec.passes.prune.rules import Linear, pad_widths, reduced_axes, slice_bounds
from edgec.passes.rewriting import named

BATCH = 64
RATE, WARMUP = 1e-3, 0.05
"""Adam's step at most: it rises over that share of the time given, and falls to zero as a cosine over all of it."""

JUDGED, MOST_JUDGED = 8, 256
"""One sample of so many is kept for judging, and so many at most."""

BETWEEN = 64
"""Steps between two judgements."""

COLOURS, MOVED = 3, 8
"""Inputs of so many channels are taken for images, which are moved by at most this part of their size."""

Values = dict[ir.Value, Any]
"""Torch tensors by the graph's value."""

Runner = Callable[[Mapping[str, Any]], list[Any]]
"""From stacked inputs by name to a list of stacked values."""


def distil(
    model: ir.Model, linears: Sequence[Linear], original: ir.Model, samples: Sequence[Sample], minutes: float, seed: int
) -> None:
    """Train the weights and biases of ``linears`` in ``model`` for ``minutes``, in place.

    Raises:
        EdgecError: torch is not installed, there are too few samples, or an operator is not known here.
    """
    torch = _torch()
    if len(samples) < 2 * JUDGED:
        raise EdgecError(f"distillation needs at least {2 * JUDGED} samples, and --calib has {len(samples)}")
    for each in (model, original):
        _reject_unknown(each)
    torch.manual_seed(seed)
    learnt = {
        value: torch.nn.Parameter(_tensor(torch, value))
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


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise EdgecError(
            "distillation runs in torch, which is not installed; run pip install 'edgec[train]'"
        ) from error
    return torch


def _constant(value: ir.Value) -> np.ndarray:
    array = constant_of(value)
    assert array is not None
    return array


def _tensor(torch: Any, value: ir.Value) -> Any:
    """A copy of a constant; filters with their channels last, which convolutions here are fastest on."""
    found = torch.from_numpy(_constant(value).copy())
    return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found


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
    torch = _torch()
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
        away = _distances(torch, self.student(batch), wanted)
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
            return float(_distances(torch, pair.student(judged)[: pair.outputs], wanted).mean())

    return judge


def _distances(torch: Any, found: Sequence[Any], wanted: Sequence[Any]) -> Any:
    """Squared distance of each value over its variance: a tensor [values]."""
    return torch.stack([((a - b) ** 2).mean() / (b.var() + 1e-6) for a, b in zip(found, wanted, strict=True)])


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


def stacked_runner(model: ir.Model, learnt: Mapping[ir.Value, Any], also: Sequence[ir.Value] = ()) -> Runner:
    """A function from stacked inputs to the list of stacked outputs, and the values ``also`` behind them."""
    torch = _torch()
    graph = model.graph
    fixed: Values = {
        value: learnt[value] if value in learnt else _tensor(torch, value) for value in graph.initializers.values()
    }

    def single(inputs: Mapping[str, Any]) -> list[Any]:
        values: Values = {**fixed, **{value: inputs[str(value.name)] for value in graph.inputs}}
        for node in graph:
            _OPERATORS[node.op_type](torch, node, values)
        return [values[value] for value in (*graph.outputs, *also)]

    mapped = torch.func.vmap(single)
    return lambda inputs: list(mapped(dict(inputs)))


def _reject_unknown(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type not in _OPERATORS or node.domain not in ("", "edgec"):
            raise EdgecError(f"{named(node)} cannot be trained through; leave --distil out for this model")


Operator = Callable[[Any, ir.Node, Values], None]


def _of(values: Values, value: ir.Value | None) -> Any:
    assert value is not None
    return values[value]


def _simple(function: Callable[..., Any]) -> Operator:
    """A function of torch and of all operands."""

    def run(torch: Any, node: ir.Node, values: Values) -> None:
        operands = [values[value] for value in node.inputs if value is not None]
        values[node.outputs[0]] = function(torch, *operands)

    return run


def _attributed(function: Callable[..., Any]) -> Operator:
    """A function of torch, the node, and its operands."""

    def run(torch: Any, node: ir.Node, values: Values) -> None:
        operands = [None if value is None else values[value] for value in node.inputs]
        values[node.outputs[0]] = function(torch, node, *operands)

    return run


def _padded(torch: Any, node: ir.Node, x: Any, filler: float = 0.0) -> Any:
    """``x`` with what its node's attribute ``pads`` adds."""
    rank = x.ndim - 2
    pads = node.attributes.get_ints("pads", (0,) * (2 * rank))
    widths = [width for axis in reversed(range(rank)) for width in (pads[axis], pads[rank + axis])]
    return torch.nn.functional.pad(x, widths, value=filler) if any(widths) else x


def _conv(torch: Any, node: ir.Node, x: Any, weight: Any, bias: Any = None) -> Any:
    rank = x.ndim - 2
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    pads = tuple(node.attributes.get_ints("pads", (0,) * (2 * rank)))
    even = pads[:rank] == pads[rank:]
    return convolve(
        x if even else _padded(torch, node, x), weight, bias,
        stride=tuple(node.attributes.get_ints("strides", (1,) * rank)),
        padding=pads[:rank] if even else 0,
        dilation=tuple(node.attributes.get_ints("dilations", (1,) * rank)),
        groups=node.attributes.get_int("group", 1),
    )  # fmt: skip


def _pool(torch: Any, node: ir.Node, x: Any) -> Any:
    """MaxPool or AveragePool over two axes; a mean leaves padding out unless the node counts it."""
    kernel = tuple(node.attributes.get_ints("kernel_shape", ()))
    strides = tuple(node.attributes.get_ints("strides", (1,) * len(kernel)))
    if node.op_type == "MaxPool":
        return torch.nn.functional.max_pool2d(_padded(torch, node, x, -float("inf")), kernel, strides)
    total = torch.nn.functional.avg_pool2d(_padded(torch, node, x), kernel, strides)
    if node.attributes.get_int("count_include_pad", 0) or not any(node.attributes.get_ints("pads", (0,))):
        return total
    return total / torch.nn.functional.avg_pool2d(_padded(torch, node, torch.ones_like(x)), kernel, strides)


def _gemm(torch: Any, node: ir.Node, a: Any, b: Any, c: Any = None) -> Any:
    left = a.T if node.attributes.get_int("transA", 0) else a
    right = b.T if node.attributes.get_int("transB", 0) else b
    product = node.attributes.get_float("alpha", 1.0) * (left @ right)
    return product if c is None else product + node.attributes.get_float("beta", 1.0) * c


def _norm(torch: Any, node: ir.Node, x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
    factor = scale / torch.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    wide = (1, -1, *(1,) * (x.ndim - 2))
    return x * factor.reshape(wide) + (shift - mean * factor).reshape(wide)


def _attention(torch: Any, node: ir.Node, query: Any, key: Any, value: Any, mask: Any = None) -> Any:
    scores = (query @ key) * node.attributes.get_float("scale", 1.0)
    return torch.softmax(scores if mask is None else scores + mask, -1) @ value


def _reshape(torch: Any, node: ir.Node, x: Any, *rest: Any) -> Any:
    del torch, rest
    return x.reshape(shape_of(node.outputs[0]))


def _transpose(torch: Any, node: ir.Node, x: Any) -> Any:
    del torch
    return x.permute(tuple(node.attributes.get_ints("perm", range(x.ndim)[::-1])))


def _slice(torch: Any, node: ir.Node, x: Any, *rest: Any) -> Any:
    del torch, rest
    cuts = [slice(None)] * x.ndim
    for axis, bounds in slice_bounds(node):
        cuts[axis] = bounds
    return x[tuple(cuts)]


def _pad(torch: Any, node: ir.Node, x: Any, *rest: Any) -> Any:
    del rest
    filler = constant_of(input_of(node, 2))
    widths = [width for _, pair in sorted(pad_widths(node).items(), reverse=True) for width in pair]
    return torch.nn.functional.pad(x, widths, value=0.0 if filler is None else float(filler))


def _mean(torch: Any, node: ir.Node, x: Any, *rest: Any) -> Any:
    del torch, rest
    return x.mean(tuple(reduced_axes(node, x.ndim)), keepdim=bool(node.attributes.get_int("keepdims", 1)))


def _clip(torch: Any, node: ir.Node, x: Any, low: Any = None, high: Any = None) -> Any:
    del node
    return x if low is None and high is None else torch.clamp(x, low, high)


_OPERATORS: Mapping[str, Operator] = {
    "Add": _simple(lambda torch, a, b: a + b),
    "Attention": _attributed(_attention),
    "AveragePool": _attributed(_pool),
    "BatchNormalization": _attributed(_norm),
    "Clip": _attributed(_clip),
    "Concat": _attributed(lambda torch, node, *parts: torch.cat(parts, node.attributes.get_int("axis", 0))),
    "Conv": _attributed(_conv),
    "Div": _simple(lambda torch, a, b: a / b),
    "Flatten": _attributed(_reshape),
    "Gemm": _attributed(_gemm),
    "GlobalAveragePool": _simple(lambda torch, x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
    "HardSwish": _simple(lambda torch, x: torch.nn.functional.hardswish(x)),
    "Identity": _simple(lambda torch, x: x),
    "MaskedAttention": _attributed(_attention),
    "MatMul": _simple(lambda torch, a, b: a @ b),
    "MaxPool": _attributed(_pool),
    "Mul": _simple(lambda torch, a, b: a * b),
    "Pad": _attributed(_pad),
    "ReduceMean": _attributed(_mean),
    "Relu": _simple(lambda torch, x: torch.relu(x)),
    "Reshape": _attributed(_reshape),
    "Sigmoid": _simple(lambda torch, x: torch.sigmoid(x)),
    "Slice": _attributed(_slice),
    "Softmax": _attributed(lambda torch, node, x: torch.softmax(x, node.attributes.get_int("axis", -1))),
    "Squeeze": _attributed(_reshape),
    "Sub": _simple(lambda torch, a, b: a - b),
    "Tanh": _simple(lambda torch, x: torch.tanh(x)),
    "Transpose": _attributed(_transpose),
    "Unsqueeze": _attributed(_reshape),
}
