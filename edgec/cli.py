"""The command line: each command is a thin function over a module that Python can use, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edgec import console
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgec.benchmark import Benchmark
    from edgec.compiler import Compiled
    from edgec.data import Array
    from edgec.evaluation import Evaluation
    from edgec.inspection import ModelInspection

USER_ERROR, INTERRUPTED = 2, 130


class _Commands(TyperGroup):
    """Ends in one sentence and exit code 2 for whatever a user can mend, and quietly when interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EdgecError as error:
            console.print_error(str(error))
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            console.print_error(f"the system refused: {error}; free space or mend the permissions, and try again")
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compile trained ONNX models into small, fast, self-contained artifacts for edge devices.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Shapes = Annotated[
    list[str], typer.Option("--shape", metavar="NAME=1x3x224x224", help="Pin a dynamic input; may be repeated.")
]
Device = Annotated[
    str,
    typer.Option(
        metavar="URL", help="Where it runs: local, or qemu[:CPU], which emulates the artifact's CPU or another."
    ),
]
Threads = Annotated[int, typer.Option(min=1, max=64, help="How many threads share the work of a run.")]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="What edgec compile wrote.")]
ModelOrArtifact = Annotated[
    Path, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="An ONNX file, or what edgec compile wrote.")
]


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on), help="Print the version."),
    ] = False,
) -> None:
    """Options of edgec itself."""


def _print_version(requested: bool) -> None:
    if requested:
        import edgec

        print(f"edgec {edgec.__version__}")
        raise typer.Exit


@app.command("compile")
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    target: Annotated[str, typer.Option(help="What to build for: see edgec targets; host is this machine.")] = "host",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The artifact.  [default: MODEL's name + .so]")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Compile a model into one shared object, and write the manifest and report beside it as OUT.json."""
    from edgec.compiler import compile
    from edgec.shapes import parse_shape_flags

    with console.progress() as progress:
        compiled = compile(model, target, output, shapes=parse_shape_flags(shape), progress=progress)
    if json:
        console.print_json({"artifact": str(compiled.path), **compiled.report.as_dict()})
    else:
        _print_compiled(compiled)


def _print_compiled(compiled: Compiled) -> None:
    report, facts = compiled.report, compiled.manifest
    console.print_table(
        "passes",
        ("pass", "matched", "left alone", "nodes", "parameters", "MACs"),
        (
            (
                done.name, done.matched, len(done.refusals), _change(done.before.nodes, done.after.nodes),
                _change(done.before.parameters, done.after.parameters), _change(done.before.macs, done.after.macs),
            )
            for done in report.passes
        ),
    )  # fmt: skip
    slack = facts["arena_bytes"] / (facts["arena_lower_bound"] or 1)
    console.print_table(
        f"{compiled.path} for {facts['target']} ({facts['triple']}, {facts['cpu']})",
        ("", "bytes", ""),
        [
            ("artifact", report.artifact_bytes, "the whole file"),
            ("weights", facts["weights_bytes"], "read-only, shared between processes"),
            ("arena", facts["arena_bytes"], f"{slack:.2f} × the largest live set, {facts['arena_lower_bound']:,}"),
        ],
    )
    console.print_table(
        f"{len(facts['steps'])} steps, {sum(step['macs'] for step in facts['steps']):,} MACs",
        ("time in", "s"),
        [*report.seconds.items(), ("all", sum(report.seconds.values()))],
    )


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"


@app.command()
def run(
    artifact: Artifact,
    input: Annotated[
        Path,
        typer.Option(
            metavar="IN.npz", help="Arrays named as the inputs: one of exactly an input's shape, or samples first."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT.npz", help="Where the outputs go, samples first.")
    ] = None,
    device: Device = "local",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Run an artifact on the samples of a file, and save or summarise its outputs."""
    from edgec.artifact import check_writable, read_manifest
    from edgec.data import batch_size, load_npz, save_npz, specs
    from edgec.devices import open_device

    where = open_device(device)
    inputs = specs(read_manifest(artifact)["inputs"])
    samples = load_npz(input, inputs)
    if output:
        check_writable(output)
    with console.progress() as progress:
        results = where.run(artifact, samples, threads=threads, progress=progress)
    outputs = results.by_sample(batch_size(inputs))
    if output:
        save_npz(output, outputs)
    _print_outputs(outputs, output, json)


def _print_outputs(outputs: Mapping[str, Array], saved: Path | None, json: bool) -> None:
    rows = [_output_row(name, array) for name, array in outputs.items()]
    if json:
        console.print_json({"output": saved, "outputs": rows})
        return
    console.print_table("outputs", ("name", "dtype", "shape", "least", "mean", "largest"), (r.values() for r in rows))
    if saved:
        console.print_text(f"saved to {saved}")


def _output_row(name: str, array: Array) -> dict[str, Any]:
    facts = (float(array.min()), float(array.mean()), float(array.max())) if array.size else (None, None, None)
    least, mean, largest = facts
    shape = list(array.shape)
    return {"name": name, "dtype": str(array.dtype), "shape": shape, "least": least, "mean": mean, "largest": largest}


@app.command("eval")
def evaluate_model(
    path: ModelOrArtifact,
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="An .npz with arrays named as the inputs, and labels; or a folder of images."
        ),
    ],
    preprocess: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="How images become inputs: layout, resize, crop, mean, scale, order."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="Compare the outputs with this model's.")
    ] = None,
    shape: Shapes = [],  # noqa: B006
    device: Device = "local",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure the accuracy of an artifact, or of an ONNX model in ONNX Runtime, and its agreement with another."""
    from edgec.evaluation import evaluate
    from edgec.shapes import parse_shape_flags

    with console.progress() as progress:
        found = evaluate(
            path, data, shapes=parse_shape_flags(shape), device=device, preprocess=preprocess,
            reference=reference, threads=threads, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(found)
    else:
        _print_evaluation(path, found)


def _print_evaluation(path: Path, found: Evaluation) -> None:
    rows: list[tuple[str, object]] = [("samples", found.samples)]
    if found.ms_per_sample is not None:
        rows.append(("ms per sample (median)", found.ms_per_sample))
    if found.top1 is not None:
        rows.append(("top-1 accuracy", f"{found.top1:.2%}"))
    if found.agreement and found.agreement.top1 is not None:
        rows.append(("same class as the reference", f"{found.agreement.top1:.2%}"))
    if found.agreement:
        rows += [(f"error of '{name}' / its range", f"{e:.2e}") for name, e in found.agreement.relative_error.items()]
    console.print_table(str(path), ("", ""), rows)


@app.command()
def bench(
    artifact: Artifact,
    against: Annotated[
        str, typer.Option(metavar="NAME,…", help="Other runtimes, measured in turn: onnxruntime, openvino.")
    ] = "",
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="What the artifact was compiled from; for --against.")
    ] = None,
    input: Annotated[
        Path | None, typer.Option(metavar="IN.npz", help="Use its first sample instead of random values.")
    ] = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each runtime has its turn.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the random input.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Measure every step, too.")] = False,
    device: Annotated[str, typer.Option(metavar="URL", help="Where it runs: local.")] = "local",
    json: Json = False,
) -> None:
    """Measure an artifact's latency, side by side with other runtimes."""
    from edgec.benchmark import bench as measure

    names = [name.strip() for name in against.split(",") if name.strip()]
    with console.progress() as progress:
        measured = measure(
            artifact, against=names, model=model, inputs=input, threads=threads, rounds=rounds, device=device,
            profile=profile, seed=seed, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(measured)
    else:
        _print_benchmark(measured)


def _print_benchmark(measured: Benchmark) -> None:
    machine = measured.machine
    console.print_text(
        f"{machine.cpu or 'unknown CPU'}, {machine.cores} cores, governor {machine.governor or 'unknown'}, "
        f"load {console.cell_text(machine.load)}"
    )
    console.print_table(
        f"latency in ms, {measured.threads} thread{'s' * (measured.threads > 1)}, {measured.rounds} rounds",
        ("runtime", "version", "calls", "min", "median", "p95", "min ÷ edgec's", "edgec's error / range"),
        (
            (t.name, t.version, t.calls, t.min_ms, t.median_ms, t.p95_ms, t.ratio, t.relative_error)
            for t in measured.timings
        ),
    )
    total = sum(step.total_ns for step in measured.steps) or 1
    console.print_table(
        "steps of edgec",
        ("step", "kernel", "MACs", "min µs", "mean µs", "share %"),
        (
            (s.name, s.kernel, s.macs, s.min_ns / 1e3, s.total_ns / max(s.calls, 1) / 1e3, 100 * s.total_ns / total)
            for s in measured.steps
        ),
    )


@app.command()
def inspect(path: ModelOrArtifact, shape: Shapes = [], json: Json = False) -> None:  # noqa: B006
    """Show layers, parameters, MACs and the memory plan, without running anything."""
    from edgec.artifact import is_artifact
    from edgec.inspection import inspect_artifact, inspect_model
    from edgec.shapes import parse_shape_flags

    if is_artifact(path):
        manifest = inspect_artifact(path)
        console.print_json(manifest) if json else _print_manifest(path, manifest)
    else:
        found = inspect_model(path, parse_shape_flags(shape))
        console.print_json(found) if json else _print_model(path, found)


def _print_model(path: Path, found: ModelInspection) -> None:
    values = [("input", v) for v in found.inputs] + [("output", v) for v in found.outputs]
    console.print_table(
        f"{path}, opset {found.opset}",
        ("", "name", "dtype", "shape"),
        ((kind, value.name, value.dtype, list(value.shape)) for kind, value in values),
    )
    console.print_table(
        "layers",
        ("name", "operator", "shapes", "parameters", "MACs"),
        ((x.name, x.op, x.shapes, x.parameters, x.macs) for x in found.layers),
    )
    console.print_table("operators", ("operator", "count"), found.summary.operators.items())
    console.print_text(
        f"{found.summary.nodes} nodes, {found.summary.parameters:,} parameters in {found.summary.bytes:,} bytes, "
        f"{found.summary.macs:,} MACs"
    )
    console.print_table(
        "edgec cannot compile",
        ("node", "operator", "shapes", "reason", "what helps"),
        ((r.node, r.op, r.shapes, r.reason, r.fix) for r in found.refusals),
    )


def _print_manifest(path: Path, facts: Mapping[str, Any]) -> None:
    from edgec.inspection import buffer_letter, draw_memory

    features = " ".join(facts["features"]) or "none"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    console.print_text(
        f"{path}: {facts['name']} for {facts['target']} ({facts['triple']}, {facts['cpu']}, features {features})\n"
        f"{facts['artifact_bytes']:,} bytes, of which {facts['weights_bytes']:,} are weights; "
        f"edgec {facts['edgec']}, ABI {facts['abi']}, {versions}"
    )
    console.print_table(
        "inputs and outputs",
        ("", "name", "dtype", "shape"),
        ((t["kind"], t["name"], t["dtype"], t["shape"]) for t in (*facts["inputs"], *facts["outputs"])),
    )
    console.print_table(
        "steps",
        ("step", "name", "kernel", "MACs"),
        ((str(i), step["name"], step["kernel"], step["macs"]) for i, step in enumerate(facts["steps"])),
    )
    console.print_table(
        f"memory plan: {facts['arena_bytes']:,} bytes; the largest live set has {facts['arena_lower_bound']:,}",
        ("", "buffer", "offset", "bytes", "alive in steps"),
        (
            (buffer_letter(i), b["buffer"], b["offset"], b["bytes"], f"{b['first']}–{b['last']}")
            for i, b in enumerate(facts["memory"])
        ),
    )
    console.print_text("\n".join(draw_memory(facts)))


@app.command()
def targets(json: Json = False) -> None:
    """List what edgec compiles for."""
    from edgec.targets.target import load_target, target_names

    known = [load_target(name) for name in target_names()]
    if json:
        console.print_json(known)
        return
    console.print_table(
        "targets",
        ("name", "", "system", "CPU", "features", "vector bits"),
        ((t.name, t.description, t.triple, t.cpu, " ".join(t.features), 8 * t.vector_bytes) for t in known),
    )


@app.command()
def doctor(json: Json = False) -> None:
    """Check that this machine has what edgec needs; exit code 1 if something needed is missing."""
    from edgec.doctor import examine

    checks = examine()
    if json:
        console.print_json(checks)
    else:
        console.print_table(
            "needed, and optional",
            ("", "what", "found", "to mend it"),
            (
                (
                    "ok" if c.ok else "MISSING" if c.needed else "missing",
                    c.name,
                    c.found,
                    c.remedy and f"run: {c.remedy}",
                )
                for c in checks
            ),
        )
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def main() -> None:
    """The ``edgec`` program."""
    app(prog_name="edgec")
