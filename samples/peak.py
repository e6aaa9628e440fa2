"""How near the kernels come to what this machine can do: ``python -m samples.peak``.

The peak is measured, by a loop over registers alone that the same compiler builds: multiply-adds of float32, and
products of bytes in groups of four. Layers then run hot, one thread, and are rated in G MAC/s and as a share of their
bound: of the peak; for depthwise layers, which do few multiply-adds a byte, of the lower one of the peak and of what
copying as many bytes as they read and write would leave time for. (Of bytes it is the latter, as no instruction
multiplies each channel's bytes by its own weights at the peak's rate.) A second table sums up: the least share of a
kind of layer.

The last table is of a vector of floats times a matrix of 4096 × 4096 packed weights in groups of 32, which the memory
bounds: bytes of weights and scales a second, and their share of the rate at which a loop that does nothing else reads
the same bytes. Matrices take turns, more of them than a cache holds, each between two reads of others.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgec import scalar
from edgec.program import CONSTANT, INPUT, OUTPUT, Buffer, Conv, Depthwise, Packing, Program, Step, Tensor
from edgec.scalar import Expr, binary, cast
from edgec.targets.cpu.backend import compile_program
from edgec.targets.cpu.x86.peak import READ_STEP, read_loop
from edgec.targets.target import Target, load_target
from edgec.tuning.roofline import copy_rate, fastest, measure_peak
from edgec.tvm_adapter import build_object

Layer = tuple[str, int, int, int, int, int]
"""Name, output height = width, output channels, input channels, kernel, stride."""

Kind = tuple[str, float, Callable[[Layer, bool], bool]]
"""Layers of a kind: what they are called, the share of their bound that is aimed at, and which they are."""

DTYPES = ("uint8", "float32")
PACKED = "packed"
GROUP = 32
"""Neighbours along the depth that share a scale."""

KINDS: list[Kind] = [
    ("1x1, 64 channels or more", 0.8, lambda layer, apart: not apart and layer[4] == 1 and min(layer[2:4]) >= 64),
    ("3x3", 0.6, lambda layer, apart: not apart and layer[4] == 3 and layer[3] > 3),
    ("depthwise 3x3", 0.7, lambda layer, apart: apart),
]

DENSE: list[Layer] = [
    ("1x1 64 → 64, 56", 56, 64, 64, 1, 1),
    ("1x1 128 → 128, 28", 28, 128, 128, 1, 1),
    ("1x1 256 → 256, 14", 14, 256, 256, 1, 1),
    ("1x1 512 → 512, 7", 7, 512, 512, 1, 1),
    ("1x1 96 → 24, 56", 56, 24, 96, 1, 1),
    ("1x1 32 → 192, 28", 28, 192, 32, 1, 1),
    ("1x1 960 → 320, 7", 7, 320, 960, 1, 1),
    ("3x3 16 → 16, 32", 32, 16, 16, 3, 1),
    ("3x3 32 → 32, 16", 16, 32, 32, 3, 1),
    ("3x3 64 → 64, 8", 8, 64, 64, 3, 1),
    ("3x3 64 → 64, 56", 56, 64, 64, 3, 1),
    ("3x3 3 → 32, 112, stride 2", 112, 32, 3, 3, 2),
]
DEPTHWISE: list[Layer] = [
    ("3x3 32, 112", 112, 32, 32, 3, 1),
    ("3x3 96, 56, stride 2", 56, 96, 96, 3, 2),
    ("3x3 144, 56", 56, 144, 144, 3, 1),
    ("3x3 384, 14", 14, 384, 384, 3, 1),
    ("3x3 960, 7", 7, 960, 960, 3, 1),
    ("3x3 8, 48", 48, 8, 8, 3, 1),
    ("3x3 64, 24", 24, 64, 64, 3, 1),
]


class Library:
    """Machine code, loaded."""

    def __init__(self, code: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "code.o").write_bytes(code)
            subprocess.run(["cc", "-shared", "-o", "code.so", "code.o", "-lm"], check=True, cwd=folder)
            self.symbols = ctypes.CDLL(str(Path(folder) / "code.so"))
        self._arrays: list[np.ndarray] = []

    def bound(self, symbol: str, arrays: list[np.ndarray]) -> Callable[[], None]:
        """A call of ``symbol`` on ``arrays`` by one thread."""
        function = getattr(self.symbols, symbol)
        self._arrays += arrays
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        arguments = [*pointers, ctypes.c_int32(0), ctypes.c_int32(1)]
        return partial(_call, self, function, arguments)


def _call(_: Library, function: Callable[..., None], arguments: list[Any]) -> None:
    """Call a function of a library, which lives at least as long."""
    function(*arguments)


def layer_call(layer: Layer, target: Target, dtype: str, depthwise: bool) -> tuple[Callable[[], None], int, int]:
    """One layer's call, its multiply-adds, and the bytes that it reads and writes."""
    _, size, outputs, inputs, window, stride = layer
    rows = (size - 1) * stride + window
    generator = np.random.default_rng(0)
    limits = (0, 255) if dtype == "uint8" else (-1, 1)
    x = generator.integers(*limits, rows * rows * inputs + 64).astype(dtype)
    shape = (window, window, outputs) if depthwise else (window, window, inputs, outputs)
    constants = [
        generator.integers(-127, 127, shape).astype("int8" if dtype == "uint8" else dtype),
        generator.integers(-999, 999, outputs).astype("int32" if dtype == "uint8" else dtype),
        np.full(outputs, 0.001, np.float32),
    ]
    buffers = [Buffer("x", dtype, x.size, INPUT), *(_constant(array) for array in constants)]
    y = Buffer("y", dtype, size * size * outputs, OUTPUT)
    shared: dict[str, Any] = {
        "batch": 1, "out_height": size, "out_width": size, "kernel": (window,) * 2, "stride": (stride,) * 2,
        "dilation": (1, 1), "input_strides": (0, rows * inputs, inputs, 1), "input_offset": 0,
        "epilogue": _epilogue(dtype), "store": scalar.linear({1: size * outputs, 2: outputs, 3: 1}),
        "dtype": dtype, "input_dtype": dtype,
    }  # fmt: skip
    kernel: Conv | Depthwise
    if depthwise:
        kernel = Depthwise(channels=outputs, **shared)
    else:
        kernel = Conv(out_channels=outputs, in_channels=inputs, **shared)
    used = buffers if dtype == "uint8" else buffers[:3]
    program = Program("layer", [Tensor("x", x.shape, buffers[0])], [Tensor("y", (y.elements,), y)])
    program.steps.append(Step(kernel, used, y, ("layer",)))
    code = compile_program(program, target, lambda what, done, total: None)
    data = {id(buffers[0]): x, id(y): np.zeros(y.elements, dtype)}
    arrays = [data[id(b.root)] if id(b.root) in data else np.ascontiguousarray(b.data) for b in code.calls[0].operands]
    (content,) = code.objects.values()
    library = Library(content)
    return library.bound(code.calls[0].symbol, arrays), kernel.macs, x.nbytes + y.nbytes


def _constant(array: np.ndarray) -> Buffer:
    return Buffer("constant", str(array.dtype), array.size, CONSTANT, array)


def _epilogue(dtype: str) -> Expr:
    bias = scalar.load(2, scalar.axis(3), "int32" if dtype == "uint8" else dtype)
    total = binary("add", scalar.accumulator(bias.dtype), bias)
    if dtype == "float32":
        return binary("max", total, scalar.const(0.0, dtype))
    real = binary("mul", cast(total, "float32"), scalar.load(3, scalar.axis(3), "float32"))
    return scalar.saturate(real, 3, 3, 255, dtype, scalar.WORD)


def vector_calls(
    target: Target, bits: int, size: int, copies: int
) -> tuple[list[Callable[[], None]], list[np.ndarray]]:
    """Calls of a vector times ``copies`` matrices of ``size`` × ``size`` weights of ``bits``, and the matrices."""
    generator = np.random.default_rng(0)
    values = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1, 1, size, size)).astype(np.int8)
    scales = generator.uniform(0.5, 1, (size // GROUP, size)).astype(np.float32)
    halves = (scales.view(np.uint32) >> 16).astype(np.uint16)
    x, y = Buffer("x", "float32", size, INPUT), Buffer("y", "float32", size, OUTPUT)
    kernel = Conv(
        batch=1, out_height=1, out_width=1, out_channels=size, in_channels=size, kernel=(1, 1), stride=(1, 1),
        dilation=(1, 1), input_strides=(0, 0, 0, 1), input_offset=0, epilogue=scalar.accumulator("float32"),
        store=scalar.linear({3: 1}), packing=Packing(bits, GROUP),
    )  # fmt: skip
    program = Program("vector", [Tensor("x", (size,), x)], [Tensor("y", (size,), y)])
    program.steps.append(Step(kernel, [x, _constant(values), _constant(halves)], y, ("vector",)))
    code = compile_program(program, target, lambda what, done, total: None)
    (content,), (call,) = code.objects.values(), code.calls
    library, constants = Library(content), [np.ascontiguousarray(each.data).reshape(-1) for each in call.operands[1:3]]
    vector, result = generator.standard_normal(size).astype(np.float32), np.zeros(size, np.float32)
    matrices = [np.concatenate([each.view(np.uint8) for each in constants]) for _ in range(copies)]
    edge = constants[0].nbytes
    return [library.bound(call.symbol, [vector, each[:edge], each[edge:], result]) for each in matrices], matrices


def vector_rates(
    target: Target, bits: int, size: int = 4096, nbytes: int = 96_000_000, rounds: int = 8
) -> tuple[float, float]:
    """G bytes/s of a vector times a matrix, and of reading it: the best of turns over ``nbytes`` of matrices."""
    copies = -(-8 * nbytes // (size * size * bits))
    calls, matrices = vector_calls(target, bits, size, copies)
    read = matrices[0].nbytes // READ_STEP * READ_STEP
    library = Library(build_object({"read": read_loop(target, read)}, target))
    into = np.zeros(READ_STEP, np.uint8)
    reads = [library.bound("read", [each, into]) for each in matrices]
    best = [0.0, 0.0]
    for index in range(rounds * copies):
        turns = ((calls[index % copies], matrices[0].nbytes), (reads[(index + copies // 2) % copies], read))
        for which, (call, moved) in enumerate(turns):
            start = perf_counter()
            call()
            best[which] = max(best[which], moved / (perf_counter() - start) / 1e9)
    return best[0], best[1]


def _vectors(target: Target) -> Table:
    table = Table(title="a vector times 4096 × 4096 packed weights", title_justify="left")
    for heading in ("bits", "G bytes/s", "reading alone", "share"):
        table.add_column(heading, justify="right")
    for bits in (8, 4, 3, 2):
        rate, read = vector_rates(target, bits)
        table.add_row(str(bits), f"{rate:.1f}", f"{read:.1f}", f"{rate / read:.0%}")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=[*DTYPES, PACKED], nargs="*", default=[*DTYPES, PACKED])
    arguments = parser.parse_args()
    target, console = load_target("host"), Console(width=120)
    for dtype in [each for each in DTYPES if each in arguments.dtype]:
        most = measure_peak(target, dtype)
        table = Table(title=f"{dtype}: peak {most:.0f} G MAC/s", title_justify="left")
        for heading in ("layer", "µs", "G MAC/s", "of the peak", "of the copy rate", "of its bound"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        shares: dict[str, list[float]] = {name: [] for name, _, _ in KINDS}
        for depthwise, layers in ((False, DENSE), (True, DEPTHWISE)):
            for layer in layers:
                call, macs, nbytes = layer_call(layer, target, dtype, depthwise)
                seconds = fastest(call)
                rate, moved = macs / seconds / 1e9, nbytes / seconds / copy_rate(nbytes)
                share = rate / most
                if depthwise:
                    share = max(share, moved) if dtype == "float32" else moved
                row = [f"{rate:.1f}", f"{rate / most:.0%}", f"{moved:.0%}" if depthwise else "", f"{share:.0%}"]
                table.add_row(f"depthwise {layer[0]}" if depthwise else layer[0], f"{seconds * 1e6:.1f}", *row)
                for name, _, belongs in KINDS:
                    if belongs(layer, depthwise):
                        shares[name].append(share)
        console.print(table)
        console.print(_summary(dtype, shares))
    if PACKED in arguments.dtype:
        console.print(_vectors(target))


def _summary(dtype: str, shares: dict[str, list[float]]) -> Table:
    """The least share of each kind of layer, beside what is aimed at."""
    table = Table(title=f"{dtype}: share of the bound", title_justify="left")
    for heading in ("layers", "least", "median", "aimed at"):
        table.add_column(heading, justify="left" if heading == "layers" else "right")
    for name, aim, _ in KINDS:
        found = shares[name]
        table.add_row(name, f"{min(found):.0%}", f"{median(found):.0%}", f"{aim:.0%}")
    return table


if __name__ == "__main__":
    main()
