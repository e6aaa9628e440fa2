"""Each algorithm of the quantiser lowers the error that it is there to lower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from edgec.graph import load_graph
from edgec.grid import Grid
from edgec.passes.quantize import Recipe, quantize
from edgec.passes.quantize.channels import trace
from edgec.passes.quantize.emit import Emitted
from edgec.passes.quantize.execution import ModelRunner, NodeRunner
from edgec.passes.quantize.grid import exact_grid, grid_between, round_weights, weight_scales
from edgec.passes.quantize.observers import OBSERVERS, clipped_share, rounding_error
from edgec.passes.quantize.prediction import Prediction
from edgec.passes.quantize.ranges import Ranges
from edgec.passes.quantize.rounding import clip_scales, learn_rounding, output_error, second_moment
from edgec.passes.quantize.statistics import histogram_of, merged
from edgec.passes.quantize.tape import walk
from tests.graphs import build, node
from tests.test_quantize import decibels, outputs, random, samples

SHAPE = (1, 3, 11, 9)


def chain(spread: float = 30.0, clamp: str = "Relu") -> ir.Model:
    """Convolution, clamp, depthwise convolution, clamp, convolution; channels of very different ranges."""
    factors = np.geomspace(1, spread, 8).astype(np.float32)
    clip = ["zero", "six"] if clamp == "Clip" else []
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="first"),
        node(clamp, ["a", *clip], ["c"], name="clamp"),
        node("Conv", ["c", "v"], ["d"], name="depthwise", group=8),
        node(clamp, ["d", *clip], ["e"], name="clamp2"),
        node("Conv", ["e", "u"], ["y"], name="last"),
    ]
    constants = {
        "w": random(8, 3, 3, 3, seed=1) * factors[:, None, None, None] / spread, "b": random(8, seed=2) / spread,
        "v": random(8, 1, 3, 3, seed=3), "u": random(4, 8, 1, 1, seed=4) / factors[None, :, None, None],
    }  # fmt: skip
    bounds = {"zero": np.float32(0), "six": np.float32(6)} if clip else {}
    return load_graph(build(nodes, {"x": SHAPE}, ["y"], {**constants, **bounds}))


def noise(model: ir.Model, recipe: Recipe) -> float:
    """dB of the output on samples that were not calibrated with; nothing is promoted."""
    inputs = samples(SHAPE, 40)
    recipe = replace(recipe, layers={**{str(each.name): "int8" for each in model.graph}, **recipe.layers})
    return decibels(outputs(quantize(model, inputs[:20], recipe).model, inputs[20:]), outputs(model, inputs[20:]))


@pytest.mark.parametrize("clamp", ["Relu", "Clip"])
def test_equalisation_lowers_the_error(clamp: str) -> None:
    plain = Recipe(equalise=False, refine=False)
    assert noise(chain(clamp=clamp), Recipe(refine=False)) > noise(chain(clamp=clamp), plain) + 3


@pytest.mark.parametrize("clamp", ["Relu", "Clip"])
def test_equalisation_keeps_the_float_function(clamp: str) -> None:
    """All layers float: what is left of the quantiser is the equalisation, which then does not take place either."""
    model = chain(clamp=clamp)
    layers = {str(each.name): "float" for each in model.graph}
    found = quantize(model, samples(SHAPE), Recipe(layers=layers)).model
    np.testing.assert_array_equal(outputs(found, samples(SHAPE)), outputs(model, samples(SHAPE)))


def test_channels_are_followed_through_shuffles_and_sums() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="left"),
        node("Conv", ["x", "v"], ["b"], name="right"),
        node("Add", ["a", "b"], ["s"], name="add"),
        node("Concat", ["s", "s"], ["c"], name="concat", axis=1),
        node("Reshape", ["c", "split"], ["r"], name="split"),
        node("Transpose", ["r"], ["t"], name="shuffle", perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "join"], ["j"], name="join"),
        node("Conv", ["j", "u"], ["y"], name="last"),
    ]
    constants = {
        "w": random(2, 3, 1, 1), "v": random(2, 3, 1, 1), "u": random(5, 4, 1, 1),
        "split": np.array([1, 2, 2, 11, 9]), "join": np.array([1, 4, 11, 9]),
    }  # fmt: skip
    found = trace(load_graph(build(nodes, {"x": SHAPE}, ["y"], constants)), {})
    left, right, _ = (found.roots(port.numbers) for port in found.writers)
    np.testing.assert_array_equal(left, right)
    (last,) = found.readers
    np.testing.assert_array_equal(found.roots(last.numbers), np.repeat(left, 2))
    assert left.all()


def test_channels_that_an_output_shows_stay() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"], name="first"), node("Sigmoid", ["a"], ["b"], name="gate"),
             node("Conv", ["a", "u"], ["c"], name="last"), node("Mul", ["b", "c"], ["y"], name="mul")]  # fmt: skip
    constants = {"w": random(4, 3, 1, 1), "u": random(4, 4, 1, 1)}
    found = trace(load_graph(build(nodes, {"x": SHAPE}, ["y"], constants)), {})
    assert not found.roots(found.readers[0].numbers).any()


@pytest.mark.parametrize("depth", [5, 17, 127])
def test_learned_rounding_lowers_the_error_of_the_results(depth: int) -> None:
    rows = random(2, 7, depth)
    patches = random(2, 400, depth, seed=1) + random(2, 400, 1, seed=2)
    moment = second_moment(patches, centred=False)
    scales = np.abs(rows).max(axis=2) / 7
    nearest = np.clip(np.rint(rows / scales[..., None]), -127, 127)
    learned = learn_rounding(rows, scales, moment)
    before, after = (output_error(q * scales[..., None] - rows, moment).sum() for q in (nearest, learned))
    assert after < 0.9 * before
    assert np.abs(learned - rows / scales[..., None]).max() <= 1


def test_clipped_scales_lower_the_error() -> None:
    rows = random(1, 5, 64)
    rows[..., 0] = 8
    moment = second_moment(random(1, 300, 64, seed=1) * np.r_[0.01, np.ones(63)].astype(np.float32), centred=True)
    whole = np.abs(rows).max(axis=2) / 127
    assert (clip_scales(rows, whole, moment) < whole).all()


@pytest.mark.parametrize("rounding", ["learned", "nearest"])
def test_bias_correction_takes_the_mean_error_away(rounding: str) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["a"], name="first"), node("Relu", ["a"], ["y"], name="relu")]
    model = load_graph(build(nodes, {"x": SHAPE}, ["y"], {"w": random(6, 3, 3, 3), "b": np.full(6, 9, np.float32)}))
    inputs = [{"x": np.abs(each["x"]) + 1} for each in samples(SHAPE, 40)]
    means = []
    for correct in (True, False):
        recipe = Recipe(observer="minmax", rounding=rounding, refine=False, correct_bias=correct)
        difference = outputs(quantize(model, inputs[:20], recipe).model, inputs[20:]) - outputs(model, inputs[20:])
        means.append(float(np.abs(difference.mean(axis=(0, 1, 3, 4))).mean()))
    assert means[0] < 0.7 * means[1]


def test_refined_scales_lower_the_distance_of_the_prediction() -> None:
    model, inputs = chain(), samples(SHAPE, 20)
    prediction = Prediction(ModelRunner(model).run_all(inputs))
    rough, fine = (
        quantize(model, inputs, Recipe(observer="minmax", equalise=False, refine=refine)).model
        for refine in (False, True)
    )  # fmt: skip
    distances = [prediction.distance(ModelRunner(each).run_all(inputs)) for each in (rough, fine)]
    assert distances[1] < distances[0]


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_stay_inside_the_range(name: str) -> None:
    values = np.random.default_rng(0).standard_cauchy(20_000).astype(np.float32)
    low, high = OBSERVERS[name](histogram_of(values))
    assert values.min() <= low < 0 < high <= values.max() * (1 + 1e-6)


def test_the_mse_observer_has_the_least_error() -> None:
    values = np.random.default_rng(0).laplace(size=20_000).astype(np.float32)
    histogram = histogram_of(values)
    errors = {name: rounding_error(histogram, grid_between(*find(histogram))) for name, find in OBSERVERS.items()}
    assert errors["mse"] == min(errors.values()) < errors["minmax"]
    grid = grid_between(*OBSERVERS["mse"](histogram))
    assert np.square(grid.round(values) - values).mean() == pytest.approx(errors["mse"], rel=0.1)
    assert clipped_share(histogram, grid) > 0


def test_merged_histograms_hold_both() -> None:
    whole = merged([histogram_of(random(500)), histogram_of(5 + random(500, seed=1))])
    assert whole.low < 0 and whole.high > 5 and whole.counts.sum() == pytest.approx(2)


def test_grids_hold_zero_exactly() -> None:
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (2.0, 7.0), (-4.0, -1.0), (0.0, 0.0)):
        grid = grid_between(low, high)
        assert grid.round(np.zeros(1)) == 0 and -128 <= grid.zero <= 127
        ends = np.array([min(low, 0), max(high, 0)])
        assert np.abs(grid.round(ends) - ends).max() <= grid.scale
    assert grid_between(0, 6).zero == -128
    assert grid_between(-2, 1, 16) == Grid(float(np.float32(2 / 32767)), 0, "int16")


def test_exact_grids_are_found_for_pixels_only() -> None:
    pixels = np.arange(256, dtype=np.float32)
    assert exact_grid(pixels) == Grid(1.0, -128)
    assert exact_grid(pixels / 255) == Grid(float(np.float32(1 / 255)), -128)
    assert exact_grid(np.sort(random(200))) is None
    assert exact_grid(np.zeros(1, np.float32)) is None


def test_weights_round_within_half_a_step() -> None:
    weight = random(6, 5, 3, 3)
    weight[2] = 0
    for axis in (0, 1):
        found = round_weights(weight, weight_scales(weight, axis), axis)
        step = np.expand_dims(found.scales, tuple(i for i in range(4) if i != axis))
        assert (np.abs(found.dequantise() - weight) <= step * 0.5001).all() and np.abs(found.values).max() == 127


def deep() -> ir.Model:
    """Twelve convolutions, each of which reads what the one before has left of few large values and many small ones."""
    generator = np.random.default_rng(4)
    nodes, constants, value = [], {}, "x"
    for index in range(12):
        weight = generator.standard_normal((6, 6, 3, 3)) * np.geomspace(0.02, 1, 6)[:, None, None, None] / 3
        constants[f"w{index}"] = weight.astype(np.float32)
        nodes += [node("Conv", [value, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1]),
                  node("LeakyRelu", [f"c{index}"], [f"r{index}"], name=f"relu{index}", alpha=0.1)]  # fmt: skip
        value = f"r{index}"
    nodes[-1].output[0] = "y"
    return load_graph(build(nodes, {"x": (1, 6, 12, 12)}, ["y"], constants))


def deep_samples(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(5)
    return [{"x": (generator.standard_normal((1, 6, 12, 12)) ** 3).astype(np.float32)} for _ in range(count)]


def test_layers_of_a_map_get_16_bits_until_its_noise_is_low() -> None:
    found = quantize(deep(), deep_samples(12), Recipe(refine=False, equalise=False))
    assert found.lifted is not None and found.lifted.after > found.lifted.before + 3
    wide = [layer.name for layer in found.layers if layer.bits == "int16"]
    assert len(wide) == found.lifted.layers > 0 and f"{found.lifted.layers} layers read 16 bits" in str(found)
    kept = {layer.name: "int8" for layer in found.layers}
    assert quantize(deep(), deep_samples(12), Recipe(refine=False, equalise=False, layers=kept)).lifted is None


def rough_weights() -> ir.Model:
    """A 1x1 convolution whose small weights lie below the step that its largest one asks for, and much other work."""
    rough = 0.004 * random(4, 16, 1, 1, seed=7)
    rough[:, 0] = 1.0
    nodes = [node("Conv", ["x", "w"], ["c"], name="wide", pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"], name="relu"),
             node("Mul", ["r", "mask"], ["m"], name="mask"),
             node("Conv", ["m", "u"], ["y"], name="rough")]  # fmt: skip
    mask = np.ones((16, 1, 1), np.float32)
    mask[0] = 1e-3
    constants = {"w": random(16, 6, 3, 3, seed=6), "u": rough, "mask": mask}
    return load_graph(build(nodes, {"x": (1, 6, 12, 12)}, ["y"], constants))


def test_a_small_product_stays_float_where_its_weights_make_the_noise() -> None:
    found = quantize(rough_weights(), deep_samples(12), Recipe(refine=False, equalise=False))
    assert found.lifted is not None and found.lifted.floats == ("rough",)
    assert {layer.name: layer.bits for layer in found.layers}["rough"] == "float"
    assert "1 stay float (rough)" in str(found) and found.lifted.after > found.lifted.before + 3


def test_a_refinement_that_does_worse_on_other_samples_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def coarse(model: ir.Model, emitted: Emitted, ranges: Ranges, *others: object) -> Ranges:
        return {key: replace(each, grid=replace(each.grid, scale=4 * each.grid.scale)) for key, each in ranges.items()}

    inputs = samples(SHAPE, 12)
    plain = quantize(chain(), inputs, Recipe(refine=False)).layers
    monkeypatch.setattr("edgec.passes.quantize.refine", coarse)
    assert quantize(chain(), inputs, Recipe()).layers != plain  # all samples had a part in it
    monkeypatch.setattr("edgec.passes.quantize.unseen", lambda model, ranges, samples: samples[:6])
    assert quantize(chain(), inputs, Recipe()).layers == plain


def test_what_hangs_on_constants_alone_is_the_same_for_every_sample() -> None:
    """Too large to be folded, and so still there when samples walk through the model."""
    nodes = [node("Expand", ["c", "wide"], ["e"]), node("ReduceMax", ["e"], ["m"], keepdims=0),
             node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "m"], ["y"])]  # fmt: skip
    constants = {"c": random(1, 1), "wide": np.array([1, 3]), "w": random(16, 8)}
    model = load_graph(build(nodes, {"x": [1, 16]}, ["y"], constants))
    given = [{"x": random(1, 16, seed=index)} for index in range(5)]
    visits = list(walk(model, NodeRunner(model), given, None))
    assert [len(visit.inputs) for visit in visits] == [0, 1, 1, 2]
    np.testing.assert_allclose(visits[-1].outputs[0], np.stack(outputs(model, given)), rtol=1e-5)
