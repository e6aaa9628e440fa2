"""Operators that move elements, in both memory orders, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.errors import UnsupportedModelError
from edgec.graph import load_graph
from edgec.lowering import lower
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal


def ints(*values: int) -> np.ndarray:
    """Axes, shapes, pads."""
    return np.array(values, np.int64)


INPUT = normal(2, 6, 5, 7)
SHUFFLE = [
    node("Reshape", "x s5", "a"),
    node("Transpose", "a", "b", perm=[0, 2, 1, 3, 4]),
    node("Reshape", "b s4"),
]

CASES = {
    "reshape": (node("Reshape", "x s"), {"s": ints(0, -1, 35)}),
    "reshape mixing channels and rows": (node("Reshape", "x s"), {"s": ints(2, 10, 3, 7)}),
    "channel shuffle": (SHUFFLE, {"s5": ints(2, 2, 3, 5, 7), "s4": ints(2, 6, 5, 7)}),
    "flatten": (node("Flatten", "x", axis=2), {}),
    "flatten from the end": (node("Flatten", "x", axis=-1), {}),
    "squeeze and unsqueeze": (
        [node("Unsqueeze", "x a", "u"), node("Squeeze", "u b")],
        {"a": ints(0, -1), "b": ints(0)},
    ),
    "transpose": (node("Transpose", "x", perm=[3, 0, 2, 1]), {}),
    "transpose reversed": (node("Transpose", "x"), {}),
    "slice": (
        node("Slice", "x b e a t"),
        {"b": ints(1, -9), "e": ints(99, 4), "a": ints(3, 1), "t": ints(2, 3)},
    ),
    "slice backwards": (
        node("Slice", "x b e a t"),
        {"b": ints(-1, 99), "e": ints(-99, 0), "a": ints(2, 3), "t": ints(-1, -3)},
    ),
    "split": (
        [node("Split", "x n", "p q r", axis=1), node("Concat", "r p q", axis=1)],
        {"n": ints(1, 3, 2)},
    ),
    "uneven split": ([node("Split", "x", "p q r", axis=3, num_outputs=3), node("Concat", "q r p", axis=3)], {}),
    "concat of channels": ([node("Relu", "x", "r"), node("Concat", "x c r", axis=1)], {"c": normal(2, 1, 5, 7)}),
    "concat of one twice": (node("Concat", "x x", axis=-2), {}),
    "pad": (node("Pad", "x p v"), {"p": ints(0, 1, 2, 0, 1, 0, 3, 4), "v": np.float32(1.5)}),
    "pad and crop": (node("Pad", "x p"), {"p": ints(0, -2, 1, -1, 0, 3, -2, 0)}),
    "pad some axes": (node("Pad", "x p - a"), {"p": ints(1, 2, 3, 0), "a": ints(-1, 1)}),
    "pad by reflection": (node("Pad", "x p", mode="reflect"), {"p": ints(0, 2, 3, 0, 1, 5, 4, 2)}),
    "pad with edges": (node("Pad", "x p", mode="edge"), {"p": ints(0, 0, 3, 1, 2, 0, 4, 2)}),
    "expand": ([node("ReduceMax", "x a", "m"), node("Expand", "m s")], {"a": ints(1, 3), "s": ints(3, 1, 4, 1, 2)}),
    "tile": (node("Tile", "x r"), {"r": ints(1, 2, 3, 1)}),
    "depth to space": (
        [node("Concat", "x x", "c", axis=1), node("DepthToSpace", "c", blocksize=2)],
        {},
    ),
    "depth to space, columns first": (
        [node("Concat", "x x", "c", axis=1), node("DepthToSpace", "c", blocksize=2, mode="CRD")],
        {},
    ),
    "space to depth": (
        [node("Pad", "x p", "c"), node("SpaceToDepth", "c", blocksize=2)],
        {"p": ints(0, 0, 0, 0, 0, 0, 1, 1)},
    ),
    "upper triangle": (node("Trilu", "x k"), {"k": np.array(1)}),
    "lower triangle": (node("Trilu", "x k", upper=0), {"k": np.array(-2)}),
    "reverse sequence": (node("ReverseSequence", "x n", batch_axis=1, time_axis=0), {"n": ints(1, 2, 2, 1, 2, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_moves_as_onnxruntime_does(case: str, channels_last: bool, tmp_path: Path) -> None:
    nodes, constants = CASES[case]
    assert_agrees(nodes, {"x": INPUT}, tmp_path, constants, channels_last=channels_last)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int8", "uint32", "bool"])
def test_moves_every_dtype(dtype: str, tmp_path: Path) -> None:
    x = normal(3, 5, 7) > 0 if dtype == "bool" else normal(3, 5, 7, dtype=dtype)
    pads = {"p": ints(0, 1, 2, 1, 0, 3)}
    assert_agrees([node("Pad", "x p", "a"), node("Transpose", "a")], {"x": x}, tmp_path, pads)


def test_pads_with_a_value_computed_at_run_time(tmp_path: Path) -> None:
    inputs = {"x": INPUT, "v": np.array(3.25, np.float32)}
    pads = {"p": ints(0, 1, 0, -2, 0, 0, 4, 1)}
    nodes = [node("Neg", "v", "w"), node("Pad", "x p w")]
    assert_agrees(nodes, inputs, tmp_path, pads, channels_last=True)


def test_a_range_may_start_anywhere(tmp_path: Path) -> None:
    model = graphs.build([node("Range", "a b c", "r"), node("Add", "r x")], {"x": (5,)}, ["y"],
                         {"a": np.float32(1.5), "b": np.float32(9), "c": np.float32(1.75)})  # fmt: skip
    found = compiled_outputs(model, {"x": np.zeros(5, np.float32)}, tmp_path)["y"]
    assert found.tolist() == [1.5, 3.25, 5.0, 6.75, 8.5]


@pytest.mark.parametrize("op", ["Transpose", "Slice", "Split", "Squeeze", "Gather"])
def test_views_cost_no_step(op: str) -> None:
    """Only the convolution, its input's and the output's layout remain."""
    made = {
        "Transpose": (node("Transpose", "c", perm=[0, 2, 3, 1]), {}),
        "Slice": (node("Slice", "c b e"), {"b": ints(0, 1), "e": ints(1, 5)}),
        "Split": (node("Split", "c", "y z", axis=1, num_outputs=2), {}),
        "Squeeze": (node("Squeeze", "c a"), {"a": ints(0)}),
        "Gather": (node("Gather", "c i", axis=1), {"i": ints(5, 3, 1)}),
    }
    view, constants = made[op]
    nodes = [node("Conv", "x w", "c"), view]
    model = graphs.build(nodes, {"x": (1, 4, 5, 7)}, ["y"], {"w": normal(6, 4, 1, 1), **constants})
    bare = graphs.build(nodes[:1], {"x": (1, 4, 5, 7)}, ["c"], {"w": normal(6, 4, 1, 1)})
    assert len(lower(load_graph(model)).steps) <= len(lower(load_graph(bare)).steps)


def test_channel_shuffle_stays_in_feature_map_order() -> None:
    nodes = [node("Conv", "x w", "a1"), node("Reshape", "a1 s5", "a"), SHUFFLE[1], node("Reshape", "b s4", "d"),
             node("Conv", "d w")]  # fmt: skip
    shapes = {"s5": ints(1, 2, 3, 5, 7), "s4": ints(1, 6, 5, 7)}
    model = graphs.build(nodes, {"x": (1, 6, 5, 7)}, ["y"], {"w": normal(6, 6, 1, 1), **shapes})
    copies = [step for step in lower(load_graph(model)).steps if step.nodes != ("node_Conv_0",)]
    assert sum(step.kernel.macs == 0 for step in copies) <= 3  # the shuffle, and the layouts of input and output


def test_shape_computed_at_run_time_is_refused(tmp_path: Path) -> None:
    model = graphs.build([node("Reshape", "x s")], {"x": (3, 4), "s": (2,)}, ["y"], types={"s": graphs.INT64})
    with pytest.raises(UnsupportedModelError, match="Reshape"):
        compiled_outputs(model, {}, tmp_path)
    assert not list(tmp_path.iterdir())
