"""Layers that stay float because integers take longer there, by what was measured.

A processor that multiplies bytes no faster than floats, or a layer that does little else than round, makes an integer
layer slower than a float one. But a float layer between integers costs a dequantisation before it and a quantisation
behind it. So whole programs are compared: with integers everywhere, and with an island of float layers among them. A
program costs what the records say of its kernels (see :meth:`edgec.tuning.records.Records.cost`), and never what a
clock says meanwhile: the same samples and records give the same choice. A tuner measures what is not on record first.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgec.artifact import build_artifact
from edgec.lowering import lower
from edgec.nest import rebased
from edgec.passes.pipeline import integer_passes
from edgec.passes.quantize import Recipe
from edgec.passes.quantize.assembly import Assembly
from edgec.passes.quantize.operators import Role, role_of
from edgec.planning import memory
from edgec.program import Kernel, Program, Step
from edgec.targets.cpu.backend import compile_program
from edgec.targets.target import Target
from edgec.transformation import apply_passes
from edgec.tuning import records
from edgec.tuning.measuring import ProgramMeter
from edgec.tuning.records import STEP, Record, Records, Way, signature

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.passes.quantize.execution import Sample

Progress = Callable[[str, int, int], None]

WORTH = 0.95
"""An island stays float where its layers then take at most so much of what they take as integers, the quantisation
around it included: less may be chance."""

_SAMPLES = 2
"""Samples from which models that are only to be timed have their ranges."""

_OWN = (Role.PRODUCT, Role.SUM, Role.POOL, Role.POINTWISE)
"""Roles of the nodes that have a precision of their own."""

_NAMED = 6
"""Layers that are named in a sentence."""

_UNITS = {"time": (1e3, "µs"), "cycles": (1e6, "M cycles"), "instructions": (1e6, "M instructions")}
"""By the method: what costs are shown in."""


@dataclass(frozen=True)
class Island:
    """Neighbouring layers that stay float, and what the whole model costs a run with them as integers and as floats."""

    layers: tuple[str, ...]
    before: float
    after: float


@dataclass(frozen=True)
class FloatLayers:
    """What was found.

    Attributes:
        method: how costs were found, one of :data:`edgec.tuning.records.METHODS`.
        machine: on what.
        integers: what a run costs with integers in every layer that can have them; as the method counts.
        floats: the same of the float model.
        islands: the layers that stay float, those that gain most first.
    """

    method: str
    machine: str | None
    integers: float
    floats: float
    islands: tuple[Island, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Those that stay float."""
        return tuple(name for island in self.islands for name in island.layers)

    @property
    def mixed(self) -> float:
        """What a run costs with them in floats."""
        return self.islands[-1].after if self.islands else self.integers

    def reason(self, layer: str) -> str | None:
        """Why ``layer`` stays float; None for one that does not."""
        island = next((island for island in self.islands if layer in island.layers), None)
        if island is None:
            return None
        others = f" and in {len(island.layers) - 1} more" if len(island.layers) > 1 else ""
        return f"with integers here{others}, a run takes {self._said(island.before)} and not {self._said(island.after)}"

    def _said(self, cost: float) -> str:
        size, unit = _UNITS[self.method]
        return f"{cost / size:.4g} {unit}"

    def __str__(self) -> str:
        where = f"on {self.machine or 'the machine that was measured'}"
        integers, floats, mixed = (self._said(cost) for cost in (self.integers, self.floats, self.mixed))
        totals = f"a run takes {integers} with integers everywhere, {floats} in floats"
        if not self.islands:
            return f"no layer gains by staying float {where}: {totals}"
        more = len(self.layers) - _NAMED
        names = ", ".join(self.layers[:_NAMED]) + (f" and {more} more (see the recipe)" if more > 0 else "")
        return f"float because integers take longer {where}: {names}; {totals}, {mixed} so"


@dataclass(frozen=True)
class Unknown:
    """Why nothing was compared: so many of so many kernels were not measured for the target."""

    missing: int
    kernels: int
    target: str

    def __str__(self) -> str:
        return (
            f"whether a layer is slower in integers is not known: {self.missing} of {self.kernels} kernels were not "
            f"measured for {self.target}; edgec tune MODEL --target {self.target} --quantize int8 --calib SAMPLES "
            "--tune-db FILE does"
        )


@dataclass
class Costs:
    """What is on record for a target, and how more is measured.

    Attributes:
        known: the records.
        target: the processor.
        meter: measures steps; None where the records are all there is.
        path: the file that new records go to.
        seconds: how long is measured at most.
        spent: seconds that were.
    """

    known: Records
    target: Target
    meter: ProgramMeter | None = None
    path: Path | None = None
    seconds: float = 0.0
    spent: float = 0.0

    def ways(self) -> list[Way]:
        """In which costs can be compared, the most trusted first."""
        return [(self.meter.method, self.meter.machine)] if self.meter else self.known.ways(self.target)

    def of(self, program: Program, way: Way) -> list[float | None]:
        """What each step costs; None for one that was not measured, and cannot be."""
        found = self._on_record(program, way)
        if None in found and self.meter is not None and self.spent < self.seconds:
            self._measure(program, self.meter)
            found = self._on_record(program, way)
        return found

    def _on_record(self, program: Program, way: Way) -> list[float | None]:
        return [self.known.cost(kernel, self.target, way) for kernel in map(_kernel, program.steps)]

    def _measure(self, program: Program, meter: ProgramMeter) -> None:
        """Put on record what the steps of ``program`` take, those of one signature by their mean."""
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="edgec-steps-") as folder:
            path = Path(folder) / "model.so"
            path.write_bytes(_artifact(program, self.target))
            costs = meter.steps(path)
        by_kernel: dict[str, list[float]] = {}
        for step, cost in zip(program.steps, costs, strict=True):
            by_kernel.setdefault(signature(_kernel(step)), []).append(cost)
        made = [self._record(kernel, float(np.mean(found)), meter) for kernel, found in by_kernel.items()]
        self.known.add(made)
        if self.path is not None:
            records.append(self.path, made)
        self.spent += time.monotonic() - start

    def _record(self, kernel: str, cost: float, meter: ProgramMeter) -> Record:
        return Record(
            kernel=kernel, processor=records.processor(self.target), tvm=records.tvm_pair(), plan=STEP, parameters={},
            method=meter.method, cost=cost, untuned=cost, machine=meter.machine,
        )  # fmt: skip


def find_float_layers(
    graph: ir.Model, samples: Sequence[Sample], recipe: Recipe, costs: Costs, tell: Progress
) -> FloatLayers | Unknown:
    """Find the layers of ``graph`` to leave float for their speed.

    Args:
        graph: the float model, as the passes leave it.
        samples: of the calibration.
        recipe: how it is to be quantised; layers that it names keep their precision.
        costs: of kernels.
        tell: told (what, done, total).
    """
    search = _Search(graph, _hasty(graph, samples[:_SAMPLES], recipe), recipe, costs, tell)
    unknown = Unknown(0, 0, costs.target.name)
    for way in costs.ways() or [("time", None)]:
        plain = {precision: search.program({}, precision) for precision in ("float", recipe.default)}
        found = {precision: costs.of(program, way) for precision, program in plain.items()}
        steps = [cost for each in found.values() for cost in each]
        if None not in steps:
            return search.run(way, plain, found)
        unknown = Unknown(steps.count(None), len(steps), costs.target.name)
    return unknown


def _hasty(graph: ir.Model, samples: Sequence[Sample], recipe: Recipe) -> Assembly:
    """The model at any precisions, without the care that its numbers take: what it costs does not show in them."""
    careless = replace(recipe, observer="minmax", rounding="nearest", equalise=False, correct_bias=False)
    return Assembly(graph, samples, careless, lambda what, done, total: None)


@dataclass
class _Search:
    """For the layers of one model that stay float."""

    graph: ir.Model
    assembly: Assembly
    recipe: Recipe
    costs: Costs
    tell: Progress

    def program(self, layers: Mapping[str, str], default: str | None = None) -> Program:
        """What the model is lowered to if ``layers`` have these precisions."""
        from edgec.compiler import fitted

        named = {**self.recipe.layers, **layers} if default != "float" else {}
        model = self.assembly.mixed(replace(self.recipe, default=default or self.recipe.default, layers=named))
        target = self.costs.target
        apply_passes(model, integer_passes(target.activation_dtype, target.packs_weights), None)
        return fitted(lower(model), target)

    def run(self, way: Way, plain: Mapping[str, Program], found: Mapping[str, Sequence[float | None]]) -> FloatLayers:
        """Try islands, those that promise most first; where one is worth it, its neighbours, too."""
        totals = {precision: _sum(costs) for precision, costs in found.items()}
        integers = best = totals[self.recipe.default]
        layers = self._layers(plain, found)
        slow = {name: layer for name, layer in layers.items() if layer.integers > layer.floats > 0}
        groups = [_joined(group) for group in self._groups(slow)]
        waiting = [*groups, *(layer for layer in slow.values() if layer not in groups)]
        waiting.sort(key=lambda each: each.floats - each.integers)
        chosen: dict[str, str] = {}
        islands: list[Island] = []
        for done, part in enumerate(waiting):  # which grows meanwhile
            self.tell("layers in floats", done, len(waiting))
            if chosen.keys() & part.layers:
                continue
            tried = {**chosen, **dict.fromkeys(part.layers, "float")}
            total = _sum(self.costs.of(self.program(tried), way))
            if total < best - (1 - WORTH) * max(part.integers, part.floats):
                islands.append(Island(part.layers, best, total))
                chosen, best = tried, total
                waiting += [layers[name] for name in self._neighbours(part, layers)]
        every = _sum(self.costs.of(self.program(dict.fromkeys(layers, "float")), way))
        if every < best:  # integers are worth it nowhere
            islands = [Island(tuple(layers), integers, every)]
        return FloatLayers(*way, integers, totals["float"], tuple(islands))

    def _layers(
        self, plain: Mapping[str, Program], found: Mapping[str, Sequence[float | None]]
    ) -> dict[str, _Part]:
        """The layers that there is a choice for, by name."""
        integers, floats = (_by_layer(plain[name], found[name]) for name in (self.recipe.default, "float"))
        names = [str(node.name) for node in self.graph.graph if role_of(node) in _OWN]
        return {
            name: _Part((name,), integers.get(name, 0.0), floats.get(name, 0.0))
            for name in names
            if name not in self.recipe.layers
        }

    def _groups(self, slow: Mapping[str, _Part]) -> list[list[_Part]]:
        """Neighbours together."""
        groups = {name: [layer] for name, layer in slow.items()}
        for name, layer in slow.items():
            for other in self._neighbours(layer, slow):
                own, others = groups[name], groups[other]
                if own is not others:
                    own += others
                    groups |= {each.layers[0]: own for each in others}
        return list({id(group): group for group in groups.values()}.values())

    def _neighbours(self, part: _Part, among: Mapping[str, _Part]) -> list[str]:
        """Those that read what ``part`` computes, or compute what it reads."""
        nodes = [node for node in self.graph.graph if str(node.name) in part.layers]
        return sorted({name for node in nodes for name in _around(node) if name in among} - {*part.layers})


@dataclass(frozen=True)
class _Part:
    """Layers that may stay float together, and what the steps that begin with them cost as integers and as floats."""

    layers: tuple[str, ...]
    integers: float
    floats: float


def _joined(parts: Sequence[_Part]) -> _Part:
    """Several parts as one."""
    layers = tuple(name for each in parts for name in each.layers)
    return _Part(layers, sum(each.integers for each in parts), sum(each.floats for each in parts))


def _around(node: ir.Node) -> set[str]:
    """The nearest nodes before and after ``node`` that have a precision of their own."""
    found: set[str] = set()
    for following in (False, True):
        left, seen = [node], {node}
        while left:
            for each in _next(left.pop(), following):
                if role_of(each) in _OWN:
                    found.add(str(each.name))
                elif each not in seen:
                    seen.add(each)
                    left.append(each)
    return found


def _next(node: ir.Node, following: bool) -> list[ir.Node]:
    if following:
        return [reader for value in node.outputs for reader in value.consumers()]
    return [producer for value in node.inputs if value is not None and (producer := value.producer()) is not None]


def _by_layer(program: Program, costs: Sequence[float | None]) -> dict[str, float]:
    """The costs of steps, by the first node of each."""
    found: dict[str, float] = {}
    for step, cost in zip(program.steps, costs, strict=True):
        found[step.nodes[0]] = found.get(step.nodes[0], 0.0) + (cost or 0.0)
    return found


def _sum(costs: Sequence[float | None]) -> float:
    """Of all steps; infinite where one is not known, which is never worth anything."""
    return sum(float("inf") if cost is None else cost for cost in costs)


def _kernel(step: Step) -> Kernel:
    """The kernel as it is planned."""
    return rebased(step)[0]


def _artifact(program: Program, target: Target) -> bytes:
    """An artifact of untuned kernels."""
    from edgec.compiler import program_facts

    lifetimes = memory.plan(program, target.arena_alignment)
    code = compile_program(program, target, lambda what, done, total: None)
    return build_artifact(program, code, target, program_facts(program, code, target, lifetimes))[0]
