"""The inner loops that are written out for 64-bit ARM: how many instructions they take, and their registers."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import onnx
import pytest

from edgec.targets.cpu.aarch64 import pair_assembly
from edgec.targets.cpu.aarch64.assembly import FMLA, REGISTERS, SDOT, STREAM, Instruction, Products, inline, registers
from edgec.targets.cpu.aarch64.pair_assembly import LONG, PairProducts
from edgec.targets.target import load_target
from edgec.tuning.cycles import functions, hot_loop
from edgec.tuning.measuring import tasks_of
from edgec.tvm_adapter import assembly
from tests import graphs
from tests.operators import node
from tests.programs import program_of

POINTERS = {"near": 16, "odd": 12, "far": 40000}
"""Inputs between two pixels: within reach of every load, of none that loads pairs, and out of reach."""


def executed(lines: list[str]) -> int:
    """How many instructions run: loops are labels, a counter set before, and a branch back."""
    count, index, left = 0, 0, dict[str, int]()
    while index < len(lines):
        line = lines[index]
        index += 1
        if line.endswith(":"):
            continue
        count += 1
        if line.startswith("mov w"):
            register, extent = re.fullmatch(r"mov (w\d+), #(\d+)", line).groups()
            left[register] = int(extent)
        elif line.startswith("subs"):
            register = line.split()[1].rstrip(",")
            left[register] -= 1
        elif line.startswith("b.ne") and left[lines[index - 2].split()[1].rstrip(",")]:
            label = line.split()[1].rstrip("b") + ":"
            index = max(place for place in range(index) if lines[place] == label)
    return count


def tile(instruction: Instruction, pixels: int, vectors: int, apart: int, run: int, outer: tuple) -> Products:
    chunks = [instruction.whole] * (run // instruction.whole)
    rest = run % instruction.whole
    if instruction is LONG:
        chunks += [next(size for size in (4, 8, 16) if rest <= size)] if rest else []
        return PairProducts(instruction, tuple(apart * p for p in range(pixels)), vectors, outer, tuple(chunks), True)
    if instruction.group > 1:
        chunks += [-(-rest // instruction.group) * instruction.group] if rest else []
    else:
        chunks += [size for size in (2, 1) if rest & size]
    return Products(instruction, tuple(apart * p for p in range(pixels)), vectors, outer, tuple(chunks), True)


def fits(instruction: Instruction, pixels: int, vectors: int) -> bool:
    if instruction is LONG:
        return pair_assembly.fits(pixels, vectors)
    return registers(pixels, vectors, 1) <= REGISTERS


ALL = pytest.mark.parametrize("instruction", [FMLA, SDOT, LONG], ids=["fmla", "sdot", "smlal"])


@pytest.mark.parametrize("apart", POINTERS.values(), ids=POINTERS)
@ALL
def test_an_estimate_is_what_runs(instruction, apart):
    loops = (), ((3, 50000),), ((5, 1000), (2, 64)), ((2, 1 << 25),)
    for pixels, vectors, run, outer in product((1, 3, 5), (1, 4, 5), (3, 17, 64), loops):
        if not fits(instruction, pixels, vectors):
            continue
        p = tile(instruction, pixels, vectors, apart, run, outer)
        assert executed(list(inline(p).lines)) == p.instructions, p


@ALL
def test_no_register_serves_two_purposes(instruction):
    for pixels, vectors, run in product(range(1, 9), range(1, 9), (5, 48, 64)):
        if fits(instruction, pixels, vectors):
            p = tile(instruction, pixels, vectors, 16, run, ((3, 512),))
            sums = inline(p).sums
            assert sums == tuple(range(p.input_registers, p.input_registers + pixels * vectors))
            products = p.together if isinstance(p, PairProducts) else 0
            assert sums[-1] + products < REGISTERS - STREAM * p.sets


def test_kernels_that_are_built_together_keep_their_own_loops():
    """As the tuner builds its plans."""
    target = load_target("rpi5")
    task = tasks_of(program_of(conv_model()), target)[0]
    plans = {f"k{index}": task.template.generate(plan, task.dtypes) for index, plan in enumerate(task.plans[:6])}
    together = functions(assembly(plans, target))
    alone = {symbol: functions(assembly({symbol: plan}, target))[symbol] for symbol, plan in plans.items()}
    assert len({hot_loop(text) for text in alone.values()}) > 1
    assert [together[symbol].count("fmla") for symbol in plans] == [text.count("fmla") for text in alone.values()]


def conv_model() -> onnx.ModelProto:
    """A 1×1 convolution."""
    weights = {"w": np.ones((40, 24, 1, 1), np.float32)}
    return graphs.build([node("Conv", "x w", "y")], {"x": (1, 24, 9, 9)}, ["y"], weights)
