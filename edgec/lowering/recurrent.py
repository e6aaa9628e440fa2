"""LSTM, GRU and RNN, unrolled over time.

The products of all inputs with W are one product before the first step. A step is the product of the state with
R, which adds that step's share of the first, and an elementwise nest for each state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgec.frontend.values import is_used
from edgec.lowering.context import Lowering, Operands, array_of, attribute, lowers, refuse
from edgec.lowering.elementwise import (
    clip,
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    sigmoid,
    softplus,
    softsign,
    tanh,
    thresholded_relu,
)
from edgec.lowering.matmul import product
from edgec.program import CONSTANT, View
from edgec.scalar import Expr, binary, const, select

MOST_STEPS = 1024
"""Time steps, over all directions, up to which a node is unrolled."""

Activation = Callable[[Expr], Expr]


def _affine(x: Expr, alpha: float, beta: float) -> Expr:
    return binary("add", binary("mul", x, const(alpha, x.dtype)), const(beta, x.dtype))


def _scaled_tanh(x: Expr, alpha: float, beta: float) -> Expr:
    return binary("mul", const(alpha, x.dtype), tanh(binary("mul", x, const(beta, x.dtype))))


_ACTIVATIONS: dict[str, tuple[Callable[..., Expr], tuple[float, ...]]] = {
    "relu": (relu, ()),
    "tanh": (tanh, ()),
    "sigmoid": (sigmoid, ()),
    "softsign": (softsign, ()),
    "softplus": (softplus, ()),
    "affine": (_affine, (1.0, 0.0)),
    "leakyrelu": (leaky_relu, (0.01,)),
    "thresholdedrelu": (thresholded_relu, (1.0,)),
    "scaledtanh": (_scaled_tanh, (1.0, 1.0)),
    "hardsigmoid": (hard_sigmoid, (0.2, 0.5)),
    "elu": (elu, (1.0,)),
}
"""Each activation and the defaults of its alpha and beta."""


def activations(node: ir.Node, defaults: Sequence[str], directions: int) -> list[list[Activation]]:
    """The activation functions of each direction, over gate inputs limited by ``clip``."""
    names = [str(name).lower() for name in attribute(node, "activations", [*defaults] * directions)]
    alphas, betas = list(attribute(node, "activation_alpha", [])), list(attribute(node, "activation_beta", []))
    limit = attribute(node, "clip", None)
    found = []
    for name in names:
        if name not in _ACTIVATIONS:
            refuse(f"its activation {name} is not one of ONNX's", "export the model with standard activations")
        function, values = _ACTIVATIONS[name]
        given = [queue.pop(0) if queue else value for queue, value in zip((alphas, betas), values, strict=False)]
        found.append(_limited(function, given, limit))
    count = len(defaults)
    return [found[direction * count : (direction + 1) * count] for direction in range(directions)]


def _limited(function: Callable[..., Expr], arguments: list[float], limit: float | None) -> Activation:
    def apply(x: Expr) -> Expr:
        bounded = x if limit is None else clip(x, const(-limit, x.dtype), const(limit, x.dtype))
        return function(bounded, *arguments)

    return apply


@dataclass
class Cell:
    """One direction of a recurrent node: its activations and its weights.

    ``shares`` [steps, batch, gates · hidden] are the inputs' products with W and the biases; ``recurrent`` is
    Rᵀ [hidden, gates · hidden]; ``state`` is H and ``memory`` the LSTM's C, None while they are still zero.
    """

    ctx: Lowering
    hidden: int
    functions: list[Activation]
    shares: View
    recurrent: View
    reset_bias: View | None
    peephole: View | None
    couple: bool
    state: View | None
    memory: View | None = None

    def gates(self, time: int, gates: slice, state: View | None) -> View:
        """state · Rᵀ + shares[time] of some gates: [batch, gates · hidden]."""
        columns = slice(gates.start * self.hidden, gates.stop * self.hidden)
        batch, width = self.shares.shape[1], columns.stop - columns.start
        share = self.shares.slice((time, 0, columns.start), (1, batch, width)).drop(0)
        if state is None:
            return share
        right = self.recurrent.slice((0, columns.start), (self.hidden, width))
        out = self.ctx.new((batch, width), share.dtype)
        product(self.ctx, out, state, right, share)
        return out

    def read(self, ops: Operands, view: View | None, n: Expr, j: Expr, gate: int = 0) -> Expr:
        """An element of a state, or of a gate of ``gates``; 0 for a state that is still zero."""
        if view is None:
            return const(0, self.shares.dtype)
        return ops.load(view, n, j + gate * self.hidden)


def _rnn_step(cell: Cell, time: int, out: View) -> None:
    """H = f(X·Wᵀ + H·Rᵀ + bias)."""
    (f,) = cell.functions
    gates = cell.gates(time, slice(0, 1), cell.state)
    cell.ctx.compute(out, lambda ops, n, j: f(cell.read(ops, gates, n, j)))


def _gru_step(cell: Cell, time: int, out: View) -> None:
    """z, r = f(…); h = g(… (r·H)·Rᵀ …), or with linear_before_reset g(… r·(H·Rᵀ + bias) …);
    H = (1 − z)·h + z·H."""
    f, g = cell.functions
    ctx, state = cell.ctx, cell.state

    def mixed(z: Expr, h: Expr, old: Expr) -> Expr:
        return binary("add", binary("mul", binary("sub", const(1, z.dtype), z), h), binary("mul", z, old))

    if cell.reset_bias is not None:
        _gru_step_reset_after(cell, time, out, mixed)
        return
    gates = cell.gates(time, slice(0, 2), state)
    reset = None
    if state is not None:
        reset = ctx.compute(
            ctx.new(state.shape, state.dtype),
            lambda ops, n, j: binary("mul", f(cell.read(ops, gates, n, j, 1)), ops.load(state, n, j)),
        )
    hidden = cell.gates(time, slice(2, 3), reset)

    def body(ops: Operands, n: Expr, j: Expr) -> Expr:
        z, h = f(cell.read(ops, gates, n, j)), g(cell.read(ops, hidden, n, j))
        return mixed(z, h, cell.read(ops, state, n, j))

    ctx.compute(out, body)


def _gru_step_reset_after(cell: Cell, time: int, out: View, mixed: Callable[..., Expr]) -> None:
    """A GRU step with linear_before_reset: the state's product needs no reset gate."""
    f, g = cell.functions
    ctx, state, bias = cell.ctx, cell.state, cell.reset_bias
    gates = cell.gates(time, slice(0, 2), state)
    share = cell.gates(time, slice(2, 3), None)
    recurrent = None
    if state is not None:
        recurrent = ctx.new(state.shape, state.dtype)
        product(ctx, recurrent, state, cell.recurrent.slice((0, 2 * cell.hidden), (cell.hidden, cell.hidden)))

    def body(ops: Operands, n: Expr, j: Expr) -> Expr:
        z, r = (f(cell.read(ops, gates, n, j, gate)) for gate in (0, 1))
        assert bias is not None
        inner = binary("add", cell.read(ops, recurrent, n, j), ops.load(bias, j))
        h = g(binary("add", ops.load(share, n, j), binary("mul", r, inner)))
        return mixed(z, h, cell.read(ops, state, n, j))

    ctx.compute(out, body)


def _lstm_step(cell: Cell, time: int, out: View) -> None:
    """i, f = f(… + P·C); C = f·C + i·g(…); o = f(… + P·C); H = o·h(C). Gates in the order i, o, f, c."""
    f, g, h = cell.functions
    ctx, old, gates = cell.ctx, cell.memory, cell.gates(time, slice(0, 4), cell.state)

    def gate(ops: Operands, index: int, memory: Expr, n: Expr, j: Expr) -> Expr:
        value = cell.read(ops, gates, n, j, index)
        if cell.peephole is not None:
            value = binary("add", value, binary("mul", ops.load(cell.peephole, j + index * cell.hidden), memory))
        return f(value)

    def memory(ops: Operands, n: Expr, j: Expr) -> Expr:
        before = cell.read(ops, old, n, j)
        keep_in = gate(ops, 0, before, n, j)
        forget = binary("sub", const(1, before.dtype), keep_in) if cell.couple else gate(ops, 2, before, n, j)
        new = binary("mul", keep_in, g(cell.read(ops, gates, n, j, 3)))
        return new if old is None else binary("add", binary("mul", forget, before), new)

    new = ctx.compute(ctx.new(out.shape, out.dtype), memory)

    def output(ops: Operands, n: Expr, j: Expr) -> Expr:
        current = ops.load(new, n, j)
        return binary("mul", gate(ops, 1, current, n, j), h(current))

    ctx.compute(out, output)
    cell.memory = new


@dataclass(frozen=True)
class Kind:
    """A recurrent operator: how many gates it has, its activations, and one step of it."""

    gates: int
    defaults: tuple[str, ...]
    step: Callable[[Cell, int, View], None]


KINDS = {
    "RNN": Kind(1, ("Tanh",), _rnn_step),
    "GRU": Kind(3, ("Sigmoid", "Tanh"), _gru_step),
    "LSTM": Kind(4, ("Sigmoid", "Tanh", "Tanh"), _lstm_step),
}


@lowers("RNN", "GRU", "LSTM")
def lower_recurrent(ctx: Lowering, node: ir.Node) -> None:
    kind, batch_first = KINDS[node.op_type], bool(attribute(node, "layout", 0))
    x, weight = ctx.input(node, 0), ctx.input(node, 1)
    x = x.permute((1, 0, 2)) if batch_first else x
    directions, hidden = weight.shape[0], weight.shape[1] // kind.gates
    steps, batch = x.shape[:2]
    if steps * directions > MOST_STEPS:
        refuse(
            f"its {steps} time steps in {directions} direction(s) are more than the {MOST_STEPS} that are unrolled",
            "run the model on shorter sequences, and pass its state on from one to the next",
        )
    if node.op_type == "LSTM" and attribute(node, "clip", None) is not None:
        refuse("runtimes disagree on whether an LSTM's clip limits its memory too", "remove the clip attribute")
    lengths = _lengths(ctx, node, steps)
    y = ctx.new((steps, directions, batch, hidden), x.dtype)
    states: list[list[View | None]] = []
    names = [["forward"], ["forward", "reverse"]][directions - 1]
    names = names if directions == 2 else [str(attribute(node, "direction", "forward"))]
    functions = activations(node, kind.defaults, directions)
    for index, name in enumerate(names):
        cell = _cell(ctx, node, kind, index, x, functions[index])
        order = range(steps) if name == "forward" else range(steps - 1, -1, -1)
        states.append(_run(cell, kind, y.slice((0, index, 0, 0), (steps, 1, batch, hidden)).drop(1), order, lengths))
    _set_outputs(ctx, node, y, states, batch_first)


def _lengths(ctx: Lowering, node: ir.Node, steps: int) -> View | None:
    """The sequences' lengths; None where all are full."""
    lengths = ctx.optional(node, 4)
    full = lengths is not None and lengths.buffer.space == CONSTANT and bool((array_of(lengths) >= steps).all())
    return None if full else lengths


def _cell(ctx: Lowering, node: ir.Node, kind: Kind, index: int, x: View, functions: list[Activation]) -> Cell:
    """The cell of direction ``index``."""
    weight, recurrent, bias = ctx.input(node, 1), ctx.input(node, 2), ctx.optional(node, 3)
    width, hidden = weight.shape[1], recurrent.shape[2]
    after = node.op_type == "GRU" and attribute(node, "linear_before_reset", 0)
    share_bias = reset_bias = None
    if bias is not None:
        first, second = (bias.slice((index, start), (1, width)).drop(0) for start in (0, width))
        share_bias = _joined_bias(ctx, first, second, width - hidden if after else width)
        reset_bias = second.slice((width - hidden,), (hidden,))
    if after and reset_bias is None:
        reset_bias = ctx.constant(np.zeros(hidden, x.dtype))
    shares = ctx.new((*x.shape[:2], width), x.dtype)
    own = weight.slice((index, 0, 0), (1, *weight.shape[1:])).drop(0)
    product(ctx, shares, x, own.permute((1, 0)), share_bias)
    peephole = ctx.optional(node, 7)
    first_axis = 1 if attribute(node, "layout", 0) else 0
    return Cell(
        ctx, hidden, functions, shares,
        recurrent.slice((index, 0, 0), (1, *recurrent.shape[1:])).drop(0).permute((1, 0)),
        reset_bias if after else None,
        None if peephole is None else peephole.slice((index, 0), (1, peephole.shape[1])).drop(0),
        bool(attribute(node, "input_forget", 0)),
        *(_initial(ctx.optional(node, position), index, first_axis) for position in (5, 6)),
    )  # fmt: skip


def _initial(view: View | None, index: int, axis: int) -> View | None:
    """The initial state of direction ``index``, which are laid out along ``axis``: [batch, hidden]."""
    if view is None:
        return None
    starts, shape = [0, 0, 0], list(view.shape)
    starts[axis], shape[axis] = index, 1
    return view.slice(starts, shape).drop(axis)


def _joined_bias(ctx: Lowering, first: View, second: View, count: int) -> View:
    """first + second in the first ``count`` elements, and ``first`` alone in the rest."""
    if first.buffer.space == CONSTANT:
        total = array_of(first).copy()
        total[:count] += array_of(second)[:count]
        return ctx.constant(total, first.buffer.name)
    out = ctx.new(first.shape, first.dtype)
    for start, stop, terms in ((0, count, (first, second)), (count, first.shape[0], (first,))):
        parts = [term.slice((start,), (stop - start,)) for term in terms]
        ctx.compute(out.slice((start,), (stop - start,)), lambda ops, i, parts=parts: _sum(ops, parts, i))
    return out


def _sum(ops: Operands, parts: Sequence[View], index: Expr) -> Expr:
    first, *others = (ops.load(part, index) for part in parts)
    for other in others:
        first = binary("add", first, other)
    return first


def _run(cell: Cell, kind: Kind, y: View, order: Sequence[int], lengths: View | None) -> list[View | None]:
    """Every step of one direction into ``y`` [steps, batch, hidden]; the last H and C."""
    for time in order:
        place = y.slice((time, 0, 0), (1, *y.shape[1:])).drop(0)
        if lengths is None:
            kind.step(cell, time, place)
            cell.state = place
        else:
            _masked_step(cell, kind, time, place, lengths)
    return [cell.state, cell.memory]


def _masked_step(cell: Cell, kind: Kind, time: int, place: View, lengths: View) -> None:
    """A step that leaves sequences alone that are not longer than ``time``; their output is 0."""
    ctx, before = cell.ctx, (cell.state, cell.memory)
    new = ctx.new(place.shape, place.dtype)
    kind.step(cell, time, new)

    def active(ops: Operands, n: Expr) -> Expr:
        return binary("lt", const(time, lengths.dtype), ops.load(lengths, n))

    def kept(old: View | None, view: View) -> View:
        return ctx.compute(
            ctx.new(view.shape, view.dtype),
            lambda ops, n, j: select(active(ops, n), ops.load(view, n, j), cell.read(ops, old, n, j)),
        )

    ctx.compute(place, lambda ops, n, j: select(active(ops, n), ops.load(new, n, j), const(0, place.dtype)))
    cell.state = kept(before[0], new)
    cell.memory = None if cell.memory is None else kept(before[1], cell.memory)


def _set_outputs(ctx: Lowering, node: ir.Node, y: View, states: list[list[View | None]], batch_first: bool) -> None:
    """Y [steps, directions, batch, hidden], Y_h and Y_c [directions, batch, hidden]; batch first with layout 1."""
    if is_used(node.outputs[0]):
        ctx.set(node.outputs[0], y.permute((2, 0, 1, 3)) if batch_first else y)
    for position, value in enumerate(node.outputs[1:]):
        if not is_used(value):
            continue
        out = ctx.new((len(states), *y.shape[2:]), y.dtype)
        for index, state in enumerate(states):
            view = state[position]
            assert view is not None
            ctx.copy(view, out.slice((index, 0, 0), (1, *out.shape[1:])).drop(0))
        ctx.set(value, out.permute((1, 0, 2)) if batch_first else out)
