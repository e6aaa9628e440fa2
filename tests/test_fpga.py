"""FPGA projects: integer rounding, layers and whole networks, whose C simulation equals the reference bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import edgec
from edgec.cli import app
from edgec.data.samples import Samples
from edgec.devices.device import open_device
from edgec.errors import EdgecError, UnsupportedModelError
from edgec.graph import load_graph
from edgec.lowering import lower
from edgec.passes.pipeline import FLOAT, run, select
from edgec.passes.quantize import Recipe, quantize
from edgec.planning import fusion
from edgec.targets.fpga import resources, rounding
from edgec.targets.fpga.artifact import write_project
from edgec.targets.fpga.backend import as_bytes, manifest_of, whole_graph
from edgec.targets.fpga.board import board_names, load_board
from edgec.targets.fpga.dataflow import build, rows_needed, shortcut_rows
from edgec.targets.fpga.design import Design, solve
from edgec.targets.fpga.estimate import estimate
from edgec.targets.fpga.folding import MULTIPLIERS, Folding, lane_choices, layer_steps
from edgec.targets.fpga.layers import Layer, Sum, WeightedLayer, signed_digits
from edgec.targets.fpga.network import Network, read_network
from edgec.targets.fpga.project import Project, streamed, unstreamed
from edgec.targets.fpga.simulation import simulated_frames
from tests.conftest import ROOT
from tests.programs import run_reference
from tests.quantised import Graph
from tests.shared_models import AUTOENCODER, KWS, RESNET8, VWW, SharedModel
from tests.static_quantisation import quantised_model

runner = CliRunner()
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def float_requantise(acc: np.ndarray, multiplier: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """The rule as floats have it."""
    real = acc.astype(np.int32).astype(np.float32) * multiplier.astype(np.float32)
    return np.clip(np.rint(real).astype(np.float64) + zero, low, high).astype(np.int8)


def assert_requantises(acc: np.ndarray, multiplier: np.ndarray) -> None:
    mantissa, shift = rounding.factors(multiplier)
    found = rounding.requantise(acc, mantissa, shift, -3, -128, 120)
    np.testing.assert_array_equal(found, float_requantise(acc, multiplier, -3, -128, 120))


def test_requantisation_of_random_sums() -> None:
    generator = np.random.default_rng(0)
    count = 200_000
    for least, largest in ((-33, -20), (-20, -5), (-5, 12.9)):
        acc = generator.integers(0, 2**31, count) >> generator.integers(0, 31, count)
        acc *= generator.choice([-1, 1], count)
        assert_requantises(acc, np.exp2(generator.uniform(least, largest, count)).astype(np.float32))


def test_requantisation_around_every_tie() -> None:
    """Multipliers whose products fall on a tie, or a step of float32 beside it."""
    generator = np.random.default_rng(1)
    acc = np.concatenate([np.arange(1, 2**15), generator.integers(2**15, 2**31, 2**16)])
    for half in (0.5, 1.5, 2.5, 3.5, 63.5, 127.5, 254.5, 255.5):
        multiplier = np.minimum((half / acc).astype(np.float32), np.float32(4096))
        for towards in (-np.inf, None, np.inf):
            near = multiplier if towards is None else np.nextafter(multiplier, np.float32(towards))
            assert_requantises(acc, near)
            assert_requantises(-acc, near)


@settings(max_examples=300, deadline=None)
@given(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(2.0**-126, 4096, width=32))
def test_requantisation_of_any_sum(acc: int, multiplier: float) -> None:
    assert_requantises(np.array([acc]), np.array([multiplier], np.float32))


def test_shares_of_a_total() -> None:
    generator = np.random.default_rng(2)
    count = 200_000
    total = (generator.integers(1, 2**31, count) >> generator.integers(0, 25, count)) + 1
    part = np.minimum(total, generator.integers(0, 2**31, count) >> generator.integers(0, 31, count))
    for scale in (1 / 256, 0.0039062, 0.0031):
        multiplier = np.array([1 / scale], np.float32)
        mantissa, shift = (int(each[0]) for each in rounding.factors(multiplier))
        quotient = part.astype(np.int32).astype(np.float32) / total.astype(np.int32).astype(np.float32)
        wanted = np.clip(np.rint(quotient * multiplier).astype(np.int64) - 128, -128, 127)
        np.testing.assert_array_equal(rounding.share(part, total, mantissa, shift, -128, -128, 127), wanted)


def test_signed_digits_are_the_weights() -> None:
    weights = np.arange(-127, 128).astype(np.int8)
    digits = signed_digits(weights)
    np.testing.assert_array_equal(digits.astype(np.int64) @ (1 << np.arange(8)), weights)
    assert not (digits[:, 1:] & digits[:, :-1] & 1).any()  # never two neighbours
    assert np.abs(digits).sum(1).max() == 4


# ---- layers --------------------------------------------------------------------------------------------------------


def integer_graph(model: onnx.ModelProto | ir.Model) -> ir.Model:
    graph = load_graph(model)
    run(graph, select())
    return graph


def network_of(model: onnx.ModelProto) -> Network:
    return read_network(integer_graph(model), "network")


def conv(
    g: Graph, x: str, channels: tuple[int, int], kernel: tuple[int, int] = (3, 3), group: int = 1, **attributes: object
) -> str:
    source, result = channels
    w = g.weights(result, source // group, *kernel)
    bias = g.constant(g.generator.normal(0, 1, result).astype(np.float32))
    return g.add("Conv", f"{x} {w} {bias}", group=group, **attributes)


def residual(g: Graph, height: int = 11, width: int = 9) -> str:
    """Two shortcuts around convolutions of different reach."""
    x = g.pair(g.add("Relu", conv(g, g.input(1, 3, height, width), (3, 8), pads=[1, 1, 1, 1])), 0.05, -128)
    inner = g.pair(conv(g, x, (8, 8), pads=[1, 1, 1, 1]), 0.06, 5)
    inner = g.pair(conv(g, inner, (8, 8), pads=[1, 1, 1, 1]), 0.07, -9)
    x = g.pair(g.add("Relu", g.add("Add", f"{x} {inner}")), 0.05, -128)
    left = g.pair(conv(g, x, (8, 6), (1, 1), strides=[2, 2]), 0.06, 0)
    right = g.pair(conv(g, x, (8, 6), strides=[2, 2], pads=[1, 1, 1, 1]), 0.05, 1)
    return g.add("Sub", f"{left} {right}")


def classifier(g: Graph) -> str:
    x = g.pair(conv(g, g.input(1, 5, 7, 6), (5, 6), pads=[0, 1, 1, 0]), 0.05, 3)
    x = g.add("Flatten", x)
    w = g.weights(6 * 6 * 5, 17, axis=1)
    x = g.pair(g.add("Add", f"{g.add('MatMul', f'{x} {w}')} {g.constant(np.ones(17, np.float32))}"), 0.3, 2)
    return g.add("Softmax", x)


STEP = 0.0517
LAYERS: dict[str, tuple[Callable[[Graph], str], float, int | None]] = {
    "conv": (lambda g: conv(g, g.input(1, 5, 9, 7), (5, 17), pads=[1, 0, 2, 1], strides=[2, 1]), STEP, None),
    "dilated": (lambda g: conv(g, g.input(1, 4, 17, 7), (4, 5), dilations=[3, 2], pads=[3, 2, 3, 2]), STEP, None),
    "conv, clip": (lambda g: g.add("Relu", conv(g, g.input(1, 3, 5, 5), (3, 4))), STEP, 3),
    "large pads": (lambda g: conv(g, g.input(1, 2, 3, 4), (2, 3), (5, 5), pads=[4, 4, 4, 4]), STEP, None),
    "stride beyond the window": (lambda g: conv(g, g.input(1, 4, 9, 9), (4, 6), (1, 1), strides=[3, 2]), STEP, None),
    "pointwise": (lambda g: conv(g, g.input(1, 12, 5, 7), (12, 10), (1, 1)), STEP, None),
    "one dimension": (lambda g: _one_dimension(g), STEP, None),
    "depthwise": (
        lambda g: conv(g, g.input(1, 12, 7, 9), (12, 12), group=12, strides=[1, 2], pads=[1, 1, 1, 1]), STEP, None,
    ),
    "groups": (lambda g: conv(g, g.input(1, 6, 5, 5), (6, 9), group=3, pads=[1, 1, 1, 1]), STEP, None),
    "residual": (residual, STEP, None),
    "max pool": (
        lambda g: g.add("MaxPool", g.input(1, 6, 9, 8), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]), 0.03,
        None,
    ),
    "average pool": (
        lambda g: g.add("AveragePool", g.input(1, 6, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        STEP, None,
    ),
    "average pool with its padding": (
        lambda g: g.add("AveragePool", g.input(1, 6, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
                        count_include_pad=1), STEP, None,
    ),
    "average of tiles": (
        lambda g: g.add("AveragePool", g.input(1, 6, 9, 8), kernel_shape=[2, 3], strides=[3, 3]), STEP, None,
    ),
    "global average": (lambda g: g.add("GlobalAveragePool", g.input(1, 10, 7, 3)), STEP, None),
    "table": (lambda g: g.add("Sigmoid", g.input(1, 6, 5, 7)), 1 / 256, -128),
    "classifier": (classifier, 1 / 256, -128),
    "exact sums": (lambda g: g.add("MatMul", f"{g.input(1, 37)} {g.weights(37, 13, axis=1)}"), 0.0, None),
    "exact sums of windows": (lambda g: conv(g, g.input(1, 4, 7, 6), (4, 5), pads=[1, 1, 1, 1]), 0.0, None),
}  # fmt: skip


def _one_dimension(g: Graph) -> str:
    w = g.weights(9, 4, 5)
    return g.add("Conv", f"{g.input(1, 4, 31)} {w}", strides=[2], pads=[2, 1])


def foldings_of(network: Network, most: int, multiplier: str) -> dict[str, Folding]:
    """Every layer's widest folding of at most ``most`` lanes."""

    def choose(layer: Layer) -> Folding:
        simd, pe = max(lanes for lanes in lane_choices(layer) if max(lanes) <= most)
        return Folding(simd, pe, multiplier if isinstance(layer, WeightedLayer) else "dsp")

    return {layer.name: choose(layer) for layer in network.layers}


def simulate(
    network: Network, foldings: dict[str, Folding], folder: Path, samples: list[dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What the C simulation answers."""
    path = write_folded(network, foldings, folder)
    return open_device("local", path).run(path, Samples(len(samples), None, samples.__getitem__)).outputs


def write_folded(network: Network, foldings: dict[str, Folding], folder: Path, ultra: int = 0) -> Path:
    """The project of a network with these foldings."""
    design = Design(foldings, (flow := build(network, foldings, ultra=ultra)), estimate(network, foldings, flow))
    project = Project(network, load_board("pynq-z2"), foldings, flow, [], {})
    project = replace(project, manifest=manifest_of(project, design, {}))
    path = folder / "project"
    write_project(path, project.files())
    return path


@needs_compiler
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_the_reference(name: str, tmp_path: Path) -> None:
    make, scale, zero = LAYERS[name]
    g = Graph(seed=list(LAYERS).index(name))
    result = make(g)
    graph = integer_graph(g.build(g.pair(result, scale, zero) if scale else result))
    network = read_network(graph, "network")
    program = lower(graph)
    fusion.fuse(program)
    samples = [g.samples() for _ in range(3)]
    lanes, multiplier = (1, 3, 8)[len(name) % 3], MULTIPLIERS[len(name) % 3]
    foldings = foldings_of(network, lanes, multiplier)
    found = simulate(network, foldings, tmp_path, samples)
    for index, sample in enumerate(samples):
        for output, wanted in run_reference(program, sample).items():
            np.testing.assert_array_equal(found[output][index], wanted)


@needs_compiler
@pytest.mark.parametrize(("simd", "pe"), [(1, 1), (5, 3), (8, 2), (4, 12)])
def test_weights_from_ddr_memory(simd: int, pe: int, tmp_path: Path) -> None:
    """Two dense layers, whose weights come one after the other in beats of eight bytes."""
    g = Graph()
    x = g.pair(g.add("MatMul", f"{g.input(1, 40)} {g.weights(40, 24, axis=1)}"), STEP, 4)
    graph = integer_graph(g.build(g.pair(g.add("MatMul", f"{x} {g.weights(24, 16, axis=1)}"), STEP, -3)))
    network = read_network(graph, "network")
    program = lower(graph)
    fusion.fuse(program)
    second = Folding(8 if simd == 8 else 3, 4, streamed=True)
    foldings = {network.layers[0].name: Folding(simd, pe, streamed=True), network.layers[1].name: second}
    samples = [g.samples() for _ in range(3)]
    found = simulate(network, foldings, tmp_path, samples)
    for index, sample in enumerate(samples):
        for output, wanted in run_reference(program, sample).items():
            np.testing.assert_array_equal(found[output][index], wanted)


def test_streams_put_channels_last() -> None:
    tensor = np.arange(24).reshape(1, 2, 3, 4)
    data = streamed(tensor, tensor.shape)
    assert list(data[:4]) == [0, 12, 1, 13]
    np.testing.assert_array_equal(unstreamed(data, tensor.shape), tensor)
    np.testing.assert_array_equal(unstreamed(streamed(tensor, (1, 24)), (1, 24)), tensor.reshape(1, 24))


def test_shortcuts_hold_what_the_longer_way_waits_for() -> None:
    """Two 3×3 convolutions of pad 1, each a row ahead, write row r once rows 0 to r + 4 have come."""
    g = Graph()
    network = network_of(g.build(g.pair(residual(g), STEP)))
    needs = rows_needed(network)
    first, second = (layer for layer in network.layers if isinstance(layer, Sum))
    assert shortcut_rows(needs, first) == (5 + 1, 1)
    # both ways of the second block reach it, the 3×3 one two rows later
    assert shortcut_rows(needs, second)[0] == 1 + 1


@pytest.mark.parametrize("board", board_names())
def test_design_fits_its_board(board: str) -> None:
    g = Graph()
    network = network_of(g.build(g.pair(residual(g), STEP)))
    chosen = load_board(board)
    design = solve(network, chosen)
    assert design.estimate.total.fits(chosen.budget)
    assert design.flow.interval >= max(layer_steps(layer, design.foldings[layer.name]) for layer in network.layers)


def test_long_shortcuts_go_to_ultra_ram(tmp_path: Path) -> None:
    """Where there is UltraRAM, and into block memories elsewhere."""
    g = Graph()
    network = network_of(g.build(g.pair(residual(g, 12, 512), STEP)))
    foldings = foldings_of(network, 8, "dsp")
    there, elsewhere = (build(network, foldings, ultra=blocks) for blocks in (5, 0))
    with_ultra, without = (estimate(network, foldings, flow).total for flow in (there, elsewhere))
    assert 5 >= with_ultra.uram > 0 == without.uram
    assert with_ultra.bram18 + resources.WORTH_AN_ULTRA * with_ultra.uram <= without.bram18
    path = write_folded(network, foldings, tmp_path, ultra=5)
    source = next((path / "src").glob("edgec_*.cpp")).read_text(encoding="utf-8")
    assert source.count("type=fifo impl=uram") == sum(channel.ultra > 0 for channel in there.channels)


def test_goal_is_reached_with_less() -> None:
    g = Graph()
    network = network_of(g.build(g.pair(residual(g), STEP)))
    board = load_board("pynq-z2")
    fastest, modest = solve(network, board), solve(network, board, 1000)
    assert board.frames(modest.flow.interval) >= 1000
    assert modest.estimate.total.share(board.budget) < fastest.estimate.total.share(board.budget)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_float_model_is_told_to_quantise(sample_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="add --quantize int8 --calib"):
        edgec.compile(sample_model, "pynq-z2", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_operator_without_template_is_named(tmp_path: Path) -> None:
    g = Graph()
    model = g.build(g.pair(g.add("Mul", f"{g.input(1, 5, 4, 4)} {g.input(1, 5, 4, 4)}"), STEP))
    with pytest.raises(UnsupportedModelError, match=r"QLinearMul node .* no streaming template .*; .*QLinearAdd"):
        edgec.compile(model, "pynq-z2", tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_batch_is_refused(tmp_path: Path) -> None:
    g = Graph()
    model = g.build(g.pair(g.add("Sigmoid", g.input(2, 5, 4, 4)), 1 / 256, -128))
    with pytest.raises(UnsupportedModelError, match="pin the batch to 1 with --shape"):
        edgec.compile(model, "pynq-z2", tmp_path / "out")


def test_impossible_goal_names_the_nearest(tmp_path: Path) -> None:
    g = Graph()
    model = g.build(g.pair(residual(g), STEP))
    with pytest.raises(EdgecError, match=r"cannot reach 50,000,000 frames/s on pynq-z2: .* node '.*' .* ask for --fps"):
        edgec.compile(model, "pynq-z2", tmp_path / "out", fps=5e7)
    assert not any(tmp_path.iterdir())


def test_model_that_is_too_large_names_the_layer_and_a_board(tmp_path: Path) -> None:
    g = Graph()
    x = g.pair(conv(g, g.input(1, 256, 8, 8), (256, 256), (3, 3), pads=[1, 1, 1, 1]), STEP)
    network = network_of(g.build(x))
    with pytest.raises(EdgecError, match=r"does not fit pynq-z2: .* bram18 of .* for node '.*'; compile it for"):
        solve(network, load_board("pynq-z2"))
    g = Graph()
    x = g.pair(conv(g, g.input(1, 512, 8, 8), (512, 1024), (3, 3), pads=[1, 1, 1, 1]), STEP)
    with pytest.raises(EdgecError, match=r"; prune it to \d+% of its weights"):
        solve(network_of(g.build(x)), load_board("pynq-z2"))


def test_goal_is_for_boards_only(sample_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match="--fps is a goal for FPGA boards"):
        edgec.compile(sample_model, "host", tmp_path / "out.so", fps=100)


def test_project_overwrites_only_projects(tmp_path: Path) -> None:
    g = Graph()
    model = g.build(g.pair(g.add("Sigmoid", g.input(1, 5, 4, 4)), 1 / 256, -128))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(EdgecError, match="is no FPGA project"):
        edgec.compile(model, "pynq-z2", tmp_path / "mine")
    for _ in range(2):
        edgec.compile(model, "pynq-z2", tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["target"] == "pynq-z2"


# ---- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project of a sigmoid, and its model."""
    folder = tmp_path_factory.mktemp("small")
    g = Graph()
    model = g.build(g.pair(g.add("Sigmoid", g.input(1, 5, 4, 4)), 1 / 256, -128))
    onnx.save(model, folder / "model.onnx")
    return edgec.compile(model, "pynq-z2", folder / "project").path, folder / "model.onnx"


@needs_compiler
def test_commands_take_a_project(small: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project, model = (str(path) for path in small)
    x = np.random.default_rng(0).uniform(-1, 1, (6, 5, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x0=x)
    given, made = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    assert runner.invoke(app, ["run", project, "--input", given, "--output", made]).exit_code == 0
    with np.load(made) as outputs:
        (found,) = outputs.values()
    assert np.abs(found - 1 / (1 + np.exp(-x))).max() < 0.02
    done = runner.invoke(app, ["eval", project, "--data", given, "--reference", model, "--json"])
    evaluation = json.loads(done.stdout)
    assert evaluation["ms_per_sample"] is None and evaluation["samples"] == 6
    assert max(evaluation["agreement"]["relative_error"].values()) < 0.01
    assert runner.invoke(app, ["inspect", project]).exit_code == 0


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["bench"], "whose speed a C simulation does not show"),
        (["run", "--input", "x.npz", "--device", "qemu"], "there is no file"),
    ],
)
def test_commands_that_do_not(small: tuple[Path, Path], command: list[str], sentence: str) -> None:
    done = runner.invoke(app, [command[0], str(small[0]), *command[1:]])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())


def test_stand_ins_for_the_vendors_types(tmp_path: Path) -> None:
    """Wrapping, signs, bits and fixed points."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "types.cpp").write_text(
        """
        #include <ap_fixed.h>
        #include <ap_int.h>
        #include <cassert>
        int main() {
          assert(ap_int<8>(200) == -56 && ap_uint<8>(-1) == 255 && ap_int<5>(16) == -16 && ap_uint<3>(9) == 1);
          assert(ap_int<64>(-1) == -1 && ap_uint<64>(-1) == ~0ull);
          ap_uint<100> wide = ap_uint<100>(1) << 99;
          assert(wide[99] && !wide[98] && ap_uint<100>(wide << 1) == 0);
          ap_uint<64> word = 0;
          word.range(15, 8) = ap_uint<8>(0xab);
          assert(word == 0xab00 && ap_uint<4>(word.range(11, 8)) == 0xb);
          ap_int<12> sum = 2000;
          sum += 100;
          assert(sum == 2100 - 4096);
          typedef ap_fixed<8, 4> fixed;
          typedef ap_ufixed<8, 4> bare;
          assert(fixed(1.99).to_double() == 1.9375 && fixed(-0.01).to_double() == -0.0625);
          assert(fixed(8.0).to_double() == -8.0 && bare(15.5).to_double() == 15.5);
        }
        """
    )
    stubs = ROOT / "targets" / "fpga" / "stubs"
    subprocess.run(["g++", "-std=c++14", "-Wall", f"-I{stubs}", "types.cpp", "-o", "types"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "types"], check=True)


# ---- whole networks ------------------------------------------------------------------------------------------------


@needs_compiler
def test_sample_model(sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The C simulation of 100 samples, and the test bench's vectors, without a warning of the compiler."""
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        model = quantised_model(sample_model, "image", data["image"][:100])
    compiled = edgec.compile(model, "pynq-z2", tmp_path / "digits")
    assert_equal(compiled.path, model, "image", sample_data["image"][:100])
    sources = [f"src/{compiled.manifest['top']}.cpp", "src/testbench.cpp"]
    command = ["g++", "-O1", "-std=c++14", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Isrc", "-Istubs", *sources]
    subprocess.run([*command, "-o", "bench"], cwd=compiled.path, check=True)
    done = subprocess.run([compiled.path / "bench"], cwd=compiled.path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 vectors, 0 of ")


def assert_equal(path: Path, model: onnx.ModelProto | ir.Model, name: str, samples: np.ndarray) -> None:
    """The project's C simulation equals the reference bit for bit, up to where the host goes on in floats."""
    graph = integer_graph(model)
    network = read_network(graph, "network")
    program = lower(whole_graph(graph, network))
    fusion.fuse(program)
    runs = [{name: sample[np.newaxis]} for sample in samples]
    found = simulated_frames(path, Samples(len(runs), None, runs.__getitem__))
    for frame, inputs in zip(found, runs, strict=True):
        answers = run_reference(program, inputs)
        numbers = [answers[str(value.name)] for value in program.outputs]
        wanted = np.concatenate([as_bytes(port, x) for port, x in zip(network.outputs, numbers, strict=True)])
        np.testing.assert_array_equal(frame, wanted)


MLPERF_TINY = (RESNET8, VWW, KWS, AUTOENCODER)


@pytest.mark.heavy
@needs_compiler
@pytest.mark.parametrize("model", MLPERF_TINY, ids=lambda model: model.name)
def test_mlperf_tiny(model: SharedModel, shared: Path, tmp_path: Path) -> None:
    """100 real samples of each network, quantised by edgec."""
    graph = load_graph(model.onnx(shared), shapes={model.input: (1, *model.samples(shared, 1).shape[1:])})
    run(graph, FLOAT)
    quantised = quantize(graph, model.calibration_samples(shared), Recipe(wide_sums=False)).model
    compiled = edgec.compile(quantised, "pynq-z2", tmp_path / "project")
    assert_equal(compiled.path, quantised, model.input, model.samples(shared, 100))


@pytest.mark.heavy
@needs_compiler
@pytest.mark.parametrize("model", (RESNET8, KWS), ids=lambda model: model.name)
def test_weights_of_four_bits(model: SharedModel, shared: Path, tmp_path: Path) -> None:
    """W4A8: weights lie in memories of four bits, and their products are shifts and sums of at most two terms."""
    calibration = np.concatenate([sample[model.input] for sample in model.calibration_samples(shared)])
    quantised = quantised_model(model.onnx(shared), model.input, calibration, weight_bits=4)
    compiled = edgec.compile(quantised, "pynq-z2", tmp_path / "project")
    assert {layer["weight_bits"] for layer in compiled.manifest["layers"]} - {0} == {4}
    network = read_network(integer_graph(quantised), model.name)
    assert max(layer.weight_terms for layer in network.layers if isinstance(layer, WeightedLayer)) == 2
    samples = model.samples(shared, 100)
    assert_equal(compiled.path, quantised, model.input, samples)
    shifted = foldings_of(network, 8, "shift")
    assert_same_frames(network, shifted, compiled.path, tmp_path, model.input, samples[:20])


def assert_same_frames(
    network: Network, foldings: dict[str, Folding], path: Path, folder: Path, name: str, samples: np.ndarray
) -> None:
    """Other foldings of a network answer as its project does."""
    runs = [{name: sample[np.newaxis]} for sample in samples]
    given = Samples(len(runs), None, runs.__getitem__)
    (folder / "other").mkdir()
    other = write_folded(network, foldings, folder / "other")
    np.testing.assert_array_equal(simulated_frames(path, given), simulated_frames(other, given))
