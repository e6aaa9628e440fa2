"""The pipeline: names, order, what is reported, and the commands that stop in the middle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.errors import EdgecError
from edgec.passes.pipeline import DEFAULT, pass_names, run, select
from edgec.transformation import transform
from tests.graphs import assert_same, build, load, node, operators

HARD_SWISH = [
    node("Conv", ["x", "w", "b"], ["h"], name="conv"),
    node("Add", ["h", "three"], ["a"], name="shift"),
    node("Clip", ["a", "zero", "six"], ["c"], name="clip"),
    node("Mul", ["h", "c"], ["m"], name="gate"),
    node("Div", ["m", "six"], ["y"], name="scale"),
]


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A convolution and a hard swish spelled out: ``x`` float32 [1, 3, 7, 5]."""
    generator = np.random.default_rng(1)
    constants = {"w": generator.standard_normal((4, 3, 3, 3), np.float32), "b": np.ones(4, np.float32),
                 "three": number(3), "six": number(6), "zero": number(0)}  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(build(HARD_SWISH, {"x": (1, 3, 7, 5)}, ["y"], constants), path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Four samples for ``model``."""
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(2).standard_normal((4, 1, 3, 7, 5), np.float32))
    return path


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command line."""
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    return done.exit_code, done.output


def test_names_are_what_the_flags_take() -> None:
    names = pass_names()
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name for name in names)
    assert {"simplify", "fuse-activations", "fuse-norms", "fuse-attention", "fuse-heads", "fold-affine"} <= {*names}


def test_select() -> None:
    assert select() == DEFAULT
    assert [each.name for each in select(["fold-affine", "simplify"])] == ["fold-affine", "simplify"]
    assert [each.name for each in select(stop_after="fuse-norms")] == ["simplify", "fuse-activations", "fuse-norms"]
    assert select(stop_after="simplify") == DEFAULT
    assert select([]) == ()


def test_select_refuses_unknown_names() -> None:
    with pytest.raises(EdgecError, match="there is no pass 'fold-all'; the passes are simplify, "):
        select(["fold-all"])
    with pytest.raises(EdgecError, match="there is no pass 'fold-all'"):
        select(stop_after="fold-all")
    with pytest.raises(EdgecError, match="--stop-after fuse-norms names a pass that --passes leaves out"):
        select(["simplify"], "fuse-norms")


def test_activations_are_found_before_the_folds_take_them_apart(model: Path) -> None:
    found = load(onnx.load(model))
    run(found)
    assert operators(found) == ["Conv", "HardSwish"]
    assert_same(onnx.load(model), found)


def test_reports_say_how_far_outputs_moved(model: Path, samples: Path) -> None:
    with np.load(samples) as data:
        inputs = [{"x": sample} for sample in data["x"]]
    reports = run(load(onnx.load(model)), DEFAULT, inputs)
    differences = [report.difference for report in reports]
    assert all(difference is not None and difference < 1e-6 for difference in differences)
    assert differences[0] == 0
    assert "outputs within" in str(reports[0])


def test_a_wrong_pass_would_be_seen(model: Path) -> None:
    class Wrong(type(DEFAULT[0])):  # type: ignore[misc]
        def transform(self, model: ir.Model) -> tuple[int, tuple[()]]:
            bias = next(value for value in model.graph.initializers.values() if value.name == "b")
            bias.const_value = ir.tensor(np.full(4, 2, np.float32), name="b")
            return 1, ()

    x = np.random.default_rng(3).standard_normal((1, 3, 7, 5), np.float32)
    (report,) = run(load(onnx.load(model)), [Wrong()], [{"x": x}])
    assert report.difference is not None and report.difference > 0.01


def test_transform_writes_what_a_pass_leaves(model: Path, tmp_path: Path) -> None:
    done = transform(model, tmp_path / "out.onnx", stop_after="fuse-activations")
    assert [report.name for report in done.passes] == ["simplify", "fuse-activations"]
    written = onnx.load(done.path)
    assert [each.op_type for each in written.graph.node] == ["Conv", "HardSwish"]
    assert_same(onnx.load(model), load(written))


def test_compile_takes_passes(model: Path, samples: Path, tmp_path: Path) -> None:
    compiled = edgec.compile(model, "host", tmp_path / "a.so", passes=["simplify"], check=samples)
    assert [report.name for report in compiled.report.passes] == ["simplify"]
    assert compiled.report.passes[0].difference == 0


def test_command_stops_after_a_pass(model: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    code, text = command("compile", model, "--stop-after", "fuse-activations", "-o", out, "--check", samples, "--json")
    assert code == 0
    found = json.loads(text)
    assert [each["name"] for each in found["passes"]] == ["simplify", "fuse-activations"]
    assert found["passes"][1]["difference"] < 1e-6
    assert operators(load(onnx.load(out))) == ["Conv", "HardSwish"]


def test_command_explains_refusals(tmp_path: Path) -> None:
    nodes = [node("Sigmoid", ["x"], ["s"], name="gate"), node("Mul", ["x", "s"], ["m"], name="silu"),
             node("Add", ["m", "s"], ["y"], name="also")]  # fmt: skip
    path = tmp_path / "shared.onnx"
    onnx.save(build(nodes, {"x": (1, 5)}, ["y"]), path)
    code, text = command("compile", path, "--stop-after", "fuse-activations", "-o", tmp_path / "out.onnx", "--explain")
    assert code == 0
    assert "it would be Swish, but Add 'also' also reads 's' inside it" in " ".join(text.split())
    code, text = command("compile", path, "--stop-after", "fuse-activations", "-o", tmp_path / "out.onnx")
    assert "it would be" not in text


def test_inspect_counts_operators_before_and_after(model: Path) -> None:
    code, text = command("inspect", model, "--json")
    found = json.loads(text)
    assert code == 0
    assert found["summary"]["operators"] == {"Conv": 1, "Add": 1, "Clip": 1, "Mul": 1, "Div": 1}
    assert found["after"]["operators"] == {"Conv": 1, "HardSwish": 1}
    code, text = command("inspect", model)
    assert "operators before and after the passes" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--passes", "fold-all"], "there is no pass 'fold-all'"),
        (["--stop-after", "nothing"], "there is no pass 'nothing'"),
        (["--passes", "simplify", "--stop-after", "fuse-norms"], "--passes leaves out"),
        (["--check", "missing.npz"], "missing.npz"),
    ],
)
def test_mistakes_end_in_one_sentence(model: Path, tmp_path: Path, arguments: list[str], reason: str) -> None:
    out = tmp_path / "out"
    code, text = command("compile", model, "-o", out, *arguments)
    assert code == 2
    assert reason in " ".join(text.split())
    assert not out.exists()
