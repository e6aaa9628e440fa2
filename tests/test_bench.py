"""Benchmarks, evaluations and inspections as Python calls."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import edgec
from edgec.benchmark import Benchmark, Timing, bench, peer_files, random_inputs
from edgec.data.samples import TensorSpec
from edgec.devices.machine import Machine, observed
from edgec.errors import EdgecError
from edgec.evaluation import classes, evaluate, relative_error
from edgec.inspection import buffer_letter, draw_memory, inspect_artifact, inspect_model
from edgec.runtimes.peers import PEERS, open_peer, static_shape
from edgec.runtimes.peers.conversion import prepare
from tests.programs import model

PACKAGES = {"litert": "ai_edge_litert", "mnn": "MNN"}
"""What peers import, where it is not their name."""


def require(name: str) -> None:
    """Skip the test where the runtime, or what converts models for it, is not installed."""
    pytest.importorskip(PACKAGES.get(name, name), reason=f"{name} is not installed: {PEERS[name]}")
    if name == "ncnn" and find_spec("pnnx") is None:
        pytest.skip(f"pnnx is not installed: {PEERS[name]}")


# ---- bench --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_contenders_are_measured_and_compared(tiny_artifact, tiny_model, threads):
    measured = bench(tiny_artifact, against=["onnxruntime"], model=tiny_model, threads=threads, rounds=3, profile=True)
    ours, theirs = measured.timings
    assert (ours.name, theirs.name, ours.ratio, measured.threads) == ("edgec", "onnxruntime", 1.0, threads)
    for timing in measured.timings:
        assert 0 < timing.min_ms <= timing.median_ms <= timing.p95_ms and timing.calls >= 3
        assert timing.relative_error < 1e-5
    assert theirs.ratio == pytest.approx(theirs.min_ms / ours.min_ms)
    assert sum(step.macs for step in measured.steps) == 5 * 3 * 5 * 27 + 75 * 4
    assert {step.calls for step in measured.steps} == {3}
    assert measured.machine.cores >= 1


@pytest.mark.parametrize("name", ["openvino", "mnn", "ncnn"])
def test_other_runtimes_agree(tiny_artifact, tiny_model, name):
    require(name)
    measured = bench(tiny_artifact, against=[name], model=tiny_model, rounds=1)
    assert measured.timings[1].relative_error < 1e-5 and measured.timings[1].agrees


@pytest.mark.parametrize(
    ("file", "tolerance"), [("pretrainedResnet.tflite", 1e-5), ("pretrainedResnet_quant.tflite", 0.1)]
)
def test_litert_runs_its_own_file(shared, tmp_path, file, tolerance):
    require("litert")
    folder = shared / "models" / "resnet8"
    model = folder / "resnet8_cifar10.onnx"
    artifact = edgec.compile(model, "host", tmp_path / "m.so", shapes={"input": (1, 3, 32, 32)}).path
    with np.load(shared / "data" / "cifar10_train.npz") as data:
        np.savez(tmp_path / "x.npz", input=data["images"][:1].transpose(0, 3, 1, 2).astype(np.float32))
    measured = bench(
        artifact, against=["litert"], model=model, peer_models={"litert": folder / file},
        inputs=tmp_path / "x.npz", rounds=1,
    )  # fmt: skip
    assert measured.timings[1].relative_error < tolerance


def test_litert_asks_for_its_own_file(tiny_model):
    require("litert")
    with pytest.raises(EdgecError, match=r"litert runs \.tflite files .*--peer-model litert=FILE\.tflite"):
        open_peer("litert", tiny_model, shapes={"x": (1, 3, 7, 5)})


def test_a_ratio_is_to_the_fastest_peer():
    def timing(name: str, ms: float, error: float = 0.0) -> Timing:
        return Timing(name, "1.0", 3, ms, ms, ms, ms / 2, error, error < 1e-3)

    machine = Machine(None, 2, None, None)
    measured = Benchmark(1, 3, machine, (timing("edgec", 2), timing("a", 4), timing("b", 3, 0.5)), ())
    assert measured.ratio == measured.as_dict()["ratio"] == pytest.approx(2 / 3)
    assert Benchmark(1, 3, machine, (timing("edgec", 2),), ()).ratio is None
    lines = measured.markdown().splitlines()
    assert lines[0] == "|  | version | min ms | median ms | p95 ms | × edgec | error |"
    assert lines[-2:] == [
        "| a | 1.0 | 4.000 | 4.000 | 4.000 | 2.00 | 0.0e+00 |",
        "| b * | 1.0 | 3.000 | 3.000 | 3.000 | 1.50 | 5.0e-01 |",
    ]


def test_the_machine_is_observed():
    with observed() as observation:
        sum(range(100_000))
    machine = observation.machine
    assert machine.cores >= 1 and (machine.others is None or 0 <= machine.others <= 1)


def test_the_input_may_be_given(tiny_artifact, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 7, 5), np.float32))
    assert bench(tiny_artifact, inputs=tmp_path / "x.npz", rounds=1).timings[0].calls >= 1


def test_random_inputs_follow_the_seed_and_the_dtype():
    inputs = [TensorSpec(name, (7, 5), np.dtype(name)) for name in ("float32", "float16", "int8", "int64", "bool")]
    first, second, other = (random_inputs(inputs, seed) for seed in (0, 0, 1))
    for spec in inputs:
        assert first[spec.name].dtype == spec.dtype and first[spec.name].shape == spec.shape
        np.testing.assert_array_equal(first[spec.name], second[spec.name])
    assert not np.array_equal(first["float32"], other["float32"])
    assert first["int8"].min() < -50 and set(first["int64"].ravel()) == {0, 1}


def test_what_cannot_be_measured_is_refused(tiny_artifact, tiny_model, sample_model):
    with pytest.raises(EdgecError, match="an emulator's time is not a device's latency"):
        bench(tiny_artifact, device="qemu")
    with pytest.raises(EdgecError, match=r"add --model MODEL\.onnx"):
        bench(tiny_artifact, against=["onnxruntime"])
    with pytest.raises(EdgecError, match=r"no runtime 'tflite'.*onnxruntime, openvino"):
        bench(tiny_artifact, against=["tflite"], model=tiny_model)
    with pytest.raises(EdgecError, match="names 'litert', which is not in --against"):
        bench(tiny_artifact, against=["onnxruntime"], model=tiny_model, peer_models={"litert": tiny_model})
    with pytest.raises(EdgecError, match=r"takes NAME=FILE, such as litert=model\.tflite, and not 'litert'"):
        peer_files(["litert"])
    with pytest.raises(EdgecError, match="at least one round"):
        bench(tiny_artifact, rounds=0)
    with pytest.raises(EdgecError, match=r"the model's inputs are|which the artifact lacks"):
        bench(tiny_artifact, against=["onnxruntime"], model=sample_model)


def test_a_peer_that_is_not_installed_is_named(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "edgec.runtimes.peers.openvino", raising=False)
    with pytest.raises(EdgecError, match=r"openvino cannot be imported.*pip install 'edgec\[peers\]'"):
        open_peer("openvino", tiny_model)


# ---- peers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "mnn"])
def test_a_peer_runs_a_pinned_model_and_refuses_a_dynamic_one(name, tmp_path):
    require(name)
    path = tmp_path / "dynamic.onnx"
    onnx.save(model([helper.make_node("Neg", ["x"], ["y"])], {"x": ("N", 5)}, {"y": ("N", 5)}), path)
    peer = open_peer(name, path, shapes={"x": (7, 5)})
    values = np.random.default_rng(0).standard_normal((7, 5), np.float32)
    peer.bind({"x": values})
    peer.invoke()
    assert (peer.inputs, peer.output_names) == ((TensorSpec("x", (7, 5), np.dtype("float32")),), ("y",))
    np.testing.assert_array_equal(peer.outputs()[0], -values)
    with pytest.raises(EdgecError, match=r"dynamic shape \?x5; pin it with --shape x=1x5"):
        open_peer(name, path)
    with pytest.raises(EdgecError, match="--shape names 'z'"):
        open_peer(name, path, shapes={"x": (1, 5), "z": (1,)})


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_refuses_what_is_no_model(name, tmp_path):
    require(name)
    path = tmp_path / ("broken.tflite" if name == "litert" else "broken.onnx")
    path.write_bytes(b"no model")
    with pytest.raises(EdgecError, match=f"{name} cannot load"):
        open_peer(name, path)
    with pytest.raises(EdgecError, match="there is no file"):
        open_peer(name, tmp_path / "absent.onnx")


def test_ncnn_takes_one_sample_at_a_time(tmp_path):
    require("ncnn")
    path = tmp_path / "two.onnx"
    onnx.save(model([helper.make_node("Neg", ["x"], ["y"])], {"x": (2, 5)}, {"y": (2, 5)}), path)
    with pytest.raises(EdgecError, match="ncnn takes one sample of float32 at a time"):
        open_peer("ncnn", path)


def test_ncnn_says_what_converts_its_models(tiny_model, monkeypatch):
    require("ncnn")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EdgecError, match="run: pip install --no-deps pnnx"):
        open_peer("ncnn", tiny_model)


def test_bounds_of_shape_one_become_scalars(tmp_path):
    weights = {"low": np.float32([0]), "high": np.float32([6])}
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["y"])]
    path = tmp_path / "clip.onnx"
    onnx.save(model(nodes, {"x": (1, 5)}, {"y": (1, 5)}, weights), path)
    (tmp_path / "out").mkdir()
    prepared = prepare(path, {}, tmp_path / "out", "mnn")
    assert [list(tensor.dims) for tensor in onnx.load(prepared.path).graph.initializer] == [[], []]
    assert prepared.inputs == (TensorSpec("x", (1, 5), np.dtype("float32")),)


def test_pinned_shapes_must_agree_with_the_model():
    assert static_shape("x", ("N", 3, -1), {"x": (7, 3, 5)}) == (7, 3, 5)
    with pytest.raises(EdgecError, match=r"x=7x5x5 contradicts .* \?x3x\?"):
        static_shape("x", ("N", 3, -1), {"x": (7, 5, 5)})


# ---- eval ---------------------------------------------------------------------------------------------------


def save(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def tiny_samples(count: int = 17) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, 7, 5), np.float32)


@pytest.fixture(scope="module")
def predicted(tiny_model: Path) -> np.ndarray:
    """The class ONNX Runtime gives each of the tiny samples."""
    peer, found = open_peer("onnxruntime", tiny_model), []
    for each in tiny_samples():
        peer.bind({"x": each[None]})
        peer.invoke()
        found.append(int(peer.outputs()[0].argmax()))
    return np.array(found)


def test_accuracy_counts_the_labels_that_are_met(tiny_artifact, tiny_model, predicted, tmp_path):
    labels = predicted.copy()
    labels[:4] = (labels[:4] + 1) % 4
    data = save(tmp_path, x=tiny_samples(), labels=labels)
    for path in (tiny_artifact, tiny_model):
        found = evaluate(path, data)
        assert (found.samples, found.top1, found.agreement) == (17, 13 / 17, None)
        assert found.ms_per_sample > 0


def test_an_artifact_agrees_with_its_model(tiny_artifact, tiny_model, tmp_path):
    found = evaluate(tiny_artifact, save(tmp_path, x=tiny_samples()), reference=tiny_model)
    assert found.top1 is None and found.agreement.top1 == 1.0
    assert 0 <= found.agreement.relative_error["y"] < 1e-5


def test_an_artifact_is_evaluated_under_the_emulator(emulator, tiny_board_artifact, predicted, tmp_path):
    found = evaluate(tiny_board_artifact, save(tmp_path, x=tiny_samples(), labels=predicted), device=emulator)
    assert (found.top1, found.ms_per_sample) == (1.0, None)


def test_the_sample_model_meets_its_labels(sample_model):
    assert evaluate(sample_model, sample_model.with_name("digits_eval.npz")).top1 > 0.97


def test_images_are_evaluated_with_a_recipe(tiny_model, tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    image.fromarray(np.full((7, 5, 3), 9, np.uint8)).save(folder / "0.png")
    (tmp_path / "recipe.toml").write_text("scale = 0.1")
    (folder / "labels.csv").write_text("file,label\n0.png,0\n")
    found = evaluate(tiny_model, folder, preprocess=tmp_path / "recipe.toml")
    assert found.samples == 1 and found.top1 in (0.0, 1.0)


def test_what_cannot_be_judged_is_refused(tiny_artifact, tiny_model, sample_model, tmp_path):
    data = save(tmp_path, x=tiny_samples(2))
    with pytest.raises(EdgecError, match="no labels to judge by"):
        evaluate(tiny_artifact, data)
    with pytest.raises(EdgecError, match="compile it for --device qemu"):
        evaluate(tiny_model, data, device="qemu")
    with pytest.raises(EdgecError, match="the model's inputs are"):
        evaluate(tiny_artifact, data, reference=sample_model)


def test_relative_error_is_over_the_range():
    assert relative_error(np.float32([1, 2, 5]), np.float32([1, 3, 5])) == 0.25
    assert relative_error(np.float32([3]), np.float32([2])) == 0.5
    assert relative_error(np.float32([1]), np.float32([0])) == 1
    assert relative_error(np.float32([np.nan, 1]), np.float32([np.nan, 1])) == 0
    assert relative_error(np.float32([np.nan, 1]), np.float32([0, 1])) == np.inf
    assert relative_error(np.uint8([0]), np.uint8([255])) == 1
    with pytest.raises(EdgecError, match="shape"):
        relative_error(np.zeros(3), np.zeros(4))


def test_a_class_is_the_largest_value_or_an_integer():
    rows = np.float32([[[0, 2, 1]], [[5, 2, 1]]])
    assert classes(rows, 2).tolist() == [1, 0]
    assert classes(np.int64([[3], [7]]), 2).tolist() == [3, 7]
    assert classes(np.float32([[3], [7]]), 2) is None


# ---- inspect ------------------------------------------------------------------------------------------------


def test_a_model_shows_its_layers(tiny_model):
    found = inspect_model(tiny_model)
    assert [(layer.op, layer.parameters, layer.macs) for layer in found.layers] == [
        ("Conv", 140, 2025), ("Relu", 0, 0), ("Flatten", 0, 0), ("Gemm", 300, 300)
    ]  # fmt: skip
    assert (found.summary.parameters, found.summary.macs, found.refusals) == (440, 2325, ())
    assert [(v.name, v.shape, v.dtype) for v in (*found.inputs, *found.outputs)] == [
        ("x", (1, 3, 7, 5), "float32"), ("y", (1, 4), "float32")
    ]  # fmt: skip


def test_every_node_that_cannot_be_compiled_is_listed(tmp_path):
    nodes = [
        helper.make_node("Bernoulli", ["x"], ["a"], name="one"),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Bernoulli", ["n"], ["b"], name="two"),
    ]
    path = tmp_path / "random.onnx"
    onnx.save(model(nodes, {"x": (2, 3, 3)}, {"a": (2, 3, 3), "b": (2, 3, 3)}), path)
    refused = [(refusal.node, refusal.op) for refusal in inspect_model(path).refusals]
    assert refused == [("one", "Bernoulli"), ("two", "Bernoulli")]


def test_an_artifact_shows_its_manifest_without_being_loaded(tiny_board_artifact):
    manifest = inspect_artifact(tiny_board_artifact)
    assert manifest["target"] == "rpi4" and manifest["artifact_bytes"] == tiny_board_artifact.stat().st_size
    assert sum(step["macs"] for step in manifest["steps"]) == 2325
    assert manifest["arena_bytes"] >= manifest["arena_lower_bound"] > 0


def test_the_drawing_shows_who_lives_where_and_when():
    memory = [
        {"buffer": "a", "offset": 0, "bytes": 128, "first": 0, "last": 1},
        {"buffer": "b", "offset": 128, "bytes": 64, "first": 1, "last": 2},
        {"buffer": "c", "offset": 0, "bytes": 64, "first": 2, "last": 2},
    ]
    plan = {"steps": [{}] * 3, "arena_bytes": 192, "memory": memory}
    assert draw_memory(plan) == ["  0 AAC", " 64 AA·", "128 ·BB"]
    assert draw_memory({**plan, "steps": [{}] * 1000})[0] == "  0 " + "A" + "·" * 95
    assert draw_memory({"steps": [], "arena_bytes": 0, "memory": []}) == []
    assert len({buffer_letter(index) for index in range(62)}) == 62
