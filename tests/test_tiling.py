"""Tiling: depthwise convolutions and their pointwise neighbours in bands of rows, with the same bits as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgec import reference, scalar
from edgec.planning import memory, tiling
from edgec.program import ARENA, Depthwise, Loops, Program
from tests import graphs
from tests.programs import HostProgram, model, program_of, random_inputs

CHANNELS, WIDE, OUT = 5, 37, 7


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def block(
    size: tuple[int, int], kernel: int = 3, stride: int = 1, pads: tuple[int, ...] = (1, 1, 1, 1), dilation: int = 1,
    expand: bool = True, project: bool = True, residual: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """An inverted residual: expand, ReLU, depthwise, ReLU6, project, and the sum with its input."""
    height, width = size
    wide = WIDE if expand else CHANNELS
    out = CHANNELS if residual else OUT if project else wide
    reach = (kernel - 1) * dilation + 1
    rows, columns = ((e + pads[i] + pads[i + 2] - reach) // stride + 1 for i, e in enumerate((height, width)))
    nodes = [node("Conv", "x e eb", "a"), node("Relu", "a", "b")] if expand else [node("Relu", "x", "b")]
    convolved = node(
        "Conv", "b d db", "c", group=wide, pads=pads, strides=[stride] * 2, dilations=[dilation] * 2,
        kernel_shape=[kernel] * 2,
    )  # fmt: skip
    nodes += [convolved, node("Clip", "c low high", "f")]
    nodes += [node("Conv", "f p pb", "g")] if project else [node("Identity", "f", "g")]
    nodes += [node("Add", "g x", "y")] if residual else [node("Identity", "g", "y")]
    constants = {
        "e": weights(wide, CHANNELS, 1, 1), "eb": weights(wide), "d": weights(wide, 1, kernel, kernel),
        "db": weights(wide), "p": weights(out, wide, 1, 1), "pb": weights(out),
        "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    return model(nodes, {"x": (1, CHANNELS, *size)}, {"y": (1, out, rows, columns)}, constants)


BLOCKS = {
    "inverted residual": block((17, 13)),
    "with a sum": block((17, 13), residual=True),
    "stride 2": block((17, 14), stride=2),
    "stride 2, even, padded below": block((18, 14), stride=2, pads=(0, 0, 1, 1)),
    "5x5": block((19, 9), kernel=5, pads=(2, 2, 2, 2)),
    "dilated": block((19, 9), dilation=2, pads=(2, 1, 2, 3)),
    "asymmetric pads": block((17, 13), pads=(2, 0, 1, 3)),
    "no pads": block((17, 13), pads=(0, 0, 0, 0)),
    "stride over the kernel": block((23, 7), kernel=1, stride=2, pads=(0, 0, 0, 0)),
    "depthwise and projection": block((17, 13), expand=False),
    "expansion and depthwise": block((17, 13), project=False),
    "one column": block((31, 1), pads=(1, 1, 1, 1)),
}


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that these small maps are worth a band of a few rows."""
    monkeypatch.setattr(tiling, "CACHE_BYTES", 64)
    monkeypatch.setattr(tiling, "BAND_BYTES", 12_000)
    monkeypatch.setattr(tiling, "CALL_BYTES", 0)
    monkeypatch.setattr(tiling, "MARGIN", 0)


def whole_and_tiled(source: onnx.ModelProto) -> tuple[Program, Program]:
    """The program, and another of the same model in bands."""
    whole, parts = program_of(source), program_of(source)
    tiling.tile(parts)
    return whole, parts


def bands(program: Program) -> int:
    return sum(isinstance(step.kernel, Depthwise) for step in program.steps)


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("share", [3, 5, 9])
@pytest.mark.parametrize("name", BLOCKS)
def test_bands_give_the_same_bits(name: str, share: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiling, "BAND_BYTES", _map_bytes(BLOCKS[name]) // share)
    whole, parts = whole_and_tiled(BLOCKS[name])
    assert bands(parts) > bands(whole) == 1
    inputs = random_inputs(whole)
    wanted = reference.run(whole, inputs)["y"]
    np.testing.assert_array_equal(reference.run(parts, inputs)["y"], wanted)
    # no row is computed twice, and none that the stride jumps over
    assert parts.macs == whole.macs or (name == "stride over the kernel" and parts.macs < whole.macs)
    host, banded = HostProgram(whole, _folder(tmp_path, "whole")), HostProgram(parts, _folder(tmp_path, "parts"))
    expected = host.run(inputs)["y"]
    for threads in (1, 3):
        np.testing.assert_array_equal(banded.run(inputs, threads)["y"], expected)


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("height", [9, 10, 11, 13])
def test_the_halo_never_moves_onto_itself(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the move of the halo, so that what they read must not be what they write."""
    monkeypatch.setattr(tiling, "BAND_BYTES", 1)
    _, parts = whole_and_tiled(block((height, 5), dilation=2, pads=(2, 2, 2, 2)))
    moves = [s for s in parts.steps if isinstance(s.kernel, Loops) and s.inputs == [s.output]]
    assert moves
    for step in moves:
        assert isinstance(step.kernel, Loops)
        affine = scalar.affine(step.kernel.body.args[1])
        assert affine is not None and affine[1] >= step.kernel.extents[0]


def _map_bytes(source: onnx.ModelProto) -> int:
    """What the depthwise convolution reads and writes in the arena."""
    (step,) = (step for step in program_of(source).steps if isinstance(step.kernel, Depthwise))
    return sum(buffer.root.nbytes for buffer in step.buffers if buffer.root.space == ARENA)


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


@pytest.mark.usefixtures("small_cache")
def test_the_wide_map_is_never_whole(tmp_path: Path) -> None:
    whole, parts = whole_and_tiled(block((64, 32)))
    memory.plan(whole)
    memory.plan(parts)
    assert parts.arena_bytes < 0.5 * whole.arena_bytes
    assert parts.arena_bytes == parts.arena_lower_bound


@pytest.mark.usefixtures("small_cache")
def test_blocks_in_a_row_are_each_tiled(tmp_path: Path) -> None:
    nodes, constants = [], {}
    for index in range(3):
        x = "x" if index == 0 else f"y{index - 1}"
        y = "y" if index == 2 else f"y{index}"
        nodes += [
            node("Conv", f"{x} e{index}", f"a{index}"), node("Relu", f"a{index}", f"b{index}"),
            node("Conv", f"b{index} d{index}", f"c{index}", group=WIDE, pads=[1, 1, 1, 1]),
            node("Conv", f"c{index} p{index}", f"g{index}"), node("Add", f"g{index} {x}", y),
        ]  # fmt: skip
        constants[f"e{index}"] = weights(WIDE, CHANNELS, 1, 1) + index
        constants[f"d{index}"] = weights(WIDE, 1, 3, 3)
        constants[f"p{index}"] = weights(CHANNELS, WIDE, 1, 1) * 0.01
    whole, parts = whole_and_tiled(model(nodes, {"x": (1, CHANNELS, 17, 13)}, {"y": (1, CHANNELS, 17, 13)}, constants))
    assert bands(parts) >= 6
    inputs = random_inputs(whole)
    found, wanted = (HostProgram(p, _folder(tmp_path, n)).run(inputs)["y"] for p, n in ((parts, "p"), (whole, "w")))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.usefixtures("small_cache")
def test_a_map_that_another_step_reads_stays_whole() -> None:
    nodes = [
        node("Conv", "x e", "a"), node("Conv", "a d", "c", group=WIDE, pads=[1, 1, 1, 1]),
        node("Conv", "c p", "y"), node("Conv", "c p", "z0"), node("Relu", "c", "z"),
    ]  # fmt: skip
    constants = {
        "e": weights(WIDE, CHANNELS, 1, 1), "d": weights(WIDE, 1, 3, 3), "p": weights(OUT, WIDE, 1, 1),
    }  # fmt: skip
    shapes = {"y": (1, OUT, 17, 13), "z": (1, WIDE, 17, 13)}
    whole, parts = whole_and_tiled(model(nodes, {"x": (1, CHANNELS, 17, 13)}, shapes, constants))
    inputs = random_inputs(whole)
    found, wanted = reference.run(parts, inputs), reference.run(whole, inputs)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", BLOCKS)
def test_bands_where_memory_is_short(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "SMALL_BAND_BYTES", _map_bytes(BLOCKS[name]) // 5)
    whole, parts = program_of(BLOCKS[name]), program_of(BLOCKS[name])
    tiling.tile_for_memory(parts)
    before, after = tiling.largest_alive(whole), tiling.largest_alive(parts)
    assert after < before if bands(parts) > 1 else len(parts.steps) == len(whole.steps)
    inputs = random_inputs(whole)
    np.testing.assert_array_equal(reference.run(parts, inputs)["y"], reference.run(whole, inputs)["y"])


def test_bands_of_an_inverted_residual_halve_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "SMALL_BAND_BYTES", 8_000)
    whole, parts = program_of(block((57, 13))), program_of(block((57, 13)))
    tiling.tile_for_memory(parts)
    memory.plan(whole)
    memory.plan(parts)
    assert parts.arena_bytes < 0.5 * whole.arena_bytes


def test_small_maps_are_left_alone() -> None:
    whole, parts = whole_and_tiled(block((17, 13)))
    assert [type(step.kernel) for step in parts.steps] == [type(step.kernel) for step in whole.steps]


@pytest.mark.usefixtures("small_cache")
def test_weights_that_outweigh_the_maps_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "MARGIN", 2)
    worth = {}
    for size in ((17, 3), (257, 3)):
        program = program_of(block(size))
        (step,) = (step for step in program.steps if isinstance(step.kernel, Depthwise))
        chain = tiling.find_chain(program, step, 60_000 if size[0] > 100 else 2_000)
        assert chain is not None
        worth[size] = tiling.pays(chain)
    assert worth == {(17, 3): False, (257, 3): True}


def integers(stride: int, pads: list[int]) -> onnx.ModelProto:
    """The same block in QLinearConv: bytes in, bytes between, bytes out, zero points in the padding."""
    constants: dict[str, np.ndarray] = {"s": np.float32(0.02), "ws": np.float32(0.01), "wz": np.int8(0)}
    nodes, generator = [], np.random.default_rng(stride)
    shapes = {"e": (WIDE, CHANNELS, 1, 1), "d": (WIDE, 1, 3, 3), "p": (OUT, WIDE, 1, 1)}
    for index, (name, source, result) in enumerate((("e", "x", "a"), ("d", "a", "c"), ("p", "c", "y"))):
        constants[name] = generator.integers(-127, 127, shapes[name], np.int8, endpoint=True)
        constants[f"b{name}"] = generator.integers(-900, 900, shapes[name][0], np.int32)
        constants[f"z{index}"] = np.uint8(120 + index)
        depthwise = {"group": WIDE, "pads": pads, "strides": [stride] * 2} if name == "d" else {}
        inputs = f"{source} s z{index} {name} ws wz ys z{min(index + 1, 2)} b{name}"
        nodes.append(node("QLinearConv", inputs, result, **depthwise))
    constants["ys"] = np.float32(0.05)
    return graphs.build(nodes, {"x": (1, CHANNELS, 17, 14)}, ["y"], constants, types={"x": onnx.TensorProto.UINT8})


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 1, 1]])
def test_bands_of_bytes(pads: list[int], stride: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiling, "BAND_BYTES", 5_000)
    source = integers(stride, pads)
    whole, parts = whole_and_tiled(source)
    assert bands(parts) > bands(whole) == 1
    x = {"x": np.random.default_rng(7).integers(0, 255, (1, CHANNELS, 17, 14), np.uint8, endpoint=True)}
    wanted = reference.run(whole, x)["y"]
    np.testing.assert_array_equal(graphs.run(source, x)["y"], wanted)
    np.testing.assert_array_equal(reference.run(parts, x)["y"], wanted)
    host = HostProgram(parts, tmp_path)
    for threads in (1, 3):
        np.testing.assert_array_equal(host.run(x, threads)["y"], wanted)
