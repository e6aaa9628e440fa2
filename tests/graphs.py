"""Small ONNX graphs for the tests of import and passes, and the comparison by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgec.graph import load_graph

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

node = helper.make_node


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model with float32 inputs (unless ``types`` says otherwise) and outputs as ONNX infers them."""
    types = types or {}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, types.get(name, FLOAT), shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    ir_version = 8 if opset <= 18 else 10
    model = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def random_inputs(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal values for each input, in its dtype."""
    rng = np.random.default_rng(seed)
    return {
        str(value.name): rng.standard_normal(value.shape.numpy()).astype(value.dtype.numpy())
        for value in model.graph.inputs
    }


def run(model: onnx.ModelProto | ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by ONNX Runtime without its own graph optimisations."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def assert_same(original: onnx.ModelProto, model: ir.Model, inputs: Mapping[str, np.ndarray] | None = None) -> None:
    """The model is valid, has the original's outputs in name and order, and computes the same to 1e-5 relative."""
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    inputs = random_inputs(model) if inputs is None else inputs
    wanted, found = run(original, inputs), run(model, inputs)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        largest = np.abs(array).max() if array.size else 0
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5 * float(largest), err_msg=name)


def operators(model: ir.Model) -> list[str]:
    """Operator types of the main graph, sorted."""
    return sorted(each.op_type for each in model.graph)


def load(model: onnx.ModelProto, **shapes: Sequence[int]) -> ir.Model:
    """The model as the compiler imports it, with the inputs named pinned."""
    return load_graph(model, shapes=shapes)
