"""The memory plan: nothing alive overlaps, and little is wasted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import scalar
from edgec.planning import memory
from edgec.program import INPUT, OUTPUT, Buffer, Loops, Program, Step, Tensor


def chain(sizes: list[int], skips: list[tuple[int, int]]) -> Program:
    """A step per buffer, each reading the one before and, for (a, b) in ``skips``, step b also reading a."""
    buffers = [Buffer(f"b{i}", "float32", size) for i, size in enumerate(sizes)]
    buffers[0].space, buffers[-1].space = INPUT, OUTPUT
    program = Program("p", [Tensor("x", (sizes[0],), buffers[0])], [Tensor("y", (sizes[-1],), buffers[-1])])
    for index in range(1, len(sizes)):
        inputs = [buffers[index - 1], *(buffers[a] for a, b in skips if b == index and a != index - 1)]
        body = scalar.load(0, 0, "float32")
        for operand in range(1, len(inputs)):
            body = scalar.binary("add", body, scalar.load(operand, 0, "float32"))
        nest = Loops((sizes[index],), body, scalar.axis(0), "float32")
        program.steps.append(Step(nest, inputs, buffers[index], (f"n{index}",)))
    return program


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_live_buffers_never_overlap(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5000), min_size=3, max_size=14))
    pairs = st.tuples(st.integers(1, len(sizes) - 2), st.integers(1, len(sizes) - 1)).filter(lambda p: p[0] < p[1])
    program = chain(sizes, data.draw(st.lists(pairs, max_size=6)))
    lifetimes = memory.plan(program)
    for i, a in enumerate(lifetimes):
        assert a.buffer.offset is not None and a.buffer.offset % memory.ALIGNMENT == 0
        assert a.buffer.offset + a.nbytes <= program.arena_bytes
        for b in lifetimes[:i]:
            assert b.buffer.offset is not None
            apart = a.buffer.offset + a.nbytes <= b.buffer.offset or b.buffer.offset + b.nbytes <= a.buffer.offset
            assert apart or not a.overlaps(b)
    assert program.arena_lower_bound <= program.arena_bytes


def test_plan_meets_the_bound_where_first_fit_by_size_does_not() -> None:
    program = chain([1, 600, 100, 500, 100, 700, 1], [(2, 5), (3, 5)])
    memory.plan(program)
    assert program.arena_bytes <= 1.15 * program.arena_lower_bound


def elementwise(first: str = "x") -> Program:
    x, t, y = Buffer("x", "float32", 50, INPUT), Buffer("t", "float32", 50), Buffer("u", "float32", 50)
    out = Buffer("y", "float32", 50, OUTPUT)
    program = Program("p", [Tensor("x", (50,), x)], [Tensor("y", (50,), out)])
    same = Loops((50,), scalar.load(0, scalar.axis(0), "float32"), scalar.axis(0), "float32")
    turned = Loops(
        (50,), scalar.load(0, scalar.const(49, "int32") - scalar.axis(0), "float32"), scalar.axis(0), "float32"
    )
    kernel = same if first == "same" else turned
    program.steps = [Step(same, [x], t, ("a",)), Step(kernel, [t], y, ("b",)), Step(same, [y], out, ("c",))]
    return program


def test_elementwise_steps_run_in_place() -> None:
    program = elementwise("same")
    memory.plan(program)
    assert program.arena_bytes == 256 and program.steps[1].output.root is program.steps[1].inputs[0].root


def test_a_step_that_reads_elsewhere_does_not() -> None:
    program = elementwise("turned")
    memory.plan(program)
    assert program.arena_bytes == 512
