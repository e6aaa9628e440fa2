"""Compares the estimates of the core engines with what Yosys maps them to, for engines of resnet8, kws and others.

python samples/fpga/calibrate.py        needs yosys; prints a Markdown table
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgec.targets.fpga.engines import (
    Engine,
    example_weights,
    matrix_vector_engine,
    requantiser_engine,
    sliding_window_engine,
    synthesise,
)
from edgec.targets.fpga.layers import Requantisation


def engines() -> Iterator[tuple[str, Engine]]:
    """Engines other than those that the formulas were fitted to."""
    generator = np.random.default_rng(7)
    for simd, pe, steps, folds, bits, accumulator, multiplier in (
        (3, 2, 9, 8, 8, 19, "dsp"),
        (4, 8, 36, 2, 8, 21, "dsp"),
        (8, 2, 27, 8, 8, 22, "dsp"),
        (8, 4, 8, 16, 8, 21, "dsp"),
        (2, 1, 8, 32, 8, 19, "dsp"),
        (16, 2, 4, 6, 8, 21, "dsp"),
        (8, 8, 80, 16, 8, 22, "dsp"),
        (3, 4, 9, 4, 8, 19, "lut"),
        (4, 4, 16, 8, 4, 18, "lut"),
        (4, 2, 18, 12, 4, 17, "shift"),
    ):
        weights = example_weights(generator, steps * folds, pe, simd, bits)
        name = f"matrix-vector {pe}×{simd}, {steps} steps, {folds} folds, W{bits}, {multiplier}"
        yield name, matrix_vector_engine(weights, folds, accumulator, multiplier, bits)
    for height, width, channels, simd, stride, pad in (
        (32, 32, 3, 3, 1, 1), (16, 16, 32, 4, 1, 1), (25, 5, 64, 16, 1, 1), (96, 96, 8, 2, 2, 1),
    ):  # fmt: skip
        name = f"3×3 windows of {height}×{width}×{channels}, {simd} lanes, stride {stride}"
        yield name, sliding_window_engine(height, width, channels, simd, stride=stride, pad=pad)
    for count, accumulator, span in ((16, 20, 2), (64, 21, 3), (128, 22, 2), (64, 28, 2)):
        multiplier = np.exp2(generator.uniform(-10 - span, -10, count)).astype(np.float32)
        bias = generator.integers(-3000, 3000, count).astype(np.int32)
        name = f"requantiser of {count} channels, sums of {accumulator} bits"
        yield name, requantiser_engine(Requantisation(bias, multiplier, -5), accumulator)


def main() -> None:
    print("| engine | DSP | BRAM 18k | LUT | estimated LUT | error % | FF | estimated FF |")
    print("|---|---|---|---|---|---|---|---|")
    errors, exact = [], []
    for name, engine in engines():
        with tempfile.TemporaryDirectory() as folder:
            found = synthesise(engine, Path(folder))
        guess = engine.estimate
        errors.append(guess.lut / found.lut - 1)
        exact.append((guess.dsp, guess.bram18) == (found.dsp, found.bram18))
        dsp, bram = (
            f"{there}" if there == thought else f"{there} (estimated {thought})"
            for there, thought in ((found.dsp, guess.dsp), (found.bram18, guess.bram18))
        )
        print(f"| {name} | {dsp} | {bram} | {found.lut} | {guess.lut} | {errors[-1]:+.0%} | {found.ff} | {guess.ff} |",
              flush=True)  # fmt: skip
    print(f"\nDSP and BRAM exact for {sum(exact)} of {len(exact)}; LUT within {max(map(abs, errors)):.0%}, "
          f"{np.mean(np.abs(errors)):.0%} on average")  # fmt: skip


if __name__ == "__main__":
    main()
