"""Bits for each layer by an integer program: the choice is the best there is, and holds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgec
from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.quantize import Recipe, quantize
from edgec.passes.quantize.assembly import Assembly
from edgec.passes.quantize.execution import ModelRunner
from edgec.passes.quantize.products import product_of
from edgec.passes.quantize.report import signal_to_noise
from edgec.quantisation.judge import HELD_OUT, Judge
from edgec.quantisation.mixing import (
    FAMILIES,
    Mix,
    Option,
    _bisect,
    _joined,
    _solved,
    _weight_bytes,
)
from tests import graphs
from tests.operators import node
from tests.test_cli import results_of, sentence_of


def options(seed: int, layers: int) -> tuple[Option, ...]:
    """Random losses and sizes: more bits lose less."""
    generator = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        losses = np.sort(generator.exponential(1, 4))[::-1]
        sizes = np.sort(generator.integers(10, 200, 4))
        for precision, loss, size in zip(("w2", "w3", "w4", "w8"), losses, sizes, strict=True):
            found.append(Option(f"layer{layer}", precision, float(loss), int(size), float(generator.uniform(1, 2))))
    return tuple(found)


@pytest.mark.parametrize("seed", range(5))
def test_choice_is_the_best_of_all(seed: int) -> None:
    """Against every combination of five layers at four precisions."""
    measured = Mix("w8", options(seed, 5), 0.5)
    by_layer = [[o for o in measured.options if o.layer == f"layer{i}"] for i in range(5)]
    combinations = list(itertools.product(*by_layer))
    for room in (120, 300, 500):
        made = _solved(measured, "loss", lambda option: option.bytes, room)
        fitting = [sum(o.loss for o in each) for each in combinations if sum(o.bytes for o in each) <= room]
        if made is None:
            assert not fitting
            continue
        taken = [option for option in made.options if option.chosen]
        assert len(taken) == 5 and made.bytes <= room
        assert sum(option.loss for option in taken) == pytest.approx(min(fitting))
        assert made.ms == pytest.approx(0.5 + sum(option.ms or 0 for option in taken))


def test_families_join() -> None:
    """A layer may take its precision from either; the one that both have is there once."""
    integers = Mix("int8", (Option("a", "int8", 3.0, 9, None), Option("a", "float", 0.0, 40, None)), 0.5)
    floats = Mix("w8", (Option("a", "w4", 1.0, 5, None), Option("a", "float", 0.0, 40, None)), 0.5)
    joined = _joined([integers, floats])
    assert joined.default == "int8" and [option.precision for option in joined.options] == ["int8", "float", "w4"]
    made = _solved(joined, "bytes", lambda option: option.loss, 2.0)
    assert made is not None and made.chosen == {"a": "w4"}


def test_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """HiGHS has a line of its own for some problems, of which this is one."""
    generator = np.random.default_rng(27)
    tried = {"w2": (2.5, 1), "w3": (3.5, 0.2), "w4": (4.5, 0.04), "w8": (8.5, 2e-4), "float": (32, 0)}
    found = []
    for layer in range(22):
        size, base = int(generator.integers(300, 40000)), generator.exponential(1)
        for name, (bits, loss) in tried.items():
            own = base * loss * generator.uniform(0.8, 1.2) * 1e-3
            found.append(Option(f"layer{layer}", name, own, int(size * bits / 8), None))
    most = sum(option.loss for option in found if option.precision == "w2")
    for share in np.geomspace(0.005, 0.9, 12):
        assert _solved(Mix("w8", tuple(found), None), "bytes", lambda option: option.loss, share * most) is not None
    assert capfd.readouterr() == ("", "")


def with_floats(seed: int, layers: int) -> tuple[Option, ...]:
    """As :func:`options`, and each layer as it was."""
    return (*options(seed, layers), *(Option(f"layer{layer}", "float", 0.0, 400, None) for layer in range(layers)))


def test_bisection_comes_near_to_the_fewest_bytes() -> None:
    """Where losses add up exactly, what is found holds, and is nearly the smallest that does."""
    measured = Mix("w8", with_floats(1, 5), None)
    found = _bisect(measured, 2.0, lambda made: made.loss, lambda *_: None)
    best = _solved(measured, "bytes", lambda option: option.loss, 2.0)
    assert found is not None and best is not None
    assert found.loss <= 2.0 and best.bytes <= found.bytes <= 1.1 * best.bytes
    everything = _bisect(measured, 1e9, lambda made: made.loss, lambda *_: None)
    assert everything is not None and everything.bytes == sum(
        min(o.bytes for o in measured.options if o.layer == f"layer{i}") for i in range(5)
    )
    assert _bisect(measured, 1.0, lambda made: 2.0, lambda *_: None) is None


def test_gentler_choices_go_down_to_no_loss() -> None:
    first = _solved(Mix("w8", with_floats(1, 5), None), "bytes", lambda option: option.loss, 2.0)
    assert first is not None
    losses = [first.loss, *(made.loss for made in first.gentler())]
    assert losses == sorted(losses, reverse=True) and losses[-1] == 0.0 and losses[1] <= losses[0] / 2
    last = list(first.gentler())[-1]
    assert first.changed(last.chosen) == last and first.changed({}) == first
    assert last.recipe(Recipe(layers={"other": "float"})).layers == {**last.chosen, "other": "float"}


def test_assembled_mix_is_near_what_quantisation_gives(sample_model: Path) -> None:
    """Layers learned alone and put together, against the model whose layers were learned one behind the other."""
    graph = load_graph(sample_model)
    run(graph, FLOAT)
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        samples = [{"image": image[None]} for image in data["image"][:64]]
    assembly = Assembly(graph, samples, Recipe(), lambda *_: None)
    names = [str(node.name) for node in graph.graph if product_of(node) is not None]
    wanted = ModelRunner(graph).run_all(samples)
    for layers in ({}, dict.fromkeys(names[::2], "w4"), dict.fromkeys(names, "float"), {names[0]: "int16"}):
        recipe = Recipe(layers=layers, keep=0.0)
        put_together = signal(ModelRunner(assembly.mixed(recipe)).run_all(samples), wanted)
        quantised = signal(ModelRunner(quantize(graph, samples, recipe).model).run_all(samples), wanted)
        assert put_together > quantised - 6
    bits = assembly.weight_bits("w4")
    assert set(bits) == set(names) and set(bits.values()) == {4, 8}


@pytest.mark.parametrize("name", ["first", "second", "sum", "last"])
@pytest.mark.parametrize("precision", ["w8", "float", "int16"])
def test_any_layer_around_a_sum_can_have_other_bits(name: str, precision: str) -> None:
    """Where all is int8, the sum reads its convolution at 16 bits; where a neighbour is not, it reads 8."""
    generator = np.random.default_rng(0)
    weights = {f"w{i}": generator.normal(0, 0.3, shape).astype(np.float32) for i, shape in enumerate(
        [(8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (5, 8, 1, 1)]
    )}  # fmt: skip
    nodes = [
        node("Conv", "x w0", "a", name="first", pads=[1] * 4), node("Relu", "a", "b"),
        node("Conv", "b w1", "c", name="inner", pads=[1] * 4), node("Relu", "c", "d"),
        node("Conv", "d w2", "e", name="second", pads=[1] * 4), node("Add", "b e", "f", name="sum"),
        node("Relu", "f", "g"), node("Conv", "g w3", "y", name="last"),
    ]  # fmt: skip
    graph = load_graph(graphs.build(nodes, {"x": (1, 3, 8, 8)}, ["y"], weights))
    run(graph, FLOAT)
    samples = [{"x": generator.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    assembly, wanted = Assembly(graph, samples, Recipe(), lambda *_: None), ModelRunner(graph).run_all(samples)
    mixed = assembly.mixed(Recipe(layers={name: precision}))
    assert signal(ModelRunner(mixed).run_all(samples), wanted) > 20


def signal(found: Any, wanted: Any) -> float:
    """Signal-to-noise ratio of the first outputs, in dB."""
    return signal_to_noise([run[0] for run in found], [run[0] for run in wanted])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that takes no time."""
    path = tmp_path_factory.mktemp("recipes") / "quick.toml"
    path.write_text('rounding = "nearest"\nequalise = false\nrefine = false\nobserver = "minmax"\n')
    return path


def test_auto_stays_within_bytes(sample_model: Path, quick: Path, tmp_path: Path) -> None:
    """The table names every option; the recipe beside the artifact has the choice, and can be edited."""
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    printed = results_of(
        "compile", sample_model, "--quantize", "auto", "--calib", calib, "--max-bytes", "22000", "--recipe", quick,
        "-o", output,
    )  # fmt: skip
    found = printed["quantisation"]["mix"]
    chosen = {option["layer"]: option for option in found["options"] if option["chosen"]}
    assert sum(option["bytes"] for option in chosen.values()) == found["bytes"] <= 22000
    assert printed["weights_bytes"] < 22000 + 4000
    assert {option["precision"] for option in found["options"]} <= {*FAMILIES["w8"], *FAMILIES["int8"]}
    layers = {layer["name"]: layer["bits"] for layer in printed["quantisation"]["layers"]}
    recipe = output.with_name("digits.so.recipe.toml").read_text()
    for name, option in chosen.items():
        assert layers[name] == option["precision"] or layers[name] == "w8"
        assert f'"{name}"' in recipe


def test_integers_and_floats_mix(sample_model: Path, quick: Path, tmp_path: Path) -> None:
    """Layers of 4 bits under float activations between layers of integers; ONNX Runtime gives the same classes."""
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    common = ["compile", sample_model, "--quantize", "int8", "--calib", calib, "-o", output]
    first = results_of(*common, "--recipe", quick)
    products = [layer["name"] for layer in first["quantisation"]["layers"] if layer["op"] in ("Conv", "Gemm")]
    mixed = tmp_path / "mixed.toml"
    lines = [f'"{name}" = "w4"' for name in products[1::2]]
    mixed.write_text("\n".join([quick.read_text(), "[layers]", *lines]))
    printed = results_of(*common, "--recipe", mixed)
    assert {layer["bits"] for layer in printed["quantisation"]["layers"]} >= {"int8", "w4"}
    twin = onnx.load(output.with_name("digits.so.quantised.onnx"))
    images = np.load(sample_model.with_name("digits_eval.npz"))["image"][:40]
    with edgec.load(output) as session:
        for image in images:
            wanted = graphs.run(twin, {"image": image[None]})["logits"]
            assert session.run({"image": image[None]})["logits"].argmax() == wanted.argmax()


@pytest.mark.parametrize("labelled", [True, False])
def test_auto_judges_the_model_that_it_ships(labelled: bool, sample_model: Path, tmp_path: Path) -> None:
    """Within a point unless told otherwise; the score is the artifact's own, on the samples that it is told of."""
    calib, evaluated = (sample_model.with_name(f"digits_{name}.npz") for name in ("calib", "eval"))
    output, flags = tmp_path / "digits.so", ["--eval", evaluated] if labelled else []
    printed = results_of("compile", sample_model, "--quantize", "auto", "--calib", calib, *flags, "-o", output)
    guard, found = printed["quantisation"]["guard"], printed["quantisation"]["mix"]
    assert guard["float_score"] - guard["score"] <= 1 and found["bytes"] < 40000
    assert guard["measure"] == ("top-1 accuracy, %" if labelled else "expected accuracy, float = 100")
    chosen = {option["layer"]: option["precision"] for option in found["options"] if option["chosen"]}
    assert guard["put_back"].items() <= chosen.items()
    with np.load(evaluated if labelled else calib) as data:
        images, labels = (data["image"], data["labels"]) if labelled else (data["image"][::HELD_OUT], None)
    samples = [{"image": image[None]} for image in images]
    assert guard["samples"] == len(samples)
    judge = Judge.of(load_graph(sample_model), samples, labels)
    with edgec.load(output) as session:
        score = judge.score([[session.run(sample)["logits"]] for sample in samples])
    assert score == pytest.approx(guard["score"], abs=0.25)
    recipe = output.with_name("digits.so.recipe.toml").read_text()
    assert f"# {guard['measure']} on {len(samples)} samples: float" in recipe


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max-bytes", "1"], "no mix of precisions is within --max-bytes 1; allow more"),
        (["--max-bytes", "9", "--max-ms", "9"], "do not go together"),
        (["--target", "rpi4", "--max-ms", "9"], "--max-bytes instead"),
        (["--quantize", "w4", "--max-ms", "9"], "is for --quantize auto"),
    ],
)
def test_limits_that_cannot_hold_are_sentences(
    flags: list[str], said: str, sample_model: Path, quick: Path, tmp_path: Path
) -> None:
    calib = sample_model.with_name("digits_calib.npz")
    mode = [] if "--quantize" in flags else ["--quantize", "auto"]
    arguments = ["compile", sample_model, *mode, "--calib", calib, "--recipe", quick, *flags]
    assert said in sentence_of(*arguments, "-o", tmp_path / "x.so")
    assert not list(tmp_path.iterdir())


def test_bytes_count_salient_groups(sample_model: Path) -> None:
    """A layer of 2 bits with a quarter of its groups at 4 has the bytes that its kernel stores."""
    graph = load_graph(sample_model)
    node = next(each for each in graph.graph if each.op_type == "Gemm")
    product = product_of(node)
    assert product is not None
    outputs, depth = product.rows(product.weight).shape[1:]
    for share, salient in ((0.0, 0), (0.25, round(0.25 * depth / 16))):
        exact = outputs * ((2 * depth + 2 * 16 * salient) / 8 + 2 * depth / 16)
        assert _weight_bytes(product, "w2", 2, Recipe(group_size=16, salient_groups=share)) == exact
