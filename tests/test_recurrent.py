"""LSTM, GRU and RNN in all directions, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgec.errors import UnsupportedModelError
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
OUTPUTS = {"RNN": "y h", "GRU": "y h", "LSTM": "y h c"}
STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 5, 17


def weights(op: str, directions: int) -> dict[str, np.ndarray]:
    gates = GATES[op] * HIDDEN
    return {
        "w": normal(directions, gates, INPUTS) * 0.4,
        "r": normal(directions, gates, HIDDEN) * 0.2,
        "b": normal(directions, 2 * gates) * 0.3,
    }


def states(op: str, directions: int) -> dict[str, np.ndarray]:
    names = ("h0", "c0") if op == "LSTM" else ("h0",)
    return {name: normal(directions, BATCH, HIDDEN) * (index + 1) for index, name in enumerate(names)}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_directions_and_initial_states(op: str, direction: str, tmp_path: Path) -> None:
    directions = 2 if direction == "bidirectional" else 1
    names = " ".join(["x w r b -", *states(op, directions)])
    made = node(op, names, OUTPUTS[op], hidden_size=HIDDEN, direction=direction)
    inputs = {"x": normal(STEPS, BATCH, INPUTS), **states(op, directions)}
    assert_agrees(made, inputs, tmp_path, weights(op, directions), outputs=OUTPUTS[op])


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_sequences_of_different_lengths(op: str, direction: str, tmp_path: Path) -> None:
    """What lies behind a sequence's end is 0, and does not reach its state."""
    directions = 2 if direction == "bidirectional" else 1
    made = node(op, "x w r - n", OUTPUTS[op], hidden_size=HIDDEN, direction=direction)
    inputs = {"x": normal(STEPS, BATCH, INPUTS), "n": np.array([2, 4, 1], np.int32)}
    assert_agrees(made, inputs, tmp_path, weights(op, directions), outputs=OUTPUTS[op])


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gru_resets_before_or_after_its_product(with_bias: bool, before: int, tmp_path: Path) -> None:
    made = node(
        "GRU", "x w r b" if with_bias else "x w r", "y h", hidden_size=HIDDEN, linear_before_reset=before, clip=0.7
    )
    assert_agrees(made, {"x": normal(STEPS, BATCH, INPUTS)}, tmp_path, weights("GRU", 1), outputs="y h")


@pytest.mark.parametrize("couple", [0, 1])
def test_lstm_with_peepholes(couple: int, tmp_path: Path) -> None:
    made = node("LSTM", "x w r b - - - p", "y h c", hidden_size=HIDDEN, input_forget=couple)
    constants = {**weights("LSTM", 1), "p": normal(1, 3 * HIDDEN)}
    assert_agrees(made, {"x": normal(STEPS, BATCH, INPUTS)}, tmp_path, constants, outputs="y h c")


def test_activations_of_each_gate(tmp_path: Path) -> None:
    made = node(
        "LSTM", "x w r b", "y h c", hidden_size=HIDDEN, activations=["HardSigmoid", "LeakyRelu", "Softsign"],
        activation_alpha=[0.3, 0.2], activation_beta=[0.4],
    )  # fmt: skip
    assert_agrees(made, {"x": normal(STEPS, BATCH, INPUTS)}, tmp_path, weights("LSTM", 1), outputs="y h c")


def test_weights_computed_while_running(tmp_path: Path) -> None:
    made = node("GRU", "x w r b", "y h", hidden_size=HIDDEN)
    assert_agrees(made, {"x": normal(STEPS, BATCH, INPUTS), **weights("GRU", 1)}, tmp_path, outputs="y h")


def test_batch_first(tmp_path: Path) -> None:
    """Layout 1 is layout 0 with the first axes swapped (ONNX Runtime has only layout 0)."""
    constants, x = weights("LSTM", 1), normal(STEPS, BATCH, INPUTS)
    found = []
    for layout, given in ((0, x), (1, x.swapaxes(0, 1).copy())):
        made = node("LSTM", "x w r b", "y h c", hidden_size=HIDDEN, layout=layout)
        folder = tmp_path / str(layout)
        folder.mkdir()
        model = graphs.build([made], {"x": given.shape}, ["y", "h", "c"], constants)
        found.append(compiled_outputs(model, {"x": given}, folder))
    np.testing.assert_array_equal(found[0]["y"].transpose(2, 0, 1, 3), found[1]["y"])
    np.testing.assert_array_equal(found[0]["c"].swapaxes(0, 1), found[1]["c"])


def test_the_last_state_alone(tmp_path: Path) -> None:
    made = node("LSTM", "x w r b", "- h", hidden_size=HIDDEN)
    assert_agrees(made, {"x": normal(STEPS, BATCH, INPUTS)}, tmp_path, weights("LSTM", 1), outputs="h")


def test_double_floats(tmp_path: Path) -> None:
    """ONNX Runtime has none of them in double; the same weights in float32 give the same to its precision."""
    x, found = normal(STEPS, BATCH, INPUTS), {}
    for dtype in ("float32", "float64"):
        constants = {name: value.astype(dtype) for name, value in weights("GRU", 1).items()}
        types = {"x": helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}
        model = graphs.build(
            [node("GRU", "x w r b", hidden_size=HIDDEN)], {"x": x.shape}, ["y"], constants, types=types
        )
        (tmp_path / dtype).mkdir()
        found[dtype] = compiled_outputs(model, {"x": x.astype(dtype)}, tmp_path / dtype)["y"]
    assert found["float64"].dtype == np.float64
    np.testing.assert_allclose(found["float64"], found["float32"], rtol=0, atol=1e-6)


REFUSED = {
    "1025 time steps": {"steps": 1025},
    "activation tribble": {"activations": ["Tribble", "Tanh", "Tanh"]},
    "clip limits its memory": {"clip": 1.0},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusals(reason: str, tmp_path: Path) -> None:
    attributes = {**REFUSED[reason], "hidden_size": HIDDEN}
    steps = attributes.pop("steps", STEPS)
    model = graphs.build(
        [node("LSTM", "x w r b", "y", **attributes)], {"x": (steps, BATCH, INPUTS)}, ["y"], weights("LSTM", 1)
    )
    with pytest.raises(UnsupportedModelError, match=reason):
        compiled_outputs(model, {}, tmp_path)
