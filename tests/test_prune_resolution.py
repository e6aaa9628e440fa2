"""Smaller images: the graph that computes on them, the fit behind the mean, and the choice of a size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.errors import EdgecError
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.prune.activations import Sample, distance, outputs
from edgec.passes.prune.cost import Cost
from edgec.passes.prune.resolution import ReduceResolution, shrink_image
from edgec.runtimes.python.session import Session
from tests.graphs import load
from tests.prunable import CASES, Drawing

SIDE = 16


def drawn(kernel: int = 3, head: str = "mean") -> ir.Model:
    """Four convolutions, of which the last of stride 2 leaves maps of 4 × 4, and a classifier behind their mean."""
    d = Drawing()
    value, channels = "x", 3
    for stride, width in ((2, 8), (1, 8), (2, 12), (1, 12)):
        pads = [kernel // 2] * 4
        operands = [value, d.weight(width, channels, kernel, kernel), d.weight(width)]
        value = d.add("Relu", d.add("Conv", *operands, strides=[stride, stride], pads=pads))
        channels = width
    if head == "mean":
        value = d.add("Flatten", d.add("GlobalAveragePool", value))
    elif head == "places":
        value, channels = d.add("Flatten", value), 12 * (SIDE // 4) ** 2
    else:
        return folded(d.finish(value, (1, 3, SIDE, SIDE)))
    return folded(d.finish(d.add("Gemm", value, d.weight(channels, 4), d.weight(4)), (1, 3, SIDE, SIDE)))


def folded(proto: onnx.ModelProto) -> ir.Model:
    model = load(proto)
    run(model, FLOAT)
    return model


def images(count: int, *, flat: bool = False) -> list[Sample]:
    """Smooth ones, as photographs are, or ``flat``: of one colour each."""
    coarse = np.random.default_rng(3).standard_normal((count, 1, 3, 1 if flat else 4, 1 if flat else 4))
    wide = coarse.repeat(SIDE // coarse.shape[3], axis=3).repeat(SIDE // coarse.shape[4], axis=4)
    return [{"x": each} for each in wide.astype(np.float32)]


def test_images_of_one_colour_lose_nothing() -> None:
    """Without padding, all positions are then the same, and so is their mean."""
    original, model, samples = drawn(kernel=1), drawn(kernel=1), images(5, flat=True)
    shrink_image(model, (12, 8))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert Cost(model, "macs").total < 0.5 * Cost(original, "macs").total
    (wanted,), (found,) = outputs(original, samples), outputs(model, samples)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_what_is_behind_the_mean_is_fitted() -> None:
    """Nearer to the original, on images that the fit has not seen, than the smaller image alone."""
    original, alone, model, samples = drawn(), drawn(), drawn(), images(120)
    step = ReduceResolution(0.4, samples[:100])
    step.apply(model)
    assert step.size is not None
    shrink_image(alone, step.size)
    wanted = outputs(original, samples[100:])
    fitted, unfitted = (distance(outputs(each, samples[100:]), wanted) for each in (model, alone))
    assert fitted < 0.8 * unfitted
    run(model, FLOAT)
    assert "Mul" not in {node.op_type for node in model.graph}
    assert distance(outputs(model, samples[100:]), wanted) == pytest.approx(fitted, rel=1e-3)


def test_sizes_leave_maps_whole_and_are_no_smaller_than_need_be() -> None:
    step = ReduceResolution(0.2, images(20))
    report = step.apply(drawn())
    assert step.size == (12, 12)
    assert report.matched == 1
    nothing = ReduceResolution(0.0, images(20))
    assert nothing.apply(drawn()).matched == 0


def test_smaller_models_compile(tmp_path: Path) -> None:
    """For integers, too; the artifact takes the same image and computes what ONNX Runtime does."""
    model, samples = drawn(), images(24)
    ReduceResolution(0.4, samples).apply(model)
    (wanted,) = outputs(model, samples[:1])
    for kind, calib, away in (("none", None, 1e-5), ("int8", samples, 0.1)):
        path = edgec.compile(model.clone(), "host", tmp_path / f"{kind}.so", quantize=kind, calib=calib).path
        with Session(path, 1) as session:
            (found,) = session.run(samples[0]).values()
        assert np.abs(found - wanted[0]).max() <= away * np.abs(wanted).max()


@pytest.mark.parametrize("head", ["places", "map"])
def test_a_model_of_fixed_positions_is_a_sentence(head: str) -> None:
    with pytest.raises(EdgecError, match="this model cannot compute on a smaller image than 16 x 16"):
        ReduceResolution(0.3, images(8)).apply(drawn(head=head))


def test_a_model_without_an_image_is_a_sentence() -> None:
    samples = [{"x": np.zeros((1, 6, 5), np.float32)}]
    with pytest.raises(EdgecError, match="this model's input is not one image"):
        ReduceResolution(0.3, samples).apply(folded(CASES["mlp"]()))


def test_too_large_a_share_is_a_sentence() -> None:
    with pytest.raises(EdgecError, match=r"95.0% of the MACs cannot be saved by smaller images: at most 7\d\.\d% can"):
        ReduceResolution(0.95, images(8)).apply(drawn())


def test_the_command_writes_a_smaller_model(tmp_path: Path) -> None:
    path, calib, out = tmp_path / "net.onnx", tmp_path / "calib.npz", tmp_path / "small.onnx"
    ir.save(drawn(), path)
    np.savez(calib, x=np.concatenate([each["x"] for each in images(24)]))
    command = ["prune", str(path), "--remove", "0.3", "--pixels", "0.2", "-o", str(out)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 2
    assert "give it some with --calib" in " ".join(found.output.split())
    assert not out.exists()
    found = CliRunner().invoke(app, [*command, "--calib", str(calib)])
    assert found.exit_code == 0, found.output
    model = folded(onnx.load(out))
    assert model.graph.inputs[0].shape == ir.Shape((1, 3, SIDE, SIDE))
    assert Cost(model, "macs").total <= 0.8 * 0.7 * Cost(drawn(), "macs").total
