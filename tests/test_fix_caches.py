"""Decoders whose caches grow, as exporters write them, with caches of fixed size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.artifact import read_manifest
from edgec.errors import EdgecError
from tests.graphs import node
from tests.test_cli import results_of, sentence_of

HEADS, WIDTH, VOCABULARY, CONTEXT = 3, 5, 40, 17
PROMPT = (7, 1, 33)


def decoder(
    mask: str | None = "integers", counts: str = "position_ids", tokens: int | str = "sequence"
) -> onnx.ModelProto:
    """One layer of attention over a cache that grows, as exporters write it.

    ``mask``: "integers" [batch, total], "floats" that are added to scores [batch, 1, 1, total], "booleans", or None.
    ``counts``: what places of tokens are told by: "position_ids", "mask" (its sum) or "cache" (its length).
    """
    random = np.random.default_rng(3)
    size = HEADS * WIDTH
    shapes = {"embedding": (VOCABULARY, size), "places": (64, size), "head": (size, VOCABULARY)}
    shapes |= dict.fromkeys(("wq", "wk", "wv", "wo"), (size, size))
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"scale": np.float32(WIDTH**-0.5), "one_float": np.float32(1), "never": np.float32(-1e9)}
    weights |= {name: np.array(value) for name, value in {
        "split": [1, -1, HEADS, WIDTH], "joined": [1, -1, size], "one": [1], "axes": [1, 2], "first": [0], "two": 2,
        "last": [-1],
    }.items()}  # fmt: skip
    nodes = {
        "position_ids": [node("Gather", ["places", "position_ids"], ["place"])],
        "mask": [
            node("CumSum", ["attention_mask", "one"], ["sums"]),
            node("Sub", ["sums", "one"], ["numbers"]),
            node("Gather", ["numbers", "last"], ["number"], axis=1),
            node("Gather", ["places", "number"], ["place"]),
        ],
        "cache": [
            node("Shape", ["past.0.key"], ["shape"], start=2, end=3),
            node("Unsqueeze", ["shape", "first"], ["number"]),
            node("Gather", ["places", "number"], ["place"]),
        ],
    }[counts]
    nodes += [node("Gather", ["embedding", "input_ids"], ["word"]), node("Add", ["word", "place"], ["x"])]
    for name in "qkv":
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}_flat"]),
            node("Reshape", [f"{name}_flat", "split"], [f"{name}_split"]),
            node("Transpose", [f"{name}_split"], [name], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Concat", ["past.0.key", "k"], ["present.0.key"], axis=-2, name="keys"),
        node("Concat", ["past.0.value", "v"], ["values"], axis=2, name="values"),
        node("Identity", ["values"], ["present.0.value"]),
        node("Transpose", ["present.0.key"], ["turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "turned"], ["products"]),
        node("Mul", ["products", "scale"], ["scores"]),
        *_masked(mask),
        node("Softmax", ["masked"], ["shares"], axis=-1),
        node("MatMul", ["shares", "values"], ["mixed"]),
        node("Transpose", ["mixed"], ["rows"], perm=[0, 2, 1, 3]),
        node("Reshape", ["rows", "joined"], ["flat"]),
        node("MatMul", ["flat", "wo"], ["attended"]),
        node("Add", ["x", "attended"], ["y"]),
        node("MatMul", ["y", "head"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    masks = {
        "integers": ("attention_mask", TensorProto.INT64, ["batch", "total"]),
        "floats": ("attention_mask", TensorProto.FLOAT, ["batch", 1, 1, "total"]),
        "booleans": ("attention_mask", TensorProto.BOOL, ["batch", "total"]),
    }
    inputs = [info("input_ids", TensorProto.INT64, ["batch", tokens])]
    inputs += [info(*masks[mask])] if mask else []
    inputs += [info("position_ids", TensorProto.INT64, ["batch", tokens])] if counts == "position_ids" else []
    kinds = ("key", "value")
    inputs += [info(f"past.0.{kind}", TensorProto.FLOAT, ["batch", HEADS, "past", WIDTH]) for kind in kinds]
    outputs = [info("logits", TensorProto.FLOAT, ["batch", tokens, VOCABULARY])]
    outputs += [info(f"present.0.{kind}", TensorProto.FLOAT, ["batch", HEADS, "total", WIDTH]) for kind in kinds]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _masked(mask: str | None) -> list[onnx.NodeProto]:
    if mask is None:
        return [node("Identity", ["scores"], ["masked"])]
    if mask == "floats":
        return [node("Add", ["scores", "attention_mask"], ["masked"])]
    return [
        node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        node("Sub", ["one_float", "real"], ["hidden"]),
        node("Mul", ["hidden", "never"], ["low"]),
        node("Unsqueeze", ["low", "axes"], ["added"]),
        node("Add", ["scores", "added"], ["masked"]),
    ]


def grown(model: onnx.ModelProto, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Greedy tokens after the prompt by ONNX Runtime, caches growing, and the logits of each run."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    caches = {f"past.0.{kind}": np.zeros((1, HEADS, 0, WIDTH), np.float32) for kind in ("key", "value")}
    tokens, found = list(PROMPT), []
    for place in range(len(PROMPT) + count - 1):
        given = {"input_ids": np.array([[tokens[place]]]), "position_ids": np.array([[place]]), **caches}
        for each in session.get_inputs():
            if each.name == "attention_mask":
                real = each.type == "tensor(float)"
                shape = (1, 1, 1, place + 1) if real else (1, place + 1)
                kind = {"tensor(float)": np.float32, "tensor(bool)": np.bool_}.get(each.type, np.int64)
                given["attention_mask"] = np.full(shape, 0 if real else 1, kind)
        logits, *after = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
        caches = dict(zip(caches, after, strict=True))
        found.append(logits)
        if place + 1 == len(tokens):
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(PROMPT) :], found


@pytest.mark.parametrize(
    ("mask", "counts"),
    [("integers", "position_ids"), ("integers", "mask"), ("floats", "position_ids"), ("booleans", "position_ids")],
)
def test_runs_are_those_of_caches_that_grow(mask: str, counts: str, tmp_path: Path) -> None:
    """Up to the last token that there is room for; in ONNX Runtime, and compiled with the caches kept."""
    model = decoder(mask, counts)
    wanted, logits = grown(model, CONTEXT + 1 - len(PROMPT))
    frozen = edgec.freeze(model, tmp_path / "fixed.onnx", context=CONTEXT)
    assert {each.name for each in frozen.inputs} == {"input_ids", "past.0.key", "past.0.value", "position"}
    assert [each.shape for each in frozen.outputs] == [(1, 1, VOCABULARY), *[(1, HEADS, CONTEXT, WIDTH)] * 2]
    session = onnxruntime.InferenceSession(str(frozen.path), providers=["CPUExecutionProvider"])
    caches = {f"past.0.{kind}": np.zeros((1, HEADS, CONTEXT, WIDTH), np.float32) for kind in ("key", "value")}
    for place, (token, expected) in enumerate(zip([*PROMPT, *wanted], logits, strict=False)):
        found, *after = session.run(
            None, {"input_ids": np.array([[token]]), "position": np.array([place]), **caches}
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.ptp(expected))
        caches = dict(zip(caches, after, strict=True))
    edgec.compile(frozen.path, output=tmp_path / "m.so", states="auto")
    assert list(edgec.generate(tmp_path / "m.so", PROMPT, len(wanted))) == wanted
    assert not [each for each in read_manifest(tmp_path / "m.so")["steps"] if each["name"].startswith("keep_")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mask": None}, "reads no attention mask"),
        ({"counts": "cache"}, "counts tokens by the length of its caches; export it with position_ids"),
        ({"tokens": 2}, "has several tokens"),
    ],
)
def test_what_cannot_be_fixed_is_a_sentence(arguments: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match=sentence):
        edgec.freeze(decoder(**arguments), tmp_path / "m.onnx", context=CONTEXT)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    assert "no output of the model is one" in sentence_of("freeze", tiny_model, "--context", "8", "-o", tmp_path / "m")


def test_a_shape_of_ones_own_holds(tmp_path: Path) -> None:
    """A mask of another length is refused with the one that fits."""
    shapes = {"attention_mask": (1, CONTEXT + 3)}
    with pytest.raises(EdgecError, match=f"does not mask a context of {CONTEXT}"):
        edgec.freeze(decoder(), tmp_path / "m.onnx", context=CONTEXT, shapes=shapes)


def test_growing_caches_are_no_state(tmp_path: Path) -> None:
    """The sentence names the command that mends it."""
    onnx.save(decoder(), tmp_path / "m.onnx")
    shapes = ["input_ids=1x1", "attention_mask=1x9", "position_ids=1x1", "past.0.key=1x3x8x5"]
    flags = [flag for shape in shapes for flag in ("--shape", shape)]
    said = sentence_of("compile", tmp_path / "m.onnx", *flags, "--state", "auto", "-o", tmp_path / "m.so")
    assert "edgec freeze MODEL --context TOKENS" in said


def test_text_by_a_tokenizer(tmp_path: Path) -> None:
    """Words of a model's own vocabulary, by its tokenizer.json."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{index}": index for index in range(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    model = decoder()
    edgec.freeze(model, tmp_path / "fixed.onnx", context=CONTEXT)
    edgec.compile(tmp_path / "fixed.onnx", output=tmp_path / "m.so", states="auto")
    prompt = " ".join(f"w{token}" for token in PROMPT)
    command = ["generate", tmp_path / "m.so", "--prompt", prompt, "--tokens", "6", "--tokenizer"]
    found, wanted = results_of(*command, tmp_path / "tokenizer.json"), grown(model, 6)[0]
    assert found["tokens"] == wanted and found["prompt_tokens"] == len(PROMPT)
    assert found["text"] == " ".join(f"w{token}" for token in (*PROMPT, *wanted))
    assert "is no tokenizer.json" in sentence_of(*command, tmp_path / "fixed.onnx")
    assert "there is no file" in sentence_of(*command, tmp_path / "none.json")
    assert "with --tokenizer" in sentence_of(*command[:-1])
