"""Random quantised layers: the numpy reference, this machine and emulated boards agree to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.devices.device import open_device
from tests.programs import HostProgram, program_of, run_reference
from tests.random_layers import random_layers

LAYERS = 20
"""In one model."""
MANY = 100
"""Models, which make 2 000 layers."""
PARTS = 10
"""Into which they are divided, for several processes."""
DTYPES = ("int8", "uint8", "mixed")
"""Of activations; mixed ones are int8, int16 and uint16."""
BOARDS = {"rpi3": "cortex-a53", "rpi4": "cortex-a72", "rpi5": "cortex-a76"}


def _assert_same_on_host(seed: int, dtype: str, folder: Path) -> dict[str, np.ndarray]:
    model, inputs = random_layers(seed, LAYERS, dtype)
    program = program_of(model, activation_dtype="uint8" if dtype == "uint8" else "int8")
    wanted = run_reference(program, inputs)
    compiled = HostProgram(program, folder)
    for threads in (1, 3):
        _assert_equal(compiled.run(inputs, threads), wanted)
    return wanted


def _assert_same_on_board(seed: int, dtype: str, board: str, folder: Path) -> None:
    """On the board's processor, and on one that has everything."""
    model, inputs = random_layers(seed, LAYERS, dtype)
    wanted = run_reference(program_of(model), inputs)
    artifact = edgec.compile(model, board, folder / f"{board}.so").path
    for cpu in (BOARDS[board], "max"):
        found = open_device(f"qemu:{cpu}").run(artifact, [inputs]).outputs
        _assert_equal({name: array[0] for name, array in found.items()}, wanted)


def _assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_random_layers(seed: int, dtype: str, tmp_path: Path) -> None:
    _assert_same_on_host(seed, dtype, tmp_path)


@pytest.mark.parametrize("board", BOARDS)
def test_random_layers_on_an_emulated_board(board: str, emulator: str, tmp_path: Path) -> None:
    _assert_same_on_board(100, "uint8", board, tmp_path)


def _seeds(part: int) -> range:
    return range(1000 + part, 1000 + MANY, PARTS)


@pytest.mark.heavy
@pytest.mark.parametrize("part", range(PARTS))
def test_many_random_layers(part: int, tmp_path: Path) -> None:
    for seed in _seeds(part):
        (tmp_path / str(seed)).mkdir()
        _assert_same_on_host(seed, DTYPES[seed % len(DTYPES)], tmp_path / str(seed))


@pytest.mark.heavy
@pytest.mark.parametrize("part", range(PARTS))
def test_the_same_layers_on_emulated_boards(part: int, emulator: str, tmp_path: Path) -> None:
    for seed in _seeds(part):
        board = list(BOARDS)[seed // len(DTYPES) % len(BOARDS)]
        _assert_same_on_board(seed, DTYPES[seed % len(DTYPES)], board, tmp_path)
