"""From scalar expressions to TIR: one element, or one vector of neighbouring elements, at a time.

A kernel under construction is a :class:`Body`: statements in order, with loops as ``with`` blocks. An
:class:`Emitter` evaluates expressions inside it. Vectors are explicit (ramps and broadcasts), so what the
machine executes is decided here and not by an optimiser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgec import scalar
from edgec.building.lazy_tvm import stmt, tirx, tvm
from edgec.nest import lane_step
from edgec.scalar import Expr
from edgec.targets.cpu import math

STORAGE = {"bool": "uint8"}
"""dtype in memory, where it differs from the dtype in a register."""


CACHE_LINE = 64
TURN = 4
"""Lanes that a vector has at a time of a run of elements that several vectors share in turns."""
ANY_SIZE = 2**31 - 1
"""Declared elements of an operand: a kernel serves buffers of every size."""


def storage(dtype: str) -> str:
    """The dtype that ``dtype`` has in memory."""
    return STORAGE.get(dtype, dtype)


Special = Callable[[Expr, Callable[[Expr], Any], Sequence[Any], math.Bind], Any | None]
"""An architecture's own code for an expression's node: called with the node, what gives the value of an expression
below it, the kernel's operands, and what holds a value that is read again; None leaves the node to the general code."""


def nothing_special(
    node: Expr, value_of: Callable[[Expr], Any], operands: Sequence[Any], bind: math.Bind
) -> Any | None:
    return None


class Body:
    """Statements of a kernel, collected in order; ``special`` is what the architecture has own code for."""

    def __init__(self, special: Special = nothing_special) -> None:
        self.special = special
        self._blocks: list[list[Any]] = [[]]
        self._names = 0

    def emit(self, statement: Any) -> None:
        self._blocks[-1].append(statement)

    def name(self, prefix: str) -> str:
        """A name not used before in this kernel."""
        self._names += 1
        return f"{prefix}{self._names}"

    @contextmanager
    def loop(self, extent: Any, start: Any = 0) -> Iterator[Any]:
        """A loop from ``start`` over ``extent`` iterations; one iteration needs no loop."""
        if isinstance(extent, int) and extent == 1:
            yield start if not isinstance(start, int) else tirx.const(start, "int32")
            return
        variable = tirx.Var(self.name("i"), "int32")
        self._blocks.append([])
        yield variable
        self.emit_into_parent(lambda block: stmt.For(variable, start, extent, tirx.ForKind.SERIAL, block))

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Statements for where ``condition`` holds."""
        self._blocks.append([])
        yield
        self.emit_into_parent(lambda block: stmt.IfThenElse(condition, block, None))

    def emit_into_parent(self, wrap: Any) -> None:
        """Close the innermost block and emit ``wrap`` of it into the block around it."""
        self.emit(wrap(sequence(self._blocks.pop())))

    def bind(self, prefix: str, value: Any) -> Any:
        """Give ``value`` a name, so that it is computed once."""
        variable = tirx.Var(self.name(prefix), value.ty)
        self.emit(stmt.Bind(variable, value))
        return variable

    def hold(self, value: Any) -> Any:
        """Compute ``value`` here, once, and answer with how to read it.

        It passes through a local buffer (a register, after LLVM), because TVM would copy a named value of no
        side effect back into every place that reads it, and simplify across it as if floats were reals.
        Comparisons are cheap enough to repeat.
        """
        kind = tvm.DataType(str(value.ty.dtype))
        if str(kind).startswith("bool"):
            return value
        lanes = int(kind.lanes)
        index = tirx.const(0, "int32")
        index = index if lanes == 1 else tirx.Ramp(index, tirx.const(1, "int32"), lanes)
        buffer = self.local(str(kind).partition("x")[0], lanes)
        self.emit(stmt.BufferStore(buffer, value, [index]))
        return tirx.BufferLoad(buffer, [index])

    def local(self, dtype: str, elements: int) -> Any:
        """Registers (or stack) for ``elements`` values of ``dtype``."""
        buffer = tirx.decl_buffer((elements,), dtype, name=self.name("acc"), scope="local")
        self.emit(stmt.AllocBuffer(buffer))
        return buffer

    def close(self) -> Any:
        """The whole kernel's statement."""
        return sequence(self._blocks[0])


def sequence(statements: Sequence[Any]) -> Any:
    """One statement out of any number."""
    if not statements:
        return stmt.Evaluate(tirx.const(0, "int32"))
    return statements[0] if len(statements) == 1 else stmt.SeqStmt(list(statements))


class Kernel:
    """A kernel's signature: one pointer per operand, the output, this thread and how many there are."""

    def __init__(self, dtypes: Sequence[str], special: Special = nothing_special) -> None:
        self.body = Body(special)
        self.thread = tirx.Var("thread", "int32")
        self.threads = tirx.Var("threads", "int32")
        self._pointers: list[Any] = []
        self.buffers: list[Any] = []
        self._imported: dict[Any, tuple[str, str]] = {}
        for index, dtype in enumerate(dtypes):
            pointer = tirx.Var(f"p{index}", tvm.ir.PointerType(tvm.ir.PrimType(storage(dtype))))
            buffer = tirx.decl_buffer((ANY_SIZE,), storage(dtype), name=f"b{index}", data_alignment=1)
            self._pointers.append(pointer)
            self.buffers.append(buffer)
            self.body.emit(stmt.DeclBuffer(buffer, data=pointer))

    def share(self, extent: int) -> tuple[Any, Any]:
        """This thread's part of ``extent`` iterations: where it starts and how many there are."""
        total = tirx.const(extent, "int32")
        start = self.body.bind("lo", tirx.truncdiv(self.thread * total, self.threads))
        end = tirx.truncdiv((self.thread + 1) * total, self.threads)
        return start, self.body.bind("count", end - start)

    def import_function(self, key: Any, text: Callable[[str], str]) -> str:
        """The name of a function for ``call_extern``, whose LLVM IR ``text`` writes for that name; one for each key.

        The name follows from the text: of functions with one name, a module of several kernels would keep the first.
        """
        if key not in self._imported:
            name = f"edgec_{hashlib.sha256(text('').encode()).hexdigest()[:16]}"
            self._imported[key] = name, text(name)
        return self._imported[key][0]

    def align_stack(self) -> None:
        """Let vectors that leave registers lie in whole cache lines.

        LLVM aligns the stack only for variables that it knows before it chooses registers.
        """
        self.body.emit(stmt.Evaluate(tirx.call_extern("void", self.import_function("stack", _aligned_variable))))

    def load_anew(self) -> None:
        """Let nothing that is loaded before this place be kept in a register to be used behind it."""
        self.body.emit(stmt.Evaluate(tirx.call_extern("void", self.import_function("anew", _barrier))))

    def function(self) -> Any:
        """The finished ``tirx.PrimFunc``."""
        body, anywhere = self.body.close(), tirx.const(0, "int32")
        for _, text in self._imported.values():
            body = stmt.AttrStmt(anywhere, "pragma_import_llvm", tvm.ir.StringImm(text), body)
        return tirx.PrimFunc([*self._pointers, self.thread, self.threads], body, ret_type=None)


def _aligned_variable(name: str) -> str:
    """LLVM's IR of a function with a variable of a cache line, which empty assembly seems to need."""
    return f"""define linkonce_odr hidden void @{name}() alwaysinline {{
  %line = alloca [{CACHE_LINE} x i8], align {CACHE_LINE}
  call void asm sideeffect "", "r"(ptr %line)
  ret void
}}
"""


def _barrier(name: str) -> str:
    """LLVM's IR of a function that does nothing, and that memory seems to be written by."""
    return f"""define linkonce_odr hidden void @{name}() alwaysinline {{
  call void asm sideeffect "", "~{{memory}}"()
  ret void
}}
"""


def vector_load(buffer: Any, offset: Any, lanes: int, stride: int = 1) -> Any:
    """``lanes`` elements from ``offset`` on."""
    if lanes == 1:
        return tirx.BufferLoad(buffer, [offset])
    return tirx.BufferLoad(buffer, [tirx.Ramp(offset, tirx.const(stride, "int32"), lanes)])


def vector_store(buffer: Any, value: Any, offset: Any, stride: int = 1) -> Any:
    """The statement that stores ``value``'s lanes from ``offset`` on."""
    lanes = lanes_of(value)
    index = offset if lanes == 1 else tirx.Ramp(offset, tirx.const(stride, "int32"), lanes)
    return stmt.BufferStore(buffer, value, [index])


def lanes_of(value: Any) -> int:
    """How many lanes ``value`` has."""
    return int(tvm.DataType(str(value.ty.dtype)).lanes)


def widen(value: Any, lanes: int) -> Any:
    """``value`` in every one of ``lanes`` lanes."""
    return value if lanes_of(value) == lanes else tirx.Broadcast(value, lanes)


def part(value: Any, first: int, lanes: int) -> Any:
    """``lanes`` neighbouring lanes of ``value``."""
    if first == 0 and lanes == lanes_of(value):
        return value
    return tirx.Shuffle([value], [tirx.const(first + lane, "int32") for lane in range(lanes)])


def join(values: Sequence[Any]) -> Any:
    """The lanes of ``values``, one after the other."""
    if len(values) == 1:
        return values[0]
    lanes = sum(lanes_of(value) for value in values)
    return tirx.Shuffle(list(values), [tirx.const(lane, "int32") for lane in range(lanes)])


class Emitter:
    """Evaluates expressions at the point (``axes``) of a loop nest.

    Args:
        body: where shared subterms are bound.
        operands: the buffer of each operand.
        axes: the TIR value of each loop axis; that of ``vector_axis`` is its first lane.
        vector_axis: the axis along which a vector runs, or None.
        lanes: how many lanes the vector has.
        accumulator: the value of ``acc``.
        turns: of how many vectors this is one that take turns, :data:`TURN` lanes each, in a run of elements.
    """

    def __init__(
        self,
        body: Body,
        operands: Sequence[Any],
        axes: dict[int, Any],
        vector_axis: int | None = None,
        lanes: int = 1,
        accumulator: Any = None,
        turns: int = 1,
    ) -> None:
        self.body, self.operands, self.axes, self.turns = body, operands, axes, turns
        self.vector_axis, self.lanes = (vector_axis, lanes) if lanes > 1 else (None, 1)
        self.accumulator = accumulator
        self._made: dict[int, Any] = {}

    def __call__(self, expr: Expr) -> Any:
        """The TIR value of ``expr``: scalar where every lane agrees, else a vector."""
        uses = scalar.use_counts(expr)
        for node in scalar.walk(expr):
            if id(node) not in self._made:
                value = self._node(node)
                shared = uses.get(id(node), 0) > 1 and node.op not in ("const", "axis", "acc")
                self._made[id(node)] = self._kept(node, value) if shared else value
        return self._made[id(expr)]

    def _kept(self, node: Expr, value: Any) -> Any:
        """A value that is read again; indices stay open to simplification."""
        return self.body.bind("v", value) if node.dtype == scalar.INDEX else self.body.hold(value)

    def vector(self, expr: Expr) -> Any:
        """The TIR value of ``expr`` with all its lanes."""
        return widen(self(expr), self.lanes)

    def offset(self, expr: Expr) -> tuple[Any, int | None]:
        """The first lane's value of an index expression, and how far each further lane lies."""
        if self.vector_axis is None:
            return self(expr), 0
        step = lane_step(expr, self.vector_axis)
        if step is None:
            return self(expr), None
        first = Emitter(self.body, self.operands, self.axes)
        return first(expr), step

    def _node(self, node: Expr) -> Any:
        if node.op == "const":
            return tirx.const(node.args[0], node.dtype)
        if node.op == "axis":
            base = self.axes[node.args[0]]
            if node.args[0] == self.vector_axis:
                return join([tirx.Ramp(base + first, tirx.const(1, "int32"), lanes) for first, lanes in self._runs()])
            return base
        if node.op == "acc":
            return self.accumulator
        own = self.body.special(node, self._value_of, self.operands, self.body.hold)
        if own is not None:
            return own
        if node.op == "load":
            return self._load(node)
        args = [self._made[id(child)] for child in node.children]
        if node.op == "saturate":
            _, zero, low, high, _ = node.args
            return math.saturate(self.body.hold, args[0], zero, low, high, node.dtype)
        lanes = max((lanes_of(arg) for arg in args), default=1)
        return math.apply(node.op, [widen(arg, lanes) for arg in args], node.dtype, self.body.hold)

    def _runs(self) -> list[tuple[int, int]]:
        """Lanes that are neighbours along the axis: how far they begin from the first one, and how many they are."""
        if self.turns == 1:
            return [(0, self.lanes)]
        return [(self.turns * lane, TURN) for lane in range(0, self.lanes, TURN)]

    def _value_of(self, expr: Expr) -> Any:
        return self._made[id(expr)]

    def _load(self, node: Expr) -> Any:
        buffer = self.operands[node.args[0]]
        first, step = self.offset(node.args[1])
        if step is None or step == 0:
            value = tirx.BufferLoad(buffer, [first])
        else:
            runs = self._runs()
            value = join([vector_load(buffer, first + skip * step, lanes, step) for skip, lanes in runs])
        return value if node.dtype != "bool" else tirx.NE(value, math.constant(0, value))
