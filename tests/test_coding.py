"""Entropy-coded weights: the same bytes after decoding, a smaller file, and damage refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.data.samples import Samples
from edgec.devices.device import open_device
from edgec.errors import EdgecError
from edgec.format.coding import HEADER, LONGEST, code_lengths, code_weights
from edgec.format.descriptor import lay_out
from edgec.program import CONSTANT, Buffer
from edgec.runtimes.build import SOURCE_FOLDER
from tests import graphs
from tests.operators import node

Dense = tuple[onnx.ModelProto, dict[str, np.ndarray]]

DECODE = r"""
#include "internal.h"
#include <stdio.h>
#include <stdlib.h>
/* CODED WEIGHTS_BYTES: writes the decoded weights */
int main(int count, char **words) {
  edgert_model model = {.struct_bytes = sizeof model, .name = "test"};
  FILE *file = fopen(words[1], "rb");
  if (count != 3 || !file || fseek(file, 0, SEEK_END)) return 2;
  model.coded_bytes = (uint64_t)ftell(file);
  model.weights_bytes = strtoull(words[2], NULL, 10);
  rewind(file);
  uint8_t *coded = malloc(model.coded_bytes), *weights = malloc(model.weights_bytes);
  if (fread(coded, 1, model.coded_bytes, file) != model.coded_bytes) return 2;
  model.coded = coded;
  if (edgert_decode(&model, weights) != EDGERT_OK) return 1;
  return fwrite(weights, 1, model.weights_bytes, stdout) != model.weights_bytes;
}
"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that decodes a file, and stops where it leaves its memory."""
    folder = tmp_path_factory.mktemp("decoder")
    source = folder / "decode.c"
    source.write_text(DECODE)
    files = [source, *(SOURCE_FOLDER / "src" / name for name in ("decode.c", "error.c", "format.c"))]
    flags = ["-std=c11", "-O1", f"-I{SOURCE_FOLDER / 'include'}", f"-I{SOURCE_FOLDER / 'src'}"]
    find_toolchain(host_triple()).compile(files, folder / "decode", shared=False, flags=flags)
    return folder / "decode"


def decoded(decoder: Path, coded: bytes, size: int, folder: Path) -> bytes | None:
    (folder / "coded.bin").write_bytes(coded)
    done = subprocess.run([decoder, folder / "coded.bin", str(size)], capture_output=True, check=False)
    assert done.returncode in (0, 1)
    return done.stdout if done.returncode == 0 else None


def constants(*arrays: np.ndarray) -> list[Buffer]:
    return [Buffer(f"c{i}", str(each.dtype), each.size, CONSTANT, each) for i, each in enumerate(arrays)]


def normal(seed: int, size: int, scale: float, dtype: str) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, scale, size)
    return np.clip(np.rint(values), -127, 127).astype(dtype) if dtype.startswith("int") else values.astype(dtype)


CASES: dict[str, list[np.ndarray]] = {
    "one byte": [np.array([5], np.int8)],
    "one value": [np.full(9001, -3, np.int8)],
    "two values": [np.where(np.arange(50001) % 7 == 0, 1, 0).astype(np.uint8)],
    "uniform": [np.random.default_rng(0).integers(0, 256, 70001).astype(np.uint8)],
    "int8": [normal(1, 127 * 129, 20, "int8")],
    "long codes": [np.repeat(np.arange(40), np.maximum(1, (1.6 ** np.arange(40) / 1000).astype(int))).astype(np.uint8)],
    "floats": [normal(2, 17 * 1021, 0.1, "float32"), normal(3, 9001, 0.1, "float16")],
    "more than a run": [normal(4, (1 << 20) + 4099, 3, "int8")],
    "small and mixed": [
        normal(i, size, 9, dtype)
        for i, (size, dtype) in enumerate([(5, "int8"), (7, "int32"), (17, "float32"), (127, "int16"), (6000, "int8")])
    ] * 9,
    "zeros between": [np.zeros(3000, np.int8), normal(5, 6007, 4, "int8"), np.zeros((0, 3), np.float32)],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_decodes_to_the_same_bytes(name: str, decoder: Path, tmp_path: Path) -> None:
    buffers = constants(*CASES[name])
    image = lay_out(buffers)
    coded = code_weights(image, buffers)
    assert decoded(decoder, coded, len(image.data), tmp_path) == image.data
    assert len(coded) <= len(image.data) + 64


def test_damage_is_refused_or_stays_inside(decoder: Path, tmp_path: Path) -> None:
    buffers = constants(normal(1, 5003, 6, "int8"), normal(2, 31, 1, "float32"))
    image = lay_out(buffers)
    coded = code_weights(image, buffers)
    generator = np.random.default_rng(0)
    for size in generator.integers(0, len(coded), 10):
        assert decoded(decoder, coded[:size], len(image.data), tmp_path) is None
    for place in [*range(HEADER.size), *generator.integers(HEADER.size, len(coded), 20)]:
        damaged = bytearray(coded)
        damaged[place] ^= 1 << generator.integers(8)
        found = decoded(decoder, bytes(damaged), len(image.data), tmp_path)
        assert found is None or (len(found) == len(image.data) and place >= HEADER.size)


def test_lengths_are_the_shortest() -> None:
    """Near the entropy, complete, and where the longest code matters no longer than it."""
    for seed in range(20):
        counts = np.zeros(256, np.int64)
        generator = np.random.default_rng(seed)
        used = generator.permutation(256)[: generator.integers(2, 257)]
        counts[used] = 1 + generator.geometric(0.5 ** generator.integers(1, 20), len(used))
        lengths = code_lengths(counts).astype(int)
        assert np.sum(0.5 ** lengths[lengths > 0]) == 1 and lengths.max() <= LONGEST
        shares = counts[used] / counts.sum()
        assert (counts @ lengths) / counts.sum() < -shares @ np.log2(shares) + 1
    skewed = np.zeros(256, np.int64)
    skewed[:40] = [int(1.6**power) for power in range(40)]
    assert code_lengths(skewed).max() == LONGEST and code_lengths(np.zeros(256, np.int64)).sum() == 2


@pytest.fixture(scope="module")
def dense() -> Dense:
    """A product with weights as trained ones are, and an input."""
    generator = np.random.default_rng(3)
    weights = {"w": generator.normal(0, 0.05, (256, 127)).astype(np.float32)}
    model = graphs.build([node("MatMul", "x w", "y")], {"x": (5, 256)}, ["y"], weights)
    return model, {"x": generator.standard_normal((5, 256), np.float32)}


@pytest.mark.parametrize("mode", ["none", "int8", "w4"])
def test_artifacts_give_the_same_bits(mode: str, dense: Dense, tmp_path: Path) -> None:
    model, inputs = dense
    how = {} if mode == "none" else {"quantize": mode, "calib": [inputs] * 4}
    plain = edgec.compile(model, output=tmp_path / "plain.so", **how)
    coded = edgec.compile(model, output=tmp_path / "coded.so", compress=True, bundle_tests=[inputs], **how)
    facts = read_manifest(coded.path)
    assert facts["weights_bytes"] == plain.manifest["weights_bytes"] and plain.manifest["coded_bytes"] == 0
    assert facts["coded_bytes"] < 0.95 * facts["weights_bytes"]
    assert "coded (" in str(coded.report)
    with edgec.load(plain.path) as first, edgec.load(coded.path, threads=2) as second:
        np.testing.assert_array_equal(first.run(inputs)["y"], second.run(inputs)["y"])


def test_aarch64_gives_the_same_bits(dense: Dense, emulator: str, tmp_path: Path) -> None:
    model, inputs = dense
    found = []
    for compress in (False, True):
        path = tmp_path / f"{compress}.so"
        edgec.compile(model, "rpi4", path, quantize="int8", calib=[inputs] * 4, compress=compress)
        found.append(open_device(emulator).run(path, Samples(1, None, lambda index: inputs)).outputs["y"])
    np.testing.assert_array_equal(*found)


def test_a_damaged_stream_in_a_file_is_refused(dense: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every digest is right."""
    monkeypatch.setattr("edgec.artifact.code_weights", lambda *given: code_weights(*given)[:-1])
    path = edgec.compile(dense[0], output=tmp_path / "m.so", compress=True).path
    with pytest.raises(EdgecError, match=r"coded weights of model '.*' are damaged; compile the model again"):
        edgec.load(path)


def test_what_cannot_decode_is_refused(dense: Dense, tmp_path: Path) -> None:
    with pytest.raises(EdgecError, match=r"--compress is for shared objects, .*\.so"):
        edgec.compile(dense[0], output=tmp_path / "m.o", compress=True)
    with pytest.raises(EdgecError, match=r"--compress codes the weights of processors.* opencl"):
        edgec.compile(dense[0], "opencl", tmp_path / "m.so", compress=True)
    assert not list(tmp_path.iterdir())
