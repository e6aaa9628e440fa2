"""A short part of the loader's fuzzers (:mod:`tests.fuzz_loader`), and manifests that edgec did not write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgec.artifact import TRAILER, read_manifest
from edgec.errors import EdgecError
from tests.fuzz_loader import clang, fuzz, fuzz_manifests, sealed

SECONDS = 8.0


@pytest.mark.skipif(clang() is None or shutil.which("cmake") is None, reason="clang with libFuzzer is not installed")
def test_the_fuzzers_find_nothing(tmp_path: Path) -> None:
    found = fuzz(SECONDS, tmp_path)
    assert len(found) == 4 and not [what for _, what in found.values() if what]
    assert all(count > 50 for count, _ in found.values())


def test_mutated_manifests_end_in_a_sentence(tiny_artifact: Path, tmp_path: Path) -> None:
    count, what = fuzz_manifests(tiny_artifact, 3, tmp_path, seed=7)
    assert count > 50 and not what


CHANGES = {
    "no object": (lambda facts: [1], "it is no JSON object"),
    "a list missing": (lambda facts: {key: facts[key] for key in facts if key != "inputs"}, "inputs is missing"),
    "a negative extent": (
        lambda facts: {**facts, "inputs": [{**facts["inputs"][0], "shape": [1, -3]}]},
        r"inputs\[0\]\.shape\[1\] is no number from 0 on",
    ),
    "no dtype": (
        lambda facts: {**facts, "outputs": [{**facts["outputs"][0], "dtype": "object"}]},
        r"outputs\[0\]\.dtype is none of bool, float16",
    ),
    "a table cut": (lambda facts: {**facts, "steps": {"columns": ["name"], "rows": [[]]}}, "steps is no table"),
    "a bool": (lambda facts: {**facts, "arena_bytes": True}, "arena_bytes is no number"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_edgec_did_not_write(tiny_artifact: Path, tmp_path: Path, name: str) -> None:
    change, sentence = CHANGES[name]
    data = tiny_artifact.read_bytes()
    _, offset, size, _ = TRAILER.unpack(data[-TRAILER.size :])
    path = tmp_path / "changed.so"
    path.write_bytes(sealed(data, json.dumps(change(json.loads(data[offset : offset + size]))).encode()))
    with pytest.raises(EdgecError, match=rf"^the manifest of .* is damaged: {sentence}.*; compile it again"):
        read_manifest(path)
