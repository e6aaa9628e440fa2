"""The most that an x86 core can do: multiply-adds by a loop over registers alone, and bytes that it only reads."""

from __future__ import annotations

from typing import Any

from edgec.building.lazy_tvm import stmt, tirx
from edgec.targets.cpu.tir import Kernel, vector_load, vector_store
from edgec.targets.cpu.x86.isa import Isa, dot, pair_sums
from edgec.targets.target import Target

CHAINS = 24
"""Independent sums of the loop: enough to hide the latency of an instruction."""
ROUNDS = 200_000
READ_STEP = 256
"""Bytes that a round of the loop that reads takes in."""
WIDEST = 64
"""Bytes of the widest register: the loop reads two and writes :data:`CHAINS` of them."""


def peak_loop(target: Target, dtype: str) -> tuple[Any, int]:
    """The function of the loop, and how many multiply-adds a call of it does.

    Args:
        target: an x86 processor.
        dtype: "float32", or "uint8" for bytes that are summed in groups of four.
    """
    isa, kernel = Isa.of(target), Kernel([dtype, dtype])
    lanes, body = isa.lanes, kernel.body
    sums = "float32" if dtype == "float32" else "int32"
    width = lanes if dtype == "float32" else 4 * lanes
    first = tirx.const(0, "int32")
    left, right = (body.hold(vector_load(kernel.buffers[0], first + n * width, width)) for n in range(2))
    total = body.local(sums, CHAINS * lanes)
    places = [tirx.Ramp(tirx.const(n * lanes, "int32"), tirx.const(1, "int32"), lanes) for n in range(CHAINS)]
    for place in places:
        body.emit(stmt.BufferStore(total, tirx.Broadcast(tirx.const(0, sums), lanes), [place]))
    with body.loop(ROUNDS):
        for place in places:
            value = tirx.BufferLoad(total, [place])
            body.emit(stmt.BufferStore(total, _product(isa, dtype, value, left, right), [place]))
    for n, place in enumerate(places):
        value = tirx.reinterpret(f"{dtype}x{width}", tirx.BufferLoad(total, [place]))
        body.emit(vector_store(kernel.buffers[1], value, tirx.const(n * width, "int32")))
    products = lanes * (1 if dtype == "float32" else 4 if isa.vnni else 2)
    return kernel.function(), products * CHAINS * ROUNDS


def read_loop(target: Target, nbytes: int) -> Any:
    """The function that reads ``nbytes``, a multiple of :data:`READ_STEP`, and writes so many.

    Args:
        target: an x86 processor.
        nbytes: of its first operand.
    """
    isa, kernel = Isa.of(target), Kernel(["int32", "int32"])
    lanes, body = isa.lanes, kernel.body
    chains = READ_STEP // (4 * lanes)
    total = body.local("int32", READ_STEP // 4)
    places = [tirx.Ramp(tirx.const(n * lanes, "int32"), tirx.const(1, "int32"), lanes) for n in range(chains)]
    for place in places:
        body.emit(stmt.BufferStore(total, tirx.Broadcast(tirx.const(0, "int32"), lanes), [place]))
    with body.loop(nbytes // READ_STEP) as index:
        for n, place in enumerate(places):
            value = vector_load(kernel.buffers[0], index * (READ_STEP // 4) + n * lanes, lanes)
            body.emit(stmt.BufferStore(total, tirx.bitwise_xor(tirx.BufferLoad(total, [place]), value), [place]))
    for n, place in enumerate(places):
        body.emit(vector_store(kernel.buffers[1], tirx.BufferLoad(total, [place]), tirx.const(n * lanes, "int32")))
    return kernel.function()


def _product(isa: Isa, dtype: str, total: Any, left: Any, right: Any) -> Any:
    if dtype == "float32":
        return total + left * right
    if isa.vnni:
        return dot(total, left, right)
    words = [tirx.reinterpret(f"int16x{2 * isa.lanes}", value) for value in (left, right)]
    return total + pair_sums(words[0], words[1])
