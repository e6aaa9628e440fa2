"""Kernels against the numpy reference and ONNX Runtime: odd shapes, strides, groups, asymmetric pads, threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from tests.programs import HostProgram, assert_close, model, program_of, random_inputs, run_reference

rng = np.random.default_rng(7)


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def conv_model(x, co, kernel, *, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), group=1, act=None, bias=True):
    """Conv, then an activation and a residual where asked for."""
    kh, kw = kernel
    oh = (x[2] + pads[0] + pads[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x[3] + pads[1] + pads[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    names = ["x", "w", "b"] if bias else ["x", "w"]
    attributes = {"strides": stride, "pads": pads, "dilations": dilation, "group": group}
    nodes = [helper.make_node("Conv", names, ["c"], **attributes)]
    if act:
        nodes.append(helper.make_node(act, ["c"], ["y"]))
    constants = {"w": weights(co, x[1] // group, kh, kw), **({"b": weights(co)} if bias else {})}
    return model(nodes, {"x": x}, {"y" if act else "c": (x[0], co, oh, ow)}, constants)


CONVS = {
    "first layer, stride 2": conv_model((1, 3, 17, 19), 7, (3, 3), stride=(2, 2), pads=(1, 1, 1, 1), act="Relu"),
    "asymmetric pads": conv_model((1, 5, 7, 9), 17, (3, 5), pads=(0, 2, 1, 1)),
    "dilated": conv_model((2, 5, 11, 13), 8, (3, 3), dilation=(2, 3), pads=(2, 3, 2, 3), act="Sigmoid"),
    "pointwise, many channels": conv_model((1, 127, 5, 5), 127, (1, 1), act="Relu"),
    "pointwise, stride 2": conv_model((1, 16, 9, 7), 24, (1, 1), stride=(2, 2), bias=False),
    "one output channel": conv_model((1, 17, 6, 6), 1, (3, 3)),
    "kernel as large as the input": conv_model((1, 7, 5, 5), 33, (5, 5)),
    "3x3, whole tiles": conv_model((2, 16, 12, 8), 48, (3, 3), pads=(1, 1, 1, 1), act="Relu"),
    "3x3, whole tiles, deep": conv_model((1, 64, 10, 6), 80, (3, 3), bias=False),
    "grouped": conv_model((1, 12, 7, 7), 20, (3, 3), group=4, pads=(1, 1, 1, 1)),
    "groups of 5, batch": conv_model((2, 15, 7, 6), 21, (3, 3), group=3, stride=(2, 1), pads=(1, 0, 2, 1)),
    "groups of 8": conv_model((1, 56, 9, 7), 56, (3, 3), group=7, pads=(1, 1, 1, 1), act="Sigmoid"),
    "groups of 16, whole tiles": conv_model((1, 48, 12, 8), 48, (3, 3), group=3, pads=(1, 1, 1, 1), act="Relu"),
    "groups of 17, pointwise": conv_model((1, 34, 5, 7), 32, (1, 1), group=2, bias=False),
    "depthwise": conv_model((1, 17, 9, 11), 17, (3, 3), group=17, pads=(1, 1, 1, 1), act="Relu"),
    "depthwise, 5x5, stride 2, dilated": conv_model(
        (2, 40, 15, 16), 40, (5, 5), group=40, stride=(2, 1), dilation=(1, 2), pads=(2, 4, 1, 3)
    ),
    "depthwise with multiplier": conv_model((1, 5, 8, 8), 10, (3, 3), group=5, pads=(1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", CONVS)
def test_conv_equals_reference_and_onnxruntime(name: str, tmp_path: Path) -> None:
    source = CONVS[name]
    program = program_of(source)
    inputs = random_inputs(program)
    want = run_reference(program, inputs)
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_close(want, dict(zip(want, session.run(None, inputs), strict=True)))
    compiled = HostProgram(program, tmp_path)
    for threads in (1, 2, 5):
        assert_close(compiled.run(inputs, threads), want)


PRODUCTS = [
    ((7, 5), (5, 17)),
    ((1, 127), (127, 10)),
    ((3, 5, 7), (7, 17)),
    ((2, 3, 5, 17), (2, 3, 17, 7)),
    ((127, 1), (1, 5)),
]


@pytest.mark.parametrize(("a", "b"), PRODUCTS)
@pytest.mark.parametrize("constant", [True, False])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], constant: bool, tmp_path: Path) -> None:
    shape = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    inputs = {"a": a} if constant else {"a": a, "b": b}
    source = model([node], inputs, {"y": shape}, {"b": weights(*b)} if constant else None)
    program = program_of(source)
    feeds = random_inputs(program)
    want = run_reference(program, feeds)
    session = onnxruntime.InferenceSession(source.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_close(want, {"y": session.run(None, feeds)[0]})
    for threads in (1, 3):
        assert_close(HostProgram(program, tmp_path).run(feeds, threads), want)


def test_transposed_run_time_operands_are_read_in_place(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["b"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["a", "t"], ["y"]),
    ]
    source = model(nodes, {"a": (2, 7, 5), "b": (2, 17, 5)}, {"y": (2, 7, 17)})
    program = program_of(source)
    feeds = random_inputs(program)
    np.testing.assert_allclose(
        HostProgram(program, tmp_path).run(feeds)["y"], feeds["a"] @ feeds["b"].transpose(0, 2, 1), rtol=1e-4, atol=1e-5
    )
