"""The sample that measures shares of the peak builds and runs its layers."""

from __future__ import annotations

import platform

import pytest

from edgec.targets.target import load_target
from samples.peak import layer_call, vector_rates

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 only")


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_layer_runs(dtype: str, depthwise: bool) -> None:
    layer = ("3x3 8 → 8, 5", 5, 8, 8, 3, 1)
    call, macs, nbytes = layer_call(layer, load_target("host"), dtype, depthwise)
    call()
    assert macs == 5 * 5 * 8 * 9 * (1 if depthwise else 8) and nbytes > 0


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_a_vector_runs(bits: int) -> None:
    rate, read = vector_rates(load_target("host"), bits, size=96, nbytes=20_000, rounds=2)
    assert rate > 0 and read > 0
