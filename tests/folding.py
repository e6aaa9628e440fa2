"""Folding in tests: constants, batch norms, and passes applied with every check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from edgec.passes.base import Pass, PassReport
from tests.graphs import assert_same, build, load, node, operators


def arrays(seed: int = 0, **shapes: Sequence[int]) -> dict[str, np.ndarray]:
    """Standard normal float32 constants of the ``shapes``."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def norm(channels: int, prefix: str = "bn", seed: int = 1) -> dict[str, np.ndarray]:
    """Parameters of a batch norm, the variance positive."""
    found = arrays(seed, **{f"{prefix}_{part}": (channels,) for part in ("scale", "bias", "mean", "var")})
    found[f"{prefix}_var"] = np.abs(found[f"{prefix}_var"]) + 0.1
    return found


def batch_norm(source: str, result: str, prefix: str = "bn", **attributes: float) -> onnx.NodeProto:
    inputs = [source, *(f"{prefix}_{part}" for part in ("scale", "bias", "mean", "var"))]
    return node("BatchNormalization", inputs, [result], name=prefix, **attributes)


def folded(
    each: Pass,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
) -> tuple[list[str], PassReport]:
    """Operators and report after the pass, which must keep the values and change nothing when applied again."""
    original = build(nodes, inputs, outputs, constants)
    model = load(original)
    report = each.apply(model)
    assert_same(original, model)
    found = operators(model)
    again = each.apply(model)
    assert (again.matched, operators(model), again.before) == (0, found, again.after)
    return found, report


def refusal(
    each: Pass,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
) -> str:
    """The one reason why the pass leaves the graph alone."""
    found, report = folded(each, nodes, inputs, constants, outputs)
    assert report.matched == 0
    assert found == sorted(each.op_type for each in nodes)
    assert len(report.refusals) == 1
    return str(report.refusals[0])
