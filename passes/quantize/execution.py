"""Running models and single nodes in ONNX Runtime, on many samples, with the same bits every time.

Samples run one by one, each on one thread, several at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgec.errors import EdgecError

Sample = Mapping[str, np.ndarray]
"""The inputs of one run by name."""

_FATAL_ONLY = 4
_QUIET = "session.disable_quant_qdq"
"""ONNX Runtime's name for leaving QuantizeLinear and DequantizeLinear as they are."""


def map_parallel(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """``function`` of each item, in order, on all processors."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(function, items))


class ModelRunner:
    """A model in ONNX Runtime.

    Quantise and dequantise nodes run as they stand in the graph; an initialiser named in ``open_constants`` can be
    given another value at each run.
    """

    def __init__(self, model: ir.Model, open_constants: Sequence[str] = (), outputs: Sequence[str] = ()) -> None:
        """``outputs`` are the names of values to compute instead of the graph's outputs."""
        proto = ir.to_proto(model)
        values = {value.name: value for value in proto.graph.value_info}
        if outputs:
            known = {value.name: value for value in [*proto.graph.output, *proto.graph.input]} | values
            del proto.graph.output[:]
            proto.graph.output.extend(known[name] for name in outputs)
        for tensor in proto.graph.initializer:
            if tensor.name in open_constants:
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                proto.graph.input.append(info)
        self._session = _session(proto)

    def run(self, sample: Sample, constants: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """The outputs for one sample.

        Raises:
            EdgecError: ONNX Runtime cannot run the model on it.
        """
        return _outputs(self._session, {**sample, **(constants or {})})

    def by_name(self, sample: Sample) -> dict[str, np.ndarray]:
        """The outputs for one sample, by their names."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self.run(sample), strict=True))

    def run_all(
        self, samples: Iterable[Sample], constants: Mapping[str, np.ndarray] | None = None
    ) -> list[list[np.ndarray]]:
        """The outputs for each sample."""
        return map_parallel(lambda sample: self.run(sample, constants), samples)


class NodeRunner:
    """Single nodes of a model, each on all samples at once."""

    def __init__(self, model: ir.Model) -> None:
        self._functions = [ir.to_proto(function) for function in model.functions.values()]
        self._opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
        self._ir_version = model.ir_version
        self._sessions: dict[tuple[ir.Node, tuple[int, ...]], tuple[Any, dict[int, str]]] = {}

    def run(
        self,
        node: ir.Node,
        inputs: Mapping[int, np.ndarray],
        constants: Mapping[int, np.ndarray] | None = None,
    ) -> list[np.ndarray]:
        """The outputs of ``node``, each [samples, *shape], or [1, *shape] where it reads constants only.

        Args:
            node: all its values have static shapes.
            inputs: [samples, *shape] by the index of an input that is no constant.
            constants: replacements for constants, by the index of the input.
        """
        fixed = dict(constants or {})
        session, names = self._open(node, tuple(sorted(fixed)))
        base = {names[index]: array for index, array in fixed.items()}
        count = min(map(len, inputs.values()), default=1)

        def one(row: int) -> list[np.ndarray]:
            return _outputs(session, {**base, **{names[i]: array[row, ...] for i, array in inputs.items()}})

        first = one(0)
        found = [np.empty((count, *each.shape), each.dtype) for each in first]

        def fill(part: Sequence[int]) -> None:
            for row in part:
                for array, each in zip(found, one(row) if row else first, strict=True):
                    array[row] = each

        map_parallel(fill, np.array_split(np.arange(count), min(count, os.cpu_count() or 1)))
        return found

    def _open(self, node: ir.Node, replaced: tuple[int, ...]) -> tuple[Any, dict[int, str]]:
        """A session for ``node``, and the names of its inputs when it was made: constants may change theirs."""
        key = (node, replaced)
        if key not in self._sessions:
            names = {index: str(value.name) for index, value in enumerate(node.inputs) if value is not None}
            self._sessions[key] = _session(self._single(node, replaced)), names
        return self._sessions[key]

    def _single(self, node: ir.Node, replaced: tuple[int, ...]) -> onnx.ModelProto:
        constants, inputs = {}, {}
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value.const_value is None or index in replaced:
                inputs[value.name] = onnx.helper.make_tensor_value_info(
                    str(value.name), int(value.dtype or 0), value.shape.numpy() if value.shape else None
                )
            else:
                constants[value.name] = named_tensor(value)
        graph = onnx.helper.make_graph(
            [ir.to_proto(node)],
            "node",
            list(inputs.values()),
            [ir.to_proto(value) for value in node.outputs if value.name],
            list(constants.values()),
        )
        return onnx.helper.make_model(
            graph, opset_imports=self._opsets, functions=self._functions, ir_version=self._ir_version
        )


def named_tensor(value: ir.Value) -> onnx.TensorProto:
    """The constant under the value's name, which the tensor itself need not bear."""
    assert value.const_value is not None
    tensor = onnx.TensorProto()
    tensor.CopyFrom(ir.to_proto(value.const_value))
    tensor.name = str(value.name)
    return tensor


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # each of a walk's many sessions would keep one as large as its largest run
    options.add_session_config_entry(_QUIET, "1")
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise EdgecError(f"ONNX Runtime cannot load the model to calibrate it: {_reason(error)}") from error


def _outputs(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    try:
        return session.run(None, dict(feeds))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise EdgecError(f"ONNX Runtime cannot run the model on the samples: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
