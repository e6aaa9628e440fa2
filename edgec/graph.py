"""Import: from an ONNX file to an ``onnx_ir.Model`` that the passes and the lowering can rely on.

After :func:`load_graph` the model is checked, at opset 18 or newer, free of model-local functions, has its
initialisers as constants (never as inputs), unique names, and a static shape and a dtype for every value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from google.protobuf.message import DecodeError

from edgec.errors import EdgecError
from edgec.shapes import infer_shapes, one_sentence, pin_inputs

OLDEST_OPSET = 18
"""Older models are converted up to this opset, so that passes and lowering know one form of each operator."""

_OLDEST_IR_VERSION = 8
"""The IR version that came with opset 18; before version 4 every initialiser had to be an input too."""


def load_graph(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> ir.Model:
    """Load and check a model, pin its dynamic input axes to ``shapes``, and infer every shape.

    ``source`` is left as it is. External data is found beside the file. Raises :class:`EdgecError` for
    anything that is wrong with the file or the shapes, and :class:`UnsupportedModelError` for nodes whose
    output shape depends on the data.
    """
    if isinstance(source, (str, os.PathLike)):
        model = _read(Path(source))
    else:
        model = _adopt(source)
    _reject_newer_opset(model)
    common_passes.InlinePass()(model)
    common_passes.RemoveUnusedFunctionsPass()(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    pin_inputs(model, shapes or {})
    model = _convert_opset(model)
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.NameFixPass()(model)
    infer_shapes(model)
    common_passes.RemoveUnusedNodesPass()(model)
    common_passes.RemoveUnusedOpsetsPass()(model)
    return model


def _read(path: Path) -> ir.Model:
    """The model in the file, checked by the ONNX checker, its external tensors present and long enough."""
    if path.is_dir():
        raise EdgecError(f"'{path}' is a folder; name the .onnx file in it.")
    if not path.is_file():
        raise EdgecError(f"There is no file '{path}'; check the path.")
    if path.stat().st_size == 0:
        raise EdgecError(f"'{path}' is empty; export the model again.")
    try:
        model = ir.load(path)
    except OSError as error:
        raise EdgecError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except (DecodeError, ir.serde.SerdeError, ValueError) as error:
        raise EdgecError(f"'{path}' is not an ONNX model, or it is damaged; export it again.") from error
    _check_external_data(path, model)
    _check(onnx.checker.check_model, os.fspath(path), f"'{path}'")
    return model


def _adopt(source: onnx.ModelProto | ir.Model) -> ir.Model:
    """A copy of a model in memory, checked."""
    if isinstance(source, ir.Model):
        _check(common_passes.CheckerPass(), source, "The model")
        return source.clone()
    _check(onnx.checker.check_model, source, "The model")
    return ir.from_proto(source)


def _check(checker: Callable[[Any], object], model: object, name: str) -> None:
    try:
        checker(model)
    except (onnx.checker.ValidationError, ir.passes.PassError) as error:
        raise EdgecError(f"{name} is not a valid ONNX model: {one_sentence(error)}.") from error


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _check_external_data(path: Path, model: ir.Model) -> None:
    for tensor in _external_tensors(model):
        data = Path(tensor.path)
        if not data.is_file():
            raise EdgecError(
                f"'{path}' keeps tensor '{tensor.name}' in '{tensor.location}', which is not beside it; "
                "copy that file there."
            )
        if data.stat().st_size < (tensor.offset or 0) + (tensor.length or tensor.nbytes):
            raise EdgecError(
                f"'{data}' is too short to hold tensor '{tensor.name}' of '{path}'; copy the file again."
            )


def _reject_newer_opset(model: ir.Model) -> None:
    newest = onnx.defs.onnx_opset_version()
    version = model.opset_imports.get("", newest)
    if version > newest:
        raise EdgecError(
            f"The model uses opset {version}, and opset {newest} is the newest that onnx {onnx.__version__} "
            f"knows; export the model with opset {newest} or older."
        )


def _convert_opset(model: ir.Model) -> ir.Model:
    """The model at opset 18 or newer. Operators that did not change in between need no conversion."""
    model.ir_version = max(model.ir_version, _OLDEST_IR_VERSION)
    version = model.opset_imports.get("", OLDEST_OPSET)
    if version >= OLDEST_OPSET:
        return model
    ir.external_data.load_to_model(model)
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(model), OLDEST_OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise EdgecError(
            f"The model cannot be converted from opset {version} to {OLDEST_OPSET}: {one_sentence(error)}; "
            f"export it with opset {OLDEST_OPSET} or newer."
        ) from error
    return ir.from_proto(converted)
