"""What each command found, as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.report import coded_weights
from edgec.terminal.console import cell_text, print_table, print_text, short_number

if TYPE_CHECKING:
    from edgec.benchmark import Benchmark
    from edgec.building.prebuilt import Built
    from edgec.compiler import Compiled
    from edgec.data.samples import ArraySummary
    from edgec.devices.counting import Counts
    from edgec.devices.machine import Machine
    from edgec.doctor import Check
    from edgec.evaluation import Evaluation
    from edgec.exploration.front import Front
    from edgec.freezing import Frozen
    from edgec.generation import Generated
    from edgec.inspection import ModelInspection
    from edgec.passes.base import PassReport
    from edgec.pruning import Comparison, Prunable
    from edgec.quantisation.layer_errors import LayerErrors
    from edgec.quantisation.mixing import Mix, Option
    from edgec.quantisation.quantise import Quantisation
    from edgec.targets.formats import Format
    from edgec.targets.fpga.board import Board
    from edgec.targets.gpu.target import GpuTarget
    from edgec.targets.target import Target
    from edgec.transformation import Transformed
    from edgec.tuning.tuner import Tuned


_WORST_LAYERS = 6


def print_transformed(done: Transformed, explain: bool) -> None:
    """What the passes did to a model that was written as ONNX."""
    _print_passes(done.passes, explain)
    print_text(f"saved to {done.path}")


def _print_passes(reports: Sequence[PassReport], explain: bool) -> None:
    """One row for each pass that did something; with ``explain`` for all, and every place left alone, and why."""
    told = [done for done in reports if explain or done.matched or done.refusals or done.before != done.after]
    compared = ("difference",) if any(done.difference is not None for done in reports) else ()
    scored = ("score",) if any(done.score is not None for done in reports) else ()
    print_table(
        "passes",
        ("pass", "matched", "left alone", "nodes", "parameters", "bytes", "MACs", *compared, *scored),
        (
            (
                done.name, done.matched, len(done.refusals), _change(done.before.nodes, done.after.nodes),
                _change(done.before.parameters, done.after.parameters, short_number),
                _change(done.before.bytes, done.after.bytes, short_number),
                _change(done.before.macs, done.after.macs, short_number),
                *("" if done.difference is None else f"{done.difference:.1e}" for _ in compared),
                *("" if done.score is None else f"{done.score:.2f}" for _ in scored),
            )
            for done in told
        ),
        spare=("parameters", "left alone", "bytes"),
    )  # fmt: skip
    if idle := len(reports) - len(told):
        print_text(f"{idle} {'other ' if told else ''}passes found nothing to do")
    if explain:
        sentences = [f"{done.name}: {refusal}" for done in reports for refusal in done.refusals]
        print_text("\n".join(sentences or ["the passes left nothing alone that looked right for them"]))


def print_compiled(compiled: Compiled, explain: bool) -> None:
    """Passes, sizes and times of a compilation."""
    report, facts = compiled.report, compiled.manifest
    _print_passes(report.passes, explain)
    if report.quantisation:
        print_quantisation(report.quantisation, explain)
    if "layers" in facts:
        print_project(compiled.path, facts)
        return
    if "format" in facts:
        print_format(compiled.path, {**facts, "artifact_bytes": report.artifact_bytes})
        return
    slack = facts["arena_bytes"] / (facts["arena_lower_bound"] or 1)
    print_table(
        f"{compiled.path} for {facts['target']} ({facts['triple']}, {facts['cpu']}): "
        f"{len(facts['steps'])} steps, {sum(step['macs'] for step in facts['steps']):,} MACs",
        ("", "bytes", ""),
        [
            ("artifact", report.artifact_bytes, "the whole file"),
            ("weights", facts["weights_bytes"], _weights_note(facts)),
            ("arena", facts["arena_bytes"], f"{slack:.2f} × the largest live set of {facts['arena_lower_bound']:,}"),
        ],
    )
    if "gpu" in facts:
        print_gpu(facts["gpu"])
    if compiled.tuned:
        print_tuned(compiled.tuned)
    times = [*report.seconds.items(), ("all", sum(report.seconds.values()))]
    print_table("time", ("stage", "s"), ((stage, round(seconds, 3)) for stage, seconds in times))


def _weights_note(facts: Mapping[str, Any]) -> str:
    coded = coded_weights(facts)
    return f"decoded at open{coded}" if coded else "read-only, shared between processes"


def print_gpu(facts: Mapping[str, Any]) -> None:
    """The GPU's part of an artifact: where the steps run, and what is copied."""
    print_table(
        f"on the GPU, in {facts['api']} with floats stored as {facts['storage']}",
        ("kernels", "steps on the CPU", "copies a run", "bytes copied", "source bytes"),
        [(facts["kernels"], facts["host_steps"], facts["copies"], facts["copied_bytes"], facts["source_bytes"])],
    )


def print_mix(found: Mix) -> None:
    """What was chosen for each layer, beside the losses of its options (floats lose nothing)."""
    precisions = list(dict.fromkeys(option.precision for option in found.options if option.precision != "float"))
    options: dict[str, dict[str, Option]] = {}
    for option in found.options:
        options.setdefault(option.layer, {})[option.precision] = option
    losses = [f"loss: {precision}" for precision in precisions]
    time = "" if found.ms is None else f", {found.ms:.3f} ms"
    print_table(
        f"mixed precision: {found.bytes:,} bytes of weights{time}; change a layer in the recipe",
        ("layer", "chosen", "bytes", "µs", *losses),
        (
            (
                layer, chosen.precision, chosen.bytes, None if chosen.ms is None else round(1e3 * chosen.ms, 2),
                *(f"{tried[precision].loss:.1e}" if precision in tried else "" for precision in precisions),
            )
            for layer, tried in options.items()
            for chosen in tried.values()
            if chosen.chosen
        ),
        spare=losses,
    )  # fmt: skip


def print_quantisation(done: Quantisation, explain: bool) -> None:
    """How the layers were quantised (all, or those that lose most), what is odd about the samples, what was lost."""
    from edgec.passes.quantize.report import counts

    if done.mix is not None:
        print_mix(done.mix)
    layers = [layer for layer in done.layers if layer.tensors]
    if not explain:
        layers = sorted(layers, key=lambda layer: min(t.sqnr for t in layer.tensors))[:_WORST_LAYERS]
    print_table(
        f"quantised by {done.samples} samples: {counts(done.layers)}; {done.equalised} tensors equalised"
        + ("" if explain else f"; the {len(layers)} layers whose tensors lose most (all: --explain)"),
        ("layer", "operator", "bits", "SQNR of its tensors, dB", "clipped %"),
        (
            (
                layer.name, layer.op, layer.bits, round(min(t.sqnr for t in layer.tensors), 1),
                round(100 * max(t.clipped for t in layer.tensors), 2),
            )
            for layer in layers
        ),
    )  # fmt: skip
    for choice in done.choices:
        print_text(choice)
    for warning in done.warnings:
        print_text(f"warning: {warning}")
    if done.guarded:
        print_text(str(done.guarded))


def print_generated(found: Generated) -> None:
    """The text, and what a token took."""
    print_text(found.text)
    print_text(
        f"\n{len(found.tokens)} tokens after {found.prompt_tokens}, {found.ms_per_token:.3f} ms each; "
        f"{found.state_bytes:,} bytes kept between runs"
    )


def print_layer_errors(found: LayerErrors) -> None:
    """A line for each layer, and which lost most."""
    timed = any(layer.microseconds is not None for layer in found.layers)
    heads = ["layer", "operator", "bits", "alone dB", "up to here dB", "weights dB", "reads dB", "range", "clipped %"]
    rows: list[list[Any]] = []
    for layer in found.layers:
        alone = [None if x is None else round(x, 1) for x in (layer.weights_alone, layer.activations_alone)]
        grid: list[Any] = [None, None]
        if layer.clipped is not None:
            grid = [f"{layer.low:.3g} … {layer.high:.3g}", round(100 * layer.clipped, 2)]
        rows.append([
            layer.name, layer.op, layer.bits, round(layer.alone, 1), round(layer.accumulated, 1), *alone, *grid,
        ])  # fmt: skip
        if timed:
            share = None if layer.time_share is None else round(100 * layer.time_share, 1)
            rows[-1] += [share, layer.microseconds, layer.float_microseconds]
    if timed:
        heads += ["time %", "µs", "float µs"]
    print_table(
        f"{found.whole:.1f} dB in all, on {found.samples} samples", heads, rows,
        spare=("range", "operator", "clipped %", "float µs", "µs"),
    )  # fmt: skip
    print_text(found.verdict)


def print_tuned(found: Tuned) -> None:
    """What the tuner measured, and what it is worth."""
    unit = "µs" if found.method == "time" else f"k {found.method}"
    print_table(
        f"tuned by {found.method} on {found.machine or 'this machine'}",
        ("kernel", "steps", "plans", "failed", f"untuned {unit}", f"best {unit}", "ratio", "plan"),
        (
            (
                c.kernel, c.steps, c.plans, c.failed, _thousandth(c.untuned), _thousandth(c.best), c.ratio,
                " ".join(f"{name}={value}" for name, value in c.parameters.items()),
            )
            for c in found.choices
        ),
    )  # fmt: skip
    print_text(
        f"{found.measured} plans in {found.seconds:.0f} s, until {found.ended}: {found.ratio:.3f} × untuned; "
        f"take them with --tune-db {found.records}"
    )
    if found.note:
        print_text(found.note)


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1e3


def print_format(path: Path, facts: Mapping[str, Any]) -> None:
    """A file of another runtime: its size, and what goes in and out."""
    kind = "8-bit integers" if facts["quantised"] else "floats"
    print_table(
        f"{path} for {facts['target']}: {facts['artifact_bytes']:,} bytes, {kind}",
        ("", "name", "dtype", "shape"),
        ((t["kind"], t["name"], t["dtype"], t["shape"]) for t in (*facts["inputs"], *facts["outputs"])),
    )


def print_project(path: Path, facts: Mapping[str, Any]) -> None:
    """The design of an FPGA project: by layer, and in all beside the board's budget. All numbers are estimates."""
    print_table(
        f"{path} for {facts['target']} ({facts['part']}, {facts['clock_mhz']} MHz), estimates by layer",
        ("layer", "kind", "SIMD", "PE", "multiplier", "weights", "bits", "cycles", "DSP", "LUT", "BRAM 18k"),
        (
            (x["name"], x["kind"], x["simd"], x["pe"], x["multiplier"], x["weights"], x["weight_bits"] or "",
             f"{x['cycles']:,}", x["dsp"], x["lut"], x["bram18"])
            for x in facts["layers"]
        ),
    )  # fmt: skip
    used, budget = facts["resources"], facts["budget"]
    print_table(
        f"estimated: {facts['frames_per_second']:,.0f} frames/s, a frame every {facts['interval']:,} cycles, "
        f"{facts['ddr_bytes_per_frame']:,} bytes of weights from DDR memory a frame",
        ("", "used", "budget", "share %"),
        ((name, f"{used[name]:,}", f"{budget[name]:,}", round(100 * used[name] / budget[name])) for name in used),
    )


def _change(before: int, after: int, write: Callable[[int], str] = "{:,}".format) -> str:
    first, last = write(before), write(after)
    return first if first == last else f"{first} → {last}"


def print_pruned(found: Comparison) -> None:
    """One row for each version of the model, the original first."""
    print_table(
        "versions",
        ("removed", "MACs", "parameters", "bytes", "ms", "faster by", "accuracy"),
        (
            (
                f"{each.removed:.1%}", f"{each.macs:,}", f"{each.parameters:,}", f"{each.bytes:,}",
                cell_text(each.ms), f"{each.faster:.1%}", "" if each.top1 is None else f"{each.top1:.2%}",
            )
            for each in found.versions
        ),
    )  # fmt: skip
    for each in found.versions:
        if each.gains_little:
            print_text(
                f"without {each.removed:.0%} of the MACs it is only {each.faster:.0%} faster on this machine: what is "
                "left takes longer for each MAC; --measure latency removes what takes time"
            )
    print_text(f"saved to {found.path}")


def print_prunable(path: Path, found: Prunable) -> None:
    """A sentence for each group, and for each layer that stays."""
    print_text(f"{path}: at most {found.largest:.1%} of the MACs can go")
    print_text("\n".join(["can go:", *(f"  {group}" for group in found.groups)]))
    print_text("\n".join(["stays:", *(f"  {refusal}" for refusal in found.refusals)]))


def print_front(front: Front, folder: Path) -> None:
    """The versions of an exploration, those of the front first."""
    best = {result.key for result in front.best}
    print_table(
        f"versions for {front.target}; a dot marks those that no other beats",
        ("", "version", front.measure, front.unit, "artifact bytes", "failed"),
        (
            (
                "●" if each.key in best else "", str(each.point), None if each.score is None else round(each.score, 2),
                each.cost, each.bytes, each.error or "",
            )
            for each in sorted(front.results, key=lambda r: (r.key not in best, r.cost is None, r.cost or 0))
        ),
    )  # fmt: skip
    print_text(f"saved to {folder}: front.html to look at, front.json for edgec compile --from-front")


def print_outputs(outputs: Sequence[ArraySummary], saved: Path | None, machine: Machine | None = None) -> None:
    """Shapes and ranges of a run's outputs, and where they went."""
    print_table(
        "outputs",
        ("name", "dtype", "shape", "least", "mean", "largest"),
        ((o.name, o.dtype, list(o.shape), o.least, o.mean, o.largest) for o in outputs),
    )
    if saved:
        print_text(f"saved to {saved}")
    if machine:
        print_machine(machine)


def print_machine(machine: Machine) -> None:
    """The state of the machine that something ran on."""
    text = f"{machine.cpu or 'unknown CPU'}, {machine.cores} cores, governor {machine.governor or 'unknown'}"
    text += f", load {cell_text(machine.load)}"
    if machine.others is not None:
        text += f", {machine.others:.0%} of the time taken by others"
    if machine.throttled is not None:
        text += f", throttled {machine.throttled} times"
    if machine.temperatures is not None:
        text += f", {machine.temperatures[0]:.0f} °C before and {machine.temperatures[1]:.0f} °C after"
    print_text(text)
    if machine.limits:
        print_text(f"its speed is held down: {', '.join(machine.limits)}")
    if machine.governor not in (None, "performance"):
        print_text("the governor 'performance' gives steadier times")


def print_evaluation(path: Path, found: Evaluation) -> None:
    """Accuracy, agreement and time."""
    rows: list[tuple[str, object]] = [("samples", f"{found.samples:,}")]
    if found.ms_per_sample is not None:
        rows.append(("ms per sample (median)", cell_text(found.ms_per_sample)))
    if found.top1 is not None:
        rows.append(("top-1 accuracy", f"{found.top1:.2%}"))
    if found.agreement and found.agreement.top1 is not None:
        rows.append(("same class as the reference", f"{found.agreement.top1:.2%}"))
    if found.agreement:
        errors = found.agreement.relative_error
        rows += [(f"largest error of '{name}' / its range", f"{error:.2e}") for name, error in errors.items()]
    print_table(str(path), ("", ""), rows)
    if found.machine:
        print_machine(found.machine)


def print_benchmark(measured: Benchmark) -> None:
    """The machine's state, the contenders, and edgec's steps if they were measured."""
    print_machine(measured.machine)
    print_table(
        f"latency in ms, {measured.threads} thread{'s' * (measured.threads > 1)}, {measured.rounds} rounds",
        ("runtime", "version", "calls", "min", "median", "p95", "ratio", "error"),
        (
            (t.name, t.version, t.calls, t.min_ms, t.median_ms, t.p95_ms, t.ratio, t.relative_error)
            for t in measured.timings
        ),
    )
    if measured.ratio is not None:
        print_text(
            "ratio: its minimum over edgec's; error: of edgec's outputs against its, over their range\n"
            f"edgec takes {measured.ratio:.2f} × the fastest other"
        )
    if measured.gpu_over_cpu is not None:
        print_text(_gpu_verdict(measured, measured.gpu_over_cpu))
    for timing in measured.timings:
        if not timing.agrees:
            print_text(f"{timing.name} does not agree with edgec: it may not compute the same network")
    total = sum(step.total_ns for step in measured.steps) or 1
    print_table(
        "steps of edgec",
        ("step", "kernel", "MACs", "min µs", "mean µs", "share %"),
        (
            (s.name, s.kernel, s.macs, s.min_ns / 1e3, s.total_ns / max(s.calls, 1) / 1e3, 100 * s.total_ns / total)
            for s in measured.steps
        ),
    )


def _gpu_verdict(measured: Benchmark, ratio: float) -> str:
    """Whether the GPU is worth it."""
    threads = f"{measured.threads} thread{'s' * (measured.threads > 1)}"
    found = f"the GPU '{measured.device}' takes {ratio:.2f} × the time of the CPU with {threads}"
    return f"{found}: compile this model for the CPU instead" if ratio > 1 else found


def print_counts(counted: Counts, steps: bool) -> None:
    """Instructions of an inference, and of its steps where they are asked for."""
    per_mac = f", {counted.instructions / counted.macs:.3f} for each multiply-add" if counted.macs else ""
    print_text(f"{counted.instructions:,} instructions per inference on an emulated {counted.cpu}{per_mac}")
    if steps:
        print_table(
            "steps",
            ("step", "kernel", "MACs", "instructions"),
            ((s.name, s.kernel, s.macs, s.instructions) for s in counted.steps),
        )


def print_runtimes(built: Sequence[Built]) -> None:
    """Where libedgert is, for each system, or what is missing to build it."""
    print_table(
        "libedgert",
        ("system", "shared bytes", "static bytes", "folder, or what is missing"),
        ((b.name, b.shared_bytes or "", b.static_bytes or "", b.folder or b.missing) for b in built),
    )


def print_model(path: Path, found: ModelInspection) -> None:
    """Inputs and outputs, layers, operators, and what cannot be compiled."""
    _print_ends(f"{path}, opset {found.opset}", found)
    print_table(
        "layers",
        ("name", "operator", "shapes", "parameters", "MACs"),
        ((x.name, x.op, x.shapes, x.parameters, x.macs) for x in found.layers),
    )
    before, after = found.summary, found.after
    print_table(
        "operators before and after the passes",
        ("operator", "before", "after"),
        (
            (name, before.operators.get(name, 0), after.operators.get(name, 0))
            for name in dict.fromkeys((*before.operators, *after.operators))
        ),
    )
    print_text(
        f"{_change(before.nodes, after.nodes)} nodes, {_change(before.parameters, after.parameters)} parameters in "
        f"{_change(before.bytes, after.bytes)} bytes, {_change(before.macs, after.macs)} MACs"
    )
    print_table(
        "edgec cannot compile",
        ("node", "operator", "shapes", "reason", "what helps"),
        ((r.node, r.op, r.shapes, r.reason, r.fix) for r in found.refusals),
    )


def print_frozen(frozen: Frozen) -> None:
    """Inputs and outputs of a model that was written as ONNX."""
    _print_ends(f"{frozen.nodes} nodes", frozen)
    print_text(f"saved to {frozen.path}")


def _print_ends(title: str, model: Frozen | ModelInspection) -> None:
    values = [*(("input", each) for each in model.inputs), *(("output", each) for each in model.outputs)]
    print_table(
        title,
        ("", "name", "dtype", "shape"),
        ((kind, value.name, value.dtype, list(value.shape)) for kind, value in values),
    )


def print_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    """Target, versions, inputs and outputs, steps, and the memory plan of an artifact."""
    if "layers" in facts:
        print_project(path, facts)
        return
    if "format" in facts:
        print_format(path, facts)
        return
    features = " ".join(facts["features"]) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print_text(
        f"{path}: {facts['name']} for {facts['target']} ({facts['triple']}, {facts['cpu']}, features {features})\n"
        f"{facts['artifact_bytes']:,} bytes, of which {facts['weights_bytes']:,} are weights"
        f"{coded_weights(facts)}; "
        f"edgec {facts['edgec']}, ABI {facts['abi']}, {versions}"
    )
    print_table(
        "inputs and outputs",
        ("", "name", "dtype", "shape"),
        ((t["kind"], t["name"], t["dtype"], t["shape"]) for t in (*facts["inputs"], *facts["outputs"])),
    )
    print_table(
        "steps",
        ("step", "name", "kernel", "MACs"),
        ((str(i), step["name"], step["kernel"], step["macs"]) for i, step in enumerate(facts["steps"])),
    )
    _print_memory(facts)


def _print_memory(facts: Mapping[str, Any]) -> None:
    from edgec.inspection import buffer_letter, draw_memory

    print_table(
        f"memory plan: {facts['arena_bytes']:,} bytes; the largest live set has {facts['arena_lower_bound']:,}",
        ("", "buffer", "offset", "bytes", "alive in steps"),
        (
            (buffer_letter(i), b["buffer"], b["offset"], b["bytes"], f"{b['first']} to {b['last']}")
            for i, b in enumerate(facts["memory"])
        ),
    )
    drawing = draw_memory(facts)
    if drawing:
        print_text("\n".join(["offset, by step:", *drawing]))


def print_targets(
    targets: Sequence[Target], gpus: Sequence[GpuTarget], boards: Sequence[Board], formats: Sequence[Format]
) -> None:
    """What there is to compile for."""
    print_table(
        "targets",
        ("name", "", "system", "CPU", "features", "vector bits"),
        ((t.name, t.description, t.triple, t.cpu, " ".join(t.features), 8 * t.vector_bytes) for t in targets),
    )
    print_table(
        "GPUs",
        ("name", "", "host", "work group", "local memory", "vector", "floats"),
        ((g.name, g.description, g.host.name, g.work_group, g.local_memory, g.vector, g.storage) for g in gpus),
    )
    print_table(
        "FPGA boards",
        ("name", "", "part", "DSP", "LUT", "BRAM 18k", "URAM", "MHz"),
        ((b.name, b.description, b.part, b.dsp, f"{b.lut:,}", b.bram18, b.uram, b.clock_mhz) for b in boards),
    )
    print_table("files of other runtimes", ("name", ""), ((each.name, each.description) for each in formats))


def print_checks(checks: Sequence[Check]) -> None:
    """What is there and what is missing."""
    print_table(
        "what edgec needs, then what is optional",
        ("", "what", "found", "what mends it"),
        ((_verdict(check), check.name, check.found, check.remedy) for check in checks),
    )


def _verdict(check: Check) -> str:
    if check.ok:
        return "ok"
    return "MISSING" if check.needed else "missing"
