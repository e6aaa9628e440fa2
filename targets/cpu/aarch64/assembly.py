"""Products by element, written out: the inner loops of a register tile as one piece of assembly.

``fmla`` and ``sdot`` multiply a vector of weights by one element of a register of inputs. All pixels of a tile hold one
or two registers of inputs, and the weights stream by, four vectors a load, into two sets of registers in turn: a set is
loaded while the other one is multiplied. The compiler's own code for the same loops needs a load for every two vectors,
moves to start the sums, and a register for each address; it knows neither ``ld1`` of four registers nor how to keep a
tile that fills the register file.

The text is LLVM's inline assembly in a function that is inlined where it is called (``pragma_import_llvm``), so that
the loops around it, the epilogue and the stores stay TIR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from edgec.building.lazy_tvm import stmt, tirx
from edgec.targets.cpu.tir import Kernel

REGISTERS = 32
STREAM = 4
"""Vectors of weights that one load brings."""
MOST_ELEMENTS = 32
"""Elements of a run that are in registers together, at most: its products are not rolled into a loop."""
UNROLLED = 2
"""Steps of a run that follow one another without a loop; a turn of a loop has two of an even number."""
COUNTERS = ("w9", "w10", "w11", "w12")
"""What counts the loops, from the outermost one on."""
KINDS = {16: "q", 8: "d", 4: "s", 2: "h"}
"""What a register is called by the bytes of it that are loaded."""
PAIR_RANGE, FAR = range(-1024, 1009, 16), 4095
"""Offsets of ``ldp``, in bytes, and how many times its size a load of one register reaches."""


@dataclass(frozen=True)
class Instruction:
    """What multiplies by element.

    Attributes:
        name: of the instruction.
        sums: the arrangement of a vector of sums, which is as LLVM's type ``llvm``.
        weights: the arrangement of a vector of weights.
        element: how an element of the inputs is written.
        size: bytes of an input.
        group: inputs of an element.
        reach: registers, from the first, that an element can be in.
    """

    name: str
    sums: str
    llvm: str
    weights: str
    element: str
    size: int
    group: int
    reach: int = REGISTERS

    @property
    def whole(self) -> int:
        """Inputs that fill a register."""
        return 16 // self.size


FMLA = Instruction("fmla", "4s", "<4 x float>", "4s", "s[{}]", 4, 1)
HALF_FMLA = Instruction("fmla", "8h", "<8 x half>", "8h", "h[{}]", 2, 1, reach=16)
SDOT = Instruction("sdot", "4s", "<4 x i32>", "16b", "4b[{}]", 1, 4)


@dataclass(frozen=True)
class Products:
    """The products of a register tile.

    Attributes:
        instruction: what multiplies.
        offsets: of each pixel's first input, in elements.
        vectors: of output channels.
        outer: the loops around a run, as (extent, elements that each step moves on).
        chunks: the inputs of each load of a run, whole registers first.
        start: whether the sums start from what memory holds, the same for every pixel, and not from zero.
    """

    instruction: Instruction
    offsets: tuple[int, ...]
    vectors: int
    outer: tuple[tuple[int, int], ...]
    chunks: tuple[int, ...]
    start: bool

    @property
    def pixels(self) -> int:
        return len(self.offsets)

    @cached_property
    def window(self) -> list[tuple[int, int]]:
        """Where pixels overlap: the loads, as (first input from that of the first pixel, inputs), that bring all inputs
        of a run of all pixels into registers, for every pixel to take its own; empty where each pixel had better load
        for itself."""
        run, least, group = sum(self.chunks), min(self.offsets), self.instruction.group
        apart = [offset - least for offset in self.offsets]
        if load_elements(run, self.instruction) > MOST_ELEMENTS or any(each % group for each in (run, *apart)):
            return []
        wanted = sorted({place + element for place in apart for element in range(0, run, group)})
        loads = list[tuple[int, int]]()
        while wanted:
            first, there = wanted[0], set(wanted)
            count = next(n for n in (4, 2, 1) if {first + group * each for each in range(n)} <= there)
            loads.append((first, count * group))
            wanted = [each for each in wanted if each >= first + count * group]
        fits = len(loads) + self.pixels * self.vectors + STREAM <= REGISTERS and len(loads) <= self.instruction.reach
        near = all(self._reaches(first * self.instruction.size, count) for first, count in loads)
        return loads if fits and near and len(loads) < len(self.chunks) * self.pixels else []

    @cached_property
    def loads(self) -> list[int]:
        """The inputs of each step of a run: two registers at a time, where there are enough registers and inputs."""
        if self.window:
            return [sum(self.chunks)]
        whole = self.instruction.whole
        count = sum(chunk == whole for chunk in self.chunks)
        wide = registers(self.pixels, self.vectors, 2) <= REGISTERS and 2 * self.pixels <= self.instruction.reach
        pairs = count // 2 if wide else 0
        return [2 * whole] * pairs + list(self.chunks[2 * pairs :])

    @property
    def sets(self) -> int:
        """Sets of weights that registers are left for."""
        return 2 if REGISTERS - self.pixels * self.vectors - self.input_registers >= 2 * STREAM else 1

    @property
    def input_registers(self) -> int:
        """Registers that hold inputs."""
        if self.window:
            return len(self.window)
        return self.pixels * (2 if self.loads[0] > self.instruction.whole else 1)

    @cached_property
    def base(self) -> int | None:
        """The pixel by whose address all others are reached; None where each needs its own."""
        if self.window:
            return self.offsets.index(min(self.offsets))
        for base in range(self.pixels):
            apart = [(offset - self.offsets[base]) * self.instruction.size for offset in self.offsets]
            if all(self._reaches(each, load) for each in apart for load in set(self.loads)):
                return base
        return None

    def _reaches(self, apart: int, load: int) -> bool:
        if load > self.instruction.whole:
            return apart in PAIR_RANGE
        size = load_bytes(load, self.instruction)
        return (apart >= 0 and apart % size == 0 and apart // size <= FAR) or -256 <= apart < 256

    @property
    def pointers(self) -> tuple[int, ...]:
        """The pixels whose addresses the code is given."""
        return tuple(range(self.pixels)) if self.base is None else (self.base,)

    @property
    def paired(self) -> list[list[int]]:
        """The loads of the window by their numbers: two together where one instruction can."""
        groups = list[list[int]]()
        for index, (first, count) in enumerate(self.window):
            before = groups[-1] if groups and len(groups[-1]) == 1 else None
            joins = before is not None and self.window[before[0]] == (first - count, count)
            joins = joins and count == self.instruction.whole
            if joins and before is not None and (first - count) * self.instruction.size in PAIR_RANGE:
                before.append(index)
            else:
                groups.append([index])
        return groups

    @property
    def instructions(self) -> int:
        """How many are executed."""
        start = 1 + max(0, self.vectors - STREAM) if self.start else self.vectors
        return start * self.pixels + self._level(0)

    def _level(self, depth: int) -> int:
        """Instructions of the loops from ``depth`` on."""
        if depth == len(self.outer):
            return sum(
                count * self._step(load) + (2 * turns + 1 if turns > 1 else 0) for load, count, turns in self.repeats
            )
        extent, inner = self.outer[depth][0], self._level(depth + 1)
        if extent == 1:
            return inner
        return 1 + extent * (inner + len(self.pointers) * len(parts(self.advance(depth))) + 2)

    def _step(self, load: int) -> int:
        stream = load_elements(load, self.instruction) * self.vectors
        inputs = len(self.paired) if self.window else self.pixels
        return stream * self.pixels + -(-stream // STREAM) + inputs

    @property
    def repeats(self) -> list[tuple[int, int, int]]:
        """The loads of a run, how many of each follow one another, and the turns of the loop that they take."""
        counts = {load: self.loads.count(load) for load in self.loads}
        return [(load, count, 1 if count <= UNROLLED else count // (2 - count % 2)) for load, count in counts.items()]

    def text(self) -> Text:
        """What writes them."""
        return Text(self)

    def moves(self, load: int) -> int:
        """By how many bytes a load moves the addresses on."""
        if self.window:
            return 0
        return load * self.instruction.size if load >= self.instruction.whole else load_bytes(load, self.instruction)

    def advance(self, depth: int) -> int:
        """By how many bytes the addresses move at the end of each step of a loop, beside what has moved them in it."""
        rest = self.outer[depth + 1 :]
        done = rest[0][0] * rest[0][1] * self.instruction.size if rest else sum(map(self.moves, self.loads))
        return self.outer[depth][1] * self.instruction.size - done


def parts(amount: int) -> list[str]:
    """The constants of 12 bits that add up to ``amount``, without its sign."""
    high, low = divmod(abs(amount), 1 << 12)
    most, rest = divmod(high, 4095)
    return ["#4095, lsl #12"] * most + [f"#{rest}, lsl #12"] * (rest > 0) + [f"#{low}"] * (low > 0)


def registers(pixels: int, vectors: int, wide: int) -> int:
    """How many a tile needs, whose pixels hold ``wide`` registers of inputs."""
    return pixels * (vectors + wide) + STREAM


def load_bytes(load: int, instruction: Instruction) -> int:
    """Bytes that a load of ``load`` inputs reads: of a group's rest it reads past the inputs."""
    return 16 if instruction.group > 1 else min(16, load * instruction.size)


def load_elements(load: int, instruction: Instruction) -> int:
    """Elements, by which the weights are multiplied, of a load."""
    return -(-load // instruction.group)


class Text:
    """The assembly of :class:`Products`; ``$n`` are the operands of :class:`Inline`."""

    def __init__(self, p: Products) -> None:
        self.p, self.instruction, self.lines = p, p.instruction, list[str]()
        first = p.input_registers
        self.sums = [[first + pixel * p.vectors + v for v in range(p.vectors)] for pixel in range(p.pixels)]
        self.sets = [[REGISTERS - STREAM * (s + 1) + i for i in range(STREAM)] for s in range(p.sets)]
        count = p.pixels * p.vectors
        self.weights = f"${count}"
        self.pointers = {pixel: f"${count + 1 + index}" for index, pixel in enumerate(p.pointers)}
        self.start = f"${count + 1 + len(p.pointers)}"

    def write(self) -> list[str]:
        self._start()
        self._level(0)
        return self.lines

    def _start(self) -> None:
        for row in self.sums:
            if not self.p.start:
                self.lines += [f"movi v{register}.2d, #0" for register in row]
                continue
            for first in range(0, len(row), STREAM):
                part = row[first : first + STREAM]
                if first == 0:
                    self.lines.append(f"ld1 {self._list(part)}, [{self.start}]")
                else:
                    self.lines += [f"ldr q{r}, [{self.start}, #{16 * (first + i)}]" for i, r in enumerate(part)]

    def _list(self, registers: Sequence[int]) -> str:
        arrangement = self.instruction.sums
        return "{" + ", ".join(f"v{register}.{arrangement}" for register in registers) + "}"

    def _level(self, depth: int) -> None:
        """The loops from ``depth`` on; each step leaves the addresses where the next one begins."""
        if depth == len(self.p.outer):
            self._run(depth)
            return
        extent = self.p.outer[depth][0]
        if extent == 1:
            self._level(depth + 1)
            return
        self._open(depth, extent)
        self._level(depth + 1)
        amount = self.p.advance(depth)
        for pointer in self.pointers.values():
            self.lines += [f"{'add' if amount > 0 else 'sub'} {pointer}, {pointer}, {part}" for part in parts(amount)]
        self._close(depth)

    def _open(self, depth: int, extent: int) -> None:
        self.lines += [f"mov {COUNTERS[depth]}, #{extent}", f"{depth + 1}:"]

    def _close(self, depth: int) -> None:
        self.lines += [f"subs {COUNTERS[depth]}, {COUNTERS[depth]}, #1", f"b.ne {depth + 1}b"]

    def _run(self, depth: int) -> None:
        for load, count, turns in self.p.repeats:
            if turns > 1:
                self._open(depth, turns)
            for _ in range(count // turns):
                self._chunk(load)
            if turns > 1:
                self._close(depth)

    def _chunk(self, load: int) -> None:
        """The products of one load of every pixel."""
        groups, fill = self._stream(load_elements(load, self.instruction) * self.p.vectors, self.instruction.sums)
        fill()
        self._load_inputs(load)
        for _ in range(1, self.p.sets):
            fill()
        for registers, vectors in groups:
            for register, vector in zip(registers, vectors, strict=False):
                self._multiply(register, *divmod(vector, self.p.vectors))
            fill()

    def _stream(self, count: int, arrangement: str) -> tuple[list[tuple[list[int], range]], Callable[[], None]]:
        """The groups in which ``count`` vectors of weights pass by, as the set of registers and the numbers of the
        vectors in them; and what emits the load of the next group, as long as there is one."""
        vectors = [range(first, min(first + STREAM, count)) for first in range(0, count, STREAM)]
        groups = [(self.sets[index % self.p.sets], each) for index, each in enumerate(vectors)]
        waiting = iter(groups)

        def fill() -> None:
            for registers, each in islice(waiting, 1):
                names = ", ".join(f"v{register}.{arrangement}" for register in registers[: len(each)])
                size = (8 if arrangement == "8b" else 16) * len(each)
                self.lines.append(f"ld1 {{{names}}}, [{self.weights}], #{size}")

        return groups, fill

    def _load_inputs(self, load: int) -> None:
        """One load of every pixel; the one whose address all share comes last, and moves it on."""
        if self.p.window:
            self._load_window(load)
            return
        base, size = self.p.base, self.instruction.size
        order = [pixel for pixel in range(self.p.pixels) if pixel != base]
        for pixel in order if base is None else [*order, base]:
            apart = 0 if base is None else (self.p.offsets[pixel] - self.p.offsets[base]) * size
            pointer = self.pointers[pixel if base is None else base]
            moved = f"[{pointer}], #{self.p.moves(load)}"
            self._load_input(load, pixel, moved if base in (None, pixel) else f"[{pointer}, #{apart}]")

    def _load_window(self, load: int) -> None:
        (pointer,), size = self.pointers.values(), self.instruction.size
        for group in reversed(self.p.paired):
            first, count = self.p.window[group[0]]
            address = f"[{pointer}, #{first * size}]" if first else f"[{pointer}]"
            if len(group) == 2:
                self.lines.append(f"ldp q{group[0]}, q{group[1]}, {address}")
            else:
                self.lines.append(f"ldr {KINDS[count * size]}{group[0]}, {address}")

    def _load_input(self, load: int, pixel: int, address: str) -> None:
        if load > self.instruction.whole:
            self.lines.append(f"ldp q{2 * pixel}, q{2 * pixel + 1}, {address}")
        else:
            wide = self.p.input_registers // self.p.pixels
            self.lines.append(f"ldr {KINDS[load_bytes(load, self.instruction)]}{wide * pixel}, {address}")

    def _input(self, pixel: int, element: int) -> str:
        """One element of a pixel's inputs."""
        i = self.instruction
        if self.p.window:
            place = self.p.offsets[pixel] - min(self.p.offsets) + element * i.group
            each = next(n for n, (first, count) in enumerate(self.p.window) if first <= place < first + count)
            return f"v{each}.{i.element.format((place - self.p.window[each][0]) // i.group)}"
        register, lane = divmod(element, i.whole // i.group)
        return f"v{pixel * (self.p.input_registers // self.p.pixels) + register}.{i.element.format(lane)}"

    def _multiply(self, weights: int, element: int, vector: int) -> None:
        """One vector of weights times one element of every pixel."""
        i = self.instruction
        for pixel, row in enumerate(self.sums):
            self.lines.append(
                f"{i.name} v{row[vector]}.{i.sums}, v{weights}.{i.weights}, {self._input(pixel, element)}"
            )


@dataclass(frozen=True)
class Inline:
    """Assembly that is inlined: ``$0`` … are the sums, then the addresses that it moves on, then those that it reads.

    Attributes:
        lines: its instructions.
        sums: the registers that it leaves results in, as LLVM's type ``llvm``.
        moved: how many addresses it moves on; the weights' is the first.
        read: how many addresses it only reads.
    """

    lines: tuple[str, ...]
    sums: tuple[int, ...]
    llvm: str
    moved: int
    read: int

    def function(self, name: str) -> str:
        """LLVM's IR of ``name(sums, addresses moved …, addresses read …)``, which stores the sums.

        The sums' memory becomes registers once the function is inlined.
        """
        count = len(self.sums)
        outputs = [f"={{v{register}}}" for register in self.sums] + ["=&r"] * self.moved
        inputs = ["r"] * self.read + [str(count + index) for index in range(self.moved)]
        used = sorted({*range(REGISTERS)} - set(self.sums))
        clobbers = [f"~{{v{register}}}" for register in used] + [f"~{{x{counter[1:]}}}" for counter in COUNTERS]
        constraints = ",".join([*outputs, *inputs, *clobbers, "~{cc}", "~{memory}"])
        result = "{ " + ", ".join([self.llvm] * count + ["ptr"] * self.moved) + " }"
        addresses = [f"ptr %a{index}" for index in range(self.moved + self.read)]
        inputs_in_order = ", ".join(addresses[self.moved :] + addresses[: self.moved])
        text = "\\0A".join(self.lines)
        lines = [
            f"define linkonce_odr hidden void @{name}({', '.join(['ptr %sums', *addresses])}) alwaysinline {{",
            f'  %r = call {result} asm sideeffect "{text}", "{constraints}"({inputs_in_order})',
        ]
        for index in range(count):
            lines += [
                f"  %v{index} = extractvalue {result} %r, {index}",
                f"  %p{index} = getelementptr i8, ptr %sums, i64 {16 * index}",
                f"  store {self.llvm} %v{index}, ptr %p{index}, align 4",
            ]
        return "\n".join([*lines, "  ret void", "}", ""])


def inline(p: Products) -> Inline:
    """The assembly of ``p``: moves the addresses of the weights and of the inputs, and reads that of the start."""
    text = p.text()
    lines = tuple(text.write())
    sums = tuple(register for row in text.sums for register in row)
    return Inline(lines, sums, p.instruction.llvm, 1 + len(p.pointers), int(p.start))


def call(kernel: Kernel, key: Any, make: Callable[[], Inline], sums: Any, addresses: Sequence[Any]) -> None:
    """Emit a piece of assembly.

    Args:
        kernel: in hand.
        key: what the piece is made from; it is made once for each.
        make: writes it.
        sums: a local buffer for its results.
        addresses: that it moves on, then those that it reads.
    """
    name = kernel.import_function(key, lambda name: make().function(name))
    first = address(sums, tirx.const(0, "int32"))
    kernel.body.emit(stmt.Evaluate(tirx.call_extern("void", name, first, *addresses)))


def address(buffer: Any, offset: Any) -> Any:
    """Of an element."""
    return tirx.address_of(tirx.BufferLoad(buffer, [offset]))
