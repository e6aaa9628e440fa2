"""Targets that are files of other runtimes: what ONNX Runtime and LiteRT compute of them, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.benchmark import bench
from edgec.data.samples import Samples, specs
from edgec.devices.device import open_device
from edgec.errors import EdgecError
from edgec.inspection import inspect_artifact
from edgec.passes.quantize import Recipe
from edgec.quantisation.quantise import companions
from edgec.targets.formats import FORMATS, format_of
from tests.layerwise import Pieces
from tests.programs import model
from tests.shared_models import (
    AUTOENCODER,
    FASTESTDET,
    KWS,
    MNIST,
    MOBILENET,
    REPVGG,
    RESNET8,
    RESNET20,
    SINET,
    SQUEEZENET,
    VIT,
    VWW,
    SharedModel,
)
from tests.test_cli import call, results_of, sentence_of

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed; run: pip install 'edgec[tflite]'")

NAMES = list(FORMATS)
FLOAT_ERROR = 1e-4


def suffix(target: str) -> str:
    return FORMATS[target].suffix if target in FORMATS else ".so"


def outputs_of(artifact: Path, feeds: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of every feed, stacked, by the artifact where it runs."""
    samples = Samples(len(feeds), None, lambda index: feeds[index])
    return open_device("local", artifact).run(artifact, samples).outputs


def random_feeds(path: Path, runs: int = 2) -> list[dict[str, np.ndarray]]:
    """Standard normal inputs of an ONNX file with static shapes."""
    generator, proto = np.random.default_rng(7), onnx.load(path)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    return [{name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()} for _ in range(runs)]


def assert_as_onnxruntime(path: Path, artifact: Path, feeds: Sequence[dict[str, np.ndarray]]) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = outputs_of(artifact, feeds)
    assert list(found) == [each.name for each in session.get_outputs()]
    for index, feed in enumerate(feeds):
        for name, wanted in zip(found, session.run(None, feed), strict=True):
            limit = FLOAT_ERROR * max(float(np.ptp(wanted)), float(np.abs(wanted).max()), 1e-6)
            np.testing.assert_allclose(found[name][index], wanted, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("target", NAMES)
def test_the_sample_model_in_floats(sample_model, sample_data, tmp_path, target):
    compiled = edgec.compile(sample_model, target, tmp_path / f"digits{suffix(target)}")
    feeds = [{"image": image[None]} for image in sample_data["image"][:100]]
    assert_as_onnxruntime(sample_model, compiled.path, feeds)
    facts = json.loads((tmp_path / f"digits{suffix(target)}.json").read_text())
    assert facts["target"] == target and not facts["quantised"]
    assert facts["artifact_bytes"] == compiled.path.stat().st_size
    assert inspect_artifact(compiled.path)["inputs"] == [
        {"name": "image", "shape": [1, 1, 8, 8], "dtype": "float32", "kind": "input"}
    ]
    assert "steps" not in str(compiled.report) and "bytes" in str(compiled.report)


def test_what_is_written_for_onnxruntime_is_plain_onnx(sample_model, tmp_path):
    path = edgec.compile(sample_model, "onnxruntime", tmp_path / "m.onnx").path
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.functions and {entry.domain for entry in proto.opset_import} == {""}
    assert len(proto.graph.node) < len(onnx.load(sample_model).graph.node) / 2


@pytest.fixture(scope="module")
def quantised(sample_model, tmp_path_factory) -> dict[str, Path]:
    """The sample model in 8 bits: our own artifact, and the files that are compiled from its QDQ model."""
    folder, calib = tmp_path_factory.mktemp("quantised"), sample_model.with_name("digits_calib.npz")
    ours = edgec.compile(sample_model, output=folder / "ours.so", quantize="int8", calib=calib).path
    twin = companions(ours)[2]
    return {"host": ours, "twin": twin} | {
        name: edgec.compile(twin, name, folder / f"theirs{suffix(name)}").path for name in NAMES
    }


@pytest.mark.parametrize("target", NAMES)
def test_the_sample_model_in_8_bits(quantised, sample_data, target):
    feeds = [{"image": image[None]} for image in sample_data["image"]]
    ours, theirs = (outputs_of(quantised[name], feeds)["logits"] for name in ("host", target))
    assert np.abs(ours - theirs).max() <= np.ptp(ours) / 255
    assert (theirs.reshape(450, 10).argmax(axis=1) == sample_data["labels"]).mean() > 0.98
    assert quantised[target].stat().st_size < 120_000 < companions(quantised["host"])[1].stat().st_size
    assert inspect_artifact(quantised[target])["quantised"]


def test_the_tflite_file_computes_on_integers(quantised):
    from edgec.targets.tflite.writer import schema

    kinds = schema()
    file = kinds.ModelT.InitFromPackedBuf(quantised["tflite"].read_bytes(), 0)
    graph = file.subgraphs[0]
    names = {value: name for name, value in vars(kinds.BuiltinOperator).items() if isinstance(value, int)}
    used = [names[file.operatorCodes[each.opcodeIndex].builtinCode] for each in graph.operators]
    assert used.count("DEQUANTIZE") <= 2 and used.count("CONV_2D") + used.count("DEPTHWISE_CONV_2D") == 8
    for operator in graph.operators:
        if names[file.operatorCodes[operator.opcodeIndex].builtinCode] == "CONV_2D":
            assert graph.tensors[operator.inputs[0]].type == kinds.TensorType.INT8
            assert graph.tensors[operator.inputs[2]].type == kinds.TensorType.INT32


@pytest.mark.parametrize("target", NAMES)
def test_the_commands_take_them(sample_model, quantised, target):
    artifact, data = quantised[target], sample_model.with_name("digits_eval.npz")
    found = results_of("eval", artifact, "--data", data, "--reference", quantised["twin"])
    assert found["top1"] > 0.98 and found["agreement"]["top1"] > 0.99 and found["ms_per_sample"] > 0
    found = results_of("run", artifact, "--input", data)
    assert found["outputs"][0]["shape"] == [450, 10]
    text = call("inspect", artifact).output
    assert "image" in text and ("8-bit integers" in text or target == "onnxruntime")
    measured = bench(artifact, against=["onnxruntime"], model=quantised["twin"], rounds=2)
    assert measured.timings[0].name == f"edgec in {FORMATS[target].runtime}" and measured.timings[1].agrees


@pytest.mark.parametrize("target", NAMES)
def test_diff_takes_them(sample_model, tmp_path, target):
    calib = sample_model.with_name("digits_calib.npz")
    path = edgec.compile(sample_model, target, tmp_path / f"m{suffix(target)}", quantize="int8", calib=calib).path
    found = results_of("diff", sample_model, path, "--calib", calib)
    assert len(found["layers"]) > 8 and found["whole"] > 20


@pytest.mark.parametrize("target", NAMES)
def test_integers_at_the_edges(sample_model, quantised, sample_data, tmp_path, target):
    """The file takes integers then; the commands take floats as before, and compare what the integers stand for."""
    part, data = tmp_path / "part.onnx", sample_model.with_name("digits_eval.npz")
    last = last_integers(onnx.load(quantised["twin"])).output[0]
    onnx.utils.extract_model(quantised["twin"], part, ["image"], [last])
    ours = edgec.compile(part, output=tmp_path / "ours.so", integer_io=True)
    theirs = edgec.compile(part, target, tmp_path / f"theirs{suffix(target)}", integer_io=True)
    dtype = FORMATS[target].activation_dtype
    for each in ("inputs", "outputs"):
        (entry,), (own,) = theirs.manifest[each], ours.manifest[each]
        assert entry["dtype"] == dtype and entry["scale"] == own["scale"] and entry["shape"] == own["shape"]
    wanted, found = (
        reals(outputs_of(made.path, [integers(made, "image", image[None]) for image in sample_data["image"]]), made)
        for made in (ours, theirs)
    )
    np.testing.assert_array_equal(found, wanted)
    measured = results_of("eval", theirs.path, "--data", data, "--reference", part)
    assert measured["agreement"]["relative_error"] == {last: 0}
    assert bench(theirs.path, against=["onnxruntime"], model=part, rounds=2).timings[1].agrees


def integers(made: edgec.Compiled, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """An input as what is computed with."""
    (spec,) = specs(made.manifest["inputs"])
    return {name: spec.integers(array)}


def reals(outputs: dict[str, np.ndarray], made: edgec.Compiled) -> np.ndarray:
    """What the only output stands for."""
    (spec,) = specs(made.manifest["outputs"])
    return spec.reals(outputs[spec.name])


def last_integers(proto: onnx.ModelProto) -> onnx.NodeProto:
    """Where the last activation of a QDQ model is dequantised."""
    constants = {each.name for each in proto.graph.initializer}
    return [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] not in constants][-1]


CONVOLUTIONS = {
    "same": {"pads": [1, 1, 1, 1]},
    "uneven": {"pads": [0, 1, 2, 0], "strides": [2, 1]},
    "stride": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "dilated": {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
    "automatic": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "groups": {"group": 2},
    "depthwise": {"group": 4, "pads": [1, 0, 1, 0]},
}


def compiled_nodes(folder: Path, nodes: list, output: Sequence[int], **weights: np.ndarray) -> Path:
    """A model of ``nodes`` from ``x`` to ``y``, compiled for tflite and compared with ONNX Runtime."""
    path = folder / "m.onnx"
    onnx.save(model(nodes, {"x": (1, 4, 17, 7)}, {"y": tuple(output)}, weights), path)
    artifact = edgec.compile(path, "tflite", folder / "m.tflite").path
    assert_as_onnxruntime(path, artifact, random_feeds(path))
    return artifact


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(tmp_path, case):
    attributes = CONVOLUTIONS[case]
    weights = {"w": random(8, 4 // attributes.get("group", 1), 3, 3), "b": random(8)}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c", **attributes)]
    wanted = onnxruntime_shape(nodes, weights)
    compiled_nodes(tmp_path, nodes, wanted, **weights)


def onnxruntime_shape(nodes: list, weights: dict[str, np.ndarray], shape=(1, 4, 17, 7)) -> tuple[int, ...]:
    """Of the output ``y``, by running the nodes."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape


I64 = np.int64
NODES = {
    "max pool": (["MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}], {}),
    "max pool to the ceiling": (["MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}], {}),
    "mean with borders": (["AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}], {}),
    "mean without borders": (["AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}], {}),
    "global": (["GlobalAveragePool", {}], {}),
    "global maximum": (["GlobalMaxPool", {}], {}),
    "transposed": (["ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}],
                   {"w": random(4, 3, 4, 4), "b": random(3)}),
    "add a channel's number": (["Add", {}], {"w": random(4, 1, 1)}),
    "multiply by a row": (["Mul", {}], {"w": random(7)}),
    "divide": (["Div", {}], {"w": np.abs(random(1, 4, 1, 1)) + 1}),
    "power": (["Pow", {}], {"w": np.asarray(2.0, np.float32)}),
    "slope": (["PRelu", {}], {"w": random(4, 1, 1)}),
    "leaky": (["LeakyRelu", {"alpha": 0.3}], {}),
    "hard swish": (["HardSwish", {}], {}),
    "hard sigmoid": (["HardSigmoid", {"alpha": 0.3, "beta": 0.4}], {}),
    "sigmoid": (["Sigmoid", {}], {}),
    "tanh": (["Tanh", {}], {}),
    "clip": (["Clip", {}], {"low": np.float32(-0.3), "high": np.float32(1.2)}),
    "six": (["Clip", {}], {"low": np.float32(0), "high": np.float32(6)}),
    "softmax of channels": (["Softmax", {"axis": 1}], {}),
    "softmax of columns": (["Softmax", {"axis": -1}], {}),
    "flatten": (["Flatten", {}], {}),
    "reshape": (["Reshape", {}], {"r": np.array([2, 2, -1], I64)}),
    "transpose": (["Transpose", {"perm": [0, 2, 3, 1]}], {}),
    "transpose rows": (["Transpose", {"perm": [0, 3, 1, 2]}], {}),
    "slice": (["Slice", {}], {"s": np.array([1, -5], I64), "e": np.array([4, 99], I64), "a": np.array([1, 2], I64),
                              "t": np.array([2, 3], I64)}),
    "gather": (["Gather", {"axis": 1}], {"i": np.array([3, 0, -2], I64)}),
    "gather one": (["Gather", {"axis": 1}], {"i": np.array(2, I64)}),
    "borders": (["Pad", {}], {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], I64)}),
    "filled borders": (["Pad", {}], {"p": np.array([0, 1, 1, 2, 0, 0, 3, 0], I64), "v": np.float32(1.5)}),
    "mirrored borders": (["Pad", {"mode": "reflect"}], {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0], I64)}),
    "sum": (["ReduceSum", {}], {"a": np.array([1, 3], I64)}),
    "mean": (["ReduceMean", {"keepdims": 0}], {"a": np.array([2], I64)}),
    "nearest": (["Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}],
                {"": None, "s": np.array([1, 1, 2, 3], np.float32)}),
    "linear": (["Resize", {"mode": "linear"}], {"": None, "s": np.array([1, 1, 2, 3], np.float32)}),
    "corners": (["Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}],
                {"": None, "s": np.array([1, 1, 2, 2], np.float32)}),
    "blocks": (["DepthToSpace", {"blocksize": 2}], {}),
    "normalisation": (["BatchNormalization", {}],
                      {"s": random(4), "b": random(4), "m": random(4), "v": np.abs(random(4)) + 1}),
    "norm of layers": (["LayerNormalization", {"axis": -1}], {"s": random(7), "b": random(7)}),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES)
def test_operators(tmp_path, case):
    (op, attributes), given = NODES[case]
    weights = {name: array for name, array in given.items() if array is not None}
    nodes = [helper.make_node(op, ["x", *given], ["y"], name="n", **attributes)]
    compiled_nodes(tmp_path, nodes, onnxruntime_shape(nodes, weights), **weights)


def test_axes_are_followed_through_a_network(tmp_path):
    """Concatenation, split, shuffle and a gate, between values that have channels last and some that have not."""
    weights = {"w": random(6, 4, 1, 1), "g": random(12, 6), "s": np.array([1, 2, 6, 17, 7], I64),
               "t": np.array([1, 12, 17, 7], I64), "u": np.array([1, 6, 1, 1], I64)}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c"),
        helper.make_node("Relu", ["c"], ["r"], name="r"),
        helper.make_node("Concat", ["c", "r"], ["k"], name="k", axis=1),
        helper.make_node("Reshape", ["k", "s"], ["k1"], name="k1"),
        helper.make_node("Transpose", ["k1"], ["k2"], name="k2", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["k2", "t"], ["k3"], name="k3"),
        helper.make_node("Split", ["k3"], ["p", "q"], name="p", axis=1, num_outputs=2),
        helper.make_node("GlobalAveragePool", ["k3"], ["m"], name="m"),
        helper.make_node("Flatten", ["m"], ["f"], name="f"),
        helper.make_node("MatMul", ["f", "g"], ["h"], name="h"),
        helper.make_node("Reshape", ["h", "u"], ["h1"], name="h1"),
        helper.make_node("Mul", ["p", "h1"], ["n"], name="n"),
        helper.make_node("Add", ["n", "q"], ["y"], name="y"),
    ]
    compiled_nodes(tmp_path, nodes, (1, 6, 17, 7), **weights)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A network with what the sample model lacks, as QDQ: sums, concatenations, pooling and a gate; and inputs."""
    weights = {"w": random(8, 4, 3, 3), "v": random(8, 8, 1, 1), "u": random(8, 1, 3, 3), "g": random(16, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a0"], name="a", pads=[1, 1, 1, 1], strides=[2, 1]),
        helper.make_node("Relu", ["a0"], ["a"], name="ra"),
        helper.make_node("Conv", ["a", "v"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["c"], name="c"),
        helper.make_node("Conv", ["c", "u"], ["d"], name="d", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["c", "d"], ["e"], name="e", axis=1),
        helper.make_node("MaxPool", ["e"], ["f"], name="f", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Sigmoid", ["f"], ["g1"], name="g1"),
        helper.make_node("Mul", ["f", "g1"], ["h"], name="h"),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], name="i"),
        helper.make_node("Flatten", ["i"], ["j"], name="j"),
        helper.make_node("MatMul", ["j", "g"], ["y"], name="y"),
    ]
    folder = tmp_path_factory.mktemp("small")
    onnx.save(model(nodes, {"x": (1, 4, 17, 7)}, {"f": (1, 16, 4, 3), "y": (1, 5)}, weights), folder / "m.onnx")
    feeds = random_feeds(folder / "m.onnx", 16)
    ours = edgec.compile(folder / "m.onnx", output=folder / "m.so", quantize="int8", calib=feeds).path
    return companions(ours)[2], feeds


@pytest.mark.parametrize("target", NAMES)
def test_a_small_network_in_8_bits(small, tmp_path, target):
    """Integers differ by a step at most; what is computed from many of them adds such steps up."""
    twin, feeds = small
    ours = edgec.compile(twin, output=tmp_path / "m.so").path
    theirs = edgec.compile(twin, target, tmp_path / f"q{suffix(target)}").path
    wanted, found = (outputs_of(each, feeds) for each in (ours, theirs))
    step = np.diff(np.unique(wanted["f"])).min()
    assert np.abs(wanted["f"] - found["f"]).max() <= 1.01 * step
    assert (np.abs(wanted["f"] - found["f"]) > 0.01 * step).mean() < 0.05
    assert np.abs(wanted["y"] - found["y"]).max() <= 2 * np.ptp(wanted["y"]) / 255


def test_onnxruntime_leaves_no_convolution_in_floats(small, tmp_path):
    """As it does with signed bytes that two operators read, where a sum is; it would round elsewhere then."""
    path = edgec.compile(small[0], "onnxruntime", tmp_path / "m.onnx").path
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3 and "Conv" not in kinds


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize(("op", "zero"), [("Relu", -32768), ("Tanh", 0), ("Neg", 20000)])
def test_16_bits_end_where_they_do(tmp_path, target, op, zero):
    """Floats stand for them in TensorFlow Lite, and what lies beyond the last integer is that integer there, too."""
    constants = {"s": np.float32(1e-5), "z": np.array(zero, np.int16)}
    nodes = [
        helper.make_node(op, ["x"], ["a"], name="a"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d"),
        helper.make_node("MaxPool", ["d"], ["y"], name="y", kernel_shape=[2, 2]),
    ]
    path = tmp_path / "m.onnx"
    proto = model(nodes, {"x": (1, 3, 5, 7)}, {"y": (1, 3, 4, 6)}, constants)
    proto.opset_import[0].version, proto.ir_version = 21, 10
    onnx.save(proto, path)
    feeds = random_feeds(path)
    wanted = outputs_of(edgec.compile(path, output=tmp_path / "m.so").path, feeds)["y"]
    found = outputs_of(edgec.compile(path, target, tmp_path / f"q{suffix(target)}").path, feeds)["y"]
    assert np.abs(wanted - found).max() <= 1.01 * 1e-5 and len(np.unique(wanted)) < wanted.size


SHARED = {
    "resnet8/resnet8_cifar10.onnx": (1, 3, 32, 32), "kws/kws_dscnn.onnx": (1, 1, 49, 10),
    "vww/vww_mobilenetv1_025_96.onnx": (1, 3, 96, 96), "autoencoder/ad01_autoencoder.onnx": (1, 640),
    "repvgg_tiny/repvgg_tiny.onnx": (1, 3, 32, 32), "mnist/mnist.onnx": None,
}  # fmt: skip
LARGE = {
    "mobilenet_v2/tf2_mobilenet_v2_1.0_224_dequant.onnx": None, "squeezenet/squeezenet_fp32.onnx": None,
    "fastestdet/FastestDet.onnx": None, "sinet/sinet_224.onnx": None, "resnet20/resnet20_cifar10.onnx": (1, 3, 32, 32),
    "vit/vit_ibp_3_3_8.onnx": (1, 3, 32, 32),
}  # fmt: skip


def check_shared(path: Path, shape: tuple[int, ...] | None, folder: Path) -> None:
    """Both formats against ONNX Runtime on the original."""
    proto = onnx.load(path)
    constants = {each.name for each in proto.graph.initializer}
    (name,) = [each.name for each in proto.graph.input if each.name not in constants]
    pinned = {name: shape} if shape else None
    for target in NAMES:
        artifact = edgec.compile(path, target, folder / f"m{suffix(target)}", shapes=pinned).path
        size = specs(inspect_artifact(artifact)["inputs"])[0].shape
        generator = np.random.default_rng(2)
        assert_as_onnxruntime(path, artifact, [{name: generator.random(size, np.float32)} for _ in range(2)])


@pytest.mark.parametrize("name", SHARED)
def test_shared_models_in_floats(shared, tmp_path, name):
    check_shared(shared / "models" / name, SHARED[name], tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("name", LARGE)
def test_large_shared_models_in_floats(shared, tmp_path, name):
    check_shared(shared / "models" / name, LARGE[name], tmp_path)


def assert_pieces_agree(path: Path, folder: Path, feeds: list[dict[str, np.ndarray]]) -> str:
    """Each piece of a QDQ file in ONNX Runtime is a step from ours at most, given our integers; says how many are.

    An interpolation of 16 bits, whose weights are rounded to 13, may be two of its steps, 2⁻¹⁵ of the range.
    """
    pieces, apart = Pieces(path), []
    for name, steps in pieces.steps(folder, feeds):
        assert np.abs(steps).max() <= (2 if pieces.integers[name].wide else 1), name
        apart.append((steps != 0).mean())
    return f"{len(apart) // len(feeds)} pieces, {np.mean(apart):.2e} of the integers apart"


def test_every_piece_of_a_small_network_is_onnxruntimes(small, tmp_path):
    twin, feeds = small
    path = edgec.compile(twin, "onnxruntime", tmp_path / "m.onnx").path
    assert assert_pieces_agree(path, tmp_path, feeds).startswith("9 pieces")


WORDS = (SINET, FASTESTDET)
"""What has integers of 16 bits, for which floats stand in TensorFlow Lite."""
SHALLOW = (MNIST, KWS, RESNET8, AUTOENCODER, VWW, REPVGG)
"""What is not deep enough for a step's difference to grow."""
BYTES = (MNIST, KWS, RESNET8, AUTOENCODER, VWW, REPVGG, RESNET20, VIT, SQUEEZENET, MOBILENET)


@pytest.mark.heavy
@pytest.mark.parametrize("model", [*BYTES, *WORDS], ids=lambda model: model.name)
def test_shared_models_in_8_bits(shared, tmp_path, model: SharedModel):
    """On real samples, given the same integers: LiteRT's last ones are ours, and ONNX Runtime's, piece by piece, at
    most a step away. There a step is handed on and grows in deep networks; what comes of it is only told.

    A sum in mobilenet_v2 is so near a half, once in 10,000 times, that LiteRT rounds it to the other side.
    """
    source, calibration = model.onnx(shared), model.calibration_samples(shared)[:64]
    feeds = [{model.input: sample[None]} for sample in model.samples(shared, 8)]
    pinned = {model.input: feeds[0][model.input].shape}
    options = {"quantize": "int8", "calib": calibration, "recipe": Recipe(wide_sums=False)}
    ours = edgec.compile(source, output=tmp_path / "m.so", shapes=pinned, **options).path
    twin = onnx.shape_inference.infer_shapes(onnx.load(companions(ours)[2]))
    onnx.save(twin, tmp_path / "twin.onnx")
    last, part = last_integers(twin), tmp_path / "part.onnx"
    onnx.utils.extract_model(tmp_path / "twin.onnx", part, [model.input], [last.output[0]])

    def integers_of(target: str) -> np.ndarray:
        made = edgec.compile(part, target, tmp_path / f"part.{target}{suffix(target)}", integer_io=True)
        given = [integers(made, model.input, feed[model.input]) for feed in feeds]
        return reals(outputs_of(made.path, given), made)

    wanted, theirs = integers_of("host"), integers_of("onnxruntime")
    (scale,) = (numpy_helper.to_array(each) for each in twin.graph.initializer if each.name == last.input[1])
    steps = np.rint(np.abs(theirs - wanted) / scale)
    path = edgec.compile(tmp_path / "twin.onnx", "onnxruntime", tmp_path / "pieces.onnx").path
    said = assert_pieces_agree(path, tmp_path, feeds[:4])
    print(f"{model.name}: {said}; at the end {(steps > 0).mean():.2e} of the integers, {steps.max():.0f} steps at most")
    assert steps.max() <= 1 or model not in SHALLOW
    if model in BYTES:
        steps = np.rint(np.abs(integers_of("tflite") - wanted) / scale)
        assert steps.max() <= (1 if model is MOBILENET else 0)


def test_what_has_no_form_is_refused_by_name(tmp_path):
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="error function"),
        helper.make_node("Pad", ["a", "p"], ["b"], name="edges", mode="edge"),
        helper.make_node("Relu", ["b"], ["y"], name="fine"),
    ]
    path = tmp_path / "m.onnx"
    pads = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], I64)}
    onnx.save(model(nodes, {"x": (1, 4, 5, 5)}, {"y": (1, 4, 7, 7)}, pads), path)
    with pytest.raises(EdgecError) as caught:
        edgec.compile(path, "tflite", tmp_path / "m.tflite")
    text = str(caught.value)
    assert "Erf node 'error function'" in text and "Pad node 'edges'" in text and "fine" not in text
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes_end_in_a_sentence(sample_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("compile", sample_model, "--target", "tflite")
    assert "does not end in .tflite" in sentence_of(*flags, "-o", "m.so")
    assert "--tune is for edgec's own kernels" in sentence_of(*flags, "--tune", 1)
    assert "--fps is a goal for FPGA boards" in sentence_of(*flags, "--fps", 1)
    assert call(*flags).exit_code == 0 and Path("digits_repvgg.tflite").is_file()
    data = ("--input", sample_model.with_name("digits_eval.npz"))
    sentence = sentence_of("run", "digits_repvgg.tflite", *data, "--device", "ssh://pi@pi")
    assert "which runs on this machine; leave --device out" in sentence
    assert "is not an edgec artifact" in sentence_of("run", sample_model, *data)
    assert format_of(sample_model) is None and format_of(Path("none.tflite")) is None
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    assert "pip install 'edgec[tflite]'" in sentence_of(*flags)
