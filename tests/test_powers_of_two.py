"""Weights that are sums of few powers of two: rounding, fit, the command, and what an FPGA makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.graph import load_graph
from edgec.passes.pipeline import run as run_passes
from edgec.passes.quantize.grid import nearest_sum
from edgec.passes.quantize.rounding import learn_sums, output_error
from edgec.quantisation.quantise import companions
from edgec.targets.fpga.layers import WeightedLayer, signed_digits
from edgec.targets.fpga.network import read_network
from tests.test_cli import results_of, sentence_of


def terms_of(weights: np.ndarray) -> int:
    """Signed powers of two of the weight with most of them."""
    return int(np.abs(signed_digits(weights)).sum(-1).max())


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_rounding_finds_the_nearest_sum(terms: int) -> None:
    every = np.arange(-127, 128)
    sums = every[np.abs(signed_digits(every)).sum(-1) <= terms]
    steps = np.random.default_rng(terms).uniform(-140, 140, 1000)
    found = nearest_sum(terms)(steps)
    np.testing.assert_array_equal(np.abs(found - steps), np.abs(sums[:, None] - steps).min(axis=0))
    assert set(found) <= set(sums) and (terms < 4 or len(sums) == 255)


def test_fit_costs_less_than_rounding() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((400, 60)) @ generator.standard_normal((60, 60))
    moment = (x.T @ x / len(x) + np.eye(60))[None]
    rows = generator.standard_normal((1, 17, 60)).astype(np.float32)
    scales = np.abs(rows).max(axis=2) / 127
    for terms, share in ((1, 0.5), (2, 0.5)):
        nearest = nearest_sum(terms)
        found = learn_sums(rows, scales, moment, nearest)
        assert terms_of(found) <= terms
        rounded = nearest(rows / scales[..., None])
        errors = [output_error(each * scales[..., None] - rows, moment).sum() for each in (found, rounded)]
        assert errors[0] < share * errors[1]


@pytest.mark.parametrize(("mode", "terms", "least"), [("p2", 2, 98.5), ("p1", 1, 95.0)])
def test_command_keeps_the_accuracy(
    mode: str, terms: int, least: float, sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Float is right on 99.1 %. Every weight is such a sum, depthwise ones too, and an FPGA shifts and adds."""
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    printed = results_of("compile", sample_model, "--quantize", mode, "--calib", calib, "-o", output)
    assert mode in {layer["bits"] for layer in printed["quantisation"]["layers"]}
    twin = companions(output)[2]
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(twin).graph.initializer}
    weights = [array for name, array in arrays.items() if name.endswith("_weight_quantized")]
    assert len(weights) == 9 and all(terms_of(each) <= terms for each in weights)
    with edgec.load(output) as session:
        found = [session.run({"image": image[None]})["logits"].argmax() for image in sample_data["image"]]
    assert 100 * np.mean(np.array(found) == sample_data["labels"]) >= least
    graph = load_graph(twin)
    run_passes(graph)
    layers = [layer for layer in read_network(graph, "digits").layers if isinstance(layer, WeightedLayer)]
    assert layers and all(layer.weight_terms <= terms for layer in layers)


def test_layers_mix_and_the_recipe_is_kept(sample_model: Path, tmp_path: Path) -> None:
    calib, output, recipe = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so", tmp_path / "r.toml"
    recipe.write_text('[layers]\n"/9/Gemm" = "p1"\n')
    given = ["--quantize", "p2", "--calib", calib, "--recipe", recipe, "-o", output]
    printed = results_of("compile", sample_model, *given)
    bits = {layer["name"]: layer["bits"] for layer in printed["quantisation"]["layers"]}
    assert bits["/9/Gemm"] == "p1" and "p2" in bits.values()
    assert '"/9/Gemm" = "p1"' in companions(output)[0].read_text()


def test_unknown_modes_are_a_sentence(sample_model: Path, tmp_path: Path) -> None:
    said = sentence_of("compile", sample_model, "--quantize", "p3", "--calib", "c.npz", "-o", tmp_path / "x.so")
    assert "--quantize p3 is not known" in said and "p2, p1" in said
