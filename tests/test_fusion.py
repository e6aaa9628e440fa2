"""Fusion: fewer steps, the same numbers (by the numpy reference and on the host)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgec.program import Conv, Depthwise, Fill, Loops, Program
from tests.programs import HostProgram, assert_close, model, program_of, random_inputs, run_reference

rng = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str, **attributes: object) -> object:
    return helper.make_node(op, inputs.split(), [output], **attributes)


PADS = {"pads": [1, 1, 1, 1]}


def residual_block():
    nodes = [
        node("Conv", "x w1 b1", "a", **PADS), node("Relu", "a", "b"),
        node("Conv", "b w2 b2", "c", **PADS), node("Add", "c b", "d"), node("Relu", "d", "e"),
        node("Conv", "e w2 b2", "f", **PADS), node("Add", "f e", "y"),
    ]  # fmt: skip
    constants = {"w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 8, 3, 3), "b2": weights(8)}
    return model(nodes, {"x": (1, 3, 7, 9)}, {"y": (1, 8, 7, 9)}, constants)


def silu_chain():
    nodes = [
        node("Conv", "x w b", "a"), node("Sigmoid", "a", "s"), node("Mul", "a s", "m"),
        node("Conv", "m d", "y", group=17, **PADS),
    ]  # fmt: skip
    constants = {"w": weights(17, 5, 1, 1), "b": weights(17), "d": weights(17, 1, 3, 3)}
    return model(nodes, {"x": (1, 5, 6, 5)}, {"y": (1, 17, 6, 5)}, constants)


def grouped_block():
    """Groups between pointwise convolutions, and groups that pad what groups have computed."""
    nodes = [
        node("Conv", "x w1 b", "a"), node("Relu", "a", "r"),
        node("Conv", "r w2 b", "c", group=5, **PADS), node("Sigmoid", "c", "s"), node("Mul", "c s", "m"),
        node("Conv", "m w3 b", "d", group=2, **PADS), node("Add", "d r", "e"), node("Relu", "e", "f"),
        node("Conv", "f w4", "y"),
    ]  # fmt: skip
    constants = {"w1": weights(40, 3, 1, 1), "b": weights(40), "w2": weights(40, 8, 3, 3), "w3": weights(40, 20, 3, 3)}
    return model(nodes, {"x": (1, 3, 7, 9)}, {"y": (1, 7, 7, 9)}, constants | {"w4": weights(7, 40, 1, 1)})


def broadcast_gate():
    nodes = [node("Sigmoid", "g", "s"), node("Mul", "x s", "m"), node("Conv", "m w", "y")]
    return model(nodes, {"x": (2, 5, 4, 7), "g": (2, 5, 1, 1)}, {"y": (2, 7, 4, 7)}, {"w": weights(7, 5, 1, 1)})


def gathered_sum():
    """Both nests read two operands, and the index of one lies inside the other."""
    nodes = [node("Add", "x b", "a"), node("Gather", "a i", "g", axis=2), node("Mul", "g g", "y")]
    constants = {"b": weights(5, 1), "i": np.array([3, 0, 6, 6, 2])}
    return model(nodes, {"x": (2, 5, 7)}, {"y": (2, 5, 5)}, constants)


MODELS = {
    "residual block": residual_block,
    "silu": silu_chain,
    "groups": grouped_block,
    "broadcast gate": broadcast_gate,
    "gathered sum": gathered_sum,
}


@pytest.mark.parametrize("name", MODELS)
def test_fusion_changes_no_number(name: str, tmp_path: Path) -> None:
    source = MODELS[name]()
    plain, fused = program_of(source, fuse=False), program_of(source)
    inputs = random_inputs(plain)
    want = run_reference(plain, inputs)
    assert len(fused.steps) < len(plain.steps)
    assert_close(run_reference(fused, inputs), want)
    compiled = HostProgram(fused, tmp_path)
    for threads in (1, 3):
        assert_close(compiled.run(inputs, threads), want)


def kinds(program: Program) -> list[str]:
    return [type(step.kernel).__name__ for step in program.steps]


def test_activation_and_residual_end_in_the_convolution() -> None:
    program = program_of(residual_block())
    # what remains beside them: borders, the input's copy into NHWC, and the output's out of it
    assert kinds(program).count("Conv") == 3
    assert all(isinstance(s.kernel, Conv | Fill) for s in program.steps[2:-1]), kinds(program)


def test_groups_are_one_step_with_all_that_follows() -> None:
    """Activations and sums end in it, and its results stand inside the next one's padding at once."""
    program = program_of(grouped_block())
    steps = [step for step in program.steps if isinstance(step.kernel, Conv)]
    # beside them: two borders, and the output's copy out of NHWC
    assert len(program.steps) == len(steps) + 3, kinds(program)
    assert [step.kernel.batch for step in steps if step.kernel.grouped] == [5, 2]
    assert steps[1].output.root is steps[2].inputs[0].root


def test_padded_inputs_are_written_in_place() -> None:
    program = program_of(silu_chain())
    conv = next(s for s in program.steps if isinstance(s.kernel, Conv))
    depthwise = next(s for s in program.steps if isinstance(s.kernel, Depthwise))
    assert conv.output.root is depthwise.inputs[0].root


def test_expensive_producers_are_not_repeated() -> None:
    """sigmoid of a gate is computed once a channel, not once a pixel."""
    program = program_of(broadcast_gate())
    first = program.steps[0].kernel
    assert isinstance(first, Loops) and first.extents == (2, 5, 1, 1) and "sigmoid" in repr(first.body)


def test_flattened_pointwise_convolutions() -> None:
    nodes = [node("Conv", "x w", "a"), node("Relu", "a", "r"), node("Conv", "r v", "y")]
    filters = {"w": weights(8, 3, 1, 1), "v": weights(9, 8, 1, 1)}
    source = model(nodes, {"x": (1, 3, 5, 7)}, {"y": (1, 9, 5, 7)}, filters)
    convs = [s.kernel for s in program_of(source).steps if isinstance(s.kernel, Conv)]
    assert [(c.out_height, c.out_width) for c in convs] == [(1, 35), (1, 35)]
