"""Fusion and copy elision on the program: fewer steps, fewer passes over memory, the same results.

Four rewrites, repeated until none applies:

* **inline**: an elementwise nest disappears into the one nest that reads it.
* **epilogue**: an elementwise nest that reads one kernel's output becomes that kernel's epilogue.
* **place**: a buffer that is only copied into part of another (a concatenation, the inside of a padded
  feature map) is written there in the first place; its other readers read it there.
* **flatten**: a 1×1 convolution over gapless rows becomes one long row, so that its tiles cross row ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgec import scalar
from edgec.nest import bounds, coefficient, terms
from edgec.program import ARENA, Buffer, Conv, Depthwise, Fill, Kernel, Loops, Program, Step
from edgec.scalar import Expr

CHEAP = frozenset(
    {
        "add", "sub", "mul", "min", "max", "select", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "neg", "abs",
        "cast", "const", "load", "axis", "acc",
    }
)  # fmt: skip
"""Operators that cost about as much to compute again as to load."""


def fuse(program: Program) -> None:
    """Rewrite ``program`` in place."""
    changed = True
    while changed:
        changed = sum(_sweep(program, rule) for rule in (_inline, _into_epilogue, _place)) > 0
    for step in program.steps:
        if isinstance(step.kernel, Conv):
            step.kernel = flattened(step.kernel)


Rule = Callable[["_Uses", Program, Step], bool]


class _Uses:
    """Who writes and who reads each buffer of the arena, kept as steps go and change."""

    def __init__(self, program: Program) -> None:
        self.writers: dict[int, list[Step]] = {}
        self.readers: dict[int, list[Step]] = {}
        self.windows: set[int] = set()
        self._seen: dict[int, list[Buffer]] = {}
        for step in program.steps:
            self._add(step)

    def changed(self, step: Step) -> None:
        """``step`` reads other buffers than before."""
        self.gone(step)
        self._add(step)

    def gone(self, step: Step) -> None:
        """``step`` is no longer part of the program."""
        *inputs, output = self._seen.pop(id(step))
        self.writers[id(output)] = [each for each in self.writers[id(output)] if each is not step]
        for buffer in inputs:
            self.readers[id(buffer)] = [each for each in self.readers[id(buffer)] if each is not step]

    def moved(self, buffer: Buffer) -> None:
        """``buffer`` is a part of another now."""
        self.windows.add(id(buffer.parent))

    def _add(self, step: Step) -> None:
        self._seen[id(step)] = list(step.buffers)
        self.writers.setdefault(id(step.output), []).append(step)
        for buffer in step.inputs:
            self.readers.setdefault(id(buffer), []).append(step)
        for buffer in step.buffers:
            if buffer.parent is not None:
                self.moved(buffer)

    def own(self, buffer: Buffer) -> Step | None:
        """The one step that writes ``buffer``, a whole buffer of the arena; None where there is no such."""
        writers = self.writers.get(id(buffer), [])
        plain = buffer.space == ARENA and buffer.parent is None and id(buffer) not in self.windows
        return writers[0] if plain and len(writers) == 1 else None


def _sweep(program: Program, rule: Rule) -> bool:
    """Try ``rule`` on every step until it changes nothing."""
    changed, again = False, True
    while again:
        again = False
        uses = _Uses(program)
        for step in list(program.steps):
            if rule(uses, program, step):
                again = changed = True
    return changed


def _merged(uses: _Uses, program: Program, gone: Step, kept: Step) -> bool:
    """``kept`` does what ``gone`` did: note that."""
    program.steps.remove(gone)
    uses.gone(gone)
    uses.changed(kept)
    return True


def _is_map(kernel: Kernel) -> bool:
    return isinstance(kernel, Loops) and kernel.reducer is None and kernel.combine is None and not kernel.sequential


def _single_reader(uses: _Uses, buffer: Buffer) -> Step | None:
    readers = uses.readers.get(id(buffer), [])
    return readers[0] if len(readers) == 1 else None


def _reads(expr: Expr | None, operand: int) -> list[Expr]:
    found = [] if expr is None else scalar.loads(expr)
    return [node for node in found if node.args[0] == operand]


# ---- matching a producer's axes to the offsets at which it is read ----------------------------------------


def _producer_axes(producer: Kernel, offset: Expr, extents: Sequence[int]) -> dict[int, Expr] | None:
    """The producer's axes, as indices of the consumer, for the element at ``offset`` of its output."""
    stored, read = terms(producer.store), terms(offset)
    if stored is None or read is None or not isinstance(producer, Loops | Conv | Depthwise):
        return None
    by_coefficient = {}
    for factor, atom in stored[0].items():
        if atom.op != "axis":
            return None
        by_coefficient[factor] = atom.args[0]
    rest = _digits(read[1] - stored[1], by_coefficient, producer.extents)
    if rest is None or any(factor not in by_coefficient for factor in read[0]):
        return None
    axes = {axis: scalar.const(0, scalar.INDEX) for axis in range(len(producer.extents))}
    for factor, axis in by_coefficient.items():
        axes[axis] = read[0].get(factor, axes[axis]) + rest.get(factor, 0)
        limits = bounds(axes[axis], extents)
        if limits is None or limits[0] < 0 or limits[1] >= producer.extents[axis]:
            return None
    return axes


def _digits(constant: int, by_coefficient: dict[int, int], extents: Sequence[int]) -> dict[int, int] | None:
    """``constant`` as sum(coefficient × digit), each digit inside its axis."""
    digits = {}
    for factor in sorted(by_coefficient, reverse=True):
        if factor <= 0:
            return None
        digits[factor], constant = divmod(constant, factor)
        if not 0 <= digits[factor] < extents[by_coefficient[factor]]:
            return None
    return digits if constant == 0 else None


# ---- inline -----------------------------------------------------------------------------------------------


def _inline(uses: _Uses, program: Program, consumer: Step) -> bool:
    """Substitute elementwise producers into ``consumer``'s expressions."""
    if isinstance(consumer.kernel, Fill):
        return False
    for operand, buffer in enumerate(consumer.inputs):
        producer = uses.own(buffer)
        if producer is None or not _is_map(producer.kernel) or _single_reader(uses, buffer) is not consumer:
            continue
        if consumer.inputs.count(buffer) == 1 and _substitute(producer, consumer, operand):
            return _merged(uses, program, producer, consumer)
    return False


def _substitute(producer: Step, consumer: Step, operand: int) -> bool:
    kernel, source = consumer.kernel, producer.kernel
    assert isinstance(source, Loops)
    if isinstance(kernel, Conv | Depthwise) and operand < kernel.own_operands:
        return False
    if not _worth_repeating(source, consumer, operand):
        return False
    if _reads(kernel.store, operand):
        return False
    extents = kernel.extents + (kernel.reduce if isinstance(kernel, Loops) else ())
    numbers, inputs = _merged_operands(consumer.inputs, producer.inputs, operand)
    body = scalar.rename_operands(source.body, numbers)
    values: dict[int, Expr] = {}
    for field in ("body", "epilogue"):
        for node in _reads(getattr(kernel, field, None), operand):
            axes = _producer_axes(source, node.args[1], extents)
            if axes is None or any(_reads(index, operand) for index in axes.values()):
                return False
            values[id(node)] = scalar.substitute_axes(body, axes)
    _replace_loads(consumer, values)
    consumer.inputs, consumer.nodes = inputs, _joined(producer, consumer)
    _drop_unused(consumer)
    return True


def _worth_repeating(source: Loops, consumer: Step, operand: int) -> bool:
    """Whether computing ``source`` at each read costs no more than storing it once."""
    kernel = consumer.kernel
    if isinstance(kernel, Loops):
        points = prod(kernel.extents) * (prod(kernel.reduce) if _reads(kernel.body, operand) else 1)
        repeats = len(_reads(kernel.body, operand)) + len(_reads(kernel.epilogue, operand))
    else:
        points, repeats = prod(kernel.extents), len(_reads(kernel.result, operand))
    once = points * repeats <= prod(source.extents)
    nodes = list(scalar.walk(source.body))
    cheap = all(node.op in CHEAP for node in nodes) and len(nodes) <= 8
    return once or (cheap and not (isinstance(kernel, Loops) and kernel.reducer))


def _merged_operands(own: list[Buffer], others: list[Buffer], replaced: int) -> tuple[dict[int, int], list[Buffer]]:
    """``own`` operands joined with ``others``: the new number of each of ``others``, and the joint list.

    ``replaced`` keeps its number; it is dropped when nothing reads it any more.
    """
    inputs = list(own)
    numbers = {}
    for index, buffer in enumerate(others):
        known = [i for i, b in enumerate(inputs) if b is buffer and i != replaced]
        if not known:
            inputs.append(buffer)
        numbers[index] = known[-1] if known else len(inputs) - 1
    return numbers, inputs


def _replace_loads(step: Step, values: dict[int, Expr]) -> None:
    """Put ``values`` in the place of the loads with these ids."""

    def swap(expr: Expr) -> Expr:
        made: dict[int, Expr] = {}
        for node in scalar.walk(expr):
            if id(node) in values:
                made[id(node)] = values[id(node)]
            else:
                made[id(node)] = scalar.rebuild(node, made)
        return made[id(expr)]

    kernel = step.kernel
    changes = {
        name: swap(getattr(kernel, name)) for name in ("body", "epilogue") if getattr(kernel, name, None) is not None
    }
    step.kernel = replace(kernel, **changes)  # type: ignore[arg-type]


def _drop_unused(step: Step) -> None:
    """Renumber operands so that none is left unread (those of a convolution's sums always stay)."""
    kernel = step.kernel
    fixed = kernel.own_operands if isinstance(kernel, Conv | Depthwise) else 0
    used = set(range(fixed))
    for name in ("body", "epilogue", "store"):
        expr = getattr(kernel, name, None)
        used |= set() if expr is None else {node.args[0] for node in scalar.loads(expr)}
    numbers = {old: new for new, old in enumerate(sorted(used))}
    step.inputs = [step.inputs[old] for old in sorted(used)]
    changes = {
        name: scalar.rename_operands(getattr(kernel, name), numbers)
        for name in ("body", "epilogue", "store")
        if getattr(kernel, name, None) is not None
    }
    step.kernel = replace(kernel, **changes)  # type: ignore[arg-type]


def _joined(first: Step, second: Step) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first.nodes, *second.nodes)))


# ---- epilogue ---------------------------------------------------------------------------------------------


def _into_epilogue(uses: _Uses, program: Program, consumer: Step) -> bool:
    """Make an elementwise ``consumer`` the epilogue of the kernel whose output it reads."""
    if not _is_map(consumer.kernel):
        return False
    for operand, buffer in enumerate(consumer.inputs):
        producer = uses.own(buffer)
        if producer is None or isinstance(producer.kernel, Fill) or _single_reader(uses, buffer) is not consumer:
            continue
        if isinstance(producer.kernel, Loops) and (_is_map(producer.kernel) or producer.kernel.combine):
            continue
        if _append(producer, consumer, operand):
            return _merged(uses, program, producer, consumer)
    return False


def _append(producer: Step, consumer: Step, operand: int) -> bool:
    """Fuse in the place of ``consumer``, where all of its other inputs are ready."""
    nest, kernel = consumer.kernel, producer.kernel
    assert isinstance(nest, Loops) and not isinstance(kernel, Fill)
    reads = _reads(nest.body, operand)
    if len(reads) != 1 or prod(nest.extents) != prod(kernel.extents):
        return False
    axes = _consumer_axes(kernel, nest, reads[0].args[1])
    if axes is None:
        return False
    result = _result(kernel)
    numbers, inputs = _merged_operands(producer.inputs, consumer.inputs, -1)
    body = scalar.rename_operands(scalar.substitute_axes(nest.body, axes), numbers)
    place = scalar.load(numbers[operand], scalar.substitute_axes(reads[0].args[1], axes), reads[0].dtype)
    store = scalar.substitute_axes(nest.store, axes)
    if not _keeps_vectors(kernel, store, body):
        return False
    epilogue = scalar.rewrite(body, lambda node: result if node is place else None)
    consumer.kernel = replace(kernel, epilogue=epilogue, store=store, dtype=nest.dtype)  # type: ignore[call-arg]
    consumer.inputs, consumer.nodes = inputs, _joined(producer, consumer)
    _drop_unused(consumer)
    return True


def _result(kernel: Kernel) -> Expr:
    """What a kernel stores, as an expression of its accumulator."""
    if isinstance(kernel, Loops):
        return kernel.epilogue or scalar.accumulator(kernel.body.dtype)
    return kernel.result


def _consumer_axes(kernel: Kernel, nest: Loops, offset: Expr) -> dict[int, Expr] | None:
    """The consumer's axes in terms of the producer's, where both walk the same elements one to one."""
    stored, read = scalar.affine(kernel.store), scalar.affine(offset)
    if stored is None or read is None or stored[1] != read[1]:
        return None
    extents = kernel.extents
    by_coefficient = {step: axis for axis, step in stored[0].items() if extents[axis] > 1}
    axes: dict[int, Expr] = {}
    for axis, extent in enumerate(nest.extents):
        axes[axis], size = scalar.const(0, scalar.INDEX), 1
        while size < extent:  # several axes of the producer, as of groups and their channels, may be one
            match = by_coefficient.pop(read[0].get(axis, 0) * size, None)
            if match is None:
                return None
            axes[axis] = scalar.axis(match) * size + axes[axis]
            size *= extents[match]
        if size != extent:
            return None
    return axes if not by_coefficient else None


def _keeps_vectors(kernel: Kernel, store: Expr, body: Expr) -> bool:
    """Whether results still leave, and operands still come, as whole vectors along the innermost axis."""
    last = len(kernel.extents) - 1
    steps = [coefficient(store, last)] + [coefficient(node.args[1], last) for node in scalar.loads(body)]
    if isinstance(kernel, Conv | Depthwise):
        return kernel.extents[last] == 1 or (steps[0] == 1 and all(step in (0, 1) for step in steps))
    return all(step in (0, 1) for step in steps)


# ---- place ------------------------------------------------------------------------------------------------


def _place(uses: _Uses, program: Program, copy: Step) -> bool:
    """Let the source of a pure copy live where it is copied to."""
    nest = copy.kernel
    if not isinstance(nest, Loops) or not _is_map(nest) or nest.body.op != "load" or len(copy.inputs) != 1:
        return False
    source = copy.inputs[0]
    writer = uses.own(source)
    if writer is None or copy.output.root is source or nest.body.dtype != nest.dtype:
        return False
    moves = _moves(nest, source)
    readers = [step for step in uses.readers.get(id(source), []) if step is not copy]
    if moves is None or (readers and any(map(_updates, uses.writers[id(copy.output)]))):
        return False
    rewritten = [_moved(step, source, moves) for step in [writer, *readers]]
    if any(kernel is None for kernel in rewritten):
        return False
    for step, kernel in zip([writer, *readers], rewritten, strict=True):
        assert kernel is not None
        step.kernel = kernel
    root = copy.output.root
    source.parent, source.parent_offset = root, copy.output.root_offset + moves.start
    source.elements = root.elements - source.parent_offset
    program.steps.remove(copy)
    uses.gone(copy)
    uses.moved(source)
    return True


def _updates(step: Step) -> bool:
    """Whether ``step`` changes elements that another step has written, as a scatter does."""
    return isinstance(step.kernel, Loops) and (step.kernel.sequential or step.kernel.combine is not None)


@dataclass(frozen=True)
class _Moves:
    """Where the elements of a buffer go: digit by digit of their offset.

    Attributes:
        digits: for each coefficient of an offset into the buffer, its extent and its coefficient at the new place.
        start: the constant part of the new place.
    """

    digits: dict[int, tuple[int, int]]
    start: int

    def offset(self, offset: Expr, extents: Sequence[int]) -> Expr | None:
        """``offset`` at the new place; None where an index runs across digits."""
        parts = terms(offset)
        if parts is None or parts[1] < 0 or any(self._digit(factor) is None for factor in parts[0]):
            return None
        rest, total = parts[1], scalar.const(0, scalar.INDEX)
        for digit in sorted(self.digits, reverse=True):
            constant, rest = divmod(rest, digit)
            index = scalar.const(constant, scalar.INDEX)
            for factor, atom in parts[0].items():
                index = atom * (factor // digit) + index if self._digit(factor) == digit else index
            extent, moved = self.digits[digit]
            limits = bounds(index, extents)
            if limits is None or limits[0] < 0 or limits[1] >= extent:
                return None
            total = index * moved + total
        return total if rest == 0 else None

    def _digit(self, factor: int) -> int | None:
        """The coefficient of the digit that an index times ``factor`` counts in, as groups do in that of channels."""
        digit = max((each for each in self.digits if each <= factor), default=0)
        return digit if digit and factor % digit == 0 else None

    def strides(self, kernel: Conv | Depthwise) -> tuple[int, ...] | None:
        """A kernel's input strides at the new place; a stride along which it never moves may be anything."""
        if kernel.input_offset:
            return None
        (sh, sw), (dh, dw), (kh, kw) = kernel.stride, kernel.dilation, kernel.kernel
        channels = kernel.in_channels if isinstance(kernel, Conv) else kernel.channels
        reach = (
            kernel.batch,
            (kernel.out_height - 1) * sh + (kh - 1) * dh + 1,
            (kernel.out_width - 1) * sw + (kw - 1) * dw + 1,
            channels,
        )
        moved, last = [], dict.fromkeys(self.digits, 0)
        for stride, span in zip(kernel.input_strides, reach, strict=True):
            digit = self._digit(stride)
            if span == 1:
                moved.append(0)
            elif digit is None:
                return None
            else:
                last[digit] += (span - 1) * (stride // digit)
                moved.append(stride // digit * self.digits[digit][1])
        return tuple(moved) if all(last[digit] < extent for digit, (extent, _) in self.digits.items()) else None


def _moves(nest: Loops, source: Buffer) -> _Moves | None:
    """How a pure copy moves ``source``; None where it copies a part, or pulls neighbours apart."""
    read, stored = scalar.affine(nest.body.args[1]), scalar.affine(nest.store)
    if read is None or stored is None or read[1] != 0 or prod(nest.extents) != source.elements:
        return None
    digits = {}
    for axis, extent in enumerate(nest.extents):
        if extent > 1:
            old, new = read[0].get(axis, 0), stored[0].get(axis, 0)
            if old <= 0 or new <= 0 or old in digits:
                return None
            digits[old] = (extent, new)
    return _Moves(digits, stored[1]) if digits.get(1, (1, 1))[1] == 1 else None


def _moved(step: Step, source: Buffer, moves: _Moves) -> Kernel | None:
    """``step``'s kernel with its accesses to ``source`` at their new place; None where that cannot be."""
    kernel = step.kernel
    if isinstance(kernel, Fill):
        return None
    extents = kernel.extents + (kernel.reduce if isinstance(kernel, Loops) else ())
    changes: dict[str, object] = {}
    failed = False

    def move(node: Expr) -> Expr | None:
        nonlocal failed
        if node.op != "load" or step.inputs[node.args[0]] is not source:
            return None
        offset = moves.offset(node.args[1], extents)
        failed |= offset is None
        return None if offset is None else scalar.load(node.args[0], offset, node.dtype)

    for name in ("body", "epilogue"):
        if getattr(kernel, name, None) is not None:
            changes[name] = scalar.rewrite(getattr(kernel, name), move)
    if step.output is source:
        changes["store"] = moves.offset(kernel.store, extents)
        failed |= changes["store"] is None
    if isinstance(kernel, Conv | Depthwise):
        if step.inputs[1] is source:
            return None
        if step.inputs[0] is source:
            changes["input_strides"] = moves.strides(kernel)
            failed |= changes["input_strides"] is None
    return None if failed else replace(kernel, **changes)  # type: ignore[arg-type]


# ---- flatten ----------------------------------------------------------------------------------------------


def flattened(conv: Conv) -> Conv:
    """``conv`` with its rows joined, where it is pointwise and no access sees where a row ends."""
    n_step, h_step, w_step, c_step = conv.input_strides
    width = conv.out_width
    if conv.kernel != (1, 1) or conv.stride != (1, 1) or conv.out_height == 1 or width == 1:
        return conv
    offsets = [conv.store, *(node.args[1] for node in scalar.loads(conv.epilogue))]
    gapless = all(_walks_as_one(offset, width) for offset in offsets) and h_step == width * w_step
    if not gapless:
        return conv
    joined = {1: scalar.const(0, scalar.INDEX)}
    return replace(
        conv, out_height=1, out_width=conv.out_height * width, input_strides=(n_step, 0, w_step, c_step),
        store=scalar.substitute_axes(conv.store, joined), epilogue=scalar.substitute_axes(conv.epilogue, joined),
    )  # fmt: skip


def _walks_as_one(offset: Expr, width: int) -> bool:
    row, column = coefficient(offset, 1), coefficient(offset, 2)
    return row is not None and column is not None and row == width * column
