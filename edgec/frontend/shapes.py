"""Static shapes: the ``--shape`` flags, shape inference, and the nodes whose outputs stay dynamic.

A compiled program is static, so every value of the graph needs a dtype and a shape of positive integers
before lowering. Exported models reach that in up to three steps: dynamic input axes are pinned, shapes are
inferred afresh from the inputs, and shape arithmetic (Shape → Gather → Concat → Reshape) is folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.optimizer import fold_constants

from edgec.errors import EdgecError, Refusal, UnsupportedModelError
from edgec.frontend.values import axis_name, inputs_text, is_static, is_used, node_shapes, shape_text

RANDOM_OPERATORS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

_SHAPE_ELEMENTS = 1024
"""Largest constant that is folded as shape arithmetic; weights are left to the simplify pass."""

_FOLD_ROUNDS = 4
"""A fold can make a shape static that another fold was waiting for; real models need one or two rounds."""

_SHAPE_KEEPERS = frozenset({"GroupNormalization"})

_IMAGE_SIDE = 224


def parse_shape_flags(flags: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``["input=1x3x32x32"]`` as ``{"input": (1, 3, 32, 32)}``.

    Raises :class:`EdgecError` for a flag of another form, an axis below 1, or a name given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for flag in flags:
        name, _, text = flag.rpartition("=")
        axes = text.lower().split("x")
        if not name or not all(axis.isascii() and axis.isdigit() and int(axis) > 0 for axis in axes):
            raise EdgecError(f"--shape {flag} is not of the form NAME=1x3x224x224 with positive integers.")
        if name in shapes:
            raise EdgecError(f"--shape is given twice for input '{name}'; give it once.")
        shapes[name] = tuple(map(int, axes))
    return shapes


def pin_inputs(model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give the graph's inputs the ``shapes``; an axis name that is pinned once is pinned everywhere.

    Raises :class:`EdgecError` for an unknown name, another rank, an axis that the model declares otherwise,
    and inputs that are still dynamic afterwards.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    _reject_non_tensors(model.graph.inputs)
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise EdgecError(f"--shape names '{name}', but the model's inputs are: {inputs_text(model.graph.inputs)}.")
        _pin(inputs[name], [int(axis) for axis in shape], symbols)
    for value in model.graph.inputs:
        _substitute(value, symbols)
    _reject_dynamic_inputs(model.graph.inputs)


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes stored for computed values: they may speak of axes that were pinned since.

    The outputs of the graph keep their rank, which a valid model must state.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            rank = len(value.shape) if value.shape is not None and value.is_graph_output() else None
            value.shape = None if rank is None else ir.Shape([None] * rank)


def infer_where_possible(model: ir.Model) -> None:
    """Infer shapes and dtypes in place, as far as ONNX can tell them."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def restate_outputs(model: ir.Model) -> bool:
    """Give the outputs of the graph the ranks that inference finds, and say whether one was declared otherwise."""
    declared = [value.shape for value in model.graph.outputs]
    for value in model.graph.outputs:
        value.shape = None
    infer_where_possible(model)
    changed = False
    for value, shape in zip(model.graph.outputs, declared, strict=True):
        if value.shape is None:
            value.shape = shape
        changed |= shape is not None and len(value.shape or ()) != len(shape)
    return changed


def infer_shapes(model: ir.Model) -> None:
    """Infer every shape and dtype from the inputs, in place, folding shape arithmetic where that is needed.

    Raises :class:`UnsupportedModelError` listing each node whose output shape cannot be known before running.
    """
    _infer(model)
    for _ in range(_FOLD_ROUNDS):
        if not any(_dynamic_origins(model.graph)) or not _fold_shape_arithmetic(model):
            break
        _infer(model)
    refusals = [_dynamic_refusal(model, node) for node in _dynamic_origins(model.graph)]
    if refusals:
        raise UnsupportedModelError(refusals)


def _infer(model: ir.Model) -> None:
    _state_onesided(model)
    infer_where_possible(model)
    while _keep_shapes(model):
        infer_where_possible(model)


def _state_onesided(model: ir.Model) -> None:
    """Give STFT nodes the attribute that they have by default, and that ONNX's shape inference takes for 0."""
    for node in model.graph.all_nodes():
        if node.op_type == "STFT" and node.domain == "" and "onesided" not in node.attributes:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)


def _keep_shapes(model: ir.Model) -> bool:
    """Shape the outputs of operators that keep their input's shape and that ONNX has no inference for."""
    changed = False
    for node in model.graph.all_nodes():
        if node.op_type in _SHAPE_KEEPERS and node.domain == "":
            source, value = node.inputs[0], node.outputs[0]
            if source is not None and is_static(source) and not is_static(value):
                value.shape, value.type = source.shape, source.type
                changed = True
    return changed


def _fold_shape_arithmetic(model: ir.Model) -> bool:
    result = fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=_SHAPE_ELEMENTS,
        output_size_limit=_SHAPE_ELEMENTS,
        should_fold=_is_shape_arithmetic,
    )
    return result.modified


def _is_shape_arithmetic(node: ir.Node) -> bool | None:
    """ConstantOfShape is folded although onnxscript would not; None leaves the choice to onnxscript."""
    return False if node.op_type in RANDOM_OPERATORS else node.op_type == "ConstantOfShape" or None


def _reject_non_tensors(inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        if not isinstance(value.type, ir.TensorType):
            raise EdgecError(f"Input '{value.name}' is not a dense tensor ({value.type}); edgec takes tensors.")


def _is_dynamic_axis(axis: int | ir.SymbolicDim) -> bool:
    """Symbolic, or the 0 or -1 that some exporters write for a dynamic axis."""
    return not isinstance(axis, int) or axis < 1


def _pin(value: ir.Value, shape: list[int], symbols: dict[str, int]) -> None:
    declared = value.shape
    flag = f"--shape {value.name}={'x'.join(map(str, shape))}"
    if declared is not None and len(declared) != len(shape):
        axes = f"{len(shape)} axes" if len(shape) != 1 else "1 axis"
        raise EdgecError(f"{flag} has {axes}, but the model declares '{value.name}' as {shape_text(value)}.")
    for axis, extent in zip(shape if declared is None else declared, shape, strict=True):
        name = axis_name(axis)
        if extent < 1 or (not _is_dynamic_axis(axis) and axis != extent):
            raise EdgecError(
                f"{flag} contradicts the model, which declares '{value.name}' as {shape_text(value)}; "
                "only dynamic axes can be pinned."
            )
        if name is not None and symbols.setdefault(name, extent) != extent:
            raise EdgecError(
                f"{flag} makes axis '{name}' {extent}, but another --shape made it {symbols[name]}; "
                "axes of one name must be equal."
            )
    value.shape = ir.Shape(shape)


def _substitute(value: ir.Value, symbols: Mapping[str, int]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape(
            [axis if isinstance(axis, int) else symbols.get(axis_name(axis) or "", axis) for axis in value.shape]
        )


def _reject_dynamic_inputs(inputs: Sequence[ir.Value]) -> None:
    dynamic = [v for v in inputs if v.shape is None or any(map(_is_dynamic_axis, v.shape))]
    if dynamic:
        found = ", ".join(f"input '{v.name}' has dynamic shape {shape_text(v)}" for v in dynamic)
        flags = " ".join(f"--shape {v.name}={_suggested_shape(v)}" for v in dynamic)
        raise EdgecError(f"{found[0].upper()}{found[1:]}; pin {'it' if len(dynamic) == 1 else 'them'} with {flags}")


def _suggested_shape(value: ir.Value) -> str:
    """A plausible pinned shape: batch 1, images 224×224, anything else 128 long."""
    if value.shape is None:
        return f"1x3x{_IMAGE_SIDE}x{_IMAGE_SIDE}"
    other = _IMAGE_SIDE if len(value.shape) == 4 else 128
    guesses = [1] + [other] * (len(value.shape) - 1)
    axes = zip(value.shape, guesses, strict=True)
    return "x".join(str(guess if _is_dynamic_axis(axis) else axis) for axis, guess in axes)


def _dynamic_origins(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes with an output that is read and not static, although all their inputs are static."""
    for node in graph:
        inputs_static = all(is_static(value) for value in node.inputs if value is not None)
        if inputs_static and not all(is_static(value) for value in node.outputs if is_used(value)):
            yield node


def _dynamic_refusal(model: ir.Model, node: ir.Node) -> Refusal:
    if not onnx.defs.has(node.op_type, node.domain):
        return Refusal(
            str(node.name),
            f"{node.domain}.{node.op_type}".lstrip("."),
            node_shapes(node),
            "the operator is not a standard ONNX operator, so its output shape is unknown",
            "export the model with standard operators only",
        )
    return Refusal(
        str(node.name),
        node.op_type,
        node_shapes(node),
        _inference_failure(model, node) or "the output's shape depends on the data",
        _how_to_freeze(node),
    )


def _how_to_freeze(node: ir.Node) -> str:
    """The command that makes the node's shape static, or leaves the node out."""
    if node.op_type == "If":
        choices = " ".join(f"--value {value.name}=…" for value in _sources(node.inputs[0]))
        if choices:
            return f"make constant what it branches on: edgec freeze MODEL {choices}"
    computed = ",".join(str(value.name) for value in node.inputs if value is not None and value.const_value is None)
    return f"export the model with fixed shapes, or end before it: edgec freeze MODEL --outputs {computed}"


def _sources(value: ir.Value | None) -> list[ir.Value]:
    """The graph's inputs that ``value`` is computed from."""
    found: dict[ir.Value, None] = {}
    front = [value]
    while front:
        each = front.pop()
        if each is None or each in found:
            continue
        found[each] = None
        producer = each.producer()
        front += [] if producer is None else producer.inputs
    return [each for each in found if each.is_graph_input()]


def _inference_failure(model: ir.Model, node: ir.Node) -> str | None:
    """What ONNX says is wrong with the node; None where it only cannot tell the shape."""
    schema = onnx.defs.get_schema(node.op_type, model.opset_imports[node.domain], node.domain)
    inputs = {str(v.name): ir.to_proto(v).type for v in node.inputs if v is not None}
    data = {
        str(v.name): ir.to_proto(v.const_value)
        for v in node.inputs
        if v is not None and v.const_value is not None and v.const_value.size <= _SHAPE_ELEMENTS
    }
    try:
        onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), inputs, data)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        return one_sentence(error)
    return None


def one_sentence(error: Exception) -> str:
    """A library's message on one line, without the context that ONNX appends and the final full stop."""
    message = " ".join(str(error).partition("==>")[0].split())
    return message.rstrip(".") or type(error).__name__
