"""Tensors kept from run to run, and the language model that needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.data.samples import Samples
from edgec.devices.device import QemuDevice
from edgec.errors import EdgecError
from edgec.states import Named, pair_states, parse_states
from tests.test_cli import results_of, sentence_of

PROMPT = b"Return the "


def counting(body: str, output: str = "y, after") -> onnx.ModelProto:
    """A model of an input x [4], a state before [4] and ``body``."""
    text = f"""<ir_version: 11, opset_import: ["": 24]>
        counting (float[4] x, float[4] before) => ({", ".join(f"float[4] {n.strip()}" for n in output.split(","))})
        {{ {body} }}"""
    return onnx.parser.parse_model(text)


MODELS = {
    "written before it is read": counting("after = Add (x, before) y = Mul (before, x)"),
    "read only before": counting("y = Mul (before, x) after = Add (x, before)"),
    "the output is the state": counting("after = Add (x, before) y = Neg (after)"),
    "handed through": counting("after = Identity (x) y = Add (before, x)"),
}


@pytest.mark.parametrize("name", MODELS)
def test_states_are_carried_over(name: str, tmp_path: Path) -> None:
    """As a caller would, by ONNX Runtime; and again from zero after a reset."""
    model = MODELS[name]
    reference = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    compiled = edgec.compile(model, output=tmp_path / "m.so", states={"after": "before"})
    generator, state = np.random.default_rng(0), np.zeros(4, np.float32)
    with edgec.load(compiled.path) as session:
        assert [t.name for t in session.inputs] == ["x"] and [t.name for t in session.outputs] == ["y"]
        first = np.ones(4, np.float32)
        for x in (first, *generator.standard_normal((5, 4)).astype(np.float32)):
            wanted, state = reference.run(["y", "after"], {"x": x, "before": state})
            np.testing.assert_array_equal(session.run({"x": x})["y"], wanted)
        session.reset()
        wanted = reference.run(["y"], {"x": first, "before": np.zeros(4, np.float32)})[0]
        np.testing.assert_array_equal(session.run({"x": first})["y"], wanted)


def test_pairs_are_checked() -> None:
    cache, token = Named("past.0.key", (1, 2), "float32"), Named("token", (1,), "int64")
    present, logits = Named("present.0.key", (1, 2), "float32"), Named("logits", (9,), "float32")
    assert pair_states("auto", [cache, token], [logits, present]) == {"present.0.key": "past.0.key"}
    assert parse_states(["a=b"]) == {"a": "b"} and parse_states(["auto"]) == "auto"
    wrong = {
        "the output 'nothing'": {"nothing": "past.0.key"},
        "the input 'nothing'": {"present.0.key": "nothing"},
        "keeps its shape": {"logits": "past.0.key"},
    }
    for said, pairs in wrong.items():
        with pytest.raises(EdgecError, match=said):
            pair_states(pairs, [cache, token], [logits, present])
    with pytest.raises(EdgecError, match="the model has none"):
        pair_states("auto", [token], [logits])
    with pytest.raises(EdgecError, match="is no pair"):
        parse_states(["present"])


# ---- the language model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(sample_model: Path) -> Path:
    return sample_model.with_name("bytes_lm.onnx")


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder, one token a run."""
    output = tmp_path_factory.mktemp("lm") / "lm.so"
    results_of("compile", model, "--shape", "tokens=1x1", "--state", "auto", "-o", output)
    return output


def greedy(model: Path, prompt: bytes, count: int) -> list[int]:
    """The likeliest tokens by ONNX Runtime, caches carried over by hand."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    caches = {each.name: np.zeros(each.shape, np.float32) for each in session.get_inputs() if "past" in each.name}
    tokens = list(prompt)
    for place in range(len(prompt) + count - 1):
        inputs = {"tokens": np.array([[tokens[place]]]), "position": np.array([place]), **caches}
        logits, *after = session.run(None, inputs)
        caches = dict(zip(caches, after, strict=True))
        if place + 1 == len(tokens):
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_tokens_are_onnxruntimes(model: Path, artifact: Path) -> None:
    for prompt in (PROMPT, b"class "):
        assert list(edgec.generate(artifact, prompt, 120)) == greedy(model, prompt, 120)


def test_caches_are_replaced_in_place(artifact: Path) -> None:
    """A run writes one row of each cache, and copies none."""
    manifest = read_manifest(artifact)
    assert [state["name"] for state in manifest["states"]] == [
        f"present.{layer}.{kind}" for layer in range(3) for kind in ("key", "value")
    ]
    writers = [step["kernel"] for step in manifest["steps"] if step["name"].startswith("present.")]
    assert len(writers) == 6 and all("4x24__" in kernel for kernel in writers)
    assert not [step for step in manifest["steps"] if step["name"].startswith("keep_")]


def test_command_writes_text(artifact: Path) -> None:
    found = results_of("generate", artifact, "--prompt", PROMPT.decode(), "--tokens", "40")
    assert found["text"].startswith(PROMPT.decode()) and len(found["tokens"]) == 40
    assert found["state_bytes"] == 6 * 4 * 256 * 24 * 4
    drawn = [
        results_of("generate", artifact, "--prompt", "a", "--tokens", "30", "--temperature", "0.8", "--seed", seed)
        for seed in (1, 1, 2)
    ]
    assert drawn[0]["tokens"] == drawn[1]["tokens"] != drawn[2]["tokens"]


def test_wrong_generations_are_sentences(artifact: Path, tiny_artifact: Path) -> None:
    assert "exceed the 256" in sentence_of("generate", artifact, "--prompt", "a" * 200, "--tokens", "60")
    assert "at least one token" in sentence_of("generate", artifact, "--prompt", "")
    assert "--state" in sentence_of("generate", tiny_artifact, "--prompt", "a")


def test_four_bits_keep_most_of_it(model: Path, artifact: Path, tmp_path: Path) -> None:
    """Weights of 4 bits, learned from successive steps: half the artifact, and mostly the same next bytes."""
    calib, output = model.with_name("bytes_calib.npz"), tmp_path / "lm.so"
    common = ["compile", model, "--shape", "tokens=1x1", "--state", "auto"]
    results_of(*common, "--quantize", "w4", "--calib", calib, "-o", output)
    assert read_manifest(output)["weights_bytes"] < 0.25 * read_manifest(artifact)["weights_bytes"]
    text = np.load(model.with_name("bytes_eval.npz"))["text"][0, :100].astype(np.int64)
    found = []
    for path in (artifact, output):
        with edgec.load(path) as session:
            runs = [{"tokens": np.array([[t]]), "position": np.array([i])} for i, t in enumerate(text)]
            found.append(np.array([session.run(run)["logits"].argmax() for run in runs]))
    assert (found[0] == found[1]).mean() > 0.8


def test_states_on_an_emulated_core(model: Path, emulator: str, tmp_path: Path) -> None:
    """Successive samples are successive steps there, too."""
    board = edgec.compile(model, "rpi4", tmp_path / "lm.so", shapes={"tokens": (1, 1)}, states="auto").path
    tokens = [*PROMPT, *greedy(model, PROMPT, 5)]
    runs = [{"tokens": np.array([[t]]), "position": np.array([i])} for i, t in enumerate(tokens)]
    logits = QemuDevice("cortex-a72").run(board, Samples(len(runs), None, lambda index: runs[index])).outputs["logits"]
    assert logits.reshape(len(runs), -1).argmax(1)[len(PROMPT) - 1 : -1].tolist() == tokens[len(PROMPT) :]


def test_targets_without_states_say_so(model: Path, tmp_path: Path) -> None:
    said = sentence_of(
        "compile", model, "--target", "opencl", "--shape", "tokens=1x1", "--state", "auto", "-o", tmp_path / "x.so"
    )
    assert "opencl keeps no states" in said and not list(tmp_path.iterdir())


def test_trained_model_without_caches_is_the_same(model: Path, tmp_path: Path) -> None:
    """The script exports what is trained without caches, too: the same logits for a whole context."""
    script, plain = model.with_name("train_lm.py"), tmp_path / "plain.onnx"
    subprocess.run([sys.executable, script, "--without-cache", plain], check=True)
    text = np.load(model.with_name("bytes_eval.npz"))["text"][:1, :256].astype(np.int64)
    (logits,) = onnxruntime.InferenceSession(str(plain)).run(None, {"tokens": text})
    loss = -np.log(np.exp(logits[0, :-1]) / np.exp(logits[0, :-1]).sum(-1, keepdims=True))[np.arange(255), text[0, 1:]]
    assert loss.mean() < 1.9
    compiled = edgec.compile(plain, output=tmp_path / "plain.so")
    with edgec.load(compiled.path) as session:
        np.testing.assert_allclose(session.run({"tokens": text})["logits"], logits, atol=1e-3)
