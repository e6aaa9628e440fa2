"""The command line: each command is a thin function over a module that Python can use, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edgec import console, tables
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from collections.abc import Callable

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
            where = f" for '{error.filename}'" if error.filename else ""
            reason = error.strerror or str(error)
            console.print_error(f"the system says '{reason}'{where}; free space or mend the permissions, and try again")
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
    list[str] | None, typer.Option("--shape", metavar="NAME=1x3x224x224", help="Pin a dynamic input; may be repeated.")
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


def _show(found: Any, as_json: bool, print_tables: Callable[[], None]) -> None:
    """Print what a command found, for a script or for a person."""
    if as_json:
        console.print_json(found)
    else:
        print_tables()


@app.command("compile")
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    target: Annotated[str, typer.Option(help="What to build for: see edgec targets; host is this machine.")] = "host",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="The artifact; by default MODEL's name with .so."),
    ] = None,
    shape: Shapes = None,
    passes: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="The passes to run, in this order; all by default.")
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option(metavar="PASS", help="Stop after this pass, and write the ONNX model as OUT.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An .npz named as for run: compare its outputs after each pass.")
    ] = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="FPGA boards: frames a second to reach; by default as many as fit.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what the passes left alone, and why.")] = False,
    json: Json = False,
) -> None:
    """Compile a model into one shared object, or an HLS project for an FPGA board, and write a report as OUT.json."""
    from edgec.compiler import compile
    from edgec.shapes import parse_shape_flags
    from edgec.transformation import transform

    names = None if passes is None else [name.strip() for name in passes.split(",") if name.strip()]
    shapes = parse_shape_flags(shape or ())
    if stop_after is not None:
        path = output or Path(f"{model.stem}.{stop_after}.onnx")
        done = transform(model, path, passes=names, stop_after=stop_after, shapes=shapes, check=check)
        _show(done.as_dict(), json, lambda: tables.print_transformed(done, explain))
        return
    with console.progress() as progress:
        compiled = compile(
            model, target, output, shapes=shapes, passes=names, check=check, fps=fps, progress=progress
        )
    results = {"artifact": compiled.path, **compiled.report.as_dict()}
    _show(results, json, lambda: tables.print_compiled(compiled, explain))


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
    from edgec.data import batch_size, load_npz, save_npz, specs, summarise_array
    from edgec.devices import open_device

    where = open_device(device, artifact)
    inputs = specs(read_manifest(artifact)["inputs"])
    samples = load_npz(input, inputs)
    if output:
        check_writable(output)
    with console.progress() as progress:
        results = where.run(artifact, samples, threads=threads, progress=progress)
    outputs = results.by_sample(batch_size(inputs))
    if output:
        save_npz(output, outputs)
    found = [summarise_array(name, array) for name, array in outputs.items()]
    _show({"saved": output, "outputs": found}, json, lambda: tables.print_outputs(found, output))


@app.command("eval")
def evaluate_model(
    path: ModelOrArtifact,
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="An .npz with arrays named as the inputs, and labels; or a folder of images and labels.csv.",
        ),
    ],
    preprocess: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="How images become inputs: layout, resize, crop, mean, scale, order."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="Compare the outputs with this model's.")
    ] = None,
    shape: Shapes = None,
    device: Device = "local",
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure the accuracy of an artifact, or of an ONNX model in ONNX Runtime, and its agreement with another."""
    from edgec.evaluation import evaluate
    from edgec.shapes import parse_shape_flags

    with console.progress() as progress:
        found = evaluate(
            path, data, shapes=parse_shape_flags(shape or ()), device=device, preprocess=preprocess,
            reference=reference, threads=threads, progress=progress,
        )  # fmt: skip
    _show(found, json, lambda: tables.print_evaluation(path, found))


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
    with console.progress(in_background=False) as progress:
        measured = measure(
            artifact, against=names, model=model, inputs=input, threads=threads, rounds=rounds, device=device,
            profile=profile, seed=seed, progress=progress,
        )  # fmt: skip
    _show(measured, json, lambda: tables.print_benchmark(measured))


@app.command()
def inspect(path: ModelOrArtifact, shape: Shapes = None, json: Json = False) -> None:
    """Show layers, parameters, MACs and the memory plan, without running anything."""
    from edgec.artifact import is_artifact
    from edgec.inspection import inspect_artifact, inspect_model
    from edgec.shapes import parse_shape_flags

    if is_artifact(path):
        manifest = inspect_artifact(path)
        _show(manifest, json, lambda: tables.print_manifest(path, manifest))
    else:
        found = inspect_model(path, parse_shape_flags(shape or ()))
        _show(found, json, lambda: tables.print_model(path, found))


@app.command()
def targets(json: Json = False) -> None:
    """List what edgec compiles for."""
    from edgec.targets.fpga.board import board_names, load_board
    from edgec.targets.target import load_target, target_names

    processors = [load_target(name) for name in target_names()]
    boards = [load_board(name) for name in board_names()]
    _show([*processors, *boards], json, lambda: tables.print_targets(processors, boards))


@app.command()
def doctor(json: Json = False) -> None:
    """Check that this machine has what edgec needs; exit code 1 if something needed is missing."""
    from edgec.doctor import examine

    checks = examine()
    _show(checks, json, lambda: tables.print_checks(checks))
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def main() -> None:
    """The ``edgec`` program."""
    app(prog_name="edgec")
