"""Layers that keep weights of 8 bits where 4 would cost most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import pytest

import edgec.passes.quantize as package
from edgec.graph import load_graph
from edgec.passes.quantize import Quantized, Recipe, quantize
from edgec.passes.quantize.products import product_of
from tests import graphs
from tests.operators import node
from tests.test_cli import results_of, sentence_of

SIZES = {"first": 64, "second": 48, "third": 64}


@pytest.fixture(scope="module")
def network() -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """Three products; the rows of the second have a large weight each, which leave the others few steps of 4 bits."""
    generator = np.random.default_rng(5)
    constants, width = {}, 64
    for name, outputs in SIZES.items():
        constants[name] = (generator.standard_normal((outputs, width)) / np.sqrt(width)).astype(np.float32)
        width = outputs
    constants["second"][:, 0] *= 30
    biases = {f"{name}_bias": np.zeros(outputs, np.float32) for name, outputs in SIZES.items()}
    nodes = [
        node("Gemm", "x first first_bias", "a", transB=1, name="gemm1"),
        node("Gemm", "a second second_bias", "b", transB=1, name="gemm2"),
        node("Gemm", "b third third_bias", "y", transB=1, name="gemm3"),
    ]
    model = graphs.build(nodes, {"x": (4, 64)}, ["y"], {**constants, **biases}, opset=21)
    samples = [{"x": generator.standard_normal((4, 64), np.float32)} for _ in range(24)]
    return load_graph(model), samples


def quantised(
    network: tuple[ir.Model, list[dict[str, np.ndarray]]], keep: float | Literal["auto"], **layers: str
) -> Quantized:
    model, samples = network
    return quantize(model, samples, Recipe(default="w4a8", factors=False, keep=keep, equalise=False, layers=layers))


def test_the_layer_that_loses_most_a_weight_keeps_eight_bits(
    network: tuple[ir.Model, list[dict[str, np.ndarray]]],
) -> None:
    found = quantised(network, 0.4)
    assert found.kept == ("gemm2",)
    assert {layer.name: layer.bits for layer in found.layers} == {"gemm1": "w4a8", "gemm2": "int8", "gemm3": "w4a8"}


def test_no_more_than_the_share_is_kept(network: tuple[ir.Model, list[dict[str, np.ndarray]]]) -> None:
    model, _ = network
    sizes = {str(each.name): product.weight.size for each in model.graph if (product := product_of(each)) is not None}
    for share in (0.0, 0.1, 0.5, 1.0):
        kept = quantised(network, share).kept
        assert sum(sizes[name] for name in kept) <= share * sum(sizes.values())
    assert set(kept) == set(sizes)


def test_auto_keeps_what_the_prediction_needs(network: tuple[ir.Model, list[dict[str, np.ndarray]]]) -> None:
    """The one with the large weights, which loses most by far; and none where four bits are exact."""
    assert quantised(network, "auto").kept == ("gemm2",)
    model, samples = network
    exact = model.clone()
    for each in exact.graph:
        product = product_of(each)
        assert product is not None
        steps = np.clip(np.rint(product.weight * 16), -7, 7)
        steps[:, 0] = 7
        product.set_weight((steps / 16).astype(np.float32), exact.graph)
    assert quantised((exact, samples), "auto").kept == ()


def test_layers_are_judged_by_samples_that_they_were_not_fitted_to(
    network: tuple[ir.Model, list[dict[str, np.ndarray]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is shipped is learned from all of them."""
    learned: list[list[int]] = []
    judged: list[int] = []

    def learn(model: ir.Model, placement: Any, ranges: Any, samples: Sequence[Any], *rest: Any) -> Any:
        learned.append([id(each) for each in samples])
        return whole_learn(model, placement, ranges, samples, *rest)

    def salient(model: ir.Model, fits: Any, samples: Sequence[Any], *rest: Any) -> Any:
        judged.extend(id(each) for each in samples)
        return whole_salient(model, fits, samples, *rest)

    whole_learn, whole_salient = package.learn, package.salient
    monkeypatch.setattr(package, "learn", learn)
    monkeypatch.setattr(package, "salient", salient)
    quantised(network, "auto")
    everyone = {id(each) for each in network[1]}
    assert set(judged) | set(learned[0]) == everyone and not set(judged) & set(learned[0])
    assert len(judged) == len(everyone) / 4 and set(learned[-1]) == everyone


@pytest.mark.parametrize("before", ["w4a8", "int8"])
def test_bias_behind_few_bits_takes_up_its_own_rounding_only(before: str) -> None:
    """Of which there is none where 8 bits are exact: what the samples show is the noise of the layer before."""
    generator = np.random.default_rng(7)
    first = generator.standard_normal((48, 64)).astype(np.float32)
    second = generator.integers(-127, 128, (32, 48)).astype(np.float32) / 1024
    second[:, 0] = 127 / 1024
    biases = {"first_bias": np.zeros(48, np.float32), "second_bias": np.zeros(32, np.float32)}
    nodes = [
        node("Gemm", "x first first_bias", "a", transB=1, name="gemm1"),
        node("Relu", "a", "b", name="relu"),
        node("Gemm", "b second second_bias", "y", transB=1, name="gemm2"),
    ]
    model = graphs.build(nodes, {"x": (4, 64)}, ["y"], {"first": first, "second": second, **biases}, opset=21)
    samples = [{"x": generator.standard_normal((4, 64), np.float32)} for _ in range(24)]
    recipe = Recipe(observer="mse", equalise=False, refine=False, layers={"gemm1": before})
    found = quantize(load_graph(model), samples, recipe).model.graph.initializers["gemm2_bias_quantized"]
    assert found.const_value is not None
    assert found.const_value.numpy().any() == (before == "int8")


def test_named_layers_are_left_alone(network: tuple[ir.Model, list[dict[str, np.ndarray]]]) -> None:
    found = quantised(network, 0.7, gemm2="w4a8")
    assert "gemm2" not in found.kept
    assert next(layer.bits for layer in found.layers if layer.name == "gemm2") == "w4a8"


def test_command_names_them(sample_model: Path, tmp_path: Path) -> None:
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    share = tmp_path / "share.toml"
    share.write_text("keep = 0.1\n")
    printed = results_of(
        "compile", sample_model, "--quantize", "w4a8", "--calib", calib, "--recipe", share, "-o", output
    )
    kept = printed["quantisation"]["kept"]
    bits = {layer["name"]: layer["bits"] for layer in printed["quantisation"]["layers"]}
    assert kept and all(bits[name] == "int8" for name in kept) and "w4a8" in bits.values()
    recipe = output.with_name("digits.so.recipe.toml")
    again = results_of(
        "compile", sample_model, "--quantize", "w4a8", "--calib", calib, "--recipe", recipe, "-o", tmp_path / "again.so"
    )
    assert again["quantisation"]["kept"] == [] and again["weights_bytes"] == printed["weights_bytes"]


@pytest.mark.parametrize(("keep", "shown"), [("2", "2"), ("true", "True"), ("'most'", "'most'")])
def test_wrong_share_is_a_sentence(keep: str, shown: str, sample_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"keep = {keep}\n")
    calib = sample_model.with_name("digits_calib.npz")
    said = sentence_of(
        "compile", sample_model, "--quantize", "w4a8", "--calib", calib, "--recipe", recipe, "-o", tmp_path / "x.so"
    )
    assert f"keep = {shown}" in said and "share from 0 to 1" in said
