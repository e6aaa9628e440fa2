"""Convolutions beyond the plain float32 one: transposed, over volumes, of integers, deformed, weights at run time."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from edgec.errors import UnsupportedModelError
from edgec.lowering.transposed import phases
from edgec.program import Conv, Depthwise
from tests import graphs
from tests.operators import assert_agrees, compiled_outputs, node, normal
from tests.programs import program_of

PHASES = product((9, 10), (1, 3, 4), (1, 2, 3), (1, 2, 4), (0, 1))


@pytest.mark.parametrize("extent, kernel, stride, dilation, begin", PHASES)
def test_phases_reach_every_product_once(extent: int, kernel: int, stride: int, dilation: int, begin: int) -> None:
    """out[o] takes x[i] · w[k] for i·s + k·d = o + begin, and for nothing else."""
    found = []
    for phase in phases(extent, kernel, stride, dilation, begin):
        for place in range(phase.count):
            reads = [(phase.start + place + t * phase.dilation, k) for t, k in enumerate(phase.taps)]
            found += [(phase.first + place * stride, i, k) for i, k in reads if i >= 0]
    wanted = [
        (o, (o + begin - k * dilation) // stride, k)
        for o, k in product(range(extent), range(kernel))
        if o + begin >= k * dilation and (o + begin - k * dilation) % stride == 0
    ]
    assert sorted(found) == sorted(wanted)


TRANSPOSED = {
    "stride 2": ((2, 5, 7, 6), (5, 17, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "stride as large as the kernel": ((1, 16, 5, 7), (16, 7, 2, 2), {"strides": [2, 2]}),
    "stride larger than the kernel": ((1, 3, 4, 5), (3, 5, 1, 2), {"strides": [3, 4], "output_padding": [1, 2]}),
    "dilated": ((1, 5, 6, 5), (5, 3, 3, 3), {"strides": [2, 3], "dilations": [3, 2], "pads": [2, 0, 1, 3]}),
    "grouped": ((1, 6, 5, 5), (6, 4, 3, 3), {"group": 3, "strides": [2, 1], "pads": [1, 1, 0, 1]}),
    "depthwise": ((1, 17, 6, 7), (17, 1, 4, 4), {"group": 17, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "output shape": ((1, 3, 5, 6), (3, 5, 3, 3), {"strides": [2, 2], "output_shape": [10, 12]}),
    "same": ((1, 3, 5, 6), (3, 5, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "signal": ((2, 5, 9), (5, 7, 5), {"strides": [2], "pads": [2, 1], "output_padding": [1]}),
    "volume": ((1, 4, 3, 4, 5), (4, 3, 2, 3, 3), {"strides": [2, 1, 2], "pads": [0, 1, 1, 1, 1, 0]}),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution(case: str, known: bool, tmp_path: Path) -> None:
    shape, kernel, attributes = TRANSPOSED[case]
    constants = {"w": normal(*kernel), "b": normal(kernel[1] * attributes.get("group", 1))}
    inputs = {"x": normal(*shape)}
    made = node("ConvTranspose", "x w b", **attributes)
    assert_agrees(made, inputs if known else {**inputs, **constants}, tmp_path, constants if known else {})


def test_padding_with_two_meanings_is_refused(tmp_path: Path) -> None:
    made = node("ConvTranspose", "x w", strides=[2, 2], auto_pad="SAME_LOWER", output_padding=[1, 1])
    model = graphs.build([made], {"x": (1, 3, 5, 5)}, ["y"], {"w": normal(3, 3, 3, 3)})
    with pytest.raises(UnsupportedModelError, match="give explicit pads"):
        compiled_outputs(model, {}, tmp_path)


GENERAL = {
    "volume": ((2, 3, 5, 6, 7), (17, 3, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 0], "strides": [2, 1, 2]}),
    "volume, grouped": ((1, 6, 4, 5, 5), (4, 3, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 0, 1, 1]}),
    "volume, dilated": ((1, 3, 7, 5, 5), (5, 3, 3, 2, 2), {"dilations": [2, 2, 1]}),
    "image": ((2, 5, 7, 6), (17, 5, 3, 3), {"pads": [1, 2, 0, 1], "strides": [2, 1]}),
    "image, many groups": ((1, 20, 5, 6), (40, 1, 3, 3), {"group": 20, "pads": [1, 1, 1, 1]}),
    "signal": ((2, 5, 11), (7, 5, 3), {"dilations": [2], "strides": [2]}),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", GENERAL)
def test_convolution_of_any_rank(case: str, known: bool, tmp_path: Path) -> None:
    shape, kernel, attributes = GENERAL[case]
    constants, inputs = {"w": normal(*kernel), "b": normal(kernel[0])}, {"x": normal(*shape)}
    made = node("Conv", "x w b", **attributes)
    assert_agrees(made, inputs if known else {**inputs, **constants}, tmp_path, constants if known else {})


@pytest.mark.parametrize("times", [1, 2, 3])
def test_several_outputs_a_channel_are_one_depthwise_step(times: int) -> None:
    made = node("Conv", "x w", group=17, pads=[1, 0, 1, 1])
    program = program_of(graphs.build([made], {"x": (1, 17, 7, 5)}, ["y"], {"w": normal(17 * times, 1, 3, 3)}))
    kernels = [step.kernel for step in program.steps]
    assert [kernel.channels for kernel in kernels if isinstance(kernel, Depthwise)] == [17 * times]
    assert not any(isinstance(kernel, Conv) for kernel in kernels)


@pytest.mark.parametrize("images", [1, 3])
def test_groups_are_one_step_an_image(images: int) -> None:
    made = node("Conv", "x w", group=16)
    program = program_of(graphs.build([made], {"x": (images, 128, 5, 7)}, ["y"], {"w": normal(64, 8, 3, 3)}))
    assert [step.kernel.batch for step in program.steps if isinstance(step.kernel, Conv)] == [16] * images


@pytest.mark.parametrize("dtype, tolerance", [("float16", 3e-3), ("float64", 1e-9)])
def test_convolution_of_other_floats(dtype: str, tolerance: float, tmp_path: Path) -> None:
    model = graphs.build(
        [node("Conv", "x w", pads=[1, 1, 1, 1])], {"x": (1, 5, 6, 7)}, ["y"], {"w": normal(7, 5, 3, 3, dtype=dtype)},
        types={"x": onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))},
    )  # fmt: skip
    x = normal(1, 5, 6, 7, dtype=dtype)
    found = compiled_outputs(model, {"x": x}, tmp_path)["y"]
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.ptp(wanted)))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("zeros", ["none", "of x", "of both", "of each channel"])
def test_convolution_of_integers(zeros: str, known: bool, tmp_path: Path) -> None:
    x, w = (np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
            for seed, shape in ((1, (2, 5, 7, 6)), (2, (17, 5, 3, 3))))  # fmt: skip
    points = {"p": np.array(113, np.uint8)} if zeros != "none" else {}
    if zeros == "of both":
        points["q"] = np.array(77, np.uint8)
    if zeros == "of each channel":
        points["q"] = np.arange(17).astype(np.uint8) * 11
    made = node("ConvInteger", " ".join(["x w", *points]), pads=[1, 0, 2, 1], strides=[2, 1])
    constants = {"w": w, **points}
    model = graphs.build(
        [made], {"x": x.shape} | ({} if known else {k: v.shape for k, v in constants.items()}), ["y"],
        constants if known else {}, types=dict.fromkeys(["x", *constants], onnx.TensorProto.UINT8),
    )  # fmt: skip
    inputs = {"x": x} | ({} if known else constants)
    found = compiled_outputs(model, inputs, tmp_path)["y"]
    shift = np.asarray(points.get("q", 0), np.float64).reshape(-1, 1, 1, 1)
    wide = [x.astype(np.float64) - int(points.get("p", 0)), w.astype(np.float64) - shift]
    exact = graphs.build(
        [node("Conv", "x w", pads=[1, 0, 2, 1], strides=[2, 1])], {"x": x.shape, "w": w.shape}, ["y"],
        types={"x": onnx.TensorProto.DOUBLE, "w": onnx.TensorProto.DOUBLE},
    )  # fmt: skip
    (wanted,) = ReferenceEvaluator(exact).run(None, dict(zip("xw", wide, strict=True)))
    np.testing.assert_array_equal(found, wanted.astype(np.int32))


@pytest.mark.parametrize("groups, offset_groups, masked", [(1, 1, True), (2, 1, False), (1, 2, True), (3, 3, True)])
def test_deformable_convolution(groups: int, offset_groups: int, masked: bool, tmp_path: Path) -> None:
    x, w, b = normal(2, 6, 7, 6), normal(6, 6 // groups, 3, 2), normal(6)
    places = (4, 5)
    inputs = {"x": x, "o": normal(2, offset_groups * 12, *places) * 2}
    if masked:
        inputs["m"] = normal(2, offset_groups * 6, *places)
    made = node(
        "DeformConv", "x w o b m" if masked else "x w o b", kernel_shape=[3, 2], group=groups,
        offset_group=offset_groups, pads=[1, 0, 1, 1], strides=[2, 1], dilations=[1, 2],
    )  # fmt: skip
    model = graphs.build([made], {k: v.shape for k, v in inputs.items()}, ["y"], {"w": w, "b": b}, opset=19)
    (wanted,) = ReferenceEvaluator(model).run(None, inputs)
    found = compiled_outputs(model, inputs, tmp_path)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * float(np.ptp(wanted)))
