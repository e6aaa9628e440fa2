"""The pipeline, from an ONNX model to an artifact: load → passes → program → kernels → artifact."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError
from edgec.report import Report

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from edgec.calibration import Calibration, Source
    from edgec.format.vectors import Vectors
    from edgec.grid import Grid
    from edgec.passes.base import Pass, PassReport
    from edgec.passes.quantize import Recipe
    from edgec.planning.memory import Lifetime
    from edgec.program import Program, Tensor
    from edgec.quantisation.float_layers import Costs
    from edgec.quantisation.quantise import Options, Quantisation
    from edgec.targets.cpu.backend import Code
    from edgec.targets.formats import Format
    from edgec.targets.fpga.board import Board
    from edgec.targets.gpu.backend import GpuCode
    from edgec.targets.gpu.target import GpuTarget
    from edgec.targets.target import Target
    from edgec.transformation import Check
    from edgec.tuning.measuring import Meter
    from edgec.tuning.records import Records
    from edgec.tuning.tuner import Tuned

Progress = Callable[[str, int, int], None]
"""Told (what, done, total) while work goes on."""


@dataclass(frozen=True)
class Compiled:
    """What :func:`compile` made: the artifact, its manifest, the report, and what the tuner found if it ran."""

    path: Path
    manifest: dict[str, Any]
    report: Report
    tuned: Tuned | None = None


def compile(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    target: str = "host",
    output: str | os.PathLike[str] | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    passes: Sequence[str] | None = None,
    check: Check | None = None,
    prune: float = 0.0,
    quantize: str = "none",
    calib: Source | None = None,
    preprocess: str | os.PathLike[str] | None = None,
    eval: Source | None = None,
    max_drop: float | None = None,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    group_size: int | None = None,
    salient_groups: float | None = None,
    max_ms: float | None = None,
    max_bytes: int | None = None,
    nested: bool = False,
    fixed_point: bool = False,
    states: Mapping[str, str] | str | None = None,
    tune: float | None = None,
    tune_db: str | os.PathLike[str] | None = None,
    device: str | None = None,
    fps: float | None = None,
    bundle_tests: Source | None = None,
    compress: bool = False,
    integer_io: bool = False,
    progress: Progress | None = None,
) -> Compiled:
    """Compile ``model`` for ``target`` into one shared object, or into an HLS project for an FPGA board.

    The shared object for a GPU holds the kernels as OpenCL C, and the host processor's code to fall back on.

    Args:
        model: an ONNX file, or a model in memory.
        target: one of ``edgec targets``.
        output: the artifact; ``<model>.so`` in the working folder by default, for a microcontroller ``<model>.o``,
            and for an FPGA board the folder ``<model>-<target>``. A name that ends in ``.o`` makes an object to link
            into a program, and a header beside it (see :mod:`edgec.format.static_object`). The manifest and the report
            are written beside the artifact, as ``<output>.json``.
        shapes: pins dynamic inputs, e.g. ``{"input": (1, 3, 224, 224)}``.
        passes: names of passes, in the order in which they run; all of them by default.
        check: samples on which ONNX Runtime compares the model after each pass with the original (with the
            pruned model, if ``prune`` is given): an ``.npz`` with arrays named as the inputs, or an iterable of
            arrays by input name.
        prune: the share of the MACs to remove by structured pruning, 0 to 0.9.
        quantize: "none"; "int8", 8-bit integers by post-training quantisation; "w8", "w4", "w3" or "w2", weights of
            so many bits with float activations; "w4a8", weights of 4 bits and activations of 8; "p2" or "p1", 8-bit
            integers whose weights are sums of two powers of two, or one, each; or "auto", bits for each layer by
            :mod:`edgec.quantisation.mixing`, within ``max_drop``, ``max_ms`` or ``max_bytes``. The recipe
            and the ONNX models before and after it are written beside the artifact (see
            :func:`edgec.quantisation.quantise.companions`).
        calib: typical inputs to prune and to quantise by: an ``.npz``, a folder of images, or an iterable of arrays
            by input name. Without any, pruning goes by the weights alone.
        preprocess: how images become inputs (TOML), for folders of them.
        eval: samples, with labels in a file, to measure the quantised model's loss on, and with ``check`` how good
            the model is after each pass.
        max_drop: points that quantisation may lose; layers go back to more bits until it is enough (see
            :mod:`edgec.quantisation.guard`).
        recipe: how to quantise: a :class:`edgec.passes.quantize.Recipe`, or a file of one.
        group_size: weights of less than 8 bits that share a scale where activations are float; 0 for those of a
            whole output channel.
        salient_groups: the share of these groups that have more bits, 4 instead of 2 or 3 and 8 instead of 4, where
            rounding changes the results most.
        max_ms: with "auto", milliseconds that a run may take on this machine.
        max_bytes: with "auto", bytes that the weights of products may take.
        nested: with "w4", keep the lower halves of 8-bit weights, too: ``session.set_width(4)`` then switches to the
            4-bit model, and 8 back (see :mod:`edgec.format.widths`).
        fixed_point: with integer activations, make every scale a power of two, so that processors without a float unit
            requantise by shifts (see :mod:`edgec.planning.fixed_point`).
        states: outputs, with the input of each, that the artifact keeps from one run to the next: see
            :mod:`edgec.states`. "auto" pairs ``present…`` with ``past…``. Samples are then successive runs, without
            arrays for these inputs.
        tune: minutes to spend on measuring plans of the kernels; none by default.
        tune_db: the file of tuning records that plans are chosen by, and that new ones are added to; by default
            those that come with edgec, and with ``tune`` a file in the user's cache.
        device: where plans are measured (see :func:`edgec.tuning.tuner.meter_for`).
        fps: frames a second that an FPGA is to reach with as little as possible; by default as many as fit.
        bundle_tests: samples whose inputs and outputs, by the reference, the artifact is to hold, the first few of
            them: ``edgert-selftest`` runs them on the device (see :mod:`edgec.format.vectors`).
        compress: store the weights of a processor's shared object entropy-coded (see :mod:`edgec.format.coding`): a
            smaller file with the same results, whose weights every session decodes into its own memory.
        integer_io: take inputs as the integers that they are quantised to, and give outputs before they are
            dequantised (see :mod:`edgec.passes.integer_edges`). The manifest has their scales and zero points.
        progress: told (what, done, total) as the work goes on.

    Raises:
        EdgecError: in one sentence what is wrong with the model, the target or the output. Nothing is
            written then.
    """
    from edgec.artifact import check_writable, write_atomically
    from edgec.building.toolchain import find_toolchain
    from edgec.calibration import load_calibration
    from edgec.format.static_object import check_form, is_static
    from edgec.format.vectors import make_vectors
    from edgec.format.widths import nest_widths
    from edgec.frontend.summary import summarise
    from edgec.graph import load_graph
    from edgec.lowering import lower
    from edgec.passes.pipeline import select
    from edgec.planning import fusion, memory
    from edgec.quantisation.quantise import Options, check_precisions
    from edgec.states import keep_states
    from edgec.targets.cpu.backend import compile_program
    from edgec.targets.formats import Format
    from edgec.targets.fpga.board import Board
    from edgec.targets.gpu.target import GpuTarget
    from edgec.targets.target import Target, resolve_target

    tell = progress or (lambda what, done, total: None)
    clock = _Clock()
    chosen = resolve_target(target)
    folder_rule = Path(preprocess) if preprocess is not None else None
    options = Options(
        quantize, folder_rule, eval, max_drop, recipe, group_size, salient_groups, max_ms, max_bytes, nested,
        fixed_point,
    )  # fmt: skip
    options.check(calib is not None, prune > 0, check is not None)
    if states and not isinstance(chosen, Target):
        raise EdgecError(f"{target} keeps no states between runs; leave --state out and carry them over yourself")
    check_precisions(options, chosen)
    if compress and not isinstance(chosen, Target):
        raise EdgecError(f"--compress codes the weights of processors' artifacts, and {target} has none; leave it out")
    selected = None
    if passes is not None:
        selected = select(passes, activation_dtype=chosen.activation_dtype, packs_weights=chosen.packs_weights)
    path = Path(output) if output is not None else chosen.default_output(_name(model))
    if isinstance(chosen, Board):
        from edgec.targets.fpga.artifact import check_project_path

        check_project_path(path)
        if bundle_tests is not None:
            raise EdgecError(f"--bundle-tests is for processors; a project for {target} is tested by its C simulation")
        if integer_io:
            raise EdgecError(f"--integer-io is for processors, and {target} is none; leave it out")
    elif fps is not None:
        raise EdgecError(f"--fps is a goal for FPGA boards, and {target} is none; leave it out")
    elif isinstance(chosen, Format):
        chosen.check_path(path)
        check_writable(path)
        own = {"--tune": tune, "--bundle-tests": bundle_tests, "--state": states}
        if given := [flag for flag, value in own.items() if value]:
            raise EdgecError(f"{given[0]} is for edgec's own kernels and library, and {target} has none; leave it out")
    else:
        find_toolchain(chosen.triple)
        check_form(path, chosen)
        if compress and is_static(path):
            raise EdgecError(
                f"--compress is for shared objects, whose weights the library decodes; '{path}' is linked, and its "
                f"weights are read in place: leave it out, or give a name that ends in .so"
            )
        check_writable(path)
    check_writable(manifest_path(path))
    plans = None
    if isinstance(chosen, Target | GpuTarget):
        plans = _Plans.open(chosen, tune, Path(tune_db) if tune_db else None, device)

    tell("import", 0, 1)
    graph = load_graph(model, shapes=shapes)
    original = summarise(graph)
    clock.lap("import")
    tests = None if bundle_tests is None else load_calibration(bundle_tests, graph, options.preprocess, states)
    calibration = None if calib is None else load_calibration(calib, graph, options.preprocess, states)
    graph, reports, quantisation, grids = _transformed(
        graph, chosen, prune, selected, check, options, calibration, plans, integer_io, tell, clock
    )
    model_facts = {
        "sha256": _digest(model), "opset": graph.opset_imports.get("", 0), "nodes": original.nodes,
        "parameters": original.parameters, "macs": original.macs,
    }  # fmt: skip
    if isinstance(chosen, Board):
        from edgec.targets.fpga.backend import compile_project

        made = compile_project(graph, _name(model), chosen, path, fps, {"model": model_facts}, tell)
        clock.lap("project")
        project_report = replace(made.report(reports, clock.laps), quantisation=quantisation)
        files = {manifest_path(path): json.dumps(project_report.as_dict(), indent=1).encode()}
        write_atomically(files | (quantisation.files(path) if quantisation else {}))
        return Compiled(path, made.manifest, project_report)
    if isinstance(chosen, Format):
        return _compile_format(graph, chosen, _name(model), path, model_facts, reports, quantisation, grids, clock)
    program = lower(graph)
    program.name = _name(model)
    program.inputs = [_on_grid(tensor, grids.get(tensor.name)) for tensor in program.inputs]
    program.outputs = [_on_grid(tensor, grids.get(tensor.name)) for tensor in program.outputs]
    if states:
        keep_states(program, states)
    if nested:
        nest_widths(program)
    gpu = None
    if isinstance(chosen, GpuTarget):
        from edgec.targets.gpu.backend import GpuProgram

        fusion.fuse(program)
        gpu, processor = GpuProgram(program, chosen), chosen.host
    else:
        program, processor = fitted(program, chosen), chosen
    planned = gpu is not None and gpu.program is program
    lifetimes = gpu.lifetimes if gpu and planned else memory.plan(program, chosen.arena_alignment)
    clock.lap("lowering")
    tuned_program = gpu.program if gpu else program
    assert plans is not None
    tuned = plans.tune(tuned_program, tell)
    clock.lap("tuning")
    code = compile_program(program, processor, tell, plans.known)
    gpu_code = gpu.compile(tell, plans.known) if gpu else None
    clock.lap("kernels")
    tell("link", 0, 1)
    facts = program_facts(program, code, processor, lifetimes)
    facts["model"] = model_facts
    if gpu is not None and gpu_code is not None:
        facts = {**facts, **gpu.facts(gpu_code), "fallback": facts["steps"]}
    vectors = None if tests is None else make_vectors(program, tests.samples)
    facts["tests"] = vectors.count if vectors else 0
    clock.lap("tests")
    data, manifest, headers = _linked(program, code, processor, facts, path, gpu_code, vectors, compress)
    clock.lap("link")
    calls = [(call.step.nodes, call.operands) for call in code.calls]
    if gpu_code is not None:
        calls = [(step.nodes, step.operands) for step in gpu_code.steps]
    nodes = tuple(each for each, _ in calls)
    sizes = tuple(sum(buffer.nbytes for buffer in set(operands)) for _, operands in calls)
    report = Report(manifest, reports, nodes, len(data), clock.laps, tuned, quantisation, sizes)
    files = {manifest_path(path): json.dumps(report.as_dict(), indent=1).encode()}
    write_atomically(files | headers | (quantisation.files(path) if quantisation else {}) | {path: data})
    tell("link", 1, 1)
    return Compiled(path, manifest, report, tuned)


def _compile_format(
    graph: ir.Model, kind: Format, name: str, path: Path, model: dict[str, Any], reports: tuple[PassReport, ...],
    quantisation: Quantisation | None, grids: Mapping[str, Grid], clock: _Clock,
) -> Compiled:  # fmt: skip
    """Write a transformed graph as a file of another runtime."""
    from edgec.artifact import write_atomically
    from edgec.targets.formats import FormatReport, write_format

    is_quantised = any(node.op_type == "QuantizeLinear" for node in graph.graph)
    facts = {"edgec": metadata.version("edgec"), "name": name, "model": model, "quantised": is_quantised}
    facts["versions"] = {"onnx": metadata.version("onnx")}
    content, manifest = write_format(graph, kind, facts, grids)
    clock.lap("conversion")
    report = FormatReport(manifest, reports, (), len(content), clock.laps, None, quantisation)
    files = {manifest_path(path): json.dumps(report.as_dict(), indent=1).encode()}
    write_atomically(files | (quantisation.files(path) if quantisation else {}) | {path: content})
    return Compiled(path, manifest, report)


def _transformed(
    graph: ir.Model, target: Target | GpuTarget | Board | Format, prune: float, passes: Sequence[Pass] | None,
    check: Check | None, options: Options, calibration: Calibration | None, plans: _Plans | None, integer_io: bool,
    tell: Progress, clock: _Clock,
) -> tuple[ir.Model, tuple[PassReport, ...], Quantisation | None, dict[str, Grid]]:  # fmt: skip
    """The graph that is lowered: pruned, through the passes, quantised, and through the passes for integers.

    Beside it the grids of the inputs and outputs that are integers.
    """
    from edgec.passes.activation_dtype import ActivationDtype
    from edgec.passes.pipeline import FLOAT, integer_passes
    from edgec.pruning import prune_graph, settings_for
    from edgec.quantisation.quantise import judge_by, quantise_graph
    from edgec.targets.formats import Format
    from edgec.transformation import apply_passes

    if isinstance(target, Format):
        integers: tuple[Pass, ...] = (ActivationDtype(target.activation_dtype),)
    else:
        integers = integer_passes(target.activation_dtype, target.packs_weights)
    samples = None if calibration is None else calibration.samples
    pruned = prune_graph(graph, settings_for(prune, target), samples) if prune else ()
    default = FLOAT if options.quantises else (*FLOAT, *integers)
    judge = judge_by(graph, options) if check is not None else None
    score = judge.score_of if judge else None
    stays = isinstance(target, Format)  # one of Quantize and Dequantize, whose edges can be looked at last
    grids = {} if options.quantises or stays else _edges(graph, integer_io)
    reports = apply_passes(graph, default if passes is None else passes, check, score)
    if pruned:  # which has run the passes before
        reports = (*pruned, *(each for each in reports if each.matched or each.before != each.after))
    clock.lap("passes")
    if calibration is None or not options.quantises:
        return graph, reports, None, _edges(graph, integer_io) if stays else grids
    costs = plans.costs if plans is not None and options.mode == "int8" else None
    graph, quantisation = quantise_graph(graph, options, calibration, target, costs, tell)
    clock.lap("quantisation")
    grids = {} if stays else _edges(graph, integer_io)
    reports = (*reports, *apply_passes(graph, integers, None))
    return graph, reports, quantisation, _edges(graph, integer_io) if stays else grids


def fitted(program: Program, target: Target) -> Program:
    """``program``, freshly lowered, with the steps that a processor runs; it is changed."""
    from edgec.planning import fusion, tiling
    from edgec.planning.fixed_point import use_shifts
    from edgec.targets.floats import HALF
    from edgec.targets.half import compute_in_half

    fusion.fuse(program)
    if not target.float_unit:
        use_shifts(program)
    (tiling.tile_for_memory if target.bare_metal else tiling.tile)(program)
    return compute_in_half(program) if target.floats == HALF else program


def _on_grid(tensor: Tensor, grid: Grid | None) -> Tensor:
    """The input or output with its grid, if it has one."""
    return tensor if grid is None else replace(tensor, scale=grid.scale, zero_point=grid.zero)


def _edges(graph: ir.Model, integer_io: bool) -> dict[str, Grid]:
    """The grids of inputs and outputs that are integers, after those that can be have become so, if that is wanted.

    Raises:
        EdgecError: it is wanted, and there is none.
    """
    from edgec.passes.integer_edges import edge_grids, make_edges_integers

    if integer_io and not make_edges_integers(graph) and not edge_grids(graph):
        raise EdgecError(
            "--integer-io takes inputs and gives outputs as the integers that a model computes with, and this one "
            "quantises none of them; add --quantize int8 --calib SAMPLES, or leave it out"
        )
    return edge_grids(graph)


@dataclass
class _Plans:
    """What the plans of kernels are chosen by.

    Attributes:
        target: what is compiled for.
        known: the records.
        own: the user's file of them, if there is one.
        minutes: to tune; None where the records are all there is.
        meter: measures, where there are minutes.
    """

    target: Target | GpuTarget
    known: Records
    own: Path | None
    minutes: float | None = None
    meter: Meter | None = None

    @classmethod
    def open(cls, target: Target | GpuTarget, minutes: float | None, path: Path | None, device: str | None) -> _Plans:
        """Read the records, and find what measures if there are minutes for it.

        Raises:
            EdgecError: the file cannot be read, the minutes are none, or nothing can be measured.
        """
        if minutes is None:
            from edgec.tuning.records import for_target

            return cls(target, for_target(target, path), path)
        from edgec.tuning.tuner import meter_for, records_to_tune, require_budget

        require_budget(minutes)
        known, path = records_to_tune(path)
        return cls(target, known, path, minutes, meter_for(target, device))

    @cached_property
    def costs(self) -> Costs | None:
        """By which layers stay float; None where nobody measured steps, or asked for them to be.

        At most half of the minutes go into measuring more.
        """
        from edgec.targets.target import Target

        if not isinstance(self.target, Target) or not (self.own or self.known.ways(self.target)):
            return None
        from edgec.quantisation.float_layers import Costs
        from edgec.tuning.measuring import ProgramMeter

        meter = self.meter if isinstance(self.meter, ProgramMeter) else None
        return Costs(self.known, self.target, meter, self.own, 30 * (self.minutes or 0))

    def tune(self, program: Program, tell: Progress) -> Tuned | None:
        """Measure plans for ``program`` if there are minutes, and tell what was found."""
        if self.minutes is None or self.meter is None:
            return None
        from edgec.tuning.tuner import tune_program

        spent = self.costs.spent / 60 if self.costs else 0.0
        left = max(self.minutes - spent, self.minutes / 10)
        return tune_program(
            program, self.target, self.meter, minutes=left, known=self.known, path=self.own, progress=tell
        )


def _linked(
    program: Program, code: Code, target: Target, manifest: dict[str, Any], path: Path, gpu: GpuCode | None,
    vectors: Vectors | None, compress: bool,
) -> tuple[bytes, dict[str, Any], dict[Path, bytes]]:  # fmt: skip
    """The artifact as its file name asks for it, its manifest, and the files that belong beside it."""
    from edgec.artifact import build_artifact
    from edgec.format.static_object import build_static, is_static

    if not is_static(path):
        return *build_artifact(program, code, target, manifest, gpu, vectors, compress), {}
    static = build_static(program, code, target, manifest, path.stem, vectors)
    return static.data, static.manifest, {path.with_suffix(".h"): static.header.encode()}


def tune(
    model: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    target: str = "host",
    minutes: float = 5.0,
    tune_db: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Tuned:
    """Tune the kernels that ``model`` compiles to, and keep the records; no artifact is left.

    Args:
        model: an ONNX file, or a model in memory.
        target: one of ``edgec targets``.
        minutes: the budget.
        tune_db: the file of records; one in the user's cache by default.
        options: more of :func:`compile`'s, which decide what the kernels are.

    Raises:
        EdgecError: as :func:`compile`.
    """
    with tempfile.TemporaryDirectory(prefix="edgec-tune-") as folder:
        output = Path(folder) / "model.so"
        tuned = compile(model, target, output, tune=minutes, tune_db=tune_db, **options).tuned
    assert tuned is not None
    return tuned


def manifest_path(artifact: Path) -> Path:
    """Where the manifest and report of ``artifact`` are written."""
    return artifact.with_name(artifact.name + ".json")


@dataclass
class _Clock:
    """Seconds spent per stage."""

    laps: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage], self.start = now - self.start, now


def _name(model: Any) -> str:
    """The model's name: its file's, or its graph's."""
    if isinstance(model, str | os.PathLike):
        return Path(model).stem or "model"
    return str(model.graph.name or "model")


def _digest(model: Any) -> str | None:
    """SHA-256 of the model's file; None for a model in memory."""
    if not isinstance(model, str | os.PathLike):
        return None
    try:
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    except OSError as error:
        raise EdgecError(f"cannot read the model {model}: {error.strerror}") from error


def program_facts(program: Program, code: Code, target: Target, lifetimes: Sequence[Lifetime]) -> dict[str, Any]:
    """What an artifact says of its program: its manifest, but for the model's facts and the weights' size."""
    from edgec.artifact import tensor_entry
    from edgec.format.descriptor import ABI_VERSION
    from edgec.format.widths import WIDTHS
    from edgec.planning import memory

    return {
        "edgec": metadata.version("edgec"),
        "abi": ABI_VERSION,
        "name": program.name,
        "target": target.name,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
        "inputs": [tensor_entry(tensor) for tensor in program.inputs],
        "outputs": [tensor_entry(tensor) for tensor in program.outputs],
        "arena_bytes": program.arena_bytes,
        "arena_lower_bound": program.arena_lower_bound,
        "widths": list(WIDTHS) if any(call.narrow for call in code.calls) else [],
        "states": [{**tensor_entry(tensor), "kind": "state"} for tensor in program.states],
        "steps": [{"name": c.step.name, "kernel": c.contract, "macs": c.step.kernel.macs} for c in code.calls],
        "memory": [memory.entry(lifetime) for lifetime in lifetimes],
        "versions": {name: metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi", "onnx")},
    }
