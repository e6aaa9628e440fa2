"""Fusion on the graph: every spelling becomes one operator, computes the same, and runs on the host."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from edgec.frontend.summary import summarise
from edgec.lowering import lower
from edgec.passes.base import PassReport
from edgec.passes.fold_affine import FoldAffine
from edgec.passes.functions import DOMAIN, call, definition, is_own
from edgec.passes.fuse import FusePass
from edgec.passes.fuse_activations import FuseActivations
from edgec.passes.fuse_attention import FuseAttention
from edgec.passes.fuse_heads import FuseHeads
from edgec.passes.fuse_norms import FuseNorms
from edgec.passes.fuse_squeeze_excite import FuseSqueezeExcite
from edgec.passes.pipeline import run as run_passes
from edgec.passes.simplify import Simplify
from tests.graphs import assert_same, build, load, operators, run
from tests.programs import HostProgram, assert_close, run_reference

Nodes = list[onnx.NodeProto]
Constants = Mapping[str, np.ndarray]
IMAGE = {"x": (2, 6, 7, 5)}


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def random(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spelled(text: str) -> Nodes:
    """``"a = Exp x; y = Add a one"`` as nodes; ``Softmax(axis=-1)`` has attributes."""
    nodes = []
    for index, line in enumerate(filter(None, (part.strip() for part in text.split(";")))):
        result, _, call_text = line.partition(" = ")
        head, *inputs = call_text.split()
        op_type, _, listed = head.rstrip(")").partition("(")
        attributes = dict(pair.split("=") for pair in listed.split(",") if pair)
        values = {key: _attribute(value) for key, value in attributes.items()}
        names = ["" if name == "-" else name for name in inputs]
        nodes.append(helper.make_node(op_type, names, [result], name=f"{op_type}_{index}", **values))
    return nodes


def _attribute(text: str) -> float | int | str | list[int]:
    """``0.5``, ``1``, ``none`` or ``0:2:1``."""
    if ":" in text:
        return [int(each) for each in text.split(":")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Case:
    """A graph from its inputs to ``y``, and the operators it becomes."""

    text: str
    becomes: Sequence[str]
    constants: Constants = field(default_factory=dict)
    inputs: Mapping[str, Sequence[int]] = field(default_factory=lambda: IMAGE)
    opset: int = 18
    tolerance: float = 1e-5


def fused(each: FusePass, case: Case) -> tuple[onnx.ModelProto, ir.Model, PassReport]:
    """The original, the model after the pass, and its report; the pass keeps the values and is done after once."""
    original = build(spelled(case.text), case.inputs, ["y"], case.constants, opset=case.opset)
    model = load(original)
    Simplify().apply(model)
    report = each.apply(model)
    assert_same(original, model, samples(case))
    again = each.apply(model)
    assert (again.matched, again.before) == (0, again.after)
    return original, model, report


def samples(case: Case) -> dict[str, np.ndarray]:
    """Values wide enough to reach the flat ends of activations."""
    return {name: 3 * random(*shape, seed=index) for index, (name, shape) in enumerate(case.inputs.items())}


def check(each: FusePass, case: Case, folder: Path) -> None:
    original, model, report = fused(each, case)
    assert operators(model) == sorted(case.becomes)
    assert report.matched > 0
    assert report.refusals == ()
    program = lower(model)
    wanted, inputs = run(original, samples(case)), samples(case)
    assert_close(run_reference(program, inputs), wanted, case.tolerance)
    assert_close(HostProgram(program, folder).run(inputs, 2), wanted, case.tolerance)


def refusal(each: FusePass, case: Case) -> str:
    """The one sentence with which the pass leaves the graph as it is."""
    _, model, report = fused(each, case)
    assert operators(model) == sorted(case.becomes)
    assert report.matched == 0
    (found,) = report.refusals
    return str(found)


# ---- activations ------------------------------------------------------------------------------------------

HALVES = {"half": number(0.5), "one": number(1), "root": number(math.sqrt(2)), "inverse": number(math.sqrt(0.5))}
CUBIC = {"k": number(0.044715), "f": number(math.sqrt(2 / math.pi)), "three": number(3)}
HARD = {"three": number(3), "six": number(6), "sixth": number(1 / 6), "zero": number(0)}
TANH_BY_POW = "a = Pow x three; b = Mul a k; c = Add x b; d = Mul c f; e = Tanh d; g = Add e one; h = Mul x half;"
TANH_BY_POW += "y = Mul h g"
SLOPES = {"slope": random(6, 1, 1)}

ACTIVATIONS = {
    "relu by max": Case("y = Max x zero", ["Relu"], HARD),
    "relu6 by min and max": Case("a = Max x zero; y = Min six a", ["Clip"], HARD),
    "clip by max": Case("y = Max half x", ["Clip"], HALVES),
    "clip, not relu": Case("a = Min x far; y = Max a zero", ["Clip"], {**HARD, "far": number(1000)}),
    "relu6 by relu and clip": Case("a = Relu x; y = Clip a - six", ["Clip"], HARD),
    "hard sigmoid": Case("a = Add x three; b = Clip a zero six; y = Div b six", ["HardSigmoid"], HARD),
    "hard swish, relu6": Case("a = Add x three; b = Clip a zero six; c = Mul x b; y = Div c six", ["HardSwish"], HARD),
    "hard swish, min and max": Case(
        "a = Add three x; b = Max a zero; c = Min b six; d = Mul c sixth; y = Mul d x", ["HardSwish"], HARD
    ),
    "hard swish of hard sigmoid": Case("a = HardSigmoid(alpha=0.16666667) x; y = Mul x a", ["HardSwish"]),
    "sigmoid": Case("a = Neg x; b = Exp a; c = Add b one; y = Reciprocal c", ["Sigmoid"], HALVES),
    "silu": Case("a = Sigmoid x; y = Mul a x", ["Swish"]),
    "silu, opset 24": Case("a = Sigmoid x; y = Mul a x", ["Swish"], opset=24),
    "silu by division": Case("a = Neg x; b = Exp a; c = Add b one; y = Div x c", ["Swish"], HALVES),
    "gelu by sigmoid": Case("a = Mul x k; b = Sigmoid a; y = Mul x b", ["Swish"], {"k": number(1.702)}),
    "gelu, torch": Case("a = Div x root; b = Erf a; c = Add b one; d = Mul x c; y = Mul d half", ["Gelu"], HALVES),
    "gelu, opset 20": Case(
        "a = Div x root; b = Erf a; c = Add b one; d = Mul x c; y = Mul d half", ["Gelu"], HALVES, opset=20
    ),
    "gelu, half first": Case(
        "h = Mul half x; a = Mul x inverse; b = Erf a; c = Add one b; y = Mul h c", ["Gelu"], HALVES
    ),
    "gelu, half inside": Case(
        "a = Mul inverse x; b = Erf a; c = Add b one; d = Mul c half; y = Mul d x", ["Gelu"], HALVES
    ),
    "gelu by tanh, pow": Case(
        TANH_BY_POW,
        ["GeluTanh"], {**HALVES, **CUBIC},
    ),
    "gelu by tanh, products": Case(
        "a = Mul x x; b = Mul a x; c = Mul k b; d = Add c x; e = Mul f d; g = Tanh e; h = Add one g; i = Mul h half;"
        "y = Mul x i", ["GeluTanh"], {**HALVES, **CUBIC},
    ),
    "gelu by tanh, opset 20": Case(
        TANH_BY_POW,
        ["Gelu"], {**HALVES, **CUBIC}, opset=20,
    ),
    "softplus": Case("a = Exp x; b = Add a one; y = Log b", ["Softplus"], HALVES),
    "mish": Case("a = Softplus x; b = Tanh a; y = Mul x b", ["Mish"]),
    "mish, all spelled out": Case("a = Exp x; b = Add one a; c = Log b; d = Tanh c; y = Mul d x", ["Mish"], HALVES),
    "leaky relu by max": Case("a = Mul x half; y = Max x a", ["LeakyRelu"], HALVES),
    "leaky relu by two relus": Case(
        "a = Relu x; b = Neg x; c = Relu b; d = Mul c half; y = Sub a d", ["LeakyRelu"], HALVES
    ),
    "prelu by two relus": Case("a = Relu x; b = Neg x; c = Relu b; d = Mul slope c; y = Sub a d", ["PRelu"], SLOPES),
    "prelu by min and max": Case(
        "a = Max x zero; b = Min x zero; c = Mul b slope; y = Add a c", ["PRelu"], {**SLOPES, **HARD}
    ),
    "prelu by abs": Case(
        "a = Relu x; b = Abs x; c = Sub x b; d = Mul c slope; e = Mul d half; y = Add a e",
        ["PRelu"], {**SLOPES, **HALVES},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str, tmp_path: Path) -> None:
    check(FuseActivations(), ACTIVATIONS[name], tmp_path)


ALMOST = {
    "gelu with another root": (
        "a = Div x three; b = Erf a; c = Add b one; d = Mul x c; y = Mul d half", ["Div", "Erf", "Add", "Mul", "Mul"]
    ),
    "swish of two values": ("a = Sigmoid z; y = Mul x a", ["Sigmoid", "Mul"]),
    "hard swish with a kink off its place": (
        "a = Add x three; b = Clip a zero three; c = Mul x b; y = Div c six", ["Add", "Clip", "Mul", "Div"]
    ),
    "an affine map": ("a = Mul x three; y = Add a six", ["Mul", "Add"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ALMOST)
def test_what_is_almost_an_activation_stays(name: str) -> None:
    text, left = ALMOST[name]
    inputs = {"x": (2, 6, 7, 5), **({"z": (2, 6, 7, 5)} if " z" in text else {})}
    case = Case(text, left, {**HALVES, **HARD}, inputs)
    _, model, _ = fused(FuseActivations(), case)
    assert operators(model) == sorted(left)


def test_activation_whose_inside_is_read_elsewhere() -> None:
    model = load(build(spelled("a = Sigmoid x; b = Mul a x; y = Add a b"), IMAGE, ["y"]))
    report = FuseActivations().apply(model)
    assert report.matched == 0
    assert any("it would be Swish, but Add 'Add_2' also reads 'a' inside it" in str(each) for each in report.refusals)


def test_activation_whose_inside_is_an_output() -> None:
    original = build(spelled("a = Sigmoid x; y = Mul a x"), IMAGE, ["y", "a"])
    model = load(original)
    report = FuseActivations().apply(model)
    assert "'a' inside it is an output of the model" in str(report.refusals[0])
    assert_same(original, model)


def test_the_longest_chain_that_is_read_nowhere_else_is_taken() -> None:
    """Clip(0, 6) of x holds Max, whose result is an output; Clip(1, 6) of that does not."""
    original = build(spelled("m = Max x zero; a = Max m one; y = Min a six"), IMAGE, ["y", "m"], {**HARD, **HALVES})
    model = load(original)
    assert FuseActivations().apply(model).matched == 2
    assert operators(model) == ["Clip", "Relu"]
    assert_same(original, model)


def test_norms_of_doubles_stay() -> None:
    text = f"{CENTRE}{POWER} s = Sqrt e; y = Div d s"
    constants = {"eps": np.array(1e-5), "two": np.array(2.0), "axes": whole(2)}
    original = build(spelled(text), SEQUENCE, ["y"], constants, types={"x": onnx.TensorProto.DOUBLE})
    model = load(original)
    assert FuseNorms().apply(model).matched == 0
    assert_same(original, model)


def test_longest_chain_wins() -> None:
    """A Conv's ReLU6 inside a hard swish is not taken for an activation of its own."""
    case = Case("h = Conv x w; a = Add h three; b = Max a zero; c = Min b six; d = Mul h c; y = Div d six",
                ["Conv", "HardSwish"], {**HARD, "w": random(4, 6, 3, 3)})  # fmt: skip
    _, model, report = fused(FuseActivations(), case)
    assert operators(model) == case.becomes
    assert report.matched == 1


# ---- norms ------------------------------------------------------------------------------------------------

EPSILON = {"eps": number(1e-5), "two": number(2), "half": number(0.5), "one": number(1), "back": number(-0.5)}
CENTRE = "m = ReduceMean x axes; d = Sub x m;"
POWER = "q = Pow d two; v = ReduceMean q axes; e = Add v eps;"
PRODUCT = "q = Mul d d; v = ReduceMean q axes; e = Add eps v;"
AFFINE = "h = Mul n g; y = Add h b"
SEQUENCE = {"x": (3, 7, 17)}


def norm(text: str, becomes: Sequence[str], axes: Sequence[int], shape: Sequence[int], inputs=SEQUENCE, **more) -> Case:
    constants = {**EPSILON, "axes": whole(*axes), "g": random(*shape), "b": random(*shape, seed=8)}
    return Case(text, becomes, constants, inputs, tolerance=2e-5, **more)


LAYER = ["LayerNormalization"]
NORMS = {
    "layer, power and division": norm(f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; {AFFINE}", LAYER, [-1], [17]),
    "layer, product and reciprocal": norm(
        f"{CENTRE}{PRODUCT} s = Sqrt e; r = Reciprocal s; n = Mul r d; {AFFINE}", LAYER, [2], [17]
    ),
    "layer, division by the root": norm(
        f"{CENTRE}{PRODUCT} s = Sqrt e; r = Div one s; n = Mul d r; {AFFINE}", LAYER, [-1], [1, 17]
    ),
    "layer, powers": norm(f"{CENTRE}{POWER} r = Pow e back; n = Mul d r; {AFFINE}", LAYER, [-1], [17]),
    "layer, root by power": norm(f"{CENTRE}{POWER} s = Pow e half; n = Div d s; {AFFINE}", LAYER, [-1], [17]),
    "layer, merged scale": norm(
        f"{CENTRE}{PRODUCT} s = Sqrt e; r = Reciprocal s; f = Mul r g; a = Mul x f; t = Mul m f; u = Sub b t;"
        "y = Add a u", LAYER, [-1], [17],
    ),
    "layer, scale before the value": norm(
        f"{CENTRE}{PRODUCT} s = Sqrt e; r = Reciprocal s; f = Mul g r; n = Mul f d; y = Add b n", LAYER, [-1], [17]
    ),
    "layer, no affine": norm(f"{CENTRE}{POWER} s = Sqrt e; y = Div d s", LAYER, [-1], [17]),
    "layer, bias only": norm(f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; y = Add n b", LAYER, [-1], [17]),
    "layer over two axes": norm(f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; {AFFINE}", LAYER, [1, 2], [7, 17]),
    "layer over two axes, scale along one": norm(
        f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; {AFFINE}", LAYER, [-1, -2], [7, 1]
    ),
    "layer over channels": norm(
        f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; {AFFINE}", [*LAYER, "Transpose", "Transpose"], [1], [6, 1, 1], IMAGE
    ),
    "instance": norm(
        f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; {AFFINE}", ["InstanceNormalization"], [2, 3], [6, 1, 1], IMAGE
    ),
    "rms, powers": norm(
        "q = Pow x two; v = ReduceMean q axes; e = Add v eps; r = Pow e back; n = Mul x r; y = Mul g n",
        ["RMSNormalization"], [-1], [17],
    ),
    "rms, reciprocal": norm(
        "q = Mul x x; v = ReduceMean q axes; e = Add v eps; s = Sqrt e; r = Div one s; n = Mul r x; y = Mul n g",
        ["RMSNormalization"], [-1], [17],
    ),
    "rms, opset 23": norm(
        "q = Mul x x; v = ReduceMean q axes; e = Add v eps; s = Sqrt e; n = Div x s; y = Mul n g",
        ["RMSNormalization"], [-1], [17], opset=23,
    ),
    "rms over channels": norm(
        "q = Mul x x; v = ReduceMean q axes; e = Add v eps; s = Sqrt e; n = Div x s; y = Mul n g",
        ["RMSNormalization", "Transpose", "Transpose"], [1], [6, 1, 1], IMAGE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norm(name: str, tmp_path: Path) -> None:
    check(FuseNorms(), NORMS[name], tmp_path)


GROUPS = {"split": whole(0, 3, -1), "joined": whole(2, 6, 7, 5), "ones": np.ones(3, np.float32),
          "noughts": np.zeros(3, np.float32), "g": random(6, 1, 1), "b": random(6, 1, 1, seed=8)}  # fmt: skip


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("affine", ["h = Mul r g; y = Add h b", "y = Mul r g", "y = Relu r"])
def test_group_norm_by_instance_norm(affine: str, opset: int, tmp_path: Path) -> None:
    text = (
        f"a = Reshape x split; i = InstanceNormalization(epsilon=1e-4) a ones noughts; r = Reshape i joined; {affine}"
    )
    becomes = ["GroupNormalization", *(["Relu"] if "Relu" in affine else [])]
    check(FuseNorms(), Case(text, becomes, GROUPS, opset=opset), tmp_path)


def test_group_norm_spelled_out(tmp_path: Path) -> None:
    constants = {**GROUPS, **EPSILON, "split": whole(2, 3, 2, 7, 5), "axes": whole(2, 3, 4)}
    text = "a = Reshape x split; m = ReduceMean a axes; d = Sub a m; q = Mul d d; v = ReduceMean q axes;"
    text += "e = Add v eps; s = Sqrt e; i = Div d s; r = Reshape i joined; h = Mul r g; y = Add h b"
    check(FuseNorms(), Case(text, ["GroupNormalization"], constants), tmp_path)


def test_norm_over_the_batch_is_refused() -> None:
    text = f"{CENTRE}{POWER} s = Sqrt e; y = Div d s"
    case = norm(text, [node.op_type for node in spelled(text)], [0], [17])
    assert "it normalises over axes [0] of 3" in refusal(FuseNorms(), case)


def test_norm_whose_mean_is_read_elsewhere() -> None:
    text = f"{CENTRE}{POWER} s = Sqrt e; n = Div d s; y = Add n m"
    case = norm(text, [node.op_type for node in spelled(text)], [-1], [17])
    assert "it would be LayerNormalization, but Add 'Add_7' also reads 'm' inside it" in refusal(FuseNorms(), case)


# ---- attention --------------------------------------------------------------------------------------------

HEADS = {"q": (2, 3, 5, 4), "k": (2, 3, 4, 17), "v": (2, 3, 17, 7)}
MASKED = {**HEADS, "z": (2, 1, 5, 17)}
SCALES = {"c": number(0.5), "d": number(2), "rows": whole(2, 3, 5, 17)}

ATTENTION = {
    "bare": ("s = MatMul q k; w = Softmax(axis=-1) s; y = MatMul w v", HEADS),
    "scale behind": ("s = MatMul q k; t = Mul c s; w = Softmax(axis=3) t; y = MatMul w v", HEADS),
    "division behind": ("s = MatMul q k; t = Div s d; w = Softmax(axis=-1) t; y = MatMul w v", HEADS),
    "scale on q": ("t = Mul q c; s = MatMul t k; w = Softmax(axis=-1) s; y = MatMul w v", HEADS),
    "scale on k": ("t = Div k d; s = MatMul q t; w = Softmax(axis=-1) s; y = MatMul w v", HEADS),
    "scale on both": ("t = Mul q c; u = Mul k c; s = MatMul t u; w = Softmax(axis=-1) s; y = MatMul w v", HEADS),
    "mask": ("s = MatMul q k; t = Add s z; w = Softmax(axis=-1) t; y = MatMul w v", MASKED),
    "scale and mask": ("s = MatMul q k; u = Div s d; t = Add z u; w = Softmax(axis=-1) t; y = MatMul w v", MASKED),
    "rows": ("s = MatMul q k; f = Flatten(axis=3) s; p = Softmax f; w = Reshape p rows; y = MatMul w v", HEADS),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, tmp_path: Path) -> None:
    text, inputs = ATTENTION[name]
    becomes = ["MaskedAttention" if "z" in inputs else "Attention"]
    check(FuseAttention(), Case(text, becomes, SCALES, inputs), tmp_path)


@pytest.mark.parametrize("fill", [-1e9, -np.inf, np.finfo(np.float32).min])
@pytest.mark.parametrize("where", ["Where allowed u fill", "Where forbidden fill u"])
def test_attention_with_a_causal_mask(where: str, fill: float, tmp_path: Path) -> None:
    allowed = np.tri(5, 17, 3, dtype=bool)
    constants = {**SCALES, "allowed": allowed, "forbidden": ~allowed, "fill": number(fill)}
    text = f"s = MatMul q k; u = Mul s c; t = {where}; w = Softmax(axis=-1) t; y = MatMul w v"
    check(FuseAttention(), Case(text, ["MaskedAttention"], constants, HEADS), tmp_path)


def test_attention_without_heads(tmp_path: Path) -> None:
    inputs = {"q": (5, 4), "k": (4, 7), "v": (7, 3)}
    check(FuseAttention(), Case(ATTENTION["bare"][0], ["Attention"], SCALES, inputs), tmp_path)


def test_attention_with_one_key_for_all_heads(tmp_path: Path) -> None:
    inputs = {"q": (2, 3, 5, 4), "k": (2, 1, 4, 17), "v": (1, 1, 17, 7)}
    check(FuseAttention(), Case(ATTENTION["bare"][0], ["Attention"], SCALES, inputs), tmp_path)


REPEATED = (
    "a = Unsqueeze k two; e = Expand a wide; r = Reshape e joined; t = Transpose(perm=0:1:3:2) r;"
    "b = Unsqueeze v two; f = Expand b wide_v; u = Reshape f joined_v; s = MatMul q t;"
)


@pytest.mark.parametrize("mask", [None, (1, 1, 1, 17), (17,), (2, 1, 5, 17), (5, 17), (2, 6, 5, 17)], ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_attention_to_heads_that_are_shared(rows: int, mask: tuple[int, ...] | None, tmp_path: Path) -> None:
    """Three heads of queries for each of keys and values, which nothing repeats any more."""
    mask = None if mask is None else tuple(rows if extent == 5 else extent for extent in mask)
    inputs = {"q": (2, 6, rows, 8), "k": (2, 2, 17, 8), "v": (2, 2, 17, 7), **({"z": mask} if mask else {})}
    constants = {"two": whole(2), "wide": whole(2, 2, 3, 17, 8), "joined": whole(2, 6, 17, 8)}
    constants |= {"wide_v": whole(2, 2, 3, 17, 7), "joined_v": whole(2, 6, 17, 7), "c": number(0.5)}
    masked = "m = Mul s c; n = Add m z;" if mask else "n = Mul s c;"
    text = f"{REPEATED} {masked} w = Softmax(axis=-1) n; y = MatMul w u"
    _, model, report = fused(FuseAttention(), Case(text, [], constants, inputs))
    assert report.matched == 1 and report.refusals == ()
    shared = next(node for node in model.graph if "Attention" in node.op_type)
    assert [tuple(value.shape.numpy()) for value in shared.inputs[:3]] == [
        (2, 2, 3 * rows, 8), (2, 2, 8, 17), (2, 2, 17, 7)
    ]  # fmt: skip
    case = Case(text, operators(model), constants, inputs)
    check(FuseAttention(), case, tmp_path)
    assert not any(node.op_type == "Expand" and node.inputs[0].name in ("a", "b") for node in model.graph)


def test_attention_to_heads_whose_masks_differ_stays(tmp_path: Path) -> None:
    """One row of a mask for all queries of a head, and another one for each head: shared heads have no such row."""
    inputs = {"q": (2, 6, 5, 8), "k": (2, 2, 17, 8), "v": (2, 2, 17, 7), "z": (2, 6, 1, 17)}
    constants = {"two": whole(2), "wide": whole(2, 2, 3, 17, 8), "joined": whole(2, 6, 17, 8)}
    constants |= {"wide_v": whole(2, 2, 3, 17, 7), "joined_v": whole(2, 6, 17, 7)}
    text = f"{REPEATED} n = Add s z; w = Softmax(axis=-1) n; y = MatMul w u"
    becomes = [*("Unsqueeze", "Expand", "Reshape") * 2, "Transpose", "MaskedAttention"]
    check(FuseAttention(), Case(text, becomes, constants, inputs), tmp_path)


def test_attention_counts_as_its_products() -> None:
    _, _, report = fused(FuseAttention(), Case(ATTENTION["bare"][0], ["Attention"], SCALES, HEADS))
    assert report.before.macs == report.after.macs == 2 * 3 * 5 * 17 * (4 + 7)


ATTENTION_REFUSALS = {
    "another axis": (
        "s = MatMul q k; w = Softmax(axis=2) s; y = MatMul w v",
        "Softmax 'Softmax_1' runs along axis 2 of 4, not along the keys",
    ),
    "weights read elsewhere": (
        "s = MatMul q k; w = Softmax(axis=-1) s; a = MatMul w v; b = ReduceMax(keepdims=1) w; y = Add a b",
        "ReduceMax 'ReduceMax_3' also reads 'w' inside it",
    ),
    "mask of another fill": (
        "s = MatMul q k; t = Where allowed s c; w = Softmax(axis=-1) t; y = MatMul w v",
        "the mask of Where 'Where_1' fills in something else than a constant of at most -1e+09",
    ),
    "mask with an empty row": (
        "s = MatMul q k; t = Where forbidden s least; w = Softmax(axis=-1) t; y = MatMul w v",
        "the mask of Where 'Where_1' has a row that allows nothing",
    ),
    "mask at run time": (
        "s = MatMul q k; f = Greater s c; t = Where f s least; w = Softmax(axis=-1) t; y = MatMul w v",
        "is computed at run time, so that a row may allow nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION_REFUSALS)
def test_attention_is_refused(name: str) -> None:
    text, reason = ATTENTION_REFUSALS[name]
    constants = {**SCALES, "allowed": np.tri(5, 17, 3, dtype=bool), "least": number(-1e9)}
    constants["forbidden"] = np.eye(5, 17, 1, dtype=bool) & (np.arange(5) > 0)[:, None]
    case = Case(text, [node.op_type for node in spelled(text)], constants, HEADS)
    assert reason in refusal(FuseAttention(), case)


@pytest.mark.parametrize("text, own", [
    ("s = MatMul q k; w = Softmax(axis=-1) s; y = MatMul w w", "w"),
    ("s = MatMul q k; t = Add s s; w = Softmax(axis=-1) t; y = MatMul w v", "s"),
])  # fmt: skip
def test_attention_to_what_it_computes_itself_stays(text: str, own: str) -> None:
    inputs = {"q": (2, 3, 5, 4), "k": (2, 3, 4, 5), **({"v": (2, 3, 5, 7)} if " v" in text else {})}
    case = Case(text, [node.op_type for node in spelled(text)], {}, inputs)
    assert f"its values or its mask are '{own}' inside it" in refusal(FuseAttention(), case)


# ---- heads ------------------------------------------------------------------------------------------------

NEAREST = "mode=nearest,coordinate_transformation_mode=asymmetric,nearest_mode=floor"


@pytest.mark.parametrize("chosen", ["ArgMax(axis=1,keepdims=1)", "ArgMin(axis=-3,keepdims=0,select_last_index=1)"])
@pytest.mark.parametrize("resize", [f"Resize({NEAREST}) x - scales", "Resize(mode=nearest) x - - sizes"])
def test_head(chosen: str, resize: str, tmp_path: Path) -> None:
    constants = {"scales": np.array([1, 1, 2, 3], np.float32), "sizes": whole(2, 6, 17, 11)}
    squeeze = ["Squeeze"] if "keepdims=0" in chosen else []
    becomes = [chosen.partition("(")[0], "Cast", "Cast", "Resize", *squeeze]
    check(FuseHeads(), Case(f"r = {resize}; y = {chosen} r", becomes, constants), tmp_path)


HEAD_REFUSALS = {
    "linear": ("Resize(mode=linear) x - scales", "interpolates (linear), so the class of a mean is not the mean"),
    "cubic": ("Resize(mode=cubic) x - scales", "interpolates (cubic)"),
    "crop": ("Resize(mode=nearest,coordinate_transformation_mode=tf_crop_and_resize) x roi scales", "crops, and fills"),
}


@pytest.mark.parametrize("name", HEAD_REFUSALS)
def test_head_is_refused(name: str) -> None:
    resize, reason = HEAD_REFUSALS[name]
    constants = {"scales": np.array([1, 1, 2, 3], np.float32), "roi": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)}
    case = Case(f"r = {resize}; y = ArgMax(axis=1) r", ["ArgMax", "Resize"], constants)
    assert reason in refusal(FuseHeads(), case)


# ---- squeeze-and-excitation ---------------------------------------------------------------------------------

LAYERS: Constants = {
    "w1": random(6, 3, seed=1), "b1": random(3, seed=2), "w2": random(3, 6, seed=3), "b2": random(6, seed=4),
    "k1": random(3, 6, 1, 1, seed=5), "k2": random(6, 3, 1, 1, seed=6), "flat": whole(2, 6), "wide": whole(2, 6, 1, 1),
    "spatial": whole(2, 3),
}  # fmt: skip
CONVS = "p = GlobalAveragePool x; s = Conv p k1 b1; h = Relu s; e = Conv h k2 b2"

GATES = {
    "convolutions": Case(f"{CONVS}; g = Sigmoid e; y = Mul x g", ["SqueezeExcite"], LAYERS),
    "hard": Case(f"{CONVS}; g = HardSigmoid(alpha=0.16666667) e; y = Mul g x", ["SqueezeExciteHard"], LAYERS),
    "gemm": Case(
        "p = ReduceMean(keepdims=0) x spatial; s = Gemm p w1 b1; h = Relu s; e = Gemm(transB=1) h t2; g = Sigmoid e; "
        "u = Unsqueeze g spatial; y = Mul x u", ["SqueezeExcite"], {**LAYERS, "t2": random(6, 3, seed=8)},
    ),
    "matmul": Case(
        "p = GlobalAveragePool x; f = Reshape p flat; m = MatMul f w1; s = Add b1 m; h = Relu s; n = MatMul h w2; "
        "e = Add n b2; r = Reshape e wide; g = Sigmoid r; y = Mul x g", ["SqueezeExcite"], LAYERS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_squeeze_excite(name: str, tmp_path: Path) -> None:
    check(FuseSqueezeExcite(), GATES[name], tmp_path)


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid"])
def test_squeeze_excite_with_swish(gate: str, tmp_path: Path) -> None:
    """As EfficientNet spells it, through all passes."""
    layers = "p = GlobalAveragePool x; s = Conv p k1 b1; i = Sigmoid s; h = Mul s i; e = Conv h k2"
    original = build(spelled(f"{layers}; g = {gate} e; y = Mul x g"), IMAGE, ["y"], LAYERS)
    model = load(original)
    run_passes(model)
    assert operators(model) == ["SqueezeExciteSwish" + ("Hard" if gate == "HardSigmoid" else "")]
    assert summarise(model).macs == 2 * 2 * 6 * 3
    inputs = {"x": 3 * random(*IMAGE["x"])}
    assert_same(original, model, inputs)
    assert_close(HostProgram(lower(model), tmp_path).run(inputs), run(original, inputs))


@pytest.mark.parametrize(
    "text",
    [
        f"{CONVS}; g = Tanh e; y = Mul x g",  # no gate
        f"{CONVS}; g = Sigmoid e; y = Add x g",
        "p = GlobalMaxPool x; s = Conv p k1 b1; h = Relu s; e = Conv h k2 b2; g = Sigmoid e; y = Mul x g",
        "p = GlobalAveragePool x; s = Conv p k1 b1; h = Tanh s; e = Conv h k2 b2; g = Sigmoid e; y = Mul x g",
        "n = Neg x; p = GlobalAveragePool n; s = Conv p k1; h = Relu s; e = Conv h k2; g = Sigmoid e; y = Mul x g",
    ],
)
def test_what_is_almost_squeeze_excite_stays(text: str) -> None:
    case = Case(text, [line.split(" = ")[1].split()[0] for line in text.split("; ")], LAYERS)
    assert fused(FuseSqueezeExcite(), case)[2].matched == 0


def test_squeeze_excite_whose_gate_is_read_elsewhere() -> None:
    case = Case(f"{CONVS}; g = Sigmoid e; z = Mul x g; y = Add z g", [], LAYERS)
    report = fused(FuseSqueezeExcite(), case)[2]
    assert [str(each) for each in report.refusals if "also reads 'g' inside it" in str(each)]


# ---- functions --------------------------------------------------------------------------------------------

CALLS: Mapping[str, tuple[FusePass, Case]] = {
    "activation": (FuseActivations(), ACTIVATIONS["gelu, torch"]),
    "norm": (FuseNorms(), NORMS["rms, powers"]),
    "attention": (FuseAttention(), Case(ATTENTION["scale and mask"][0], ["MaskedAttention"], SCALES, MASKED)),
}


@pytest.mark.parametrize("name", CALLS)
def test_fused_models_are_imported_as_they_are(name: str) -> None:
    """Import, simplification and another import keep the call and its definition."""
    each, case = CALLS[name]
    original, model, _ = fused(each, case)
    again = load(ir.to_proto(model))
    Simplify().apply(again)
    assert operators(again) == operators(model)
    assert [node.domain for node in again.graph] == [DOMAIN]
    assert [is_own(function, 18) for function in again.functions.values()] == [True]
    assert_same(original, again, samples(case))
    lower(again)


def test_other_functions_of_the_domain_are_inlined() -> None:
    """A function of the same name with another body is not what the lowering knows."""
    _, model, _ = fused(FuseActivations(), ACTIVATIONS["silu"])
    proto = ir.to_proto(model)
    for node in proto.functions[0].node:
        node.op_type = {"Sigmoid": "Tanh"}.get(node.op_type, node.op_type)
    changed = load(proto)
    assert "Tanh" in operators(changed)
    assert not changed.functions


def test_passes_by_rules_leave_definitions_alone() -> None:
    _, model, _ = fused(*CALLS["attention"])
    FoldAffine().apply(model)
    assert all(is_own(function, 18) for function in model.functions.values())


def test_definitions_are_known_again_after_a_round_trip() -> None:
    for name in ("Gelu", "GeluTanh", "Swish", "RMSNormalization", "GroupNormalization", "Attention"):
        function = definition(name, 18)
        assert is_own(ir.from_proto(ir.to_proto(function)), 18)
        assert not is_own(function, 19)


@pytest.mark.parametrize(("opset", "domains"), [(18, [DOMAIN, DOMAIN]), (20, ["", DOMAIN]), (24, ["", ""])])
def test_standard_operators_where_the_opset_has_them(opset: int, domains: list[str]) -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": opset}), ir_version=10)
    x = ir.val("x", ir.DataType.FLOAT, (2, 3))
    nodes = [call(model, "Gelu", [x], {}, "gelu"), call(model, "Swish", [x], {"alpha": 1.0}, "swish")]
    assert [node.domain for node in nodes] == domains


def test_summary_knows_fused_operators() -> None:
    _, model, _ = fused(FuseActivations(), ACTIVATIONS["silu"])
    assert summarise(model).operators == {"edgec.Swish": 1}
