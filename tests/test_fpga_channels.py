"""Channels are deep enough: the processes of a project, each in a thread, finish with channels of their real depth.

The C simulation runs one process after the other with channels of any depth, so that it would not show a shortcut that
is too short; on an FPGA the region would stand still.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgec.targets.fpga.network import read_network
from tests.conftest import ROOT
from tests.quantised import Graph
from tests.test_fpga import STEP, foldings_of, integer_graph, residual, write_folded

STANDS_STILL = 7
"""The exit code of ``bounded/hls_stream.h``."""

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def run_threads(project: Path, frames: np.ndarray, patience: int, depth: int | None = None) -> tuple[int, np.ndarray]:
    """Exit code and output bytes of a project whose processes run at once; ``depth`` instead of every channel's own."""
    (top,) = (path for path in (project / "src").glob("edgec_*.cpp"))
    text = top.read_text()
    depths = dict(re.findall(r"#pragma HLS stream variable=(\w+) depth=(\d+)", text))
    text = re.sub(r'(hls::stream<.*> > \w+)\("(\w+)"\);', lambda m: f'{m[1]}("{m[2]}", {depth or depths[m[2]]});', text)
    text = re.sub(r"^  (edgec::\w+<.*)$", r"  threads.emplace_back([&] { \1 });", text, flags=re.MULTILINE)
    text = text.replace("#pragma HLS dataflow", "  std::vector<std::thread> threads;")
    head, _, _ = text.rpartition("}")
    (project / "src" / "threads.cpp").write_text(
        f"#include <thread>\n#include <vector>\n{head}  for (std::thread& each : threads) each.join();\n}}\n"
    )
    command = [
        "g++", "-O1", "-std=c++14", "-pthread", "-Wno-unknown-pragmas", f"-DPATIENCE={patience}", "-Isrc",
        f"-I{ROOT / 'tests' / 'bounded'}", "-Istubs", "src/threads.cpp", "src/testbench.cpp", "-o", "threads",
    ]  # fmt: skip
    subprocess.run(command, cwd=project, check=True)
    frames.tofile(project / "in.bin")
    done = subprocess.run([project / "threads", "in.bin", "out.bin", str(len(frames))], cwd=project, check=False)
    return done.returncode, np.fromfile(project / "out.bin", np.int8)


@pytest.mark.parametrize("lanes", [1, 8])
def test_region_does_not_stand_still(lanes: int, tmp_path: Path) -> None:
    g = Graph()
    network = read_network(integer_graph(g.build(g.pair(residual(g), STEP))), "network")
    project = write_folded(network, foldings_of(network, lanes, "dsp"), tmp_path)
    (port,) = network.inputs
    frames = np.random.default_rng(0).integers(-128, 128, (2, port.feature.elements)).astype(np.int8)
    code, bounded = run_threads(project, frames, patience=20)
    assert code == 0
    code, unbounded = run_threads(project, frames, patience=20, depth=1_000_000)
    assert code == 0
    np.testing.assert_array_equal(bounded, unbounded)


def test_shortcuts_that_are_too_short_would_show(tmp_path: Path) -> None:
    g = Graph()
    network = read_network(integer_graph(g.build(g.pair(residual(g), STEP))), "network")
    project = write_folded(network, foldings_of(network, 8, "dsp"), tmp_path)
    frames = np.zeros((1, network.inputs[0].feature.elements), np.int8)
    code, _ = run_threads(project, frames, patience=3, depth=4)
    assert code == STANDS_STILL
