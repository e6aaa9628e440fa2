"""Inputs and outputs as integers: the bits of the model with floats, what the manifest says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.data.samples import TensorSpec, load_npz, specs
from edgec.errors import EdgecError
from edgec.format.manifest import manifest_text, parse_manifest
from edgec.graph import load_graph
from edgec.passes.integer_edges import edge_grids, make_edges_integers
from edgec.quantisation.quantise import companions
from tests.programs import program_of, run_reference
from tests.quantised import Graph
from tests.test_cli import call, results_of, sentence_of


def network(dtype: str = "int8") -> onnx.ModelProto:
    """Two quantised inputs, one of them read twice; a convolution that ends quantised, and a softmax in floats."""
    graph = Graph(dtype, seed=3)
    x, other = graph.input(1, 3, 7, 5), graph.input(1, 4, 5, 3)
    y = graph.pair(graph.add("Conv", f"{x} {graph.weights(4, 3, 3, 3)}"), 0.2)
    total = graph.pair(graph.add("Add", f"{y} {other}"), 0.2)
    mean = graph.pair(graph.add("GlobalAveragePool", x), 0.01)
    return graph.build(total, graph.add("Softmax", mean, axis=1))


def on_grid(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Integers as what they stand for."""
    return (array.astype(np.float32) - np.float32(spec.zero_point)) * np.float32(spec.scale)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_integers_at_the_edges_are_the_models_own(tmp_path: Path, dtype: str) -> None:
    model = network(dtype)
    floats = edgec.compile(model, "host", tmp_path / "floats.so").path
    compiled = edgec.compile(model, "host", tmp_path / "integers.so", integer_io=True)
    inputs, results = specs(compiled.manifest["inputs"]), specs(compiled.manifest["outputs"])
    assert {str(spec.dtype) for spec in inputs} == {dtype}
    assert [str(spec.dtype) for spec in results] == [dtype, "float32"] and results[0].scale and not results[1].scale
    values = {spec.name: np.random.default_rng(1).normal(size=spec.shape).astype(np.float32) for spec in inputs}
    with edgec.load(floats) as session, edgec.load(compiled.path) as other:
        wanted = session.run(values)
        found = other.run({spec.name: spec.integers(values[spec.name]) for spec in inputs})
    assert list(found) == list(wanted)
    for spec in results:
        real = on_grid(spec, found[spec.name]) if spec.scale else found[spec.name]
        np.testing.assert_array_equal(real, wanted[spec.name])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_an_input_is_quantised_as_the_kernels_do(dtype: str) -> None:
    """NaN becomes the least integer, and infinities the ends; by a caller, and by a model's QuantizeLinear."""
    limits = np.iinfo(dtype)
    step = 0.1 if limits.bits == 8 else 0.1 / 256
    real = np.array([np.nan, -np.inf, np.inf, 0, 0.5, 1.5, -1e9, 1e9], np.float32) * np.float32(step)
    middle = limits.min + 2 ** (limits.bits - 1)
    wanted = [limits.min, limits.min, limits.max, middle, middle, middle + 2, limits.min, limits.max]
    spec = TensorSpec("x", (8,), np.dtype(dtype), step, middle)
    np.testing.assert_array_equal(spec.integers(real), np.array(wanted, dtype))
    graph = Graph(dtype)
    graph.input(8, scale=0.1, zero=middle)
    program = program_of(graph.build("x0_q"))
    np.testing.assert_array_equal(run_reference(program, {"x0": real})["x0_q"], np.array(wanted, dtype))


def test_what_stays_as_it_is() -> None:
    """Nothing to change in a model that has integers there already; their grids are known all the same."""
    graph = load_graph(network())
    assert make_edges_integers(graph) == 3
    grids = edge_grids(graph)
    assert len(grids) == 3 and make_edges_integers(graph) == 0 and edge_grids(graph) == grids


def test_the_commands_quantise_floats_of_a_file(sample_model: Path, tmp_path: Path) -> None:
    data, calib = (sample_model.with_name(f"digits_{name}.npz") for name in ("eval", "calib"))
    path = tmp_path / "digits.so"
    flags = ("--quantize", "int8", "--calib", calib, "--integer-io")
    assert call("compile", sample_model, *flags, "-o", path).exit_code == 0
    assert read_manifest(path)["inputs"][0]["dtype"] == "int8"
    assert results_of("eval", path, "--data", data)["top1"] > 0.98
    (spec,) = specs(read_manifest(path)["inputs"])
    with np.load(data) as arrays:
        np.savez(tmp_path / "integers.npz", image=spec.integers(arrays["image"]), labels=arrays["labels"])
        np.savez(tmp_path / "nan.npz", image=np.where(arrays["image"] > 15, np.float32("nan"), arrays["image"]))
    found = results_of("eval", path, "--data", tmp_path / "integers.npz", "--reference", sample_model)
    assert found["top1"] > 0.98 and found["agreement"]["relative_error"]["logits"] < 0.05
    flags = ("--against", "onnxruntime", "--model", companions(path)[2], "--input", data, "--rounds", 2)
    assert all(timing["agrees"] for timing in results_of("bench", path, *flags)["timings"])
    assert results_of("diff", sample_model, path, "--calib", calib)["whole"] > 30
    with pytest.raises(EdgecError, match="NaN values"):
        load_npz(tmp_path / "nan.npz", [spec])


def test_mistakes_end_in_a_sentence(sample_model: Path, tmp_path: Path) -> None:
    flags = ("compile", sample_model, "--integer-io", "-o", tmp_path / "m.so")
    assert "quantises none of them; add --quantize int8" in sentence_of(*flags)
    assert "cortex" not in sentence_of(*flags[:-1], tmp_path / "board", "--target", "pynq-z2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", ["0.1", None, float("inf"), True])
def test_a_manifest_with_another_scale_is_damaged(tmp_path: Path, scale: object) -> None:
    manifest = edgec.compile(network(), "host", tmp_path / "m.so", integer_io=True).manifest
    text = json.loads(manifest_text(manifest))
    text["inputs"][0]["scale"] = scale
    with pytest.raises(ValueError, match="scale is no number"):
        parse_manifest(json.dumps(text).encode())
