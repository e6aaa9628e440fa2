"""Token reduction: a transformer works on fewer tokens from layer to layer, without training.

Behind an attention, where its result is added to the stream of tokens, tokens that tell much the same are merged
into their mean (token merging: Bolya et al. 2023). Which ones is decided once, on calibration samples, by Ward's
criterion, so that a merge is a product with a constant and every layer has a static count. Attention counts a merged
token as often as it has tokens in it, by the logarithm of that in its mask. What cannot work on merged tokens gets
every token back, as its group's mean.

How many tokens each layer keeps is searched: the next step is always the one that moves the model's outputs least
for the MACs that it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgec.errors import EdgecError, Refusal
from edgec.frontend.shapes import forget_shapes, infer_shapes
from edgec.frontend.values import constant_of, shape_of
from edgec.passes.base import Pass
from edgec.passes.functions import DOMAIN, call
from edgec.passes.prune.activations import Sample, capture, distance, outputs
from edgec.passes.prune.cost import Cost, attainable
from edgec.passes.rewriting import new_constant, replace_node

FLOOR = 0.125
"""The share of the tokens that every layer keeps."""

_STEPS = 16
"""In so many steps the tokens of a layer would all be merged."""

_JUDGED = 64
"""The last samples, so many at most, judge the steps; the others say which tokens are alike."""

_WHOLE = "whole"

Labels = np.ndarray
"""int64 [tokens]: the group that each token of the original is merged into, from 0."""

Plan = Mapping[str, Labels]
"""By the name of the stream's value behind an attention, the groups from there on."""


class ReduceTokens(Pass):
    """Merges tokens until a share of the MACs is saved."""

    name: ClassVar[str] = "reduce-tokens"

    def __init__(self, fraction: float, samples: Sequence[Sample]) -> None:
        if not 0 <= fraction < 1:
            raise EdgecError(f"--tokens {fraction:g} is no share to remove; give one from 0 to below 1")
        if not samples:
            raise EdgecError("--tokens merges tokens that are alike on samples; give it some with --calib")
        self.fraction = fraction
        self.samples = samples
        self.counts: tuple[int, ...] = ()

    def transform(self, model: ir.Model) -> tuple[int, Sequence[Refusal]]:
        places = find_places(model)
        if not places:
            raise EdgecError(
                "there are no tokens to merge: no attention of this model is added to a stream of tokens; "
                "leave --tokens out"
            )
        search = _Search(model, places, self.samples)
        plan = search.find(self.fraction)
        merge_tokens(model, plan)
        self.counts = tuple(len(np.unique(labels)) for labels in plan.values())
        return sum(bool(labels.max() + 1 < len(labels)) for labels in plan.values()), ()


def find_places(model: ir.Model) -> list[ir.Value]:
    """Of every self-attention the value, [..., tokens, channels], that its result is added to the stream in."""
    found = []
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == "Attention":
            tokens = shape_of(node.inputs[0])[-2]
            place = _stream(node, tokens) if tokens == shape_of(node.inputs[1])[-1] else None
            if place is not None and place not in found:
                found.append(place)
    return found


def _stream(attention: ir.Node, tokens: int) -> ir.Value | None:
    """The first sum of two computed values of equal shapes downstream."""
    waiting, seen = list(attention.outputs[0].consumers()), set()
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        output = node.outputs[0]
        shapes = {shape_of(value) for value in node.inputs if value is not None and value.const_value is None}
        computed = [value for value in node.inputs if value is not None and value.const_value is None]
        if node.op_type == "Add" and len(computed) == 2 and len(shapes) == 1:
            shape = shape_of(output)
            return output if len(shape) >= 2 and shape[-2] == tokens else None
        waiting.extend(output.consumers())
    return None


class _Search:
    """Finds how many tokens each place keeps."""

    def __init__(self, model: ir.Model, places: Sequence[ir.Value], samples: Sequence[Sample]) -> None:
        count = min(_JUDGED, max(1, len(samples) // 4))
        self._model = model
        self._names = [str(place.name) for place in places]
        self._tokens = [shape_of(place)[-2] for place in places]
        self._judged = samples[len(samples) - count :]
        self._wanted = outputs(model, self._judged)
        self._grams = _grams(model, self._names, samples[: max(1, len(samples) - count)])

    def find(self, fraction: float) -> Plan:
        """The plan that saves ``fraction`` of the MACs.

        Raises:
            EdgecError: so much cannot be saved; says how much could.
        """
        whole = Cost(self._model, "macs").total
        counts, away, macs = list(self._tokens), 0.0, whole
        while macs > whole * (1 - fraction):
            steps = [self._judge(each) for each in self._steps(counts)]
            steps = [each for each in steps if each[2] < macs]
            if not steps:
                least = attainable(1 - macs / whole)
                raise EdgecError(
                    f"{fraction:.1%} of the MACs cannot be saved by merging tokens: at most {least:.1%} can; "
                    f"ask for --tokens {least:g} or less"
                )
            counts, away, macs = min(steps, key=lambda each: (each[1] - away) / (macs - each[2]))
        return self._plan(counts)

    def _steps(self, counts: Sequence[int]) -> list[list[int]]:
        """A step fewer from each place on; later places have no more tokens than earlier ones of as many."""
        found = []
        for place, tokens in enumerate(self._tokens):
            fewer = counts[place] - max(1, tokens // _STEPS)
            if fewer >= max(1, round(FLOOR * tokens)):
                later = [
                    min(count, fewer) if whole == tokens else count
                    for count, whole in zip(counts[place:], self._tokens[place:], strict=True)
                ]
                found.append([*counts[:place], *later])
        return found

    def _judge(self, counts: list[int]) -> tuple[list[int], float, int]:
        """With the distance of the outputs, and the MACs."""
        merged = self._model.clone()
        merge_tokens(merged, self._plan(counts))
        return counts, distance(outputs(merged, self._judged), self._wanted), Cost(merged, "macs").total

    def _plan(self, counts: Sequence[int]) -> Plan:
        plan: dict[str, Labels] = {}
        before: Labels | None = None
        for name, tokens, count in zip(self._names, self._tokens, counts, strict=True):
            start = np.arange(tokens) if before is None or len(before) != tokens else before
            before = plan[name] = group_tokens(self._grams[name], start, count)
        return plan


def _grams(model: ir.Model, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """float64 [tokens, tokens] of each value: the mean of x·xᵀ."""
    found: dict[str, np.ndarray] = {}
    for values in capture(model, names, samples):
        for name in names:
            rows = values[name].astype(np.float64).reshape(-1, *values[name].shape[-2:])
            found[name] = found.get(name, 0) + np.einsum("btc,bsc->ts", rows, rows) / len(samples)
    return found


def group_tokens(gram: np.ndarray, labels: Labels, count: int) -> Labels:
    """Join groups two at a time, whatever adds least to the distance of tokens from their means, down to ``count``.

    Args:
        gram: float64 [tokens, tokens], the mean of the tokens' products.
        labels: the groups at the start.
    """
    while (groups := int(labels.max()) + 1) > count:
        sizes = np.bincount(labels).astype(np.float64)
        means = np.eye(groups)[labels].T / sizes[:, np.newaxis]
        products = means @ gram @ means.T
        own = np.diag(products)
        shares = sizes[:, np.newaxis] * sizes / (sizes[:, np.newaxis] + sizes)
        cost = shares * (own[:, np.newaxis] + own - 2 * products) + np.diag(np.full(groups, np.inf))
        first, second = sorted(np.unravel_index(int(cost.argmin()), cost.shape))
        joined = np.where(labels == second, first, labels)
        labels = joined - (joined > second)
    return labels


@dataclass(frozen=True)
class _Merged:
    """A value of the graph with merged tokens along ``axis``."""

    value: ir.Value
    axis: int
    labels: Labels


def merge_tokens(model: ir.Model, plan: Plan) -> None:
    """Merge tokens where ``plan`` says so, in place; the outputs keep their shapes."""
    merging = _Merging(model, {name: labels for name, labels in plan.items() if labels.max() + 1 < len(labels)})
    for node in list(model.graph):
        merging.visit(node)
    forget_shapes(model)
    RemoveUnusedNodesPass()(model)
    infer_shapes(model)


class _Merging:
    """Goes through a graph whose values have the shapes of the original."""

    def __init__(self, model: ir.Model, plan: Plan) -> None:
        self._model = model
        self._plan = plan
        self._found: dict[ir.Value, _Merged] = {}
        self._restored: dict[ir.Value, ir.Value] = {}

    def visit(self, node: ir.Node) -> None:
        """Let ``node`` read merged values where it can, and give it whole ones elsewhere."""
        merged = {index: self._found[value] for index, value in enumerate(node.inputs) if value in self._found}
        axis = _output_axis(node, merged) if merged else None
        if axis is not None:
            labels = next(iter(merged.values())).labels
            _rewrite_reshape(node, self._model.graph, axis, labels)
            for index, each in merged.items():
                node.replace_input_with(index, each.value)
            node = self._weighted(node, labels)
            self._found[node.outputs[0]] = _Merged(node.outputs[0], axis, labels)
        else:
            for index in merged:
                value = node.inputs[index]
                assert value is not None
                node.replace_input_with(index, self._whole(value, node))
        for output in node.outputs:
            if str(output.name) in self._plan:
                self._merge(node, output, self._plan[str(output.name)])

    def _whole(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        """Every token of a merged value, as its group's mean."""
        if value not in self._restored:
            each, graph = self._found[value], self._model.graph
            labels = new_constant(each.labels, f"{value.name}_groups", graph)
            node = ir.node("Gather", [each.value, labels], {"axis": each.axis}, name=f"{value.name}/restore")
            node.outputs[0].name = f"{value.name}_{_WHOLE}"
            _describe(node.outputs[0], value)
            graph.insert_before(reader, node)
            self._restored[value] = node.outputs[0]
        return self._restored[value]

    def _merge(self, node: ir.Node, value: ir.Value, labels: Labels) -> None:
        """Means of the groups of ``value``, which may have fewer tokens already."""
        before = self._found.get(value)
        parts = np.eye(labels.max() + 1)[labels].T / np.bincount(labels)[:, np.newaxis]
        if before is not None:
            parts = parts @ np.eye(before.labels.max() + 1)[before.labels]
        assert value.dtype is not None
        graph = self._model.graph
        means = new_constant(parts.astype(value.dtype.numpy()), f"{value.name}_means", graph)
        product = ir.node("MatMul", [means, value], name=f"{value.name}/merge")
        product.outputs[0].name = f"{value.name}_merged"
        _describe(product.outputs[0], value)
        graph.insert_after(node, product)
        self._found[value] = _Merged(product.outputs[0], len(shape_of(value)) - 2, labels)

    def _weighted(self, node: ir.Node, labels: Labels) -> ir.Node:
        """An attention that counts a key as often as it has tokens in it."""
        sizes = np.bincount(labels)
        if node.op_type != "Attention" or (sizes == 1).all():
            return node
        output, graph = node.outputs[0], self._model.graph
        assert output.dtype is not None
        mask = new_constant(np.log(sizes).astype(output.dtype.numpy()), f"{node.name}_sizes", graph)
        inputs = [value for value in node.inputs if value is not None]
        scale = {"scale": node.attributes.get_float("scale", 1.0)}
        new = call(self._model, "MaskedAttention", [*inputs, mask], scale, node.name)
        _describe(new.outputs[0], output)
        graph.insert_before(node, new)
        replace_node(node, new)
        graph.remove(node, safe=True)
        return new


def _describe(value: ir.Value, original: ir.Value) -> None:
    """Give a new value the original's dtype and shape, which the rules look at until shapes are inferred anew."""
    assert original.dtype is not None
    value.dtype, value.shape = original.dtype, original.shape


def _output_axis(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """The token axis of the output where ``node`` does to merged tokens what it does to each; None where not."""
    first = next(iter(merged.values()))
    output = node.outputs[0]
    if len(node.outputs) != 1 or output.is_graph_output():
        return None
    if any(not np.array_equal(each.labels, first.labels) for each in merged.values()):
        return None
    rule = _RULES.get(node.op_type) if node.domain in ("", DOMAIN) else None
    return None if rule is None else rule(node, merged)


def _elementwise(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """All operands that have the axis are merged along it."""
    places = {each.axis - len(shape_of(node.inputs[index])) for index, each in merged.items()}
    if len(places) != 1:
        return None
    place = places.pop()
    for index, value in enumerate(node.inputs):
        if value is not None and index not in merged:
            shape = shape_of(value)
            if len(shape) >= -place and shape[place] != 1:
                return None
    return len(shape_of(node.outputs[0])) + place


def _product(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """Rows times a constant matrix."""
    rank = len(shape_of(node.inputs[0]))
    plain = list(merged) == [0] and len(shape_of(node.inputs[1])) == 2
    return merged[0].axis if plain and merged[0].axis == rank - 2 else None


def _along_last(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """Norms and softmax over the channels of each token."""
    rank = len(shape_of(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % rank
    alone = list(merged) == [0] and axis == rank - 1
    return merged[0].axis if alone and merged[0].axis != axis else None


def _transpose(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    rank = len(shape_of(node.inputs[0]))
    return list(node.attributes.get_ints("perm", range(rank)[::-1])).index(merged[0].axis)


def _reshape(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """The tokens stay an axis of their own."""
    if list(merged) != [0] or constant_of(node.inputs[1]) is None:
        return None
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    front, tokens = prod(before[: merged[0].axis]), before[merged[0].axis]
    for axis, extent in enumerate(after):
        if extent == tokens and prod(after[:axis]) == front:
            return axis
    return None


def _attention(node: ir.Node, merged: Mapping[int, _Merged]) -> int | None:
    """Queries, keys and values are merged."""
    rank = len(shape_of(node.outputs[0]))
    axes = [merged[index].axis - len(shape_of(node.inputs[index])) if index in merged else 0 for index in range(3)]
    return rank - 2 if axes == [-2, -1, -2] else None


def _rewrite_reshape(node: ir.Node, graph: ir.Graph, axis: int, labels: Labels) -> None:
    if node.op_type == "Reshape":
        shape = list(shape_of(node.outputs[0]))
        shape[axis] = int(labels.max()) + 1
        node.replace_input_with(1, new_constant(np.array(shape, np.int64), f"{node.name}_merged_shape", graph))


_RULES: Mapping[str, Callable[[ir.Node, Mapping[int, _Merged]], int | None]] = {
    **dict.fromkeys(
        (
            "Add", "Sub", "Mul", "Div", "Pow", "Relu", "Gelu", "GeluTanh", "Swish", "Erf", "Tanh", "Sigmoid", "Sqrt",
            "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Identity", "Neg", "Exp",
        ),
        _elementwise,
    ),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "Softmax"), _along_last),
    "MatMul": _product,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Attention": _attention,
}  # fmt: skip
