"""Test vectors inside an artifact: sample inputs, the outputs that the reference gives, and what each step stores.

``edgert_selftest`` runs them on the device and says which step first differs. What follows from integers alone, or
from single operations that IEEE 754 fixes, must be equal to the last bit, by a CRC-32 of the step's elements. Float
sums and transcendental functions round differently from target to target: there mean and root mean square are compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgec import reference, scalar
from edgec.nest import coefficient
from edgec.planning.memory import ALIGNMENT
from edgec.program import ARENA, STATE, Buffer, Fill, Kernel, Loops, Program, Step
from edgec.scalar import Expr

MOST_TESTS = 4
"""So many samples of a file are bundled."""

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.02
"""How far floats may lie from the reference, as a share of the root mean square or of the output's range; and the same
where sums are float16, whose order decides how they are rounded."""

AXES = 6
"""Axes of a region; a step that stores along more is not checked by itself."""

EXACT = frozenset({
    "const", "axis", "load", "acc", "cast", "saturate", "add", "sub", "mul", "min", "max", "eq", "ne", "lt", "le", "gt",
    "ge", "and", "or", "not", "bitand", "bitor", "bitxor", "bitnot", "shiftleft", "shiftright", "neg", "abs", "sign",
    "floor", "ceil", "round", "select", "isnan", "isinf", "floordiv", "floormod",
})  # fmt: skip
"""Operators with one right answer, on floats too."""


@dataclass(frozen=True)
class Region:
    """The elements that a step stores.

    Attributes:
        buffer: where they lie.
        first: offset of the first, in elements from the buffer's start.
        extents: how often each axis steps.
        strides: by how many elements.
        exact: whether they are the same on every target.
    """

    buffer: Buffer
    first: int
    extents: tuple[int, ...]
    strides: tuple[int, ...]
    exact: bool

    def of(self, elements: reference.Array) -> reference.Array:
        """These elements of the buffer's, in order."""
        steps = np.indices(self.extents, sparse=True)
        places = self.first + sum((i * s for i, s in zip(steps, self.strides, strict=True)), np.int64(0))
        return np.ascontiguousarray(elements[np.broadcast_to(places, self.extents)])


@dataclass(frozen=True)
class Expected:
    """What a step's elements come to: the checksum of exact ones, mean and root mean square of the others."""

    crc: int = 0
    mean: float = 0.0
    rms: float = 0.0


@dataclass(frozen=True)
class Vectors:
    """Tests of a program.

    Attributes:
        regions: for each step what it stores; None where that is not checked by itself.
        expected: for each test and each step.
        inputs: of all tests, each tensor from a multiple of the alignment on.
        outputs: in the same way.
        exact_outputs: for each output whether it is the same on every target.
        count: of the tests.
        tolerance: see :data:`TOLERANCE`.
    """

    regions: tuple[Region | None, ...]
    expected: tuple[tuple[Expected, ...], ...]
    inputs: bytes
    outputs: bytes
    exact_outputs: tuple[bool, ...]
    count: int
    tolerance: float = TOLERANCE


def make_vectors(program: Program, samples: Sequence[Mapping[str, reference.Array]]) -> Vectors:
    """Run the reference on ``samples`` (the first :data:`MOST_TESTS` of them), step by step.

    Args:
        program: as it is compiled, with its memory planned.
        samples: an array for every input.
    """
    samples = samples[:MOST_TESTS]
    exact: dict[int, bool] = {}
    regions = tuple(_region(step, exact) for step in program.steps)
    runs = [_run(program, regions, sample) for sample in samples]
    in_half = any(getattr(step.kernel, "sum_dtype", None) == "float16" for step in program.steps)
    inputs = [[np.ascontiguousarray(sample[t.name], t.dtype) for t in program.inputs] for sample in samples]
    return Vectors(
        regions,
        tuple(expected for expected, _ in runs),
        b"".join(_dense(arrays) for arrays in inputs),
        b"".join(_dense(outputs) for _, outputs in runs),
        tuple(exact.get(id(tensor.buffer.root), True) for tensor in program.outputs),
        len(samples),
        HALF_TOLERANCE if in_half else TOLERANCE,
    )


def _run(
    program: Program, regions: Sequence[Region | None], sample: Mapping[str, reference.Array]
) -> tuple[tuple[Expected, ...], list[reference.Array]]:
    """What each step of a run stores, and the outputs."""
    memory: dict[int, reference.Array] = {}
    for tensor in program.inputs:
        memory[id(tensor.buffer)] = np.ascontiguousarray(sample[tensor.name], tensor.dtype).reshape(-1)
    expected = []
    for step, region in zip(program.steps, regions, strict=True):
        reference.run_step(step, memory)
        expected.append(_summary(region, memory) if region else Expected())
    return tuple(expected), [reference.elements_of(t.buffer, memory).reshape(t.shape) for t in program.outputs]


def _summary(region: Region, memory: dict[int, reference.Array]) -> Expected:
    values = region.of(reference.elements_of(region.buffer, memory))
    if region.exact:
        return Expected(crc=zlib.crc32(values.tobytes()))
    wide = values.astype(np.float64)
    return Expected(mean=float(wide.mean()), rms=float(np.sqrt(np.square(wide).mean())))


def _dense(arrays: Sequence[reference.Array]) -> bytes:
    return b"".join(a.tobytes() + b"\0" * (-a.nbytes % ALIGNMENT) for a in arrays)


def _region(step: Step, exact: dict[int, bool]) -> Region | None:
    """What ``step`` stores, if that is the same few strides in every run; notes in ``exact`` what follows from it."""
    same = all(exact.get(id(buffer.root), True) for buffer in step.inputs) and _is_exact(step.kernel)
    root = id(step.output.root)
    exact[root] = exact.get(root, True) and same
    kernel = step.kernel
    walked = [(axis, extent) for axis, extent in enumerate(kernel.extents) if extent > 1]
    strides = [coefficient(kernel.store, axis) for axis, _ in walked]
    if isinstance(kernel, Fill) or len(walked) > AXES or any(stride is None for stride in strides):
        return None
    origin = {axis: np.asarray(0) for axis in range(len(kernel.extents))}
    first = int(reference.evaluate(kernel.store, (), origin))
    return Region(step.output, first, tuple(e for _, e in walked), tuple(int(s or 0) for s in strides), same)


def _is_exact(kernel: Kernel) -> bool:
    """Whether every target computes the same bits."""
    expressions: list[Expr] = [kernel.result]
    summed = "float" in getattr(kernel, "accumulator_dtype", "")
    if isinstance(kernel, Loops):
        expressions.append(kernel.body)
        summed = kernel.reducer in ("sum", "prod") and "float" in kernel.body.dtype
    return not summed and all(node.op in EXACT for expr in expressions for node in scalar.walk(expr))


def sources(vectors: Vectors, offsets: Mapping[int, int], steps: int) -> Iterator[str]:
    """The C tables of ``vectors``; ``offsets`` tells the place and byte of a root buffer by ``id``.

    The blobs ``edgec_test_inputs`` and ``edgec_test_outputs`` are the caller's.
    """
    yield "static const edgert_region regions[] = {"
    for region in vectors.regions:
        yield f"  {_region_row(region, offsets)},"
    yield "};\nstatic const edgert_expected expected[] = {"
    for test in vectors.expected:
        assert len(test) == steps
        yield from (f"  {{{each.crc}u, {_c_float(each.mean)}, {_c_float(each.rms)}}}," for each in test)
    yield "};"
    exact = sum(1 << index for index, same in enumerate(vectors.exact_outputs) if same)
    yield (
        f"static const edgert_tests tests = {{{vectors.count}u, {vectors.tolerance!r}f, {exact}u, regions, expected, "
        f"edgec_test_inputs, edgec_test_outputs}};"
    )


def _region_row(region: Region | None, offsets: Mapping[int, int]) -> str:
    from edgec.format.descriptor import DTYPE_CODES

    if region is None:
        return "{0u, 0u, 0u, 0u, {0}, {0}}"
    buffer, root = region.buffer, region.buffer.root
    size = np.dtype(buffer.dtype).itemsize
    in_arena = root.space in (ARENA, STATE)
    base = root.offset or 0 if in_arena else 0
    place = 0 if in_arena else offsets[id(root)] + 1
    pad = (1,) * (AXES - len(region.extents))
    extents = ", ".join(map(str, (*pad, *region.extents)))
    strides = ", ".join(map(str, (*(0 for _ in pad), *region.strides)))
    first = base + (buffer.root_offset + region.first) * size
    kind = DTYPE_CODES[buffer.dtype]
    return f"{{{kind}u, {int(region.exact)}u, {place}u, {first}u, {{{extents}}}, {{{strides}}}}}"


def _c_float(value: float) -> str:
    """What is no finite float32 is written as NaN, which compares with nothing."""
    single = float(np.float32(value))
    return f"{single!r}f" if np.isfinite(single) else "__builtin_nanf(\"\")"
