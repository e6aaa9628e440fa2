"""``edgec compile --quantize int8``, its recipe and its guard, and ``edgec diff``, on the sample model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgec
from edgec.errors import EdgecError
from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.quantize import Quantized, Recipe, quantize
from edgec.quantisation.guard import guard, worst_put_back
from edgec.quantisation.judge import Judge
from edgec.quantisation.layer_errors import LayerErrors, compare_layers, measure_layers
from edgec.quantisation.quantise import companions
from edgec.quantisation.recipes import read_recipe, write_recipe
from tests import graphs
from tests.operators import node
from tests.test_cli import call, results_of, sentence_of

QUICK = Recipe(rounding="nearest", refine=False)


@pytest.fixture(scope="module")
def calib(sample_model: Path) -> Path:
    return sample_model.with_name("digits_calib.npz")


@pytest.fixture(scope="module")
def labelled(sample_model: Path) -> Path:
    return sample_model.with_name("digits_eval.npz")


@pytest.fixture(scope="module")
def done(
    sample_model: Path, calib: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The sample model, compiled and quantised by the command: the artifact and what it printed."""
    output = tmp_path_factory.mktemp("quantised") / "digits.so"
    arguments = [sample_model, "--quantize", "int8", "--calib", calib, "--eval", labelled, "--max-drop", "0.5"]
    return output, results_of("compile", *arguments, "-o", output)


def test_the_artifact_keeps_the_accuracy(done: tuple[Path, Any], sample_data: dict[str, np.ndarray]) -> None:
    artifact, printed = done
    guarded = printed["quantisation"]["guard"]
    assert guarded["put_back"] == {} and guarded["float_score"] - guarded["score"] <= 0.5
    with edgec.load(artifact) as session:
        found = [session.run({"image": image[None]})["logits"].argmax() for image in sample_data["image"]]
    assert 100 * np.mean(np.array(found) == sample_data["labels"]) == pytest.approx(guarded["score"], abs=0.25)


def residual(folder: Path) -> tuple[Path, Path]:
    """The files of a small residual model and of its samples."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 4, 3, 3), np.float32) / 6
    nodes = [graphs.node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
             graphs.node("Relu", ["a"], ["r"], name="relu"),
             graphs.node("Conv", ["r", "w"], ["b"], name="second", pads=[1, 1, 1, 1]),
             graphs.node("Add", ["b", "x"], ["s"], name="sum"),
             graphs.node("Conv", ["s", "w"], ["y"], name="last")]  # fmt: skip
    onnx.save(graphs.build(nodes, {"x": (1, 4, 6, 6)}, ["y"], {"w": weight}), folder / "m.onnx")
    np.savez(folder / "calib.npz", x=generator.standard_normal((12, 4, 6, 6), np.float32))
    return folder / "m.onnx", folder / "calib.npz"


@pytest.mark.parametrize(("target", "words"), [("host", True), ("onnxruntime", False), ("tflite", False)])
def test_sums_read_16_bits_only_where_they_are_fused(tmp_path: Path, target: str, words: bool) -> None:
    model, samples = residual(tmp_path)
    options = {"quantize": "int8", "calib": samples, "recipe": Recipe(refine=False)}
    output = tmp_path / {"host": "a.so", "onnxruntime": "a.onnx", "tflite": "a.tflite"}[target]
    compiled = edgec.compile(model, target, output, **options)
    quantised = onnx.load(companions(compiled.path)[2])
    assert any(tensor.data_type == onnx.TensorProto.INT16 for tensor in quantised.graph.initializer) == words


def test_weights_take_a_quarter(done: tuple[Path, Any], sample_model: Path, tmp_path: Path) -> None:
    plain = edgec.compile(sample_model, output=tmp_path / "float.so")
    assert done[1]["weights_bytes"] < 0.3 * plain.manifest["weights_bytes"]


def test_companions_run_anywhere(done: tuple[Path, Any], sample_data: dict[str, np.ndarray]) -> None:
    """The models before and after are valid ONNX that ONNX Runtime runs, and close to each other."""
    outputs = []
    for path in companions(done[0])[1:]:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(np.concatenate([session.run(None, {"image": x[None]})[0] for x in sample_data["image"][:50]]))
    assert (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() >= 0.98
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.1 * np.ptp(outputs[0])


def test_the_same_samples_give_the_same_bytes(
    done: tuple[Path, Any], sample_model: Path, calib: Path, tmp_path: Path
) -> None:
    again = edgec.compile(sample_model, output=tmp_path / "digits.so", quantize="int8", calib=calib)
    assert again.path.read_bytes() == done[0].read_bytes()


def test_an_edited_recipe_is_followed(done: tuple[Path, Any], sample_model: Path, calib: Path, tmp_path: Path) -> None:
    text = companions(done[0])[0].read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if '= "int8"  # Conv' in line)
    edited = tmp_path / "edited.toml"
    edited.write_text(text.replace(first, first.replace("int8", "float")), encoding="utf-8")
    found = edgec.compile(sample_model, output=tmp_path / "d.so", quantize="int8", calib=calib, recipe=edited)
    bits = {layer.name: layer.bits for layer in found.report.quantisation.layers}  # type: ignore[union-attr]
    name = json.loads(first.partition(" = ")[0])
    assert bits[name] == "float" and list(bits.values()).count("int8") > 10


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe(observer="mse", equalise=False, rounding="nearest", layers={'a "b"\\c/é': "int16"})
    (tmp_path / "r.toml").write_text(write_recipe(recipe, ()) + '"a \\"b\\"\\\\c/é" = "int16"\n', encoding="utf-8")
    assert read_recipe(tmp_path / "r.toml") == recipe


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("observer = 'best'", "has 'best' for observer; it must be one of auto"),
        ("speed = 3", "has a key 'speed'; the keys are observer"),
        ("refine = 1", "has refine = 1; it must be true or false"),
        ("layers = 1", "must be a table"),
        ("[layers]\nx = 'int4'", "has 'int4' for layer 'x'; it must be one of int8, int16, w4a8,"),
        ("[layers", "cannot be read"),
        ("[layers]\n'/9/Gem' = 'float'", "the model does not have; did you mean '/9/Gemm'?"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    text: str, sentence: str, sample_model: Path, calib: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(text, encoding="utf-8")
    arguments = ["--quantize", "int8", "--calib", calib, "--recipe", tmp_path / "r.toml", "-o", tmp_path / "d.so"]
    assert sentence in sentence_of("compile", sample_model, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.toml"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--quantize int8", "give some tens of typical inputs with --calib"),
        ("--quantize int4 --calib CALIB", "--quantize int4 is not known; it can be none, int8"),
        ("--calib CALIB", "--calib is for --quantize MODE and --prune"),
        ("--max-drop 1", "--max-drop is for a quantisation"),
        ("--eval CALIB", "--eval is for a quantisation"),
        ("--quantize int8 --calib CALIB --max-drop -1", "no number of points from 0 to 100"),
        ("--quantize int8 --calib missing.npz", "there is no file 'missing.npz'"),
    ],
)
def test_wrong_flags_are_one_sentence(
    flags: str, sentence: str, sample_model: Path, calib: Path, tmp_path: Path
) -> None:
    arguments = [calib if flag == "CALIB" else flag for flag in flags.split()]
    assert sentence in sentence_of("compile", sample_model, *arguments, "-o", tmp_path / "d.so")
    assert not list(tmp_path.iterdir())


def test_a_quantised_model_is_not_quantised_again(done: tuple[Path, Any], calib: Path, tmp_path: Path) -> None:
    arguments = ["--quantize", "int8", "--calib", calib, "-o", tmp_path / "d.so"]
    assert "is quantised already" in sentence_of("compile", companions(done[0])[2], *arguments)


def test_a_quantised_model_compiles_to_the_same(done: tuple[Path, Any], tmp_path: Path) -> None:
    """The QDQ model beside the artifact, compiled as one from another tool."""
    again = edgec.compile(companions(done[0])[2], output=tmp_path / "again.so")
    image = np.random.default_rng(0).uniform(0, 255, (1, 1, 8, 8)).astype(np.float32)
    with edgec.load(again.path) as one, edgec.load(done[0]) as other:
        np.testing.assert_array_equal(one.run({"image": image})["logits"], other.run({"image": image})["logits"])


# ---- the guard ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(sample_model: Path, calib: Path) -> Iterator[tuple[Judge, Any, list[dict[str, np.ndarray]]]]:
    """A judge by classes of the float model, the graph, and samples."""
    graph = load_graph(sample_model)
    run(graph, FLOAT)
    with np.load(calib) as data:
        samples = [{"image": image[None]} for image in data["image"][:48]]
    yield Judge.of(graph, samples, None), graph, samples


def test_scores_of_the_float_model(judged: tuple[Judge, Any, Any], sample_data: dict[str, np.ndarray]) -> None:
    judge, graph, _ = judged
    assert judge.float_score == 100 and judge.measure == "expected accuracy, float = 100"
    labelled = [{"image": image[None]} for image in sample_data["image"]]
    by_labels = Judge.of(graph, labelled, sample_data["labels"])
    assert by_labels.float_score == pytest.approx(100 * 446 / 450)
    noisy = [[each[0] * 1.01] for each in judge.wanted]
    assert judge.score(noisy) == 100
    assert judge.score([[-each[0]] for each in judge.wanted]) < 20


class _Spoiled:
    """Quantises, and gives back a model that is useless until given layers have more bits."""

    def __init__(self, graph: Any, samples: Any, layers: dict[str, str]) -> None:
        self.graph, self.samples, self.layers = graph, samples, layers
        self.asked: list[dict[str, str]] = []

    def __call__(self, recipe: Recipe) -> Quantized:
        self.asked.append(dict(recipe.layers))
        found = quantize(self.graph, self.samples, recipe)
        if all(recipe.layers.get(name) in (bits, "float") for name, bits in self.layers.items()):
            return found
        for value in found.model.graph.initializers.values():
            if str(value.name).endswith("_scale") and value.const_value is not None and value.const_value.size == 1:
                value.const_value = type(value.const_value)(np.array(7.0, np.float32), name=str(value.name))
        return found


def _ranked(graph: Any, samples: Any) -> Any:
    def rank(found: Quantized) -> LayerErrors:
        return measure_layers(found.twin, quantize(graph, samples, QUICK).model, samples)

    return rank


@pytest.mark.parametrize("bits", ["int16", "float"])
def test_the_worst_layers_are_put_back(judged: tuple[Judge, Any, Any], bits: str) -> None:
    judge, graph, samples = judged
    recipe = Recipe(rounding="nearest", refine=False, equalise=False)
    worst = measure_layers(graph, quantize(graph, samples, recipe).model, samples).worst_first()
    spoiled = _Spoiled(graph, samples, {worst[0]: bits})

    def rank(_: Quantized) -> LayerErrors:
        return measure_layers(graph, quantize(graph, samples, recipe).model, samples)

    _, guarded = guard(judge, spoiled, recipe, 2.0, worst_put_back(recipe, rank))
    assert guarded.put_back[worst[0]] == bits
    assert guarded.first_score < 90 and guarded.drop <= 2
    assert spoiled.asked[0] == {} and len(spoiled.asked) <= 8


def test_without_a_bound_the_guard_only_measures(judged: tuple[Judge, Any, Any]) -> None:
    judge, graph, samples = judged
    spoiled = _Spoiled(graph, samples, {"nothing": "int16"})
    _, guarded = guard(judge, spoiled, QUICK, None, worst_put_back(QUICK, _ranked(graph, samples)))
    assert len(spoiled.asked) == 1 and not guarded.put_back


def test_a_bound_that_cannot_be_kept_is_refused(judged: tuple[Judge, Any, Any]) -> None:
    judge, graph, samples = judged
    spoiled = _Spoiled(graph, samples, {"nothing": "int16"})
    recipe = Recipe(rounding="nearest", refine=False, equalise=False)

    def rank(_: Quantized) -> LayerErrors:
        return LayerErrors((), 0.0, 1)

    with pytest.raises(EdgecError, match="more than --max-drop 1, even with every layer put back"):
        guard(judge, spoiled, recipe, 1.0, worst_put_back(recipe, rank))


def test_expected_points_are_guarded_without_labels(sample_model: Path, calib: Path, tmp_path: Path) -> None:
    found = edgec.compile(
        sample_model, output=tmp_path / "d.so", quantize="int8", calib=calib, max_drop=2, recipe=QUICK
    )
    guarded = found.report.quantisation.guarded  # type: ignore[union-attr]
    assert guarded is not None and guarded.measure == "expected accuracy, float = 100" and guarded.samples == 50


# ---- diff ---------------------------------------------------------------------------------------------------------


def test_diff_of_an_artifact(done: tuple[Path, Any], sample_model: Path, calib: Path) -> None:
    found = results_of("diff", sample_model, done[0], "--calib", calib)
    layers = {layer["name"]: layer for layer in found["layers"]}
    gemm = layers["/9/Gemm"]
    assert gemm["bits"] == "int8" and 20 < gemm["alone"] < 100 and gemm["clipped"] < 0.05
    assert gemm["accumulated"] == pytest.approx(found["whole"], abs=0.1)
    assert min(gemm["weights_alone"], gemm["activations_alone"]) >= gemm["alone"] - 0.5
    assert 0 < sum(layer["time_share"] or 0 for layer in layers.values()) <= 1
    assert gemm["microseconds"] > 0 and gemm["float_microseconds"] > 0


def test_diff_names_the_layer_that_lost_most(
    done: tuple[Path, Any], sample_model: Path, calib: Path, tmp_path: Path
) -> None:
    """A layer whose weights were spoiled stands out."""
    _, before, after = companions(done[0])
    spoiled = onnx.load(after)
    name = "/4/branches.0/branches.0.0/Conv_weight_quantized"
    tensor = next(each for each in spoiled.graph.initializer if each.name == name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[:, ::2] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    onnx.save(spoiled, tmp_path / "spoiled.onnx")
    found = compare_layers(before, tmp_path / "spoiled.onnx", calib)
    assert "'/4/branches.0/branches.0.0/Conv' lost most" in found.verdict and "its weights" in found.verdict
    result = call("diff", before, tmp_path / "spoiled.onnx", "--calib", calib)
    assert result.exit_code == 0 and "lost most" in result.stdout


def test_diff_refuses_what_does_not_belong_together(
    done: tuple[Path, Any], tiny_model: Path, tiny_artifact: Path, sample_model: Path, calib: Path, tmp_path: Path
) -> None:
    assert "compiled from another model" in sentence_of("diff", tiny_model, done[0], "--calib", calib)
    assert "compile again" in sentence_of("diff", tiny_model, tiny_artifact, "--calib", calib)
    assert "the same names" in sentence_of("diff", sample_model, sample_model, "--calib", calib)
    floats, quantised = (onnx.load(path) for path in companions(done[0])[1:])
    weight = next(each for each in floats.graph.initializer if len(each.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(-8 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(floats, tmp_path / "scaled.onnx")
    onnx.save(quantised, tmp_path / "quantised.onnx")
    found = sentence_of("diff", tmp_path / "scaled.onnx", tmp_path / "quantised.onnx", "--calib", calib)
    assert "differ too much from the float model's" in found


@pytest.mark.parametrize("opset", [18, 21])
def test_8_bit_weights_stay_packed_at_any_opset(opset: int, tmp_path: Path) -> None:
    """A kernel of packed weights needs the blocks of a newer opset, which the model is raised to."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((512, 256)).astype(np.float32)}
    model = graphs.build([node("MatMul", "x w", "y")], {"x": (1, 512)}, ["y"], weights, opset=opset)
    samples = [{"x": generator.standard_normal((1, 512), np.float32)} for _ in range(16)]
    made = edgec.compile(model, output=tmp_path / "m.so", quantize="w8", calib=samples)
    exact = 512 * 256 + 256 * 4
    assert exact <= made.manifest["weights_bytes"] <= 1.03 * exact
    assert onnx.load(companions(made.path)[2]).opset_import[0].version == 21
    with edgec.load(made.path) as session:
        for inputs in samples[:3]:
            wanted = inputs["x"] @ weights["w"]
            np.testing.assert_allclose(session.run(inputs)["y"], wanted, atol=0.02 * np.abs(wanted).max())
