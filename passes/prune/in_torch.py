"""Graphs in torch: a model, or a part of it, as a function whose weights can be trained.

The graph is run as it stands, one sample at a time as far as the operators can tell and many at once in fact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend.values import constant_of, input_of, shape_of
from edgec.passes.prune.rules import pad_widths, reduced_axes, slice_bounds
from edgec.passes.rewriting import named

Values = dict[ir.Value, Any]
"""Torch tensors by the graph's value."""

Runner = Callable[[Mapping[str, Any]], list[Any]]
"""From stacked inputs by name to a list of stacked values."""


def load_torch() -> Any:
    """The module.

    Raises:
        EdgecError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise EdgecError(
            "training weights takes torch, which is not installed; run pip install 'edgec[train]'"
        ) from error
    return torch


def tensor_of(torch: Any, value: ir.Value) -> Any:
    """A copy of a constant; filters with their channels last, which convolutions here are fastest on."""
    array = constant_of(value)
    assert array is not None
    found = torch.from_numpy(array.copy())
    return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found


def distances(torch: Any, found: Sequence[Any], wanted: Sequence[Any]) -> Any:
    """Squared distance of each value over its variance: a tensor [values]."""
    return torch.stack([((a - b) ** 2).mean() / (b.var() + 1e-6) for a, b in zip(found, wanted, strict=True)])


def stacked_runner(model: ir.Model, learnt: Mapping[ir.Value, Any], also: Sequence[ir.Value] = ()) -> Runner:
    """A function from stacked inputs to the list of stacked outputs, and the values ``also`` behind them."""
    torch = load_torch()
    graph = model.graph
    fixed: Values = {
        value: learnt[value] if value in learnt else tensor_of(torch, value) for value in graph.initializers.values()
    }

    def single(inputs: Mapping[str, Any]) -> list[Any]:
        values: Values = {**fixed, **{value: inputs[str(value.name)] for value in graph.inputs}}
        for node in graph:
            _OPERATORS[node.op_type](torch, node, values)
        return [values[value] for value in (*graph.outputs, *also)]

    mapped = torch.func.vmap(single)
    return lambda inputs: list(mapped(dict(inputs)))


def reject_unknown(model: ir.Model) -> None:
    """Raises :class:`EdgecError` where a node's operator is not known here."""
    for node in model.graph:
        if node.op_type not in _OPERATORS or node.domain not in ("", "edgec") or not _is_known_resize(node):
            raise EdgecError(f"{named(node)} cannot be trained through; leave --distil and --blockwise out")


def _is_known_resize(node: ir.Node) -> bool:
    """Whether a node, if it is a Resize, samples two axes as torch does: linearly, without more said."""
    plain = {"mode", "coordinate_transformation_mode"}
    return node.op_type != "Resize" or (
        len(shape_of(node.outputs[0])) == 4
        and node.attributes.keys() <= plain
        and node.attributes.get_string("mode", "nearest") == "linear"
        and node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    )


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


def _resize(torch: Any, node: ir.Node, x: Any, *rest: Any) -> Any:
    del rest
    return torch.nn.functional.interpolate(x, size=tuple(shape_of(node.outputs[0])[2:]), mode="bilinear")


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
    "Resize": _attributed(_resize),
    "Sigmoid": _simple(lambda torch, x: torch.sigmoid(x)),
    "Slice": _attributed(_slice),
    "Softmax": _attributed(lambda torch, node, x: torch.softmax(x, node.attributes.get_int("axis", -1))),
    "Squeeze": _attributed(_reshape),
    "Sub": _simple(lambda torch, a, b: a - b),
    "Tanh": _simple(lambda torch, x: torch.tanh(x)),
    "Transpose": _attributed(_transpose),
    "Unsqueeze": _attributed(_reshape),
}
