"""Single operators through the real path (compile, load, run), compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import edgec
from tests import graphs
from tests.programs import assert_close

Array = np.ndarray


def node(op: str, inputs: str, outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    """A node; names are separated by spaces, and ``-`` leaves an input or output out."""
    split = [["" if name == "-" else name for name in names.split()] for names in (inputs, outputs)]
    return helper.make_node(op, *split, **attributes)


def normal(*shape: int, dtype: str = "float32") -> Array:
    """Standard normal values (times 10 for integers), the same for the same shape."""
    values = np.random.default_rng(shape).standard_normal(shape)
    return (values * 10 if np.dtype(dtype).kind in "iu" else values).astype(dtype)


def compiled_outputs(model: onnx.ModelProto, inputs: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """What the compiled model returns."""
    with edgec.load(edgec.compile(model, "host", folder / "model.so").path) as session:
        return session.run(dict(inputs))


def assert_agrees(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    folder: Path,
    constants: Mapping[str, Array] | None = None,
    *,
    outputs: str = "y",
    opset: int = 18,
    channels_last: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """The compiled model equals ONNX Runtime: exactly for integers, to ``tolerance`` of the range for floats.

    ``channels_last`` puts a pointwise convolution before input ``x`` (N, C, H, W), so that it lies in memory as
    feature maps do.
    """
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else list(nodes)
    inputs, constants = dict(inputs), dict(constants or {})
    if channels_last:
        nodes.insert(0, node("Conv", "raw mix", "x"))
        inputs["raw"] = inputs.pop("x")
        channels = inputs["raw"].shape[1]
        constants["mix"] = normal(channels, channels, 1, 1)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    shapes = {name: array.shape for name, array in inputs.items()}
    model = graphs.build(nodes, shapes, outputs.split(), constants, opset=opset, types=types)
    found, wanted = compiled_outputs(model, inputs, folder), graphs.run(model, inputs)
    floats = {name for name, array in wanted.items() if array.dtype.kind == "f"}
    assert_close({n: found[n] for n in floats}, {n: wanted[n] for n in floats}, tolerance)
    for name in wanted.keys() - floats:
        assert found[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
