"""The core engines in Verilog: simulated to show that they compute the same, and synthesised to calibrate estimates.

Verilator (or Icarus Verilog) runs an engine on words from a file; Yosys counts what it takes of a 7 series device.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgec.errors import EdgecError
from edgec.targets.fpga.constants import shift_codes
from edgec.targets.fpga.layers import Array, Requantisation
from edgec.targets.fpga.resources import Resources, in_blocks, matrix_vector, requantiser, sliding_window

FOLDER = Path(__file__).parent / "verilog"

LUTRAM = {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "SRL16E": 1, "SRLC32E": 1}
"""Lookup tables that cells of memory take."""

_MOST_CYCLES = 2_000_000


@dataclass(frozen=True)
class Engine:
    """One engine with its parameters.

    Attributes:
        module: the Verilog module.
        parameters: as Verilog text.
        in_bits: of an input word.
        out_bits: of an output word.
        files: memories by file name, as hexadecimal text.
        estimate: what :mod:`edgec.targets.fpga.resources` says.
    """

    module: str
    parameters: Mapping[str, str]
    in_bits: int
    out_bits: int
    files: Mapping[str, str]
    estimate: Resources

    @property
    def parameter_list(self) -> str:
        """The parameters of an instance."""
        return ", ".join(f".{name}({value})" for name, value in self.parameters.items())


def matrix_vector_engine(
    weights: Array, folds: int, accumulator: int, multiplier: str = "dsp", bits: int = 8
) -> Engine:
    """Sums of products: int8 ``weights`` [steps · folds, pe, simd] of ``bits``."""
    depth, pe, simd = weights.shape
    steps = depth // folds
    terms = 0
    words, code = weights, bits
    if multiplier == "shift":
        terms = max(1, max(bin(w ^ 3 * w).count("1") for w in range(2 ** (bits - 1))))
        words, code = shift_codes(weights, terms), 5 * terms
    parameters = {
        "SIMD": simd, "PE": pe, "KF": steps, "NF": folds, "WIDTH": bits, "ACC": accumulator, "TERMS": terms,
        "DSP": int(multiplier == "dsp"), "STYLE": _style(depth, code * pe * simd), "WEIGHTS": '"memory.hex"',
    }  # fmt: skip
    estimate = matrix_vector(simd, pe, steps, folds, bits, accumulator, multiplier, terms)
    memory = {"memory.hex": hexadecimal(words.reshape(depth, -1), code)}
    return Engine("edgec_matrix_vector", _text(parameters), 8 * simd, accumulator * pe, memory, estimate)


def sliding_window_engine(
    height: int, width: int, channels: int, simd: int, kernel: int = 3, stride: int = 1, pad: int = 1, fill: int = 0
) -> Engine:
    """Square windows of a feature."""
    out = [(extent + 2 * pad - kernel) // stride + 1 for extent in (height, width)]
    depth = max(min(kernel + stride, height), kernel) * width * channels // simd
    parameters = {
        "H": height, "W": width, "C": channels, "K": kernel, "S": stride, "P": pad, "OH": out[0], "OW": out[1],
        "SIMD": simd, "FILL": fill, "STYLE": _style(depth, 8 * simd, "distributed"),
    }  # fmt: skip
    estimate = sliding_window(depth, simd)
    return Engine("edgec_sliding_window", _text(parameters), 8 * simd, 8 * simd, {}, estimate)


def requantiser_engine(end: Requantisation, accumulator: int) -> Engine:
    """One lane of requantisation for all of a layer's channels."""
    count, offsets = len(end.bias), int(end.offsets.max(initial=0)) + 1
    parameters = {
        "ACC": accumulator, "GROUPS": count, "POINT": end.point, "RANGE": offsets, "ZERO": end.zero, "LOW": end.low,
        "HIGH": end.high, "STYLE": _style(count, 62), "SCALES": '"memory.hex"',
    }  # fmt: skip
    parts = zip(end.bias, end.factors[0], end.offsets, strict=True)
    words = [int(o) << 56 | int(f) << 32 | int(b) & 0xFFFFFFFF for b, f, o in parts]
    memory = {"memory.hex": "\n".join(f"{word:016x}" for word in words) + "\n"}
    estimate = requantiser(1, count, accumulator, end.point, offsets)
    return Engine("edgec_requantise", _text(parameters), accumulator, 8, memory, estimate)


def _style(depth: int, width: int, small: str = "logic") -> str:
    return '"block"' if in_blocks(depth, width) else f'"{small}"'


def _text(parameters: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items()}


def hexadecimal(rows: Array, bits: int) -> str:
    """Rows of integers of ``bits``, the first in the low bits, one word a line."""
    mask, lines = (1 << bits) - 1, []
    for row in rows:
        word = 0
        for place, value in enumerate(row):
            word |= (int(value) & mask) << (bits * place)
        lines.append(f"{word:x}")
    return "\n".join(lines) + "\n"


def integers(word: int, bits: int, count: int) -> list[int]:
    """``count`` signed integers of ``bits`` in a word, the first in the low bits."""
    found = [(word >> (bits * place)) & ((1 << bits) - 1) for place in range(count)]
    return [value - (1 << bits) if value >> (bits - 1) else value for value in found]


def simulate(
    engine: Engine, inputs: Array, bits: int, results: int, folder: Path, tool: str = "verilator", pauses: bool = True
) -> tuple[list[int], int]:
    """Run an engine on words.

    Args:
        engine: what to run.
        inputs: integers [words, lanes] of ``bits`` each.
        bits: of a lane.
        results: words to wait for.
        folder: where its files go.
        tool: ``verilator`` or ``iverilog``.
        pauses: whether the sender and the receiver now and then do nothing.

    Returns:
        The output words, and the cycles that they took.
    """
    for name, text in {**engine.files, "inputs.hex": hexadecimal(inputs, bits)}.items():
        (folder / name).write_text(text)
    macros = {
        "ENGINE": engine.module, "PARAMETERS": engine.parameter_list, "IN_BITS": engine.in_bits,
        "OUT_BITS": engine.out_bits, "COUNT": len(inputs), "RESULTS": results, "LIMIT": _MOST_CYCLES,
        "PAUSES": int(pauses),
        "INPUTS": '"inputs.hex"',
    }  # fmt: skip
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    sources = [str(FOLDER / f"{engine.module}.v"), str(FOLDER / "testbench.v")]
    if tool == "verilator":
        _run(["verilator", "--binary", "-Wno-fatal", "-Wno-lint", "--top", "testbench", *defined, *sources], folder)
        output = _run([str(folder / "obj_dir" / "Vtestbench")], folder)
    else:
        _run(["iverilog", "-g2005-sv", "-o", "testbench.vvp", *defined, *sources], folder)
        output = _run(["vvp", "-n", "testbench.vvp"], folder)
    cycles = re.search(r"^cycles (\d+)$", output, re.MULTILINE)
    assert cycles is not None, output
    return [int(line, 16) for line in re.findall(r"^([0-9a-f]+)$", output, re.MULTILINE)], int(cycles[1])


def synthesise(engine: Engine, folder: Path) -> Resources:
    """What Yosys maps the engine to on a 7 series device.

    Raises:
        EdgecError: Yosys is not installed, or refuses the engine.
    """
    for name, text in engine.files.items():
        (folder / name).write_text(text)
    (folder / "top.v").write_text(_top(engine))
    slices = "" if engine.parameters.get("DSP", "1") == "1" else "-nodsp"
    script = (
        f"read_verilog -sv -defer {FOLDER / engine.module}.v; read_verilog top.v; "
        f"synth_xilinx -family xc7 -top top -flatten {slices}; tee -o stat.json stat -json -top top"
    )
    _run(["yosys", "-q", "-p", script], folder)
    text = (folder / "stat.json").read_text()
    (module,) = json.loads(text[text.index("{") :])["modules"].values()
    cells: dict[str, int] = module["num_cells_by_type"]
    return Resources(
        dsp=_count(cells, "DSP"),
        lut=_count(cells, "LUT") + sum(LUTRAM.get(name, 0) * count for name, count in cells.items()),
        ff=_count(cells, "FD"),
        bram18=_count(cells, "RAMB18") + 2 * _count(cells, "RAMB36"),
    )


def _count(cells: Mapping[str, int], prefix: str) -> int:
    return sum(count for name, count in cells.items() if name.startswith(prefix))


def _top(engine: Engine) -> str:
    """A module without parameters around the engine."""
    ports = ("clk", "reset", "in_valid", "in_ready", "in_data", "out_valid", "out_ready", "out_data")
    wired = ", ".join(f".{port}({port})" for port in ports)
    return (
        f"module top(input clk, input reset, input in_valid, output in_ready, input [{engine.in_bits - 1}:0] in_data,\n"
        f"  output out_valid, input out_ready, output [{engine.out_bits - 1}:0] out_data);\n"
        f"  {engine.module} #({engine.parameter_list}) engine({wired});\nendmodule\n"
    )


def _run(command: Sequence[str], folder: Path) -> str:
    if shutil.which(command[0]) is None:
        raise EdgecError(f"{command[0]} is not installed; run: apt-get install {command[0]}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EdgecError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def example_weights(generator: np.random.Generator, depth: int, pe: int, simd: int, bits: int = 8) -> Array:
    """Random symmetric weights [depth, pe, simd]."""
    largest = 2 ** (bits - 1) - 1
    return generator.integers(-largest, largest + 1, (depth, pe, simd)).astype(np.int8)
