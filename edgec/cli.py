"""The command line: each command is a thin function over a module that Python can use, too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edgec.errors import EdgecError
from edgec.terminal import completion, console, tables
from edgec.terminal.deferred import defer

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgec.html import Page
    from edgec.transformation import Check

USER_ERROR, INTERRUPTED = 2, 130

MODELS, RESULTS, SHIPPING, MACHINE = "From a model", "Run, measure, look into", "Ship to a device", "This machine"
"""What ``edgec --help`` lists the commands under."""

PASSES, QUANTISING, CONTENT = "Passes over the graph", "Pruning and quantisation", "What the artifact holds"
"""What ``edgec compile --help`` lists more options under."""


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
        metavar="URL",
        help="Where it runs: local, ssh://[USER@]HOST[:PORT], adb://SERIAL, rpc://TRACKER[:PORT]/KEY, or qemu[:CPU], "
        "which emulates the artifact's CPU or another.",
    ),
]
Preprocess = Annotated[
    Path | None,
    typer.Option(metavar="FILE.toml", help="How images become inputs: layout, resize, crop, mean, scale, order."),
]
Threads = Annotated[int, typer.Option(min=1, max=64, help="How many threads share the work of a run.")]
Width = Annotated[int | None, typer.Option(metavar="BITS", help="Read the weights of a --nested model at 8 or 4 bits.")]
TuneDb = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Tuning records: plans are chosen by them, and new ones added; by default in the cache."
    ),
]
ReportFile = Annotated[
    Path | None, typer.Option("--report", metavar="OUT.html", help="Write a page of what was done and measured.")
]
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors, and JSON where it is asked for.")
    ] = False,
) -> None:
    """Options of edgec itself."""
    console.be_quiet(quiet)


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


@app.command("compile", rich_help_panel=MODELS)
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    target: Annotated[
        str,
        typer.Option(
            help="What to build for: see edgec targets; host is this machine.", autocompletion=completion.targets
        ),
    ] = "host",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="The artifact: MODEL.so by default, or NAME.o to link."),
    ] = None,
    shape: Shapes = None,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="The passes to run, in this order; all by default.",
            autocompletion=completion.passes,
            rich_help_panel=PASSES,
        ),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            metavar="PASS",
            help="Stop after this pass, and write the ONNX model as OUT.",
            autocompletion=completion.passes,
            rich_help_panel=PASSES,
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="An .npz named as for run: compare its outputs after each pass.",
            rich_help_panel=PASSES,
        ),
    ] = None,
    prune: Annotated[
        float,
        typer.Option(
            metavar="FRACTION",
            min=0,
            max=0.9,
            help="Share of the MACs to remove, structured.",
            rich_help_panel=QUANTISING,
        ),
    ] = 0.0,
    quantize: Annotated[
        str,
        typer.Option(
            metavar="none|int8|w8|w4|w3|w2|w4a8|p2|p1|auto",
            help="Make integers: of all (int8), of weights only (w…), w4a8; powers of two: p2, p1; or mixed.",
            autocompletion=completion.modes,
            rich_help_panel=QUANTISING,
        ),
    ] = "none",
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Typical inputs to prune and quantise by: an .npz, or a folder of images.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    preprocess: Preprocess = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--eval", metavar="PATH", help="Labelled samples to measure the loss on.", rich_help_panel=QUANTISING
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Points that may be lost: layers get more bits until it is no more.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="How to quantise: OUT.recipe.toml of before, edited.", rich_help_panel=QUANTISING
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Weights that share a scale (w4, w3, w2); 0: an output channel's.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    salient_groups: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Of these groups, how many have more bits, where it is worth most.",
            rich_help_panel=QUANTISING,
        ),
    ] = None,
    max_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS", help="auto: milliseconds that a run may take on this machine.", rich_help_panel=QUANTISING
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="auto: bytes that the weights may take.", rich_help_panel=QUANTISING),
    ] = None,
    nested: Annotated[
        bool,
        typer.Option(
            "--nested",
            help="w4: keep four more bits below, to switch between 4 and 8 when it runs.",
            rich_help_panel=CONTENT,
        ),
    ] = False,
    fixed_point: Annotated[
        bool,
        typer.Option(
            "--fixed-point",
            help="int8, w4a8, p2, p1: scales that are powers of two, for processors without a float unit.",
            rich_help_panel=QUANTISING,
        ),
    ] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTPUT=INPUT",
            help="Keep an output as the next run's input; auto pairs present… with past….",
            rich_help_panel=CONTENT,
        ),
    ] = None,
    tune: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Measure plans of the kernels so long, and take the best.")
    ] = None,
    tune_db: TuneDb = None,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="FPGA boards: frames a second to reach; by default as many as fit.")
    ] = None,
    bundle_tests: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Samples to put into the artifact with their outputs, for edgert-selftest.",
            rich_help_panel=CONTENT,
        ),
    ] = None,
    compress: Annotated[
        bool,
        typer.Option(
            "--compress",
            help="Store weights entropy-coded: a smaller file, decoded when it is opened.",
            rich_help_panel=CONTENT,
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what the passes left alone, and why.", rich_help_panel=PASSES)
    ] = False,
    integer_io: Annotated[
        bool,
        typer.Option(
            "--integer-io",
            help="Inputs and outputs as the integers that the model computes with.",
            rich_help_panel=CONTENT,
        ),
    ] = False,
    report: ReportFile = None,
    from_front: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Compile a version that edgec explore found; see --pick.")
    ] = None,
    pick: Annotated[
        str, typer.Option(metavar="CHOICE", help="fastest-within:POINTS, smallest-within:POINTS or most-accurate.")
    ] = "fastest-within:1",
    json: Json = False,
) -> None:
    """Compile a model into one shared object, or an HLS project for an FPGA board, and write a report as OUT.json."""
    from edgec.compiler import compile
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.html import order_page
    from edgec.states import parse_states
    from edgec.transformation import transform

    names = None if passes is None else console.names(passes)
    shapes = parse_shape_flags(shape or ())
    if from_front is not None:
        from edgec.exploration.front import load_front

        if prune or quantize != "none" or calib or shapes or target != "host":
            raise EdgecError("--from-front says how to compile; leave out target, pruning, quantisation and shapes")
        front = load_front(from_front)
        front.check_model(model)
        chosen = front.pick(pick)
        target, prune, quantize = front.target, chosen.point.prune, chosen.point.quantize
        shapes = front.shapes_of(chosen)
        calib, preprocess = front.samples_of(chosen)
    if stop_after is not None and prune:
        raise EdgecError("--prune and --stop-after do not go together; edgec prune writes the pruned ONNX model")
    if stop_after is not None:
        path = output or Path(f"{model.stem}.{stop_after}.onnx")
        done = transform(model, path, passes=names, stop_after=stop_after, shapes=shapes, check=check)
        _show(done.as_dict(), json, lambda: tables.print_transformed(done, explain))
        return
    with console.progress() as progress:
        page: Page | None = None
        checked: Check | None = check
        if report is not None:
            samples = calib or check
            page = order_page(report, model, shapes=shapes, calib=samples, eval=evaluation, preprocess=preprocess)
            checked = check or page.material.few
        compiled = compile(
            model, target, output, shapes=shapes, passes=names, check=checked, prune=prune, quantize=quantize,
            calib=calib, preprocess=preprocess, eval=evaluation, max_drop=max_drop, recipe=recipe,
            group_size=group_size, salient_groups=salient_groups, max_ms=max_ms, max_bytes=max_bytes, nested=nested,
            fixed_point=fixed_point, states=parse_states(state or ()), tune=tune, tune_db=tune_db, fps=fps,
            bundle_tests=bundle_tests, compress=compress, integer_io=integer_io, progress=progress,
        )  # fmt: skip
        if page:
            page.write_compiled(compiled, progress)
    results = {"artifact": compiled.path, **compiled.report.as_dict()}
    _show(results, json, lambda: tables.print_compiled(compiled, explain))


@app.command("freeze", rich_help_panel=MODELS)
def freeze_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    shape: Shapes = None,
    value: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Make an input a constant (NAME=true, NAME=0.7,1,0.8); repeatable."),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Values of the graph to begin at, without what is before.")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Values of the graph to end at, without what is behind.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=2, help="Give a decoder's growing caches room for so many tokens."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The ONNX file; MODEL.frozen.onnx by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model with fixed shapes, with inputs made constants, or cut off at its ends."""
    from edgec.freezing import freeze
    from edgec.frontend.ends import parse_value_flags
    from edgec.frontend.shapes import parse_shape_flags

    frozen = freeze(
        model, output or Path(f"{model.stem}.frozen.onnx"), shapes=parse_shape_flags(shape or ()),
        values=parse_value_flags(value or ()), inputs=console.names(inputs), outputs=console.names(outputs),
        context=context,
    )  # fmt: skip
    _show(frozen.as_dict(), json, lambda: tables.print_frozen(frozen))


@app.command("prune", rich_help_panel=MODELS)
def prune_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    remove: Annotated[float, typer.Option(metavar="FRACTION", min=0, max=0.9, help="Share to remove.")] = 0.5,
    measure: Annotated[
        str, typer.Option(metavar="NAME", help="What the share is of: macs, parameters, bytes or latency.")
    ] = "macs",
    tokens: Annotated[
        float, typer.Option(metavar="FRACTION", min=0, max=0.9, help="MACs to save first by merging tokens.")
    ] = 0.0,
    pixels: Annotated[
        float, typer.Option(metavar="FRACTION", min=0, max=0.9, help="MACs to save first by smaller images.")
    ] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The ONNX file; MODEL.pruned.onnx by default.")
    ] = None,
    calib: Annotated[
        Path | None, typer.Option(metavar="PATH", help="An .npz named as for run: samples to prune by, without labels.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--eval", metavar="PATH", help="An .npz with labels: the accuracy before and after.")
    ] = None,
    score: Annotated[
        str, typer.Option(metavar="NAME", help="magnitude, norm-scale, obs, trajectory, relevance or random.")
    ] = "obs",
    repair: Annotated[bool, typer.Option(help="Fit the weights that stay to the samples.")] = True,
    blockwise: Annotated[bool, typer.Option("--blockwise", help="Fit blocks of layers as a whole, in torch.")] = False,
    distil: Annotated[
        float, typer.Option(metavar="MINUTES", min=0, help="Learn from the original in torch for so long.")
    ] = 0.0,
    target: Annotated[
        str, typer.Option(help="Whose vectors the channels fill.", autocompletion=completion.targets)
    ] = "host",
    curve: Annotated[
        Path | None, typer.Option(metavar="OUT.svg", help="Plot accuracy against latency over several shares instead.")
    ] = None,
    shape: Shapes = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    json: Json = False,
) -> None:
    """Prune channels of a model, write the smaller ONNX model, and compare the two."""
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.pruning import Comparison, compare_pruned, plot_curve, settings_for
    from edgec.targets.target import resolve_target

    shapes = parse_shape_flags(shape or ())
    settings = settings_for(
        remove, resolve_target(target), score=score, repair=repair, distil_minutes=distil, seed=seed, tokens=tokens,
        pixels=pixels, blockwise=blockwise,
    )  # fmt: skip
    found: Comparison
    if curve is not None:
        found = plot_curve(model, curve, settings, calib=calib, data=data, shapes=shapes)
    else:
        path = output or Path(f"{model.stem}.pruned.onnx")
        found = compare_pruned(model, path, settings, measure, calib=calib, data=data, shapes=shapes)
    _show(found, json, lambda: tables.print_pruned(found))


@app.command(rich_help_panel=RESULTS)
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
    fallback: Annotated[
        str | None, typer.Option(metavar="cpu", help="Run an artifact for a GPU on the CPU where there is no GPU.")
    ] = None,
    threads: Threads = 1,
    width: Width = None,
    json: Json = False,
) -> None:
    """Run an artifact on the samples of a file, and save or summarise its outputs."""
    from dataclasses import replace

    from edgec.artifact import check_writable, read_manifest
    from edgec.data.samples import batch_size, load_npz, save_npz, specs, summarise_array
    from edgec.devices.device import LocalDevice, open_device

    where = open_device(device, artifact, width)
    if fallback is not None:
        if not isinstance(where, LocalDevice):
            raise EdgecError("--fallback is for artifacts for a GPU that run on this machine; leave it out")
        where = replace(where, fallback=fallback)
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
    facts = {"saved": output, "outputs": found, **({"machine": results.machine} if results.machine else {})}
    _show(facts, json, lambda: tables.print_outputs(found, output, results.machine))


@app.command(rich_help_panel=RESULTS)
def generate(
    artifact: Artifact,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What comes before.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to generate.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; else one is drawn.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The model's tokenizer.json; without one, tokens are bytes."),
    ] = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Continue a text with a language model that was compiled with --state."""
    from edgec.generation import write

    found = write(
        artifact, prompt, tokens, temperature=temperature, seed=seed, threads=threads, tokenizer=tokenizer
    )  # fmt: skip
    _show(found, json, lambda: tables.print_generated(found))


@app.command(rich_help_panel=MODELS)
def tune(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="The ONNX file.")] = None,
    target: Annotated[
        str,
        typer.Option(
            help="What to tune for: see edgec targets; host is this machine.", autocompletion=completion.targets
        ),
    ] = "host",
    minutes: Annotated[float, typer.Option(help="How long at most.")] = 5.0,
    tune_db: TuneDb = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Take these records into --tune-db, without a model; may be repeated."),
    ] = None,
    shape: Shapes = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where plans are measured: local, ssh://[USER@]HOST[:PORT], adb://SERIAL, rpc://TRACKER[:PORT]/KEY "
            "(on all boards of the key at a time), or counted: qemu[:CPU].",
        ),
    ] = None,
    quantize: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="Tune the kernels of the model quantised so; with int8, measure its layers in floats, too.",
            autocompletion=completion.modes,
        ),
    ] = "none",
    calib: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Typical inputs to quantise by: an .npz, or a folder of images."),
    ] = None,
    preprocess: Preprocess = None,
    recipe: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="How to quantise.")] = None,
    json: Json = False,
) -> None:
    """Search for faster plans of a model's kernels, and keep what was measured for edgec compile --tune-db."""
    from edgec.compiler import tune as search
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.tuning import records

    if merge:
        if model is not None or tune_db is None:
            raise EdgecError("--merge takes records into the file --tune-db FILE and needs no MODEL; give both files")
        together = records.merge(tune_db, merge)
        _show({"records": len(together)}, json, lambda: console.print_text(f"{tune_db}: {len(together)} records"))
        return
    if model is None:
        raise EdgecError("edgec tune needs a MODEL, or --merge FILE with --tune-db FILE; see edgec tune --help")
    with console.progress() as progress:
        found = search(
            model, target, minutes, tune_db, shapes=parse_shape_flags(shape or ()), device=device, quantize=quantize,
            calib=calib, preprocess=preprocess, recipe=recipe, progress=progress,
        )  # fmt: skip
    _show(found.as_dict(), json, lambda: tables.print_tuned(found))


@app.command("eval", rich_help_panel=RESULTS)
def evaluate_model(
    path: ModelOrArtifact,
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="An .npz with arrays named as the inputs, and labels; or a folder of images and labels.csv.",
        ),
    ],
    preprocess: Preprocess = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="Compare the outputs with this model's.")
    ] = None,
    shape: Shapes = None,
    device: Device = "local",
    threads: Threads = 1,
    width: Width = None,
    json: Json = False,
) -> None:
    """Measure the accuracy of an artifact, or of an ONNX model in ONNX Runtime, and its agreement with another."""
    from edgec.evaluation import evaluate
    from edgec.frontend.shapes import parse_shape_flags

    with console.progress() as progress:
        found = evaluate(
            path, data, shapes=parse_shape_flags(shape or ()), device=device, preprocess=preprocess,
            reference=reference, threads=threads, width=width, progress=progress,
        )  # fmt: skip
    _show(found, json, lambda: tables.print_evaluation(path, found))


@app.command(rich_help_panel=RESULTS)
def bench(
    artifact: Artifact,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,…", help="Other runtimes, measured in turn: onnxruntime, openvino, litert, mnn, ncnn."
        ),
    ] = "",
    model: Annotated[
        Path | None, typer.Option(metavar="MODEL.onnx", help="What the artifact was compiled from; for --against.")
    ] = None,
    peer_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Another file for one runtime, e.g. litert=m.tflite; may be repeated."),
    ] = None,
    input: Annotated[
        Path | None, typer.Option(metavar="IN.npz", help="Use its first sample instead of random values.")
    ] = None,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often each runtime has its turn.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the random input.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Measure every step, too.")] = False,
    device: Annotated[
        str,
        typer.Option(
            metavar="URL", help="local, ssh://…, adb://…, rpc://…, or qemu[:cpu], where instructions are counted."
        ),
    ] = "local",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table to paste.")] = False,
    json: Json = False,
) -> None:
    """Measure an artifact's latency, side by side with other runtimes, or count its instructions on an emulator."""
    from edgec.benchmark import bench as measure
    from edgec.benchmark import peer_files
    from edgec.devices.counting import count
    from edgec.devices.device import QemuDevice, open_device

    board = open_device(device, artifact)
    if isinstance(board, QemuDevice):
        if against or threads != 1:
            raise EdgecError(
                "an emulator's time is not a device's latency: there edgec bench counts instructions, of the artifact "
                "alone and on one thread; leave out --against and --threads"
            )
        counted = count(artifact, board, inputs=input, seed=seed)
        _show(counted, json, lambda: tables.print_counts(counted, profile))
        return
    names = console.names(against)
    with console.progress(in_background=False) as progress:
        measured = measure(
            artifact, against=names, model=model, peer_models=peer_files(peer_model or ()), inputs=input,
            threads=threads, rounds=rounds, device=device, profile=profile, seed=seed, progress=progress,
        )  # fmt: skip
    if markdown and not json:
        console.print_text(measured.markdown())
    else:
        _show(measured.as_dict(), json, lambda: tables.print_benchmark(measured))


@app.command(rich_help_panel=MODELS)
def explore(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX file.")],
    data: Annotated[Path, typer.Option("--eval", metavar="PATH", help="Labelled samples to measure the accuracy on.")],
    target: Annotated[
        str,
        typer.Option(help="A processor: see edgec targets; host is this machine.", autocompletion=completion.targets),
    ] = "host",
    calib: Annotated[Path | None, typer.Option(metavar="PATH", help="Typical inputs to prune and quantise by.")] = None,
    preprocess: Preprocess = None,
    shape: Shapes = None,
    prune: Annotated[str, typer.Option(metavar="SHARE,…", help="Shares of the MACs to remove.")] = "0,0.2,0.4",
    bits: Annotated[str, typer.Option(metavar="MODE,…", help="What --quantize takes.")] = "none,int8",
    resolution: Annotated[
        str, typer.Option(metavar="PIXELS,…", help="Heights and widths of a dynamic image input.")
    ] = "",
    budget: Annotated[str, typer.Option(metavar="TIME", help="When no more is begun: 90s, 30min or 2h.")] = "30min",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes on this machine.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://…", help="A Dask scheduler instead; its workers see the same files.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="The ledger, the artifacts, front.json and front.html."),
    ] = None,
    json: Json = False,
) -> None:
    """Compile a model in many versions, and draw the front of accuracy, latency and size; goes on where it stopped."""
    from edgec.exploration import search as exploration
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.html.page import check_page, command

    folder = output or Path(f"{model.stem}-front")
    check_page(folder.resolve().parent / "front.html", "edgec explore", "explore")
    with console.progress() as progress:
        front = exploration.explore(
            model, target, folder, eval=data, calib=calib, preprocess=preprocess,
            shapes=parse_shape_flags(shape or ()), prune=console.numbers("--prune", prune), bits=bits.split(","),
            resolutions=[int(each) for each in console.numbers("--resolution", resolution)],
            budget=console.seconds(budget), workers=workers, scheduler=scheduler, command=command(),
            progress=progress,
        )  # fmt: skip
    _show(front.as_dict(), json, lambda: tables.print_front(front, folder))


@app.command(rich_help_panel=RESULTS)
def inspect(
    path: ModelOrArtifact,
    prunable: Annotated[
        bool, typer.Option("--prunable", help="Show which channels can be pruned, and why others cannot.")
    ] = False,
    shape: Shapes = None,
    json: Json = False,
) -> None:
    """Show layers, parameters, MACs and the memory plan, without running anything."""
    from edgec.artifact import is_artifact
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.inspection import inspect_artifact, inspect_model
    from edgec.pruning import find_prunable

    if prunable:
        groups = find_prunable(path, parse_shape_flags(shape or ()))
        _show(groups, json, lambda: tables.print_prunable(path, groups))
    elif is_artifact(path):
        manifest = inspect_artifact(path)
        _show(manifest, json, lambda: tables.print_manifest(path, manifest))
    else:
        found = inspect_model(path, parse_shape_flags(shape or ()))
        _show(found, json, lambda: tables.print_model(path, found))


@app.command(rich_help_panel=RESULTS)
def diff(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The float ONNX file.")],
    quantised: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="What edgec compile --quantize wrote, or a quantised ONNX file.")
    ],
    calib: Annotated[Path, typer.Option(metavar="PATH", help="Typical inputs: an .npz, or a folder of images.")],
    preprocess: Preprocess = None,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", metavar="PATH", help="Samples of which --report shows some.")
    ] = None,
    shape: Shapes = None,
    report: ReportFile = None,
    json: Json = False,
) -> None:
    """Show what each layer's quantisation costs, and name the layer that lost most."""
    from edgec.frontend.shapes import parse_shape_flags
    from edgec.html import order_page
    from edgec.quantisation.layer_errors import compare_layers

    shapes = parse_shape_flags(shape or ())
    with console.progress() as progress:
        page = None
        if report is not None:
            page = order_page(report, model, shapes=shapes, calib=calib, eval=evaluation, preprocess=preprocess)
        errors = compare_layers(model, quantised, calib, preprocess, shapes, progress)
        if page:
            page.write_diff(quantised, errors, progress)
    _show(errors, json, lambda: tables.print_layer_errors(errors))


@app.command("keygen", rich_help_panel=SHIPPING)
def generate_key(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="KEY", help="The private key; the public one becomes KEY.pub.")
    ] = Path("edgec.key"),
) -> None:
    """Make an Ed25519 key pair to sign artifacts with (as openssl genpkey -algorithm ed25519 does)."""
    from edgec.format import signing

    public = signing.generate_key(output)
    raw = ", ".join(f"0x{byte:02x}" for byte in signing.public_bytes(public))
    print(f"private key {output}, to keep secret; public key {public}; for edgert_open_signed:\n{{{raw}}}")


@app.command("sign", rich_help_panel=SHIPPING)
def sign_artifact(
    artifact: Artifact,
    key: Annotated[Path, typer.Option(metavar="KEY", help="The private Ed25519 key, PEM.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="The signed file; in place by default.")
    ] = None,
) -> None:
    """Sign an artifact, so that edgert_open_signed opens it."""
    from edgec.format import signing

    print(f"signed {signing.sign(artifact, key, output)}")


@app.command("verify", rich_help_panel=SHIPPING)
def verify_artifact(
    artifact: Artifact,
    key: Annotated[Path, typer.Option(metavar="KEY.pub", help="The public Ed25519 key, PEM.")],
) -> None:
    """Check the signature of an artifact."""
    from edgec.format import signing

    signing.verify(artifact, key)
    print(f"{artifact} bears the signature of {key}")


@app.command("runtime", rich_help_panel=SHIPPING)
def build_runtimes(
    system: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SYSTEM]...", help="linux-aarch64, android-arm64-v8a, cortex-m4 …; all by default."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where each system's folder goes.")
    ] = Path("edgert"),
    json: Json = False,
) -> None:
    """Build libedgert, its headers and tools for every system that a C compiler is found for."""
    from edgec.building.prebuilt import build_all

    with console.progress():
        built = build_all(output.resolve(), system or ())
    _show(built, json, lambda: tables.print_runtimes(built))


@app.command("wheel", rich_help_panel=SHIPPING)
def build_wheels(
    machine: Annotated[
        list[str] | None, typer.Argument(metavar="[MACHINE]...", help="x86_64 or aarch64; both by default.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the wheels go.")] = Path(),
) -> None:
    """Build the Python package edgert, which runs artifacts on a device with numpy alone."""
    from edgec.building.wheels import TRIPLES, build_wheel

    for each in machine or TRIPLES:
        print(build_wheel(each, output))


@app.command(rich_help_panel=MACHINE)
def targets(json: Json = False) -> None:
    """List what edgec compiles for."""
    from edgec.targets.formats import FORMATS
    from edgec.targets.fpga.board import board_names, load_board
    from edgec.targets.gpu.target import gpu_names, load_gpu
    from edgec.targets.target import load_target, target_names

    processors = [load_target(name) for name in target_names()]
    gpus = [load_gpu(name) for name in gpu_names()]
    boards = [load_board(name) for name in board_names()]
    formats = list(FORMATS.values())
    everything = [*processors, *gpus, *boards, *formats]
    _show(everything, json, lambda: tables.print_targets(processors, gpus, boards, formats))


@app.command(rich_help_panel=MACHINE)
def doctor(json: Json = False) -> None:
    """Check that this machine has what edgec needs; exit code 1 if something needed is missing."""
    from edgec.doctor import examine

    checks = examine()
    _show(checks, json, lambda: tables.print_checks(checks))
    if not all(check.ok for check in checks if check.needed):
        raise typer.Exit(1)


def main() -> None:
    """The ``edgec`` program."""
    defer()
    app(prog_name="edgec")
