"""States: tensors that a program keeps from one run to the next, such as the cache of keys and values of a decoder.

In ONNX a state is an input (what it was) and an output (what it is then), which a caller carries over. Here both become
one buffer at the start of the arena, which is zero when the artifact is opened. Where the output is a copy of the input
with some elements replaced, and nothing reads the input after that copy, the elements are replaced in place; else the
output is copied over the input at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from edgec import scalar
from edgec.errors import EdgecError
from edgec.program import ARENA, STATE, Buffer, Loops, Program, Step, Tensor

AUTOMATIC = "auto"
"""Instead of pairs: whatever outputs and inputs are named alike but for ``present`` and ``past``."""


@dataclass(frozen=True)
class Named:
    """A tensor of a graph or a program as far as pairs are concerned."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def parse_states(flags: Sequence[str]) -> Mapping[str, str] | str:
    """``--state PRESENT=PAST`` flags as output names to input names, or :data:`AUTOMATIC`.

    Raises:
        EdgecError: a flag that is neither.
    """
    if list(flags) == [AUTOMATIC]:
        return AUTOMATIC
    pairs = {}
    for flag in flags:
        output, equals, source = flag.partition("=")
        if not (output and equals and source):
            raise EdgecError(f"--state {flag} is no pair; write OUTPUT=INPUT, or auto alone")
        pairs[output] = source
    return pairs


def pair_states(
    states: Mapping[str, str] | str, inputs: Sequence[Named], outputs: Sequence[Named]
) -> dict[str, str]:
    """Input names by output names.

    Args:
        states: pairs, or :data:`AUTOMATIC`.
        inputs: of the model.
        outputs: of the model.

    Raises:
        EdgecError: a name that there is not, twice the same one, or a pair of different shapes or dtypes.
    """
    sources, results = ({each.name: each for each in tensors} for tensors in (inputs, outputs))
    pairs = _alike(list(sources), list(results)) if isinstance(states, str) else dict(states)
    for output, source in pairs.items():
        for kind, name, known in (("output", output, results), ("input", source, sources)):
            if name not in known:
                raise EdgecError(f"--state names the {kind} '{name}'; the model's {kind}s are {', '.join(known)}")
        before, after = sources[source], results[output]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise EdgecError(
                f"the state '{output}' is {after.dtype}{list(after.shape)} and its input '{source}' "
                f"{before.dtype}{list(before.shape)}, and a state keeps its shape; edgec freeze MODEL --context TOKENS "
                "gives caches that grow a fixed size"
            )
    if len(set(pairs.values())) != len(pairs):
        raise EdgecError("--state gives one input to several outputs; each has one of its own")
    return pairs


def _alike(sources: Sequence[str], results: Sequence[str]) -> dict[str, str]:
    by_rest = {re.sub("past(_key_values)?", "", name): name for name in sources if "past" in name}
    pairs = {name: by_rest[rest] for name in results if (rest := name.replace("present", "")) in by_rest}
    if not pairs:
        raise EdgecError(
            "--state auto pairs outputs named present… with inputs named past…, and the model has none; name the "
            "pairs: --state OUTPUT=INPUT"
        )
    return pairs


def keep_states(program: Program, states: Mapping[str, str] | str) -> None:
    """Make states of the paired inputs and outputs of a program that is lowered and not yet fused, in place.

    Raises:
        EdgecError: see :func:`pair_states`.
    """
    sources, results = ({each.name: each for each in tensors} for tensors in (program.inputs, program.outputs))
    named = [[Named(t.name, t.shape, t.dtype) for t in tensors] for tensors in (program.inputs, program.outputs)]
    pairs = pair_states(states, *named)
    for output, source in pairs.items():
        before, after = sources[source].buffer, results[output].buffer
        before.space, after.space = STATE, ARENA
        copy = _replaced_in_place(program, before, after)
        if copy is not None:
            program.steps.remove(copy)
            after.parent = before
        else:
            program.steps.append(_copied(after, before, output))
        program.states.append(Tensor(output, sources[source].shape, before))
    program.inputs = [each for each in program.inputs if each.name not in pairs.values()]
    program.outputs = [each for each in program.outputs if each.name not in pairs]


def _replaced_in_place(program: Program, before: Buffer, after: Buffer) -> Step | None:
    """The step that copies the whole of ``before`` to the same places of ``after``, where nothing reads ``before``
    once ``after`` changes; None where there is no such."""
    writers = [index for index, step in enumerate(program.steps) if step.output.root is after]
    readers = [index for index, step in enumerate(program.steps) if any(b.root is before for b in step.inputs)]
    if len(writers) < 2 or not readers or readers[-1] > writers[0] or readers[-1] != writers[0]:
        return None
    step = program.steps[writers[0]]
    nest = step.kernel
    plain = isinstance(nest, Loops) and nest.reducer is None and nest.combine is None and nest.body.op == "load"
    if not plain or len(step.inputs) != 1 or step.output is not after or step.inputs[0] is not before:
        return None
    assert isinstance(nest, Loops)
    read, stored = scalar.affine(nest.body.args[1]), scalar.affine(nest.store)
    whole = prod(nest.extents) == before.elements
    return step if whole and read is not None and read == stored else None


def _copied(source: Buffer, target: Buffer, name: str) -> Step:
    element = scalar.axis(0)
    nest = Loops((source.elements,), scalar.load(0, element, source.dtype), element, source.dtype)
    return Step(nest, [source], target, (f"keep_{name}",))
