"""Quantisation as a part of a compilation: samples checked, recipe read, model quantised, accuracy guarded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgec.calibration import Calibration, Source
    from edgec.data.samples import Array
    from edgec.passes.quantize import LayerQuantization, Lifted, Quantized, Recipe
    from edgec.quantisation.float_layers import Costs, FloatLayers, Unknown
    from edgec.quantisation.guard import Guarded
    from edgec.quantisation.judge import Judge
    from edgec.quantisation.mixing import Limits, Mix
    from edgec.targets.formats import Format
    from edgec.targets.fpga.board import Board
    from edgec.targets.gpu.target import GpuTarget
    from edgec.targets.target import Target

MODES = ("none", "int8", "w8", "w4", "w3", "w2", "w4a8", "p2", "p1", "auto")
"""What ``--quantize`` takes: but for none, and for auto, which mixes them, the precision of layers by default."""

INTEGER_MODES = ("int8", "w4a8", "p2", "p1")
"""Those of them whose activations are integers."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Options:
    """What a user asked for.

    Attributes:
        mode: one of :data:`MODES`.
        preprocess: how images become inputs, for folders of them.
        eval: labelled samples to measure the accuracy on; they are learned from in no way.
        max_drop: points that may be lost (see :mod:`edgec.quantisation.guard`).
        recipe: a recipe, or the file of one.
        group_size: weights that share a scale; None leaves it to the recipe.
        salient_groups: the share of groups that have more bits; None leaves it to the recipe.
        max_ms: for auto, milliseconds that a run may take on this machine.
        max_bytes: for auto, bytes that the weights may take.
        nested: for w4, four more bits below, so that a session can be switched between both widths.
        fixed_point: scales are powers of two; the recipe may say so, too.
    """

    mode: str = "none"
    preprocess: Path | None = None
    eval: Source | None = None
    max_drop: float | None = None
    recipe: str | os.PathLike[str] | Recipe | None = None
    group_size: int | None = None
    salient_groups: float | None = None
    max_ms: float | None = None
    max_bytes: int | None = None
    nested: bool = False
    fixed_point: bool = False

    @property
    def quantises(self) -> bool:
        """Whether anything is quantised."""
        return self.mode != "none"

    def check(self, calibrated: bool, prunes: bool, compares: bool) -> None:
        """Refuse what does not go together.

        Args:
            calibrated: there are calibration samples.
            prunes: they can serve a pruning.
            compares: the passes are compared, where evaluation samples can serve, too.

        Raises:
            EdgecError: in one sentence.
        """
        if self.mode not in MODES:
            raise EdgecError(f"--quantize {self.mode} is not known; it can be {', '.join(MODES)}")
        given = {
            "--eval": None if compares else self.eval, "--max-drop": self.max_drop, "--recipe": self.recipe,
            "--group-size": self.group_size, "--salient-groups": self.salient_groups,
        }  # fmt: skip
        used = [flag for flag, value in given.items() if value is not None]
        if calibrated and not self.quantises and not prunes:
            raise EdgecError("--calib is for --quantize MODE and --prune FRACTION; add one of them, or leave it out")
        if not self.quantises and used:
            raise EdgecError(f"{used[0]} is for a quantisation; add --quantize int8 --calib PATH, or leave it out")
        if self.quantises and not calibrated:
            raise EdgecError(
                f"--quantize {self.mode} learns from samples; give some tens of typical inputs with --calib PATH"
            )
        budgets = {"--max-drop": self.max_drop, "--max-ms": self.max_ms, "--max-bytes": self.max_bytes}
        limits = [flag for flag, value in budgets.items() if value is not None]
        if self.mode != "auto" and limits not in ([], ["--max-drop"]):
            raise EdgecError(f"{limits[-1]} is for --quantize auto, which chooses bits to stay within it")
        if len(limits) > 1:
            raise EdgecError(f"{limits[0]} and {limits[1]} do not go together; give one of them")
        if self.nested and self.mode != "w4":
            raise EdgecError("--nested keeps a model of 8 bits around one of 4; add --quantize w4, or leave it out")
        if self.nested and self.salient_groups:
            raise EdgecError("--nested has one width for all groups of a layer; leave --salient-groups out")
        if self.fixed_point and self.mode not in INTEGER_MODES:
            modes = " or ".join(INTEGER_MODES)
            raise EdgecError(f"--fixed-point is for integer activations; add --quantize {modes}, or leave it out")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise EdgecError(f"--max-drop {self.max_drop:g} is no number of points from 0 to 100")


@dataclass(frozen=True)
class Quantisation:
    """What was done.

    Attributes:
        layers: one for each node, in order.
        equalised: how many tensors had their channels scaled against each other.
        samples: how many calibration samples there were.
        warnings: what is odd about them.
        guarded: what was measured, and what the guard put back; None where nothing was to be measured.
        recipe: the recipe's file, as text.
        float_model: the ONNX model before the quantisation, its channels equalised.
        model: after it: standard QDQ ONNX.
        attempts: the models that the guard judged, in its order; the last is ``model``.
        mix: what ``auto`` chose, of which options.
        kept: layers that keep weights of 8 bits, since 4 would cost most there.
        lifted: what activations of 16 bits were chosen for.
        speed: the layers that stay float because integers take longer there, or why that is not known; None where
            nothing was measured.
    """

    layers: tuple[LayerQuantization, ...]
    equalised: int
    samples: int
    warnings: tuple[str, ...]
    guarded: Guarded | None
    recipe: str
    float_model: bytes
    model: bytes
    attempts: tuple[ir.Model, ...] = ()
    mix: Mix | None = None
    kept: tuple[str, ...] = ()
    lifted: Lifted | None = None
    speed: FloatLayers | Unknown | None = None

    def files(self, artifact: Path) -> dict[Path, bytes]:
        """What is written beside the artifact: the recipe, and the models before and after the quantisation."""
        recipe, before, after = companions(artifact)
        return {recipe: self.recipe.encode(), before: self.float_model, after: self.model}

    @property
    def choices(self) -> list[str]:
        """Which layers got another precision without being asked, and why, as sentences."""
        return [str(each) for each in (self.lifted, self.speed) if each]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "samples": self.samples,
            "equalised": self.equalised,
            "warnings": list(self.warnings),
            "guard": asdict(self.guarded) if self.guarded else None,
            "layers": [asdict(layer) for layer in self.layers],
            "kept": list(self.kept),
            "mix": self.mix.as_dict() if self.mix else None,
            "lifted": asdict(self.lifted) if self.lifted else None,
            "speed": asdict(self.speed) if self.speed else None,
            "choices": self.choices,
        }

    def __str__(self) -> str:
        from edgec.passes.quantize.report import counts

        lines = [f"quantised by {self.samples} samples: {counts(self.layers)}; {self.equalised} tensors equalised"]
        lines += self.choices
        return "\n".join([*lines, *self.warnings, *([str(self.guarded)] if self.guarded else [])])


def companions(artifact: Path) -> tuple[Path, Path, Path]:
    """Where the recipe, the float model and the quantised model of ``artifact`` are written."""
    return tuple(  # type: ignore[return-value]
        artifact.with_name(artifact.name + suffix) for suffix in (".recipe.toml", ".float.onnx", ".quantised.onnx")
    )


def quantise_graph(
    graph: ir.Model, options: Options, calibration: Calibration, target: Target | GpuTarget | Board | Format,
    costs: Costs | None, tell: Progress,
) -> tuple[ir.Model, Quantisation]:  # fmt: skip
    """Quantise a graph that the float passes have left.

    Args:
        graph: it is not changed.
        options: what was asked for; checked.
        calibration: the samples.
        target: what is compiled for.
        costs: of kernels on the target; None where none are known.
        tell: told (what, done, total).

    Returns:
        The QDQ graph, and what was done.

    Raises:
        EdgecError: in one sentence what is wrong with the samples or the recipe, or how much accuracy is lost.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    from edgec.passes.quantize import quantize
    from edgec.passes.quantize.half import computes_in_half, narrow, widened, widened_samples
    from edgec.passes.quantize.nested import nest
    from edgec.quantisation.guard import gentler_mixes, guard, worst_put_back
    from edgec.quantisation.layer_errors import LayerErrors, measure_layers
    from edgec.quantisation.recipes import check_layers, write_recipe

    recipe = _recipe(options)
    recipe = replace(
        recipe,
        wide_sums=recipe.wide_sums and target.fuses_sums,
        factors=recipe.factors and target.weight_factors,
    )
    half = computes_in_half(graph)
    if half:
        _check_weights_only(recipe, options)
        graph, calibration = widened(graph), replace(calibration, samples=widened_samples(calibration.samples))
    check_layers(recipe, graph)
    limits, auto = _limits(options), options.mode == "auto"
    kept: Judge | None = None
    learned: Sequence[Any] = calibration.samples
    if limits.most_drop is not None and (auto or options.eval is None):
        kept, learned = _held_out(graph, calibration)
    judge, samples = (kept, learned) if options.eval is None else (judge_by(graph, options), calibration.samples)
    mixed = speed = None
    if auto:
        mixed = _mixed(graph, learned, kept, recipe, limits, target, tell)
        recipe = mixed.recipe(recipe)
    elif costs is not None and recipe.default == "int8":
        speed, recipe = _with_float_layers(graph, recipe, calibration, costs, tell)

    attempts: list[ir.Model] = []

    def quantised(chosen: Recipe) -> Quantized:
        made = quantize(graph, samples, chosen, tell)
        if options.nested:
            nest(made.model, made.twin, samples)
        attempts.append(made.model)
        return made

    def ranked(found: Quantized) -> LayerErrors:
        return measure_layers(found.twin, found.model, judge.samples if judge else samples, tell)

    retreat = worst_put_back(recipe, ranked) if mixed is None else gentler_mixes(recipe, mixed)
    if judge is None:
        found, guarded = quantised(recipe), None
    else:
        found, guarded = guard(judge, quantised, recipe, limits.most_drop, retreat)
    put_back = guarded.put_back if guarded else {}
    mixed = mixed and mixed.changed(put_back)
    final, verdict = replace(recipe, layers={**recipe.layers, **put_back}), guarded.verdict if guarded else ""
    text = write_recipe(final, found.layers, _reasons(speed), verdict)
    for each in (found.twin, found.model):
        RemoveUnusedNodesPass()(each)
    if half:
        narrow(found.model)
    protos = [ir.to_proto(each).SerializeToString() for each in (found.twin, found.model)]
    done = Quantisation(
        found.layers, found.equalised, len(samples), calibration.warnings, guarded, text, protos[0], protos[1],
        tuple(attempts), mixed, found.kept, found.lifted, speed,
    )  # fmt: skip
    return found.model, done


def _check_weights_only(recipe: Recipe, options: Options) -> None:
    """Refuse integer activations, for a model whose floats are float16."""
    if options.mode == "auto" or not recipe.keeps_activations:
        raise EdgecError(
            f"the model computes in float16, and --quantize {options.mode} makes integers of float32 activations; "
            "export it in float32, or quantise its weights only, with w8, w4, w3 or w2"
        )


def _with_float_layers(
    graph: ir.Model, recipe: Recipe, calibration: Calibration, costs: Costs, tell: Progress
) -> tuple[FloatLayers | Unknown, Recipe]:
    """The layers that stay float for their speed, and ``recipe`` with them."""
    from edgec.quantisation.float_layers import FloatLayers, find_float_layers

    found = find_float_layers(graph, calibration.samples, recipe, costs, tell)
    if isinstance(found, FloatLayers):
        recipe = replace(recipe, layers={**recipe.layers, **dict.fromkeys(found.layers, "float")})
    return found, recipe


def _reasons(speed: FloatLayers | Unknown | None) -> dict[str, str]:
    """Why layers stay float, by name."""
    from edgec.quantisation.float_layers import FloatLayers

    if not isinstance(speed, FloatLayers):
        return {}
    return {name: reason for name in speed.layers if (reason := speed.reason(name))}


def check_precisions(options: Options, target: Target | GpuTarget | Board | Format) -> None:
    """Refuse what ``target`` has no kernels for.

    Raises:
        EdgecError: the precision and those that it can run.
    """
    if not options.quantises or target.packs_weights:
        return
    from edgec.passes.quantize.recipe import PRECISIONS

    recipe = _recipe(options)
    able = [name for name, each in PRECISIONS.items() if each.activations is not None or each.weights is None]
    for name in (recipe.default, *recipe.layers.values()):
        if name not in able:
            raise EdgecError(
                f"{target.name} has no kernels for {name}, whose weights are unpacked under float activations; it can "
                f"run {', '.join(able)}"
            )


def _recipe(options: Options) -> Recipe:
    """The recipe that was given or the default one, for the mode and the group size that were asked for."""
    from edgec.passes.quantize import Recipe
    from edgec.passes.quantize.recipe import GROUP_SIZES
    from edgec.quantisation.recipes import read_recipe

    given = options.recipe
    recipe = read_recipe(Path(given)) if isinstance(given, str | os.PathLike) else given or Recipe()
    if options.group_size is not None:
        if options.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise EdgecError(f"--group-size {options.group_size} is none of {sizes} (0: a whole output channel)")
        recipe = replace(recipe, group_size=options.group_size)
    if options.salient_groups is not None:
        if not 0 <= options.salient_groups <= 1:
            raise EdgecError(f"--salient-groups {options.salient_groups:g} is no share from 0 to 1")
        recipe = replace(recipe, salient_groups=options.salient_groups)
    if options.nested:  # what rounding to 4 bits shifts is not what rounding to 8 bits does
        recipe = replace(recipe, correct_bias=False)
    if options.fixed_point:
        recipe = replace(recipe, fixed_point=True)
    return replace(recipe, default="int8" if options.mode == "auto" else options.mode)


def _limits(options: Options) -> Limits:
    """What was asked for, and for auto what holds where nothing was."""
    from edgec.quantisation.mixing import DEFAULT_DROP, Limits

    limits = Limits(options.max_drop, options.max_ms, options.max_bytes)
    return Limits(most_drop=DEFAULT_DROP) if options.mode == "auto" and limits == Limits() else limits


def _mixed(
    graph: ir.Model, samples: Sequence[Any], judge: Judge | None, recipe: Recipe, limits: Limits,
    target: Target | GpuTarget | Board | Format, tell: Progress,
) -> Mix:  # fmt: skip
    from edgec.quantisation.mixing import FAMILIES, mix

    families = [name for name in FAMILIES if target.packs_weights or name == "int8"]
    return mix(graph, samples, judge, recipe, limits, target.name == "host", families, tell)


def _held_out(graph: ir.Model, calibration: Calibration) -> tuple[Judge, Sequence[Any]]:
    """Who judges by a part of the calibration samples, and those that are left to learn from."""
    from edgec.quantisation.judge import HELD_OUT, Judge

    samples = calibration.samples
    if len(samples) < 2 * HELD_OUT:
        raise EdgecError(
            f"--max-drop without --eval keeps a part of the calibration samples to judge by, and there are only "
            f"{len(samples)}; give {2 * HELD_OUT} or more, or labelled samples with --eval PATH"
        )
    kept = [sample for index, sample in enumerate(samples) if index % HELD_OUT]
    return Judge.of(graph, samples[::HELD_OUT], None), kept


def judge_by(graph: ir.Model, options: Options) -> Judge | None:
    """Who measures models on the samples of ``--eval`` against the float ``graph``; None without any.

    Raises:
        EdgecError: what is wrong with the samples.
    """
    from edgec.calibration import load_calibration
    from edgec.quantisation.judge import Judge

    if options.eval is None:
        return None
    samples = load_calibration(options.eval, graph, options.preprocess).samples
    return Judge.of(graph, samples, labels_of(options.eval, graph, options.preprocess))


def labels_of(source: Source, graph: ir.Model, preprocess: Path | None) -> Array | None:
    """The labels beside the samples of a file or folder, of those that are used; None where there are none."""
    from edgec.calibration import MOST_SAMPLES, input_specs
    from edgec.data.samples import batch_size, load_samples

    if not isinstance(source, str | os.PathLike):
        return None
    specs = input_specs(graph)
    labels = load_samples(Path(source), specs, preprocess).labels
    return None if labels is None else np.asarray(labels)[: MOST_SAMPLES * batch_size(specs)]
