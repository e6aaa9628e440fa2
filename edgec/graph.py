"""Import: from an ONNX file to an ``onnx_ir.Model`` that the passes and the lowering can rely on.

After :func:`load_graph` the model is checked, at opset 18 or newer, free of model-local functions but those of
:mod:`edgec.passes.functions`, has its initialisers as constants (never as inputs), unique names, and a static
shape and a dtype for every value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from onnx.inliner import inline_selected_functions
from onnx.shape_inference import InferenceError
from onnx.version_converter import ConvertError

from edgec.errors import EdgecError
from edgec.frontend.caches import shapes_for
from edgec.frontend.consistency import reject_inconsistent_nodes
from edgec.frontend.ends import Number, cut, set_inputs
from edgec.frontend.shapes import forget_shapes, infer_shapes, one_sentence, pin_inputs, restate_outputs
from edgec.frontend.values import constant_of
from edgec.passes.functions import is_own

OLDEST_OPSET = 18
"""Older models are converted up to this opset, so that passes and lowering know one form of each operator."""

_EXPANDED = frozenset({"CausalConvWithState", "LinearAttention", "RotaryEmbedding", "SwiGLU"})
"""Operators that are compiled as the function of simpler operators by which ONNX defines them."""

_RESIZE_CHANGED = 11
_HARDMAX_CHANGED = 13

_OLDEST_IR_VERSION = 8
"""The IR version that came with opset 18; before version 4 every initialiser had to be an input too."""


def load_graph(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Sequence[Number]] | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    places: int | None = None,
) -> ir.Model:
    """Load and check a model, pin its dynamic input axes to ``shapes``, and infer every shape.

    ``source`` is left as it is. External data is found beside the file. ``values`` makes inputs constants, and
    ``inputs`` and ``outputs`` name values to cut the model off at (:mod:`edgec.frontend.ends`). With ``places`` a
    decoder has the shapes of its run of so many tokens (:mod:`edgec.frontend.caches`).

    Raises :class:`EdgecError` for anything that is wrong with the file, the shapes or these names, and
    :class:`UnsupportedModelError` for nodes whose output shape depends on the data.
    """
    model = _read(Path(source)) if isinstance(source, (str, os.PathLike)) else _adopt(source)
    _reject_newer_opset(model)
    _inline(model)
    common_passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common_passes.RemoveInitializersFromInputsPass()(model)
    if inputs or outputs:
        cut(model, inputs, outputs)
    set_inputs(model, values or {})
    shapes = shapes or {}
    pin_inputs(model, shapes if places is None else shapes_for(model.graph, places, shapes))
    model = _expand_functions(_convert_opset(model))
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.NameFixPass()(model)
    forget_shapes(model)
    _check_whole(model)
    _infer(model)
    reject_inconsistent_nodes(model.graph)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.RemoveUnusedOpsetsPass()(model)
    return model


def _check_whole(model: ir.Model) -> None:
    """Run the checker, once more with inferred ranks of the outputs where it does not like those declared.

    Exporters write ranks that their own shape inference has guessed; ONNX Runtime warns and goes on.
    """
    check = common_passes.CheckerPass(full_check=True)
    try:
        _check(check, model, "The model")
    except EdgecError:
        if not restate_outputs(model):
            raise
        _check(check, model, "The model")


def _infer(model: ir.Model) -> None:
    try:
        infer_shapes(model)
    except RuntimeError as error:  # the constant folder's answer to attributes that no operator has
        raise EdgecError(f"The model is broken: {one_sentence(error)}; export it again.") from error


def _inline(model: ir.Model) -> None:
    """Inline the model's functions, except the fused operators of this compiler, which are lowered as a whole."""
    version = model.opset_imports.get("", OLDEST_OPSET)
    converted = version < OLDEST_OPSET
    common_passes.InlinePass(lambda function: converted or not is_own(function, version))(model)


def _read(path: Path) -> ir.Model:
    """The model in the file, checked by the ONNX checker, its external tensors present and long enough."""
    if path.is_dir():
        raise EdgecError(f"'{path}' is a folder; name the .onnx file in it.")
    if not path.is_file():
        raise EdgecError(f"There is no file '{path}'; check the path.")
    if path.stat().st_size == 0:
        raise EdgecError(f"'{path}' is empty; export the model again.")
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise EdgecError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except DecodeError as error:
        raise EdgecError(f"'{path}' is not an ONNX model, or it is cut off; export it again.") from error
    _check_external_data(path, proto)
    _require_output_shapes(proto, f"'{path}'")
    _check(onnx.checker.check_model, os.fspath(path), f"'{path}'")
    model = _deserialise(proto, f"'{path}'")
    ir.external_data.set_base_dir(model.graph, path.parent)
    return ir.external_data.load_to_model(model)


def _adopt(source: onnx.ModelProto | ir.Model) -> ir.Model:
    """A copy of a model in memory, checked."""
    if isinstance(source, ir.Model):
        _check(common_passes.CheckerPass(), source, "The model")
        return source.clone()
    _require_output_shapes(source, "The model")
    _check(onnx.checker.check_model, source, "The model")
    return _deserialise(source, "The model")


def _require_output_shapes(proto: onnx.ModelProto, name: str) -> None:
    """The checker wants shapes too, but does not say which output lacks one."""
    for output in proto.graph.output:
        if output.type.HasField("tensor_type") and not output.type.tensor_type.HasField("shape"):
            raise EdgecError(
                f"{name} declares no shape for its output '{output.name}'; "
                "add it with onnx.shape_inference.infer_shapes and save the model again."
            )


def _check(checker: Callable[[Any], object], model: object, name: str) -> None:
    try:
        checker(model)
    except (UnicodeDecodeError, ir.serde.SerdeError) as error:
        raise _damaged(name) from error
    except (onnx.checker.ValidationError, InferenceError, ir.passes.PassError, ValueError) as error:
        raise EdgecError(f"{name} is not a valid ONNX model: {one_sentence(error)}.") from error


def _deserialise(proto: onnx.ModelProto, name: str) -> ir.Model:
    """The model as onnx_ir has it; protobuf hands out names that are not UTF-8 as bytes, which are refused."""
    names = [name for node in proto.graph.node for name in (node.name, *node.input, *node.output)]
    names += [value.name for values in (proto.graph.input, proto.graph.initializer) for value in values]
    if any(isinstance(name, bytes) for name in names):
        raise _damaged(name)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, TypeError, ValueError) as error:
        raise _damaged(name) from error
    _reject_unreadable_tensors(model, name)
    return model


def _reject_unreadable_tensors(model: ir.Model, name: str) -> None:
    """The checker refuses tensors with fewer values than their shape has, and lets those with more pass."""
    for graph in model.graphs():
        tensors = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            tensors += [each.value for each in node.attributes.values() if each.type == ir.AttributeType.TENSOR]
        for tensor in tensors:
            if tensor is None or isinstance(tensor, ir.ExternalTensor):  # whose file is looked at before
                continue
            try:
                tensor.numpy()
            except (TypeError, ValueError) as error:
                raise EdgecError(
                    f"{name} is damaged: tensor '{tensor.name or 'without a name'}' cannot be read: "
                    f"{one_sentence(error)}; export or copy it again."
                ) from error


def _damaged(name: str) -> EdgecError:
    return EdgecError(f"{name} is damaged; export or copy it again.")


def _check_external_data(path: Path, proto: onnx.ModelProto) -> None:
    for tensor in filter(uses_external_data, proto.graph.initializer):
        stored = ExternalDataInfo(tensor)
        data = path.parent / stored.location
        if not data.is_file():
            raise EdgecError(
                f"'{path}' keeps tensor '{tensor.name}' in '{stored.location}', which is not beside it; "
                "copy that file there."
            )
        if data.stat().st_size < (stored.offset or 0) + (stored.length or 0):
            raise EdgecError(f"'{data}' is too short to hold tensor '{tensor.name}' of '{path}'; copy the file again.")


def _reject_newer_opset(model: ir.Model) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = model.opset_imports.get("", newest)
    if version > newest:
        raise EdgecError(
            f"The model uses opset {version}, and opset {newest} is the newest that onnx {onnx.__version__} "
            f"knows; export the model with opset {newest} or older."
        )


def _convert_opset(model: ir.Model) -> ir.Model:
    """The model at opset 18 or newer, by ONNX's own converter, whose known mistakes are mended or refused."""
    model.ir_version = max(model.ir_version, _OLDEST_IR_VERSION)
    version = model.opset_imports.get("", OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    if version < _HARDMAX_CHANGED and any(node.op_type == "Hardmax" for node in model.graph.all_nodes()):
        raise _conversion_error(version, "Hardmax changed its meaning in opset 13")
    proto = ir.to_proto(model)
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(proto, OLDEST_OPSET))
    except (RuntimeError, ValueError, InferenceError, ConvertError) as error:
        raise _conversion_error(version, one_sentence(error)) from error
    if version < _RESIZE_CHANGED:
        _restore_old_resize(converted, version)
    return converted


def _expand_functions(model: ir.Model) -> ir.Model:
    """The model with the nodes of ``_EXPANDED`` replaced by their bodies."""
    found = {node.op_type for node in model.graph.all_nodes() if node.domain == ""} & _EXPANDED
    if not found:
        return model
    common_passes.AddInitializersToInputsPass()(model)  # the inliner looks for the types of constants there
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    wanted = [("", name) for name in sorted(found)]
    try:
        expanded = ir.from_proto(inline_selected_functions(proto, wanted, inline_schema_functions=True))
    except RuntimeError as error:
        names = ", ".join(sorted(found))
        raise EdgecError(f"{names} cannot be spelled out in simpler operators: {one_sentence(error)}.") from error
    common_passes.RemoveInitializersFromInputsPass()(expanded)
    return expanded


def _conversion_error(version: int, reason: str) -> EdgecError:
    return EdgecError(
        f"The model cannot be converted from opset {version} to {OLDEST_OPSET}: {reason}; "
        f"export it with opset {OLDEST_OPSET} or newer."
    )


def _restore_old_resize(model: ir.Model, version: int) -> None:
    """Resize and Upsample before opset 11 mapped coordinates without the half-pixel shift of later defaults.

    In mode nearest, ONNX Runtime rounds down where it enlarges and up where it shrinks.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", _old_rounding(node, version))


def _old_rounding(node: ir.Node, version: int) -> str:
    scales = constant_of(node.inputs[2])
    if scales is None or (scales >= 1).all():
        return "floor"
    if (scales <= 1).all():
        return "ceil"
    raise _conversion_error(version, f"Resize node '{node.name}' enlarges one axis and shrinks another")
