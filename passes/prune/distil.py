"""Distillation in torch: a pruned model learns the original's outputs, from samples without labels.

The graph is run by torch as it stands, one sample at a time as far as the operators can tell and many at once in
fact. Every step mixes samples with each other and asks the original for the mixtures' outputs, so that few samples
go a long way (mixup: Zhang et al. 2018; as a source of inputs to distil on: Beyer et al. 2022). Samples that no step
sees judge which weights are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
RATE = 3e-4
"""Adam's step at the start; it falls to zero over the time given, as a cosine."""

JUDGED, MOST_JUDGED = 8, 256
"""One sample of so many is kept for judging, and so many at most."""

BETWEEN = 16
"""Steps between two judgements."""

Values = dict[ir.Value, Any]
"""Torch tensors by the graph's value."""


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
        value: torch.nn.Parameter(torch.from_numpy(_constant(value).copy()))
        for linear in linears
        for value in (linear.weight, linear.bias)
        if value is not None and value.const_value is not None
    }
    judged, seen = samples[::JUDGED][:MOST_JUDGED], [each for index, each in enumerate(samples) if index % JUDGED]
    student, teacher = stacked_runner(model, learnt), stacked_runner(original, {})
    trained = _train(torch, student, teacher, list(learnt.values()), _stack(seen), _stack(judged), minutes)
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


def _stack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Torch tensors [samples, *shape] by input name."""
    torch = _torch()
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def _train(
    torch: Any, student: Callable[..., Any], teacher: Callable[..., Any], parameters: list[Any],
    seen: Mapping[str, Any], judged: Mapping[str, Any], minutes: float,
) -> list[Any]:  # fmt: skip
    """The best parameters found, detached."""
    optimiser = torch.optim.Adam(parameters, RATE)
    with torch.no_grad():
        wanted = teacher(judged)
    count = len(next(iter(seen.values())))
    best, kept = _judge(torch, student, judged, wanted), [each.detach().clone() for each in parameters]
    start, step = time.monotonic(), 0
    while (spent := (time.monotonic() - start) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * spent))
        batch = _mixed(torch, seen, count)
        with torch.no_grad():
            goal = teacher(batch)
        optimiser.zero_grad()
        _loss(torch, student(batch), goal).backward()
        optimiser.step()
        step += 1
        if step % BETWEEN == 0:
            found = _judge(torch, student, judged, wanted)
            if found < best:
                best, kept = found, [each.detach().clone() for each in parameters]
    if _judge(torch, student, judged, wanted) < best:
        kept = [each.detach().clone() for each in parameters]
    return kept


def _mixed(torch: Any, seen: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Pairs of samples, each a share of the one and the rest of the other; integers come from the first."""
    first, second = torch.randint(count, (BATCH,)), torch.randint(count, (BATCH,))
    share = torch.rand(BATCH)
    found = {}
    for name, array in seen.items():
        wide = share.reshape(-1, *(1,) * (array.ndim - 1))
        mixes = array.is_floating_point()
        found[name] = wide * array[first] + (1 - wide) * array[second] if mixes else array[first]
    return found


def _judge(torch: Any, student: Callable[..., Any], judged: Mapping[str, Any], wanted: Sequence[Any]) -> float:
    with torch.no_grad():
        return float(_loss(torch, student(judged), wanted))


def _loss(torch: Any, found: Sequence[Any], wanted: Sequence[Any]) -> Any:
    """Squared distance of the outputs over their variance, summed over the outputs."""
    parts = [((a - b) ** 2).mean() / (b.var() + 1e-6) for a, b in zip(found, wanted, strict=True)]
    return torch.stack(parts).sum()


def stacked_runner(model: ir.Model, learnt: Mapping[ir.Value, Any]) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A function from stacked inputs to the list of stacked outputs."""
    torch = _torch()
    graph = model.graph
    fixed: Values = {
        value: learnt[value] if value in learnt else torch.from_numpy(_constant(value).copy())
        for value in graph.initializers.values()
    }

    def single(inputs: Mapping[str, Any]) -> list[Any]:
        values: Values = {**fixed, **{value: inputs[str(value.name)] for value in graph.inputs}}
        for node in graph:
            _OPERATORS[node.op_type](torch, node, values)
        return [values[output] for output in graph.outputs]

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
    return convolve(
        _padded(torch, node, x), weight, bias,
        stride=tuple(node.attributes.get_ints("strides", (1,) * rank)),
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
