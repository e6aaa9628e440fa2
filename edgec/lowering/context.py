"""What every lowering rule works with: values as views, operands, and the emission of steps."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from edgec import scalar
from edgec.errors import EdgecError, Refusal
from edgec.program import (
    ARENA,
    CONSTANT,
    INPUT,
    OUTPUT,
    Buffer,
    Kernel,
    Loops,
    Program,
    Step,
    Tensor,
    View,
    dense_strides,
)
from edgec.scalar import Expr

Rule = Callable[["Lowering", ir.Node], None]
RULES: dict[tuple[str, str], Rule] = {}
"""The lowering rule of each (domain, operator)."""

SUPPORTED_DTYPES = frozenset(
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"]
)


def lowers(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the lowering rule of ONNX operators ``ops``."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = rule
        return rule

    return register


class Refused(Exception):
    """A rule cannot lower its node: why, and the smallest change that would help."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


def refuse(reason: str, fix: str) -> NoReturn:
    """Refuse the node in hand."""
    raise Refused(reason, fix)


@contextmanager
def _whole_model(what: str) -> Iterator[None]:
    """Turn a refusal of ``what``, which belongs to no node, into an error."""
    try:
        yield
    except Refused as refused:
        raise EdgecError(f"{what}: {refused.reason}; {refused.fix}") from None


class Operands:
    """The inputs of a kernel under construction, each buffer once."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def index(self, buffer: Buffer) -> int:
        """The operand number of ``buffer``."""
        for index, known in enumerate(self.buffers):
            if known is buffer:
                return index
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def load(self, view: View, *indices: Expr | int) -> Expr:
        """The element of ``view`` at ``indices``; a constant of one element becomes part of the code."""
        data = view.buffer.data
        if data is not None and data.size == 1:
            return scalar.const(data.reshape(-1)[0].item(), view.dtype)
        return scalar.load(self.index(view.buffer), view.at(*indices), view.dtype)


class Lowering:
    """One model on its way from graph to program."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.refusals: list[Refusal] = []
        self.steps: list[Step] = []
        self._views: dict[int, View] = {}
        self._copies: dict[tuple[View, tuple[int, ...]], View] = {}
        self._node: ir.Node | None = None
        self._names = 0

    # ---- values -----------------------------------------------------------------------------------------

    def view(self, value: ir.Value | None) -> View:
        """The view that holds ``value``."""
        if value is None:
            refuse("a required input is missing", "re-export the model with that input")
        if id(value) not in self._views:
            data = constant_of(value)
            if data is None:
                refuse(f"its input '{value.name}' has no producer", "repair the graph")
            self._views[id(value)] = self.constant(data, str(value.name))
        return self._views[id(value)]

    def input(self, node: ir.Node, index: int) -> View:
        """The view of a node's required input."""
        return self.view(node.inputs[index] if index < len(node.inputs) else None)

    def optional(self, node: ir.Node, index: int) -> View | None:
        """The view of a node's optional input, None where it is left out."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return None if value is None else self.view(value)

    def known(self, node: ir.Node, index: int, what: str) -> np.ndarray | None:
        """The value of an optional input that must be known while compiling; None where it is left out."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        data = constant_of(value)
        if data is None:
            refuse(
                f"its {what} ('{value.name}') is computed at run time, and the program is static",
                f"make '{value.name}' an initialiser of the model, or fold it before the export",
            )
        return data

    def set(self, value: ir.Value, view: View) -> None:
        """Say that ``value`` is held by ``view``."""
        assert view.shape == shape_of(value), (value.name, view.shape, shape_of(value))
        self._views[id(value)] = view

    def constant(self, data: np.ndarray, name: str = "constant") -> View:
        """A dense view of constant ``data``."""
        data = np.ascontiguousarray(data).reshape(data.shape)
        check_dtype(str(data.dtype))
        buffer = Buffer(name, str(data.dtype), data.size, CONSTANT, data)
        return View(buffer, data.shape, dense_strides(data.shape))

    def new(
        self, shape: Sequence[int], dtype: str, order: Sequence[int] | None = None, name: str | None = None
    ) -> View:
        """A dense view of a new arena buffer, its axes in memory in ``order``."""
        check_dtype(dtype)
        self._names += 1
        elements = int(np.prod(shape, dtype=np.int64))
        buffer = Buffer(name or f"t{self._names}", dtype, elements, ARENA)
        return View(buffer, tuple(shape), dense_strides(shape, order))

    def new_for(self, value: ir.Value, order: Sequence[int] | None = None) -> View:
        """A new dense view for ``value``, registered as its holder."""
        view = self.new(shape_of(value), dtype_of(value), order, str(value.name))
        self.set(value, view)
        return view

    # ---- steps ------------------------------------------------------------------------------------------

    def emit(self, kernel: Kernel, inputs: Sequence[Buffer], output: Buffer) -> None:
        """Append a step for the node in hand; kernels over nothing are left out."""
        if 0 not in kernel.extents:
            assert self._node is not None
            self.steps.append(Step(kernel, list(inputs), output, (str(self._node.name),)))

    def compute(
        self,
        out: View,
        body: Callable[..., Expr],
        *,
        reduce: Sequence[int] = (),
        reducer: str | None = None,
        epilogue: Callable[..., Expr] | None = None,
        order: Sequence[int] | None = None,
        sequential: bool = False,
        combine: str | None = None,
        extents: Sequence[int] | None = None,
        store: Callable[..., Expr] | None = None,
    ) -> View:
        """Emit the loop nest that fills ``out``.

        Args:
            out: what is written.
            body: called with (operands, *output indices, *reduction indices) of ``out``'s logical axes.
            reduce: extents of the reduction axes.
            reducer: "sum", "prod", "max" or "min".
            epilogue: called with (operands, acc, *output indices).
            order: output axes from the outermost loop to the innermost; as they lie in memory by default.
            sequential: keep the order of the loops, on one thread.
            combine: see :class:`edgec.program.Loops`.
            extents: loop extents, where they are not ``out``'s shape.
            store: called with (operands, *indices) for the offset, where it is not ``out.at``.
        """
        extents = tuple(out.shape if extents is None else extents)
        order = tuple(
            order if order is not None else out.order if len(out.shape) == len(extents) else range(len(extents))
        )
        position = {axis: index for index, axis in enumerate(order)}
        indices = [scalar.axis(position[axis]) for axis in range(len(extents))]
        inner = [scalar.axis(len(extents) + index) for index in range(len(reduce))]
        operands = Operands()
        value = body(operands, *indices, *inner)
        final = None
        if reducer in ("sum", "prod") and value.dtype == "float16":
            # half floats are summed up in single precision and rounded once, as numpy does
            total = scalar.cast(scalar.accumulator("float32"), "float16")
            final = total if epilogue is None else epilogue(operands, total, *indices)
            value = scalar.cast(value, "float32")
        elif epilogue is not None:
            final = epilogue(operands, scalar.accumulator(value.dtype), *indices)
        where = store(operands, *indices) if store else out.at(*indices)
        nest = Loops(
            tuple(extents[axis] for axis in order), value, where, out.dtype, tuple(reduce), reducer, final,
            combine, sequential,
        )  # fmt: skip
        self.emit(nest, operands.buffers, out.buffer)
        return out

    def copy(self, source: View, out: View) -> View:
        """Emit a copy of ``source`` into ``out`` (which may be part of a buffer)."""
        return self.compute(out, lambda operands, *indices: operands.load(source, *indices))

    def dense(self, view: View, order: Sequence[int] | None = None) -> View:
        """``view`` itself if it is dense with its axes in ``order``, else a copy that is."""
        order = tuple(range(len(view.shape)) if order is None else order)
        if view.is_dense(order):
            return view
        if view.buffer.space == CONSTANT:
            return self._reordered_constant(view, order)
        key = (view, order)
        if key not in self._copies:
            self._copies[key] = self.copy(view, self.new(view.shape, view.dtype, order, view.buffer.name))
        return self._copies[key]

    def _reordered_constant(self, view: View, order: tuple[int, ...]) -> View:
        data = array_of(view)
        stored = np.ascontiguousarray(data.transpose(order))
        buffer = Buffer(view.buffer.name, view.dtype, data.size, CONSTANT, stored)
        return View(buffer, view.shape, dense_strides(view.shape, order))

    def reshape(self, view: View, shape: Sequence[int]) -> View:
        """``view`` with another shape over the same row-major elements, copied only where it must be.

        A copy keeps the memory order of the axes that the new shape does not mix, so that a feature map
        stays NHWC through a channel shuffle.
        """
        if 0 in shape:
            return View(view.buffer, tuple(shape), dense_strides(shape))
        kept = view.reshape(shape) or self.dense(view, _reshaping_order(view, shape)).reshape(shape)
        assert kept is not None
        return kept

    # ---- the whole model --------------------------------------------------------------------------------

    def run(self) -> Program:
        """Lower every node; refusals are collected in ``refusals``."""
        graph = self.model.graph
        inputs = [self._graph_input(value) for value in graph.inputs if constant_of(value) is None]
        for node in graph:
            self._lower(node)
        program = Program(str(graph.name or "model"), inputs, [])
        if not self.refusals:
            program.outputs = [self._graph_output(value) for value in graph.outputs]
        program.steps = self.steps
        return program

    def _graph_input(self, value: ir.Value) -> Tensor:
        with _whole_model(f"the model's input '{value.name}'"):
            shape, dtype = shape_of(value), dtype_of(value)
        buffer = Buffer(str(value.name), dtype, int(np.prod(shape, dtype=np.int64)), INPUT)
        self.set(value, View(buffer, shape, dense_strides(shape)))
        return Tensor(str(value.name), shape, buffer)

    def _graph_output(self, value: ir.Value) -> Tensor:
        """The output's own dense buffer: the one its producer already fills, or a copy."""
        with _whole_model(f"the model's output '{value.name}'"):
            view = self.view(value)
        taken = view.buffer.space != ARENA or view.buffer.parent is not None
        if taken or not view.is_dense() or any(step.output.parent is view.buffer for step in self.steps):
            self._node = self._node_for_copy(value)
            out = self.new(view.shape, view.dtype, name=str(value.name))
            view = self.copy(view, out)
        view.buffer.space, view.buffer.name = OUTPUT, str(value.name)
        return Tensor(str(value.name), view.shape, view.buffer)

    def _node_for_copy(self, value: ir.Value) -> ir.Node:
        return value.producer() or ir.Node("", "Identity", inputs=[value], name=f"copy_{value.name}")

    def _lower(self, node: ir.Node) -> None:
        self._node = node
        try:
            rule = RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
            if rule is None:
                refuse(
                    "edgec has no lowering for this operator",
                    "replace it by supported operators before the export",
                )
            rule(self, node)
        except Refused as refused:
            shapes = ", ".join(_describe(value) for value in node.inputs)
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            self.refusals.append(Refusal(str(node.name), name, f"({shapes})", refused.reason, refused.fix))
            self._stand_in(node)

    def _stand_in(self, node: ir.Node) -> None:
        """Give a refused node's outputs some view, so that the nodes after it are looked at too."""
        for value in node.outputs:
            dtype = dtype_of(value, check=False)
            shape = tuple(d if isinstance(d, int) else 1 for d in value.shape) if value.shape else ()
            buffer = Buffer(str(value.name), dtype, int(np.prod(shape, dtype=np.int64)))
            self._views[id(value)] = View(buffer, shape, dense_strides(shape))


def _reshaping_order(view: View, shape: Sequence[int]) -> tuple[int, ...]:
    """A memory order of ``view`` that can be seen as ``shape``: axes are mixed only within groups of equal
    products; within a group they lie row-major, the groups as they lie in ``view``."""
    groups: list[list[int]] = [[]]
    ends = set(itertools.accumulate(shape, operator.mul))
    product = 1
    for axis, extent in enumerate(view.shape):
        groups[-1].append(axis)
        product *= extent
        if product in ends and extent > 1:
            groups.append([])
    reach = [max((abs(view.strides[axis]) for axis in group), default=0) for group in groups]
    ranked = sorted(range(len(groups)), key=lambda index: -reach[index])
    return tuple(axis for index in ranked for axis in groups[index])


def _describe(value: ir.Value | None) -> str:
    if value is None:
        return "-"
    dims = "x".join(str(d) for d in value.shape) if value.shape is not None else "?"
    return f"{value.name} {dims or 'scalar'}"


def constant_of(value: ir.Value) -> np.ndarray | None:
    """The value of an initialiser, None for anything computed."""
    tensor = value.const_value
    return None if tensor is None else tensor.numpy()


def array_of(view: View) -> np.ndarray:
    """The elements of a constant view, in its logical shape."""
    data = np.asarray(view.buffer.data).reshape(-1)
    steps = [s * data.itemsize for s in view.strides]
    return np.lib.stride_tricks.as_strided(data[view.offset :], view.shape, steps)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of ``value``."""
    if value.shape is None or not value.shape.is_static():
        refuse(f"the shape of '{value.name}' is not known while compiling", "pin the inputs with --shape")
    shape = tuple(int(d) for d in value.shape.numpy())
    if min(shape, default=0) < 0:
        refuse(f"'{value.name}' would have the shape {list(shape)}", "repair the model and export it again")
    return shape


def dtype_of(value: ir.Value, check: bool = True) -> str:
    """The numpy name of ``value``'s dtype."""
    if value.dtype is None:
        refuse(f"the dtype of '{value.name}' is not known", "run onnx.shape_inference on the model")
    try:
        name = str(value.dtype.numpy())
    except TypeError:
        name = str(value.dtype)
    if check:
        check_dtype(name)
    return name


def check_dtype(name: str) -> None:
    """Refuse dtypes that programs do not carry."""
    if name not in SUPPORTED_DTYPES:
        refuse(f"dtype {name} is not supported", "cast to a float, integer or bool dtype before the export")


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, ``default`` where it is not given."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, list | tuple) else value
