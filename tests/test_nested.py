"""Nested weights: one artifact at 8 and at 4 bits, switched while it is open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.data.samples import Samples, save_npz
from edgec.devices.device import QemuDevice
from edgec.errors import EdgecError
from edgec.passes.quantize import Recipe
from edgec.runtimes.python.session import Session
from tests import graphs
from tests.operators import node

UNCORRECTED = Recipe(correct_bias=False)
Layers = tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def layers() -> Layers:
    """Convolutions of odd shapes (strided, with asymmetric pads, depthwise, for Winograd's transforms) and a product,
    and samples."""
    generator = np.random.default_rng(4)

    def weight(*shape: int) -> np.ndarray:
        return (generator.standard_t(5, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "a": weight(17, 40, 3, 3), "b": weight(64, 17, 1, 1), "c": weight(64, 1, 3, 3), "d": weight(127, 64, 1, 1),
        "e": weight(127, 5), "g": weight(40, 40, 3, 3), "f": generator.standard_normal(5).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Conv", "x g", "h0", pads=[2, 1, 1, 2]),
        node("Conv", "h0 a", "h1", strides=[2, 1], pads=[1, 0, 0, 1]), node("Relu", "h1", "h2"),
        node("Conv", "h2 b", "h3"), node("Conv", "h3 c", "h4", group=64), node("Conv", "h4 d", "h5"),
        node("GlobalAveragePool", "h5", "h6"), node("Flatten", "h6", "h7"), node("Gemm", "h7 e f", "y"),
    ]  # fmt: skip
    model = graphs.build(nodes, {"x": (1, 40, 11, 7)}, ["y"], weights)
    return model, [{"x": generator.standard_normal((1, 40, 11, 7), np.float32)} for _ in range(48)]


@pytest.fixture(scope="module")
def nested(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, samples = layers
    folder = tmp_path_factory.mktemp("nested")
    made = edgec.compile(
        model, output=folder / "nested.so", quantize="w4", nested=True, calib=samples, bundle_tests=samples[:2]
    )
    assert made.manifest["widths"] == [8, 4] and "widths: 8 and 4 bits" in str(made.report)
    return made.path


def test_the_upper_halves_are_the_model_of_4_bits(nested: Path, layers: Layers, tmp_path: Path) -> None:
    """To the last bit, however often the width is switched; and 8 bits are nearer to float."""
    model, samples = layers
    narrow = edgec.compile(model, output=tmp_path / "w4.so", quantize="w4", calib=samples, recipe=UNCORRECTED).path
    plain = edgec.compile(model, output=tmp_path / "float.so").path
    errors = []
    with edgec.load(nested, threads=2) as session, edgec.load(narrow) as w4, edgec.load(plain) as real:
        assert session.width == 8 and w4.width is None
        for inputs in samples:
            session.set_width(4)
            found = session.run(inputs)["y"]
            np.testing.assert_array_equal(found, w4.run(inputs)["y"])
            session.set_width(8)
            wide, wanted = session.run(inputs)["y"], real.run(inputs)["y"]
            errors += [(np.linalg.norm(wide - wanted), np.linalg.norm(found - wanted))]
    near, far = np.mean(errors, axis=0)
    assert near < 0.7 * far


def test_one_byte_a_weight(tmp_path: Path) -> None:
    """Both widths together take a byte a weight, and two bytes a scale."""
    generator = np.random.default_rng(0)
    weights = {"w": generator.standard_normal((512, 256)).astype(np.float32)}
    model = graphs.build([node("MatMul", "x w", "y")], {"x": (1, 512)}, ["y"], weights)
    samples = [{"x": generator.standard_normal((1, 512), np.float32)} for _ in range(16)]
    made = edgec.compile(model, output=tmp_path / "m.so", quantize="w4", nested=True, calib=samples)
    exact = 512 * 256 + 16 * 256 * 2
    assert exact <= made.manifest["weights_bytes"] <= 1.03 * exact


def test_the_reference_is_the_wider_one(nested: Path) -> None:
    with Session(nested, own_buffers=True) as session:
        assert session.selftest() == 2
        session.set_width(4)
        with pytest.raises(EdgecError, match="are for 8 bits; edgert_set_width back"):
            session.selftest()


def test_aarch64_at_both_widths(nested: Path, layers: Layers, emulator: str, tmp_path: Path) -> None:
    model, samples = layers
    path, few = tmp_path / "rpi4.so", samples[:2]
    edgec.compile(model, "rpi4", path, quantize="w4", nested=True, calib=samples, compress=True)
    for bits in (8, 4):
        results = QemuDevice(width=bits).run(path, Samples(len(few), None, few.__getitem__))
        with edgec.load(nested) as session:
            session.set_width(bits)
            wanted = np.stack([session.run(inputs)["y"] for inputs in few])
        np.testing.assert_allclose(results.outputs["y"], wanted, rtol=1e-4, atol=1e-5)


def test_commands(nested: Path, layers: Layers, tmp_path: Path) -> None:
    _, samples = layers
    stacked = np.stack([each["x"] for each in samples])
    save_npz(tmp_path / "in.npz", {"x": stacked})
    for bits in ("8", "4"):
        arguments = ["run", str(nested), "--input", str(tmp_path / "in.npz"), "--width", bits]
        done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / f"{bits}.npz")])
        assert done.exit_code == 0, done.output
    with np.load(tmp_path / "8.npz") as wide, np.load(tmp_path / "4.npz") as narrow:
        assert (wide["y"] != narrow["y"]).any()
    done = CliRunner().invoke(app, ["run", str(nested), "--input", str(tmp_path / "in.npz"), "--width", "3"])
    assert done.exit_code == 2 and "its widths are 8 and 4" in " ".join(done.output.split())


def test_refusals(layers: Layers, nested: Path, tmp_path: Path) -> None:
    model, samples = layers
    with pytest.raises(EdgecError, match="--nested keeps a model of 8 bits around one of 4; add --quantize w4"):
        edgec.compile(model, output=tmp_path / "m.so", quantize="w8", nested=True, calib=samples)
    with pytest.raises(EdgecError, match=r"--nested found no product .* --group-size 32"):
        edgec.compile(model, output=tmp_path / "m.so", quantize="w4", nested=True, calib=samples, group_size=0)
    with pytest.raises(EdgecError, match=r"has no kernels for w4, .* it can run int8, int16, w4a8, p2, p1, float"):
        edgec.compile(model, "opencl", tmp_path / "m.so", quantize="w4", nested=True, calib=samples)
    plain = edgec.compile(model, output=tmp_path / "plain.so").path
    with edgec.load(plain) as session, pytest.raises(EdgecError, match=r"one width only; compile it with .* --nested"):
        session.set_width(4)
