"""The GPU's part of an artifact's descriptor, as C (``edgert_gpu`` in ``runtimes/c/include/edgert/model.h``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgec.program import ARENA, CONSTANT, Buffer, Program

if TYPE_CHECKING:
    from edgec.format.descriptor import Image
    from edgec.targets.gpu.backend import GpuCode

KINDS = {
    "kernel": "EDGERT_GPU_KERNEL", "host": "EDGERT_GPU_HOST", "to_device": "EDGERT_GPU_TO_DEVICE",
    "to_host": "EDGERT_GPU_TO_HOST",
}  # fmt: skip
"""``edgert_gpu_kind`` by the plan's name for it."""

IMAGES = ("", "float32", "float16", "int8")
"""dtypes by ``edgert_gpu_image``."""
WEIGHT = 1
"""The operand that may be an image."""

SOURCE_FILE, WEIGHTS_FILE = "kernels.cl", "gpu_weights.bin"


class GpuWriter:
    """Writes the C text of one GPU part; the blobs that it names lie in the folder it is compiled in."""

    def __init__(self, program: Program, code: GpuCode, image: Image) -> None:
        self.code, self.image = code, image
        self._places: dict[tuple[int, int], int] = {}
        self._io = {id(t.buffer): i for i, t in enumerate([*program.inputs, *program.outputs])}

    def write_blobs(self, folder: Path) -> None:
        """Put source and weights where the C text includes them from."""
        (folder / SOURCE_FILE).write_bytes(self.code.source.encode() + b"\0")
        (folder / WEIGHTS_FILE).write_bytes(self.image.data or b"\0")

    def source(self) -> str:
        """The tables of steps and operands, and ``edgec_gpu``."""
        strings, offsets = _strings(name for s in self.code.steps for name in (s.name, s.contract, s.function))
        steps: list[str] = []
        operands: list[str] = []
        for step in self.code.steps:
            items, group = ", ".join(map(str, step.items)), ", ".join(map(str, step.group or (0, 0, 0)))
            names = ", ".join(f"{offsets[name]}u" for name in (step.name, step.contract, step.function))
            steps.append(
                f"  {{{KINDS[step.kind]}, {names}, {len(operands)}u, {len(step.operands)}u, {{{items}}}, {{{group}}}, "
                f"{step.host}u, 0u, {step.macs}u}},"
            )
            operands += [self._operand(b, step.image and i == WEIGHT) for i, b in enumerate(step.operands)]
        return "\n".join(
            [
                "static const char gpu_strings[] =", *strings, ";",
                "static const edgert_gpu_step gpu_steps[] = {", *steps, "};",
                "static const edgert_gpu_operand gpu_operands[] = {", *(operands or ["  {0u, 0u, 0u, 0u},"]), "};",
                "static const edgert_gpu edgec_gpu = {",
                f"  (uint32_t)sizeof(edgert_gpu), {len(steps)}u, gpu_steps, gpu_operands, {len(operands)}u,",
                "  gpu_strings, (uint64_t)sizeof gpu_strings,",
                f"  (const char *)edgec_gpu_source, {len(self.code.source.encode())}u,",
                f"  edgec_gpu_weights, {len(self.image.data)}u, {self.code.arena_bytes}u,",
                "};\n",
            ]
        )  # fmt: skip

    def _operand(self, buffer: Buffer, image: bool) -> str:
        root = buffer.root
        skip = buffer.root_offset * np.dtype(buffer.dtype).itemsize
        if root.space == ARENA:
            assert root.offset is not None
            io = self._places.setdefault((root.offset, root.nbytes), len(self._places) + 1)
            space, offset = "EDGERT_GPU_ARENA", root.offset + skip
        elif root.space == CONSTANT:
            space, io = "EDGERT_GPU_WEIGHTS", IMAGES.index(buffer.dtype) if image else 0
            offset = self.image.offsets[id(root)] + skip
        else:
            space, io, offset = "EDGERT_GPU_IO", self._io[id(root)], skip
        return f"  {{{space}, {io}u, {offset}u, {buffer.nbytes}u}},"


def _strings(names: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """Distinct names as lines of one C literal, and where each begins in it."""
    from edgec.format.descriptor import quoted

    offsets: dict[str, int] = {}
    size, lines = 0, []
    for name in dict.fromkeys(names):
        offsets[name] = size
        size += len(name.encode()) + 1
        lines.append(f'  {quoted(name)} "\\0"')
    return lines or ['  ""'], offsets
