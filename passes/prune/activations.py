"""What flows through a graph on calibration samples, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime

from edgec.errors import EdgecError

Sample = Mapping[str, np.ndarray]
"""The inputs of one run, by name."""


def capture(model: ir.Model, names: Sequence[str], samples: Iterable[Sample]) -> Iterator[dict[str, np.ndarray]]:
    """The values called ``names`` for each sample; only what they need is computed."""
    names = list(dict.fromkeys(names))
    part = model.clone()
    values = {value.name: value for node in part.graph for value in node.outputs}
    inputs = {value.name: value for value in part.graph.inputs}
    computed = [name for name in names if name in values]
    part.graph.outputs[:] = [values[name] for name in computed]
    common_passes.RemoveUnusedNodesPass()(part)
    session = open_session(part) if computed else None
    for sample in samples:
        found = {name: sample[name] for name in names if name in inputs}
        if session is not None:
            found |= zip(computed, session.run(computed, dict(sample)), strict=True)
        yield found


def outputs(model: ir.Model, samples: Iterable[Sample]) -> list[np.ndarray]:
    """Each output of the model over all samples: [samples, *shape]."""
    session = open_session(model)
    runs = [session.run(None, dict(sample)) for sample in samples]
    return [np.stack(each) for each in zip(*runs, strict=True)]


def open_session(model: ir.Model) -> onnxruntime.InferenceSession:
    """A session on one thread, so that the results do not depend on the machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as exceptions, whose readers decide what to print
    try:
        proto = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        reason = str(error).partition("\n")[0]
        raise EdgecError(
            f"ONNX Runtime cannot run the model for its activations: {reason}; prune with --score magnitude"
        ) from error


def distance(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Squared difference of outputs over the variance of ``wanted`` across samples, the mean over the outputs."""
    shares = []
    for ours, theirs in zip(found, wanted, strict=True):
        spread = float(np.square(theirs - theirs.mean(axis=0)).sum()) or float(np.square(theirs).sum()) or 1.0
        shares.append(float(np.square(ours.astype(np.float64) - theirs).sum()) / spread)
    return float(np.mean(shares))
