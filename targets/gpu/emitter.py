"""Evaluates scalar expressions in OpenCL C, at one point of a loop nest or at a vector of neighbouring points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgec import scalar
from edgec.nest import lane_step
from edgec.scalar import Expr
from edgec.targets.gpu.opencl import Body, Value, literal, load_vector, register_type, store_vector, widened
from edgec.targets.gpu.operators import applied


class Emitter:
    """Evaluates expressions at the point (``axes``) of a loop nest.

    Args:
        body: where shared subterms are named.
        axes: the text of each loop axis; that of ``vector_axis`` is its first lane.
        dtypes: of every operand, in memory.
        vector_axis: the axis along which a vector runs, or None.
        lanes: how many lanes the vector has.
        accumulator: the value of ``acc``.
    """

    def __init__(
        self, body: Body, axes: Mapping[int, str], dtypes: Sequence[str], vector_axis: int | None = None,
        lanes: int = 1, accumulator: Value | None = None,
    ) -> None:  # fmt: skip
        self.body, self.axes, self.dtypes = body, axes, dtypes
        self.vector_axis, self.lanes = (vector_axis, lanes) if lanes > 1 else (None, 1)
        self.accumulator = accumulator
        self._made: dict[int, Value] = {}
        body.widths.add(self.lanes)

    def __call__(self, expr: Expr) -> Value:
        """The value of ``expr``: scalar where every lane agrees, else a vector."""
        uses = scalar.use_counts(expr)
        for node in scalar.walk(expr):
            if id(node) not in self._made:
                value = self._node(node)
                self._made[id(node)] = self.body.bind("v", value) if uses.get(id(node), 0) > 1 else value
        return self._made[id(expr)]

    def preset(self, expr: Expr, value: Value) -> None:
        """Take ``value`` for what ``expr`` gives."""
        self._made[id(expr)] = value

    def vector(self, expr: Expr) -> Value:
        """The value of ``expr`` with all its lanes."""
        value = self(expr)
        return Value(widened(value, self.lanes), value.dtype, self.lanes, value.simple)

    def offset(self, expr: Expr) -> tuple[str, int | None]:
        """The first lane's value of an index expression, and how far each further lane lies."""
        if self.vector_axis is None:
            return self(expr).text, 0
        step = lane_step(expr, self.vector_axis)
        if step is None:
            return "", None
        return Emitter(self.body, self.axes, self.dtypes)(expr).text, step

    def store(self, pointer: str, offset: Expr, value: Value) -> None:
        """Store ``value``, all of whose lanes are there, at ``offset``."""
        first, step = self.offset(offset)
        if self.lanes == 1 or step == 1:
            store_vector(self.body, pointer, first, value)
            return
        value = self.body.bind("y", value)
        places = self.body.bind("at", self.vector(offset)) if step is None else None
        for lane in range(self.lanes):
            place = f"{places.text}.s{lane:x}" if places else f"{first} + {lane * (step or 0)}"
            store_vector(self.body, pointer, place, Value(f"{value.text}.s{lane:x}", value.dtype))

    def _node(self, node: Expr) -> Value:
        if node.op == "const":
            return Value(literal(node.args[0], node.dtype), node.dtype, simple=True)
        if node.op == "axis":
            return self._axis(node)
        if node.op == "acc":
            assert self.accumulator is not None
            return self.accumulator
        if node.op == "load":
            return self._load(node)
        args = [self._made[id(child)] for child in node.children]
        lanes = max((arg.lanes for arg in args), default=1)
        self.body.widths.add(lanes)
        texts = [widened(arg, lanes) for arg in args]
        return Value(applied(node, texts, [arg.dtype for arg in args], lanes), node.dtype, lanes)

    def _axis(self, node: Expr) -> Value:
        base = self.axes[node.args[0]]
        if node.args[0] != self.vector_axis:
            return Value(base, scalar.INDEX, simple=True)
        count = ", ".join(map(str, range(self.lanes)))
        return Value(f"({base} + (int{self.lanes})({count}))", scalar.INDEX, self.lanes)

    def _load(self, node: Expr) -> Value:
        operand = node.args[0]
        pointer, dtype = f"p{operand}", self.dtypes[operand]
        first, step = self.offset(node.args[1])
        if step == 0:
            return Value(load_vector(pointer, first, dtype, 1), node.dtype)
        if step == 1:
            return Value(load_vector(pointer, first, dtype, self.lanes), node.dtype, self.lanes)
        if step is None:
            places = self._made[id(node.args[1])]
            if places.lanes == 1:
                return Value(load_vector(pointer, places.text, dtype, 1), node.dtype)
            places = self.body.bind("at", places)
            offsets = [f"{places.text}.s{lane:x}" for lane in range(self.lanes)]
        else:
            first = self.body.index("at", first)
            offsets = [f"{first} + {lane * step}" for lane in range(self.lanes)]
        values = ", ".join(load_vector(pointer, offset, dtype, 1) for offset in offsets)
        return Value(f"({register_type(node.dtype, self.lanes)})({values})", node.dtype, self.lanes)
