"""Weights of 2, 3 and 4 bits: their fit, their ONNX form, the kernels that unpack them, and the command."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.graph import load_graph
from edgec.grid import FACTORED_LIMIT, LARGEST_FACTOR, common_factors, factor_group, spread_factors
from edgec.passes.pipeline import run as run_passes
from edgec.passes.quantize import Recipe
from edgec.passes.quantize.lowbit import (
    WIDER,
    LowBit,
    aimed,
    fit_factored,
    fit_low_bit,
    limits,
    nearest_low_bit,
    shrunk,
    spread,
)
from edgec.program import Conv
from edgec.targets.cpu.backend import template_for
from edgec.targets.cpu.packed import pack, plan
from edgec.targets.target import load_target
from tests import graphs
from tests.operators import node
from tests.programs import HostProgram, assert_close, program_of, run_reference
from tests.test_aarch64_kernels import CORES, MORE_SHAPES, emulated, together
from tests.test_cli import results_of, sentence_of
from tests.test_integer_kernels import SHAPES, layer

LANGUAGE_MODEL = Path(__file__).parent.parent / "samples" / "models" / "bytes_lm.onnx"

# ---- fit ------------------------------------------------------------------------------------------------------


def cost(fit: LowBit, rows: np.ndarray, moment: np.ndarray) -> float:
    """What the fit's error costs, over what leaving the weights out would."""
    errors = fit.rows - rows
    return float(np.einsum("mk,mk->", errors @ moment, errors) / np.einsum("mk,mk->", rows @ moment, rows))


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Rows [17, 127], and the second moment of correlated inputs of different sizes."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((400, 127)) @ generator.standard_normal((127, 127)) * generator.exponential(1, 127)
    moment = x.T @ x / len(x)
    return generator.standard_normal((17, 127)).astype(np.float32), moment + 0.01 * np.trace(moment) / 127 * np.eye(127)


@pytest.mark.parametrize(("bits", "group"), [*itertools.product((2, 3, 4), (16, 32, 127))])
def test_fit_costs_half_of_rounding_to_the_nearest(
    problem: tuple[np.ndarray, np.ndarray], bits: int, group: int
) -> None:
    rows, moment = problem
    fit = fit_low_bit(rows, moment, bits, group)
    low, high = limits(bits)
    assert fit.values.min() >= low and fit.values.max() <= high and fit.scales.shape == (17, -(-127 // group))
    assert cost(fit, rows, moment) < 0.5 * cost(nearest_low_bit(rows, bits, group), rows, moment)


def test_pairs_are_believed_as_far_as_samples_agree_on_them() -> None:
    """Samples of one pattern each, seen at many positions, against as many positions of samples that are alike."""
    generator, depth = np.random.default_rng(2), 48
    mix = generator.standard_normal((depth, depth))
    alike = generator.standard_normal((2000, depth)) @ mix
    alone = np.repeat(generator.standard_normal((20, depth)), 100, axis=0)
    beside = ~np.eye(depth, dtype=bool)
    shares = []
    for patches in (alike, alone):
        moment = patches.T @ patches / len(patches)
        found = shrunk(moment, patches, 20)
        np.testing.assert_allclose(np.diag(found), np.diag(moment))
        ratios = found[beside] / moment[beside]
        np.testing.assert_allclose(ratios, ratios[0])
        shares.append(float(ratios[0]))
    assert shares[0] > 0.9 and shares[1] < 0.3
    assert np.array_equal(shrunk(moment[:1, :1], patches[:1, :1], 1), moment[:1, :1])


@pytest.mark.parametrize("regular", [True, False])
def test_rows_are_aimed_where_that_helps_on_other_samples(regular: bool) -> None:
    """What inputs have lost: the same share on all samples, or something else on each, which few samples cannot tell
    from the same."""
    generator, depth = np.random.default_rng(3), 32
    mix = generator.standard_normal((depth, depth))
    rows = generator.standard_normal((16, depth)).astype(np.float32)
    exact, other = (np.repeat(generator.standard_normal((24, depth)), 20, axis=0) @ mix for _ in range(2))

    def as_they_will_be(x: np.ndarray) -> np.ndarray:
        return 0.8 * x if regular else x + np.repeat(generator.standard_normal((24, depth)), 20, axis=0)

    def error(found: np.ndarray) -> float:
        return float(np.square(unseen @ found.T - other @ rows.T).mean())

    patches, unseen = as_they_will_be(exact), as_they_will_be(other)
    found = aimed(rows, exact, patches, centred=True)
    assert error(found) < 0.5 * error(rows) if regular else error(found) <= 1.05 * error(rows)


@pytest.mark.parametrize(("bits", "wider"), WIDER.items())
def test_salient_groups_have_more_bits(problem: tuple[np.ndarray, np.ndarray], bits: int, wider: int) -> None:
    """As many as were asked for, and those for which others are worse."""
    rows, moment = problem[0][:, :120], problem[1][:120, :120]
    fit = fit_low_bit(rows, moment, bits, 8, salient=0.2)
    largest = np.abs(fit.values.astype(int) + (fit.values < 0)).reshape(17, 15, 8).max(axis=(0, 2))
    wide = largest > limits(bits)[1]
    assert fit.bits == wider and wide.sum() == 3 and largest.max() <= limits(wider)[1]
    costs = {share: cost(fit_low_bit(rows, moment, bits, 8, salient=share), rows, moment) for share in (0, 0.2, 0.5, 1)}
    assert costs[0] > costs[0.2] > costs[0.5] > costs[1]
    weights = np.repeat(wide, 8)
    importance = np.square(rows).sum(axis=0) * np.diag(moment)
    assert importance[weights].mean() > importance[~weights].mean()


def test_scales_fit_two_bytes(problem: tuple[np.ndarray, np.ndarray]) -> None:
    fit = fit_low_bit(*problem, 4, 32)
    np.testing.assert_array_equal(fit.scales, fit.scales.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_symmetric_fit_is_for_integer_kernels(problem: tuple[np.ndarray, np.ndarray]) -> None:
    fit = fit_low_bit(*problem, 4, 127, symmetric=True)
    assert fit.values.min() >= -7 and fit.values.max() <= 7 and (fit.scales > 0).all()


def test_factors_cost_less_than_one_scale(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """And what comes out has them: a kernel finds them again."""
    rows, moment = problem
    whole = fit_low_bit(rows, moment, 4, 127, symmetric=True)
    values, scales = fit_factored(rows, moment, 32, lambda each: each)
    found = LowBit(values, scales[:, None], 8, 127)
    assert cost(found, rows, moment) < 0.7 * cost(whole, rows, moment)
    factors = common_factors(values.T, 32)
    assert factors is not None and (values == spread(factors.T, 32, 127) * (values // spread(factors.T, 32, 127))).all()
    scaled = fit_factored(rows, moment, 32, lambda each: np.maximum(each, 0.1))[1]
    assert (scaled >= np.float32(0.1)).all()


def test_exact_weights_stay_exact(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """Rows that lie on a grid of 4 bits are found again, with either method."""
    generator = np.random.default_rng(2)
    values = generator.integers(-8, 8, (5, 127))
    values[:, ::32] = -8
    rows = (values * spread(np.exp2(generator.integers(-5, 0, (5, 4))), 32, 127)).astype(np.float32)
    for fit in (fit_low_bit(rows, problem[1], 4, 32), nearest_low_bit(rows, 4, 32)):
        np.testing.assert_array_equal(fit.rows, rows)


# ---- kernels --------------------------------------------------------------------------------------------------

KERNELS = {
    "odd everything": ((1, 5, 9, 7), (7, 5, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "channels of eights": ((2, 16, 7, 5), (17, 16, 3, 3), {"pads": [1, 1, 1, 1]}),
    "dilated": ((1, 24, 11, 9), (5, 24, 2, 3), {"dilations": [2, 1], "strides": [1, 2]}),
    "pointwise": ((1, 40, 5, 17), (33, 40, 1, 1), {}),
    "signal": ((1, 16, 31), (20, 16, 3), {"pads": [2, 0]}),
    "depthwise": ((1, 17, 7, 7), (17, 1, 3, 3), {"group": 17, "pads": [1, 1, 1, 1]}),
    "depthwise, strided": ((1, 33, 11, 9), (33, 1, 3, 3), {"group": 33, "pads": [1, 1, 0, 1], "strides": [2, 2]}),
    "groups": ((1, 10, 7, 5), (6, 5, 3, 3), {"group": 2}),
    "image": ((1, 3, 23, 21), (17, 3, 3, 3), {"pads": [1, 0, 0, 1], "strides": [2, 2]}),
    "127": ((1, 127, 3, 1), (127, 127, 1, 1), {}),
    "transformed": ((2, 24, 7, 17), (20, 24, 3, 3), {"pads": [2, 0, 1, 1]}),
}
"""Input, weights, attributes."""

WIDTHS = {8: "int8", 4: "int4", 3: "int4", 2: "int4"}


def convolution(name: str, bits: int, group: int = 0) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution of integer weights, in ``group`` groups along the channels of each tap, or one scale a channel."""
    shape, weight, attributes = KERNELS[name]
    generator = np.random.default_rng(len(name) + bits)
    low, high = limits(bits)
    values = generator.integers(low, high + 1, weight).astype(getattr(ml_dtypes, WIDTHS[bits], np.int8))
    blocks = (weight[0], -(-weight[1] // group), *weight[2:]) if group else (weight[0],)
    constants = {
        "w": values,
        "s": generator.uniform(-0.1, 0.1, blocks).astype(ml_dtypes.bfloat16).astype(np.float32),
        "b": generator.standard_normal(weight[0], np.float32),
    }
    extra = {"axis": 1, "block_size": group} if group else {"axis": 0}
    nodes = [node("DequantizeLinear", "w s", "r", **extra), node("Conv", "x r b", "c", **attributes)]
    nodes.append(node("Relu", "c", "y"))
    model = graphs.build(nodes, {"x": shape}, ["y"], constants, opset=21)
    return model, {"x": generator.standard_normal(shape, np.float32)}


def product(bits: int, group: int, op: str = "MatMul") -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """x [3, 5, 100] · w [100, 21], or with its weight transposed and a bias."""
    generator = np.random.default_rng(bits * group)
    low, high = limits(bits)
    values = generator.integers(low, high + 1, (100, 21)).astype(getattr(ml_dtypes, WIDTHS[bits], np.int8))
    scales = generator.uniform(0.01, 0.1, (-(-100 // group), 21)).astype(np.float32)
    turned = op == "Gemm"
    constants = {"w": values.T if turned else values, "s": scales.T if turned else scales}
    constants["b"] = generator.standard_normal(21, np.float32)
    nodes = [node("DequantizeLinear", "w s", "r", axis=int(turned), block_size=group)]
    nodes.append(node("Gemm", "x r b", "y", transB=1) if turned else node("MatMul", "x r", "y"))
    shape = (15, 100) if turned else (3, 5, 100)
    model = graphs.build(nodes, {"x": shape}, ["y"], constants, opset=21)
    return model, {"x": generator.standard_normal(shape, np.float32)}


def mixed(name: str, group: int, widths: tuple[int, ...]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A convolution, or MatMul of [3, 5, 128] and [128, 21], whose groups along the depth have ``widths`` in turn."""
    generator = np.random.default_rng(len(name) + group)
    matrix = name == "MatMul"
    shape, weight, attributes = ((3, 5, 128), (21, 128), {}) if matrix else KERNELS[name]
    channels, kernel = weight[1], weight[2:]
    rows = np.empty((weight[0], int(np.prod(weight[1:]))), np.int8)
    for index, first in enumerate(range(0, rows.shape[1], group)):
        low, high = limits(widths[index % len(widths)])
        rows[:, first : first + group] = generator.integers(low, high + 1, (weight[0], group))
    scales = generator.uniform(0.01, 0.1, (weight[0], rows.shape[1] // group))
    constants = {"w": rows, "s": scales.astype(ml_dtypes.bfloat16).astype(np.float32)}
    turned = node("Transpose", "r", "t", perm=[1, 0])
    nodes = [node("DequantizeLinear", "w s", "r", axis=1, block_size=group), turned, node("MatMul", "x t", "y")]
    if not matrix:
        constants["shape"] = np.array([weight[0], *kernel, channels])
        rank = len(weight)
        back = node("Transpose", "p", "t", perm=[0, rank - 1, *range(1, rank - 1)])
        nodes[1:] = [node("Reshape", "r shape", "p"), back, node("Conv", "x t", "y", **attributes)]
    model = graphs.build(nodes, {"x": shape}, ["y"], constants, opset=21)
    return model, {"x": generator.standard_normal(shape, np.float32)}


MIXED = {
    "channels of eights": (16, (2, 8, 4)),
    "dilated": (8, (3, 2)),
    "pointwise": (8, (8, 4)),
    "signal": (24, (4, 2)),
    "MatMul": (32, (2, 3, 8, 4)),
}
"""Neighbours that share a scale, and bits of one group after the other."""

CASES = {
    **{f"{name} of several widths": mixed(name, *each) for name, each in MIXED.items()},
    **{f"{name}, {bits} bits": convolution(name, bits) for name in KERNELS for bits in WIDTHS},
    **{f"channels of eights, {bits} bits by 8": convolution("channels of eights", bits, 8) for bits in WIDTHS},
    "dilated, 4 bits by 24": convolution("dilated", 4, 24),
    "pointwise, 3 bits by 16": convolution("pointwise", 3, 16),
    "signal, 2 bits by 8": convolution("signal", 2, 8),
    **{f"transformed, {bits} bits by 24": convolution("transformed", bits, 24) for bits in WIDTHS},
    **{f"{op}, {bits} bits by 32": product(bits, 32, op) for op in ("MatMul", "Gemm") for bits in WIDTHS},
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree(name: str, tmp_path: Path) -> None:
    """The reference and the compiled kernel agree with ONNX Runtime to 1e-5 of the range."""
    model, inputs = CASES[name]
    wanted = graphs.run(model, inputs)
    program = program_of(model)
    assert_close(run_reference(program, inputs), wanted)
    assert_close(HostProgram(program, tmp_path).run(inputs, threads=3), wanted)


@pytest.mark.parametrize("machine", ["x86-64-v3", "rpi4"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_few_bits_are_transformed(bits: int, machine: str) -> None:
    """Where floats take Winograd's transforms, packed weights do; those of 3 bits only in whole eights."""
    target = load_target(machine)
    for model, _ in (CASES[f"transformed, {bits} bits"], CASES[f"transformed, {bits} bits by 24"]):
        (kernel,) = kernels_of(model)
        template = template_for(kernel, target)
        assert f"winograd4_w{bits}" in template.contract(template.plan(kernel, target))
    odd = replace(kernel, in_channels=20, input_strides=(*kernel.input_strides[:3], 1))
    template = template_for(odd, target)
    assert ("winograd4" in template.contract(template.plan(odd, target))) == (bits != 3)


@pytest.mark.parametrize("name", MIXED)
def test_groups_have_bits_of_their_own(name: str) -> None:
    """The kernel's operands take the bits of each group, not those of the widest."""
    _group, widths = MIXED[name]
    program = program_of(CASES[f"{name} of several widths"][0])
    (step,) = [step for step in program.steps if isinstance(step.kernel, Conv)]
    packing = step.kernel.packing
    assert packing is not None and [bits for bits, _ in packing.parts] == sorted(widths, reverse=True)
    elements = np.asarray(step.inputs[1].data).size
    planned = plan(step.kernel, load_target("host"))
    stored = pack(planned, np.asarray(step.inputs[1].data)).nbytes
    padding = sum(planned.widths(step.kernel.out_channels)) / step.kernel.out_channels
    exact = sum(bits * count for bits, count in packing.parts) * elements / sum(c for _, c in packing.parts) / 8
    assert stored == pytest.approx(padding * exact)


def test_arm_kernels_agree(emulator: str, tmp_path: Path) -> None:
    """All of them on an emulated core."""
    inputs = {f"{i}_{name}": x for i, (_, values) in enumerate(CASES.values()) for name, x in values.items()}
    model = together(model for model, _ in CASES.values())
    assert_close(emulated(model, inputs, tmp_path, "rpi4", "cortex-a72", 2), graphs.run(model, inputs))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weights_stay_packed(bits: int, tmp_path: Path) -> None:
    """An artifact has the bytes that the bits say, and no constant of a whole product's floats."""
    generator = np.random.default_rng(bits)
    low, high = limits(bits)
    values = generator.integers(low, high + 1, (512, 256)).astype(getattr(ml_dtypes, WIDTHS[bits], np.int8))
    scales = generator.uniform(0.01, 0.1, (16, 256)).astype(ml_dtypes.bfloat16).astype(np.float32)
    nodes = [node("DequantizeLinear", "w s", "r", axis=0, block_size=32), node("MatMul", "x r", "y")]
    model = graphs.build(nodes, {"x": (1, 512)}, ["y"], {"w": values, "s": scales}, opset=21)
    stored = edgec.compile(model, output=tmp_path / "a.so").manifest["weights_bytes"]
    exact = 512 * 256 * bits / 8 + 16 * 256 * 2
    assert exact <= stored <= 1.03 * exact


@pytest.mark.parametrize(("mode", "bits"), [("w8", 8), ("w4", 4), ("w2", 2)])
def test_a_model_has_the_bytes_that_its_bits_say(mode: str, bits: int, tmp_path: Path) -> None:
    """Of the language model: bits times weights, two bytes a scale, and four an element of what stays float."""
    model, output = LANGUAGE_MODEL, tmp_path / "lm.so"
    quick = Recipe(rounding="nearest", correct_bias=False)
    options = {"shapes": {"tokens": (1, 1)}, "states": "auto", "calib": model.with_name("bytes_calib.npz")}
    compiled = edgec.compile(model, output=output, quantize=mode, recipe=quick, **options)
    graph = onnx.load(output.with_name("lm.so.quantised.onnx")).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    packed = {each.input[0]: each.input[1] for each in graph.node if each.op_type == "DequantizeLinear"}
    exact = sum(arrays[name].size * bits / 8 + 2 * arrays[scale].size for name, scale in packed.items())
    rest = {name: array for name, array in arrays.items() if array.dtype == np.float32 and name not in packed.values()}
    exact += sum(array.nbytes for array in rest.values())
    assert packed and exact <= compiled.manifest["weights_bytes"] <= 1.03 * exact


# ---- integer kernels ------------------------------------------------------------------------------------------

DENSE = {name: shape for name, shape in (SHAPES | MORE_SHAPES).items() if "depthwise" not in name}
NIBBLES = {
    name: layer(*shape, ("int8", "uint8")[index % 2], most=7) for index, (name, shape) in enumerate(DENSE.items())
}
WITH_FACTORS = {
    "pointwise, a short last group": ((1, 144, 7, 5), (17, 144, 1, 1), {}),
    "pointwise, one group": ((2, 24, 5, 5), (40, 24, 1, 1), {"strides": [2, 2]}),
    "3x3 of 16 channels": ((1, 16, 9, 11), (33, 16, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "3x3 of 64, dilated": ((1, 64, 7, 7), (24, 64, 3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "one row of 640": ((1, 640, 1, 1), (127, 640, 1, 1), {}),
}


def factored(name: str, dtype: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A layer whose weights are integers of 4 bits times factors of groups, of every size."""
    model, inputs = layer(*WITH_FACTORS[name], dtype, most=7)
    (initializer,) = (each for each in model.graph.initializer if each.name == "w")
    kernel = np.maximum(onnx.numpy_helper.to_array(initializer), -FACTORED_LIMIT)
    outputs, channels, *window = kernel.shape
    group = factor_group(channels, int(np.prod(window)))
    rows = kernel.transpose(2, 3, 1, 0).reshape(-1, outputs)
    factors = np.random.default_rng(3).integers(1, LARGEST_FACTOR, (-(-len(rows) // group), outputs), endpoint=True)
    rows = rows * spread_factors(factors.astype(np.int8), group, len(rows))
    made = rows.reshape(*window, channels, outputs).transpose(3, 2, 0, 1).astype(np.int8)
    initializer.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(made), "w"))
    return model, inputs


NIBBLES |= {f"{name}, {dtype}, factors": factored(name, dtype) for name in WITH_FACTORS for dtype in ("int8", "uint8")}


@pytest.mark.parametrize("name", NIBBLES)
def test_nibbles_equal_the_reference(name: str, tmp_path: Path) -> None:
    """Two weights a byte, and the same bits as ONNX Runtime and the reference, by every kind of kernel."""
    model, inputs = NIBBLES[name]
    wanted = graphs.run(model, inputs)["y"]
    host = load_target("host")
    narrow = replace(host, features=("avx2", "fma"), cpu="x86-64-v3", vector_bytes=32, vector_registers=16)
    unknown = replace(host, arch="unknown", features=(), cpu="generic" if host.arch == "aarch64" else "x86-64")
    for number, target in enumerate([host, unknown, *([narrow] if host.arch == "x86_64" else [])]):
        folder = tmp_path / str(number)
        folder.mkdir()
        program = program_of(model)
        np.testing.assert_array_equal(run_reference(program, inputs)["y"], wanted)
        compiled = HostProgram(program, folder, target)
        np.testing.assert_array_equal(compiled.run(inputs, threads=3)["y"], wanted)
        stored = "w4g" if name.endswith("factors") else "w4"
        assert any(stored in call.contract for call in compiled.code.calls)


@pytest.mark.parametrize(("target", "cpu", "threads"), [*CORES[1:3], CORES[4]])
def test_nibbles_on_arm(target: str, cpu: str, threads: int, emulator: str, tmp_path: Path) -> None:
    inputs = {f"{i}_x": values["x"] for i, (_, values) in enumerate(NIBBLES.values())}
    model = together(model for model, _ in NIBBLES.values())
    found = emulated(model, inputs, tmp_path, target, cpu, threads)
    for name, wanted in graphs.run(model, inputs).items():
        np.testing.assert_array_equal(found[name], wanted, err_msg=[*NIBBLES][int(name.partition("_")[0])])


def test_nibbles_stay_packed(tmp_path: Path) -> None:
    """A kilobyte of them takes half of it, with four bytes of bias and of multiplier a channel, and its factors."""
    model, _ = layer((1, 256, 3, 3), (256, 256, 3, 3), {}, "uint8", most=7)
    by_groups, _ = factored("3x3 of 64, dilated", "uint8")
    for target in ("host", "rpi2", "rpi4", "rpi5"):
        stored = edgec.compile(model, target, tmp_path / f"{target}.so").manifest["weights_bytes"]
        exact = 256 * 256 * 9 / 2 + 256 * 8
        assert exact <= stored <= 1.03 * exact, target
        stored = edgec.compile(by_groups, target, tmp_path / f"{target}.so").manifest["weights_bytes"]
        exact = 24 * 64 * 9 * (1 / 2 + 1 / 32) + 24 * 8
        assert exact <= stored <= 1.03 * exact, target


def test_factors_are_found() -> None:
    """The least that leaves integers of 4 bits; none where a group has no common one, or too large a one."""
    rows = np.array([[7, 0, 34], [-3, 0, -17], [9, 0, 17], [18, 5, 102], [-45, 5, 0], [0, 0, 119]], np.int8)
    found = common_factors(rows, 3)
    assert found is None  # 9 beside 7
    rows[0, 0] = 6
    found = common_factors(rows, 3)
    assert found is not None and found.tolist() == [[3, 1, 17], [9, 1, 17]]
    rows[5, 2] = 68
    rows[3, 2] = 0
    rows[5, 1] = 126
    assert common_factors(rows, 3) is None  # 5 and 126
    assert common_factors(np.array([[126]], np.int8), 1) is None
    sizes = [factor_group(*each) for each in ((144, 1), (64, 9), (48, 9), (24, 9), (3, 1))]
    assert sizes == [32, 32, 16, 0, 0]


# ---- what others write ----------------------------------------------------------------------------------------


def kernels_of(model: onnx.ModelProto) -> list[Conv]:
    """The convolutions and products of the compiled program."""
    return [step.kernel for step in program_of(model).steps if isinstance(step.kernel, Conv)]


def test_zero_points_go_into_the_integers(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    constants = {
        "w": generator.integers(0, 16, (64, 12)).astype(ml_dtypes.uint4),
        "s": generator.uniform(0.01, 0.1, (2, 12)).astype(np.float32),
        "z": generator.integers(0, 16, (2, 12)).astype(ml_dtypes.uint4),
    }
    nodes = [node("DequantizeLinear", "w s z", "r", axis=0, block_size=32), node("MatMul", "x r", "y")]
    model = graphs.build(nodes, {"x": (2, 64)}, ["y"], constants, opset=21)
    inputs = {"x": generator.standard_normal((2, 64), np.float32)}
    (kernel,) = kernels_of(model)
    assert kernel.packing is not None and kernel.packing.bits == 8 and kernel.packing.group == 32
    assert_close(HostProgram(program_of(model), tmp_path).run(inputs), graphs.run(model, inputs))


@pytest.mark.parametrize("block", [10, 127])
def test_blocks_that_no_kernel_reads_are_real_numbers(block: int, tmp_path: Path) -> None:
    """A block of ten divides no eight; differences of 255 fit no byte."""
    generator = np.random.default_rng(4)
    narrow = block == 10
    constants = {
        "w": generator.integers(0, 256, (60, 12)).astype(np.uint8),
        "s": generator.uniform(0.01, 0.1, (6 if narrow else 1, 12)).astype(np.float32),
        "z": np.full((6 if narrow else 1, 12), 128 if narrow else 0, np.uint8),
    }
    nodes = [node("DequantizeLinear", "w s z", "r", axis=0, block_size=block), node("MatMul", "x r", "y")]
    model = graphs.build(nodes, {"x": (2, 60)}, ["y"], constants, opset=21)
    inputs = {"x": generator.standard_normal((2, 60), np.float32)}
    (kernel,) = kernels_of(model)
    assert kernel.packing is None
    assert_close(HostProgram(program_of(model), tmp_path).run(inputs), graphs.run(model, inputs))


def test_passes_leave_a_model_that_others_run() -> None:
    """The fused operators are functions: ONNX Runtime gives the same."""
    for name in ("channels of eights, 4 bits by 8", "Gemm, 3 bits by 32", "depthwise, 8 bits"):
        model, inputs = CASES[name]
        graph = load_graph(model)
        run_passes(graph)
        assert any(each.domain == "edgec" for each in graph.graph), name
        assert_close(graphs.run(graph, inputs), graphs.run(model, inputs))


# ---- the command ----------------------------------------------------------------------------------------------


def agreement(artifact: Path, data: dict[str, np.ndarray]) -> float:
    """Percent of the sample data that an artifact classifies right."""
    with edgec.load(artifact) as session:
        found = [session.run({"image": image[None]})["logits"].argmax() for image in data["image"]]
    return 100 * float(np.mean(np.array(found) == data["labels"]))


@pytest.mark.parametrize(("mode", "least"), [("w8", 98.7), ("w4", 98.2), ("w3", 97.5), ("w2", 95.0), ("w4a8", 98.0)])
def test_command_keeps_the_accuracy(
    mode: str, least: float, sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Float is right on 99.1 %; ONNX Runtime runs what stands beside the artifact, with the same classes."""
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    printed = results_of("compile", sample_model, "--quantize", mode, "--calib", calib, "-o", output)
    assert agreement(output, sample_data) >= least
    assert mode in {layer["bits"] for layer in printed["quantisation"]["layers"]}
    twin = onnx.load(output.with_name("digits.so.quantised.onnx"))
    onnx.checker.check_model(twin, full_check=True)
    if mode == "w4a8":
        assert any(kernel.packing and kernel.packing.group for kernel in kernels_of(twin))
    with edgec.load(output) as session:
        for image in sample_data["image"][:20]:
            wanted = graphs.run(twin, {"image": image[None]})["logits"]
            assert session.run({"image": image[None]})["logits"].argmax() == wanted.argmax()


def test_recipe_and_guard(sample_model: Path, tmp_path: Path) -> None:
    """Layers go back to more bits until no more is lost than allowed; the recipe gives the same bytes again."""
    calib, labelled = (sample_model.with_name(f"digits_{name}.npz") for name in ("calib", "eval"))
    first, second = tmp_path / "first.so", tmp_path / "second.so"
    common = ["compile", sample_model, "--quantize", "w2", "--calib", calib]
    printed = results_of(*common, "--eval", labelled, "--max-drop", "0.1", "--group-size", "64", "-o", first)
    guard = printed["quantisation"]["guard"]
    assert guard["put_back"] and guard["float_score"] - guard["score"] <= 0.1
    assert set(guard["put_back"].values()) <= {"w4", "w8", "float"}
    recipe = first.with_name("first.so.recipe.toml")
    assert "group_size = 64" in recipe.read_text()
    results_of(*common, "--recipe", recipe, "-o", second)
    with edgec.load(first) as one, edgec.load(second) as other:
        x = np.ones((1, 1, 8, 8), np.float32)
        np.testing.assert_array_equal(one.run({"image": x})["logits"], other.run({"image": x})["logits"])


def test_diff_tells_weights_apart(sample_model: Path, tmp_path: Path) -> None:
    calib, output = sample_model.with_name("digits_calib.npz"), tmp_path / "digits.so"
    results_of("compile", sample_model, "--quantize", "w2", "--calib", calib, "-o", output)
    found = results_of("diff", sample_model, output, "--calib", calib)
    assert found["layers"] and all(layer["activations_alone"] is None for layer in found["layers"])
    assert all(layer["bits"] == "weights" for layer in found["layers"])
    assert min(layer["alone"] for layer in found["layers"]) < 30


def test_salient_groups_by_the_command(sample_model: Path, tmp_path: Path) -> None:
    """More bytes than 2 bits and fewer than 4, and predictions between theirs; no share is more than all."""
    calib, sizes = sample_model.with_name("digits_calib.npz"), []
    for number, given in enumerate((["w2"], ["w2", "--salient-groups", "0.25"], ["w4"])):
        output = tmp_path / f"{number}.so"
        results_of("compile", sample_model, "--quantize", *given, "--calib", calib, "-o", output)
        sizes.append(read_manifest(output)["weights_bytes"])
    assert sizes[0] < sizes[1] < sizes[0] + 0.4 * (sizes[2] - sizes[0])
    assert "salient_groups = 0.25" in (tmp_path / "1.so.recipe.toml").read_text()
    common = ["compile", sample_model, "--quantize", "w2", "--calib", calib, "-o", tmp_path / "x.so"]
    assert "--salient-groups 1.5 is no share" in sentence_of(*common, "--salient-groups", "1.5")
    recipe = tmp_path / "r.toml"
    recipe.write_text('salient_groups = "auto"\n')
    assert "salient_groups = 'auto'; it must be a share" in sentence_of(*common, "--recipe", recipe)


def test_wrong_group_size_is_a_sentence(sample_model: Path, tmp_path: Path) -> None:
    calib = sample_model.with_name("digits_calib.npz")
    said = sentence_of(
        "compile", sample_model, "--quantize", "w4", "--calib", calib, "--group-size", "33", "-o", tmp_path / "x.so"
    )
    assert "--group-size 33" in said and "32" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["opencl", "pynq-z2"])
def test_targets_refuse_widths_by_name(target: str, sample_model: Path, tmp_path: Path) -> None:
    calib = sample_model.with_name("digits_calib.npz")
    said = sentence_of(
        "compile", sample_model, "--target", target, "--quantize", "w3", "--calib", calib, "-o", tmp_path / "x"
    )
    assert f"{target} has no kernels for w3" in said and "int8, int16, w4a8" in said
    assert not list(tmp_path.iterdir())
