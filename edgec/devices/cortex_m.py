"""Objects for Cortex-M on an emulated board: linked with a small program that reads samples and writes outputs.

The program (``runtimes/cortex_m``) reaches files of this machine by semihosting. Like every emulator this shows what a
board computes and how many instructions it takes, and not how long it takes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgec.building.toolchain import find_toolchain
from edgec.data.samples import Samples, TensorSpec, specs, write_raw
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.target import Target, load_target

TRIPLE = "arm-none-eabi"
HARNESS = SOURCE_FOLDER.parent / "cortex_m"
EMULATOR = "qemu-system-arm"


@dataclass(frozen=True)
class Machine:
    """An emulated board: the emulator's name of it, and the linker script of its memories."""

    name: str
    script: str


MACHINES = {
    "cortex-m3": Machine("mps2-an385", "mps2.ld"),
    "cortex-m4": Machine("mps2-an386", "mps2.ld"),
    "cortex-m7": Machine("mps2-an500", "mps2.ld"),
    "cortex-m55": Machine("mps3-an547", "an547.ld"),
}
"""By the core that the emulator has them with."""


@dataclass(frozen=True)
class Run:
    """What a run left: its outputs' file, and the most bytes of stack that an inference used."""

    outputs: Path
    stack_bytes: int


def emulate(
    artifact: Path, manifest: dict[str, Any], samples: Samples, folder: Path, options: Sequence[str] = (),
    *, by_step: bool = False,
) -> Run:  # fmt: skip
    """Run ``samples`` on an emulated board in ``folder``.

    Args:
        artifact: an object for a Cortex-M.
        manifest: the artifact's.
        samples: the inputs of every run.
        folder: an empty one.
        options: more options of the emulator.
        by_step: mark every step by a ``yield``, for what counts instructions.

    Raises:
        EdgecError: the emulator or the compiler is missing, or the program ends in a fault.
    """
    target = load_target(manifest["target"])
    if shutil.which(EMULATOR) is None:
        raise EdgecError(f"--device qemu needs {EMULATOR} for {target.name}; run: apt-get install qemu-system-arm")
    image = _link(artifact, manifest, len(samples), target, folder, by_step)
    write_raw(folder / "inputs.bin", specs(manifest["inputs"]), samples)
    command = [
        EMULATOR, "-M", MACHINES[target.cpu].name, "-kernel", image.name, "-display", "none", "-monitor", "none",
        "-serial", "none", "-semihosting-config", "enable=on,target=native", *options,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        raise EdgecError(
            f"'{artifact}' on the emulated {target.name} ended with exit code {done.returncode}: "
            f"{(done.stdout + done.stderr).strip() or 'it left no message'}"
        )
    return Run(folder / "outputs.bin", int(np.fromfile(folder / "stack.bin", np.uint32)[0]))


def _link(
    artifact: Path, manifest: dict[str, Any], samples: int, target: Target, folder: Path, by_step: bool
) -> Path:
    """The program for the emulated board."""
    machine = MACHINES[target.cpu]
    (folder / "model.c").write_text(_model_source(manifest, by_step), encoding="utf-8")
    image = folder / "image.elf"
    flags = [
        *target.c_flags, "-std=c11", "-ffreestanding", f"-I{HARNESS}", f"-I{SOURCE_FOLDER / 'include'}",
        f"-DSAMPLES={samples}u", "-nostartfiles",
        "-Wl,--gc-sections", "-Wl,--build-id=none", f"-L{HARNESS}", f"-T{machine.script}", "-lm",
    ]  # fmt: skip
    sources = [HARNESS / "start.c", HARNESS / "main.c", folder / "model.c", artifact.resolve()]
    return find_toolchain(TRIPLE).compile(sources, image, shared=False, flags=flags)


def _model_source(manifest: dict[str, Any], by_step: bool) -> str:
    """The tensors' memory, and the call of the model, or of its steps one by one."""
    inputs, outputs = specs(manifest["inputs"]), specs(manifest["outputs"])
    name = manifest["symbol"]
    count = len(inputs) + len(outputs)
    operands = [f"t{index}" for index in range(count)]
    lines = [
        "#include <edgert/model.h>",
        "typedef struct tensor { void *data; size_t bytes; } tensor;",
        f"extern void {name}_run({', '.join(['void *'] * (count + 1))});",
        f"static _Alignas(64) uint8_t arena[{max(1, manifest['arena_bytes'])}];",
        *(f"static _Alignas(16) uint8_t t{i}[{max(1, _bytes(spec))}];" for i, spec in enumerate((*inputs, *outputs))),
        _table("inputs", inputs, 0),
        _table("outputs", outputs, len(inputs)),
    ]
    if by_step:
        lines += [
            f"extern const edgert_model {name}_model;",
            f"static void *const io[] = {{{', '.join([*operands, '0'])}}};",
            f"void run_model(void) {{\n  for (uint32_t i = 0; i < {name}_model.step_count; i++) {{",
            f"    {name}_model.steps[i].run(arena, {name}_model.weights, io, 0, 1);",
            '    __asm__ volatile("yield" ::: "memory");\n  }\n}',
        ]
    else:
        lines.append(f"void run_model(void) {{ {name}_run({', '.join(['arena', *operands])}); }}")
    return "\n".join([*lines, ""])


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _table(name: str, tensors: Sequence[TensorSpec], first: int) -> str:
    rows = [f"{{t{first + index}, {_bytes(spec)}}}" for index, spec in enumerate(tensors)]
    return f"const tensor {name}[] = {{{', '.join([*rows, '{0, 0}'])}}};"
