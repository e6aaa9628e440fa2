"""The hand-written toy model of the C runtime's tests, as an artifact: y = rotate(x * weights) + 1, sum of q."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgec.building.toolchain import Toolchain
from edgec.runtimes.build import SOURCE_FOLDER

SOURCE = SOURCE_FOLDER / "tests" / "toy_model.c"
MANIFEST = b'{"name": "toy", "arena_bytes": 476}'
WEIGHTS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], np.float32)


def link(toolchain: Toolchain, output: Path, flags: Sequence[str] = ()) -> Path:
    """The toy model as an artifact at ``output``; ``flags`` make its variants (see the source)."""
    include = f"-I{SOURCE_FOLDER / 'include'}"
    toolchain.compile([SOURCE], output, flags=["-std=c11", "-fvisibility=hidden", "-s", include, *flags])
    output.write_bytes(sealed(output.read_bytes()))
    return output


def sealed(data: bytes) -> bytes:
    """``data`` with the trailer of an artifact."""
    head = data + struct.pack("<16sQQ", b"EDGERT-TRAILER-1", data.index(MANIFEST), len(MANIFEST))
    return head + hashlib.sha256(head).digest()


def sample(seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs: ``x`` float32 [7, 17] of whole numbers, ``q`` int8 [5]."""
    random = np.random.default_rng(seed)
    x = random.integers(-50, 50, (7, 17)).astype(np.float32)
    return {"x": x, "q": random.integers(-25, 25, 5).astype(np.int8)}


def expected(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs: ``y`` float32 [7, 17], exact, and ``sum`` int32 [1]."""
    product = np.roll((inputs["x"] * WEIGHTS).ravel(), -1).reshape(7, 17)
    return {"y": product + np.float32(1), "sum": inputs["q"].sum(dtype=np.int32, keepdims=True)}


def assert_expected(outputs: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> None:
    """``outputs`` are exactly those of ``inputs``."""
    wanted = expected(inputs)
    assert list(outputs) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(outputs[name], value, strict=True)
