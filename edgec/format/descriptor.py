"""The descriptor of an artifact (``runtimes/c/include/edgert/model.h``), written as a C file.

It is compiled by the target's C compiler, and linked with the kernels' objects; constants come in by ``.incbin``, in an
assembly file of their own, so that equal descriptors are compiled once whatever folder they stand in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgec.format.gpu_descriptor import SOURCE_FILE, WEIGHTS_FILE, GpuWriter
from edgec.format.vectors import Vectors, sources
from edgec.format.widths import WIDTHS
from edgec.planning.memory import ALIGNMENT
from edgec.program import ARENA, CONSTANT, STATE, Buffer, Program, Tensor

if TYPE_CHECKING:
    from edgec.targets.cpu.backend import Call, Code
    from edgec.targets.gpu.backend import GpuCode
    from edgec.targets.target import Target

ABI_VERSION = 1

SYMBOL = "edgert_model_v1"
"""What a shared object calls its descriptor."""

DTYPE_CODES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""``edgert_dtype`` (onnx.TensorProto.DataType) of each dtype the runtime carries."""

ARCH_CODES = {
    "x86_64": "EDGERT_X86_64", "aarch64": "EDGERT_AARCH64", "armv7": "EDGERT_ARMV7", "cortex-m": "EDGERT_CORTEX_M",
}  # fmt: skip

FEATURE_MACROS = {
    "avx2": "EDGERT_X86_AVX2",
    "fma": "EDGERT_X86_FMA",
    "avx512f": "EDGERT_X86_AVX512F",
    "avx512bw": "EDGERT_X86_AVX512BW",
    "avx512dq": "EDGERT_X86_AVX512DQ",
    "avx512vl": "EDGERT_X86_AVX512VL",
    "avx512vnni": "EDGERT_X86_AVX512VNNI",
    "avx512vbmi": "EDGERT_X86_AVX512VBMI",
    "neon": "EDGERT_ARM_NEON",
    "fullfp16": "EDGERT_ARM_FP16",
    "dotprod": "EDGERT_ARM_DOTPROD",
    "i8mm": "EDGERT_ARM_I8MM",
    "dsp": "EDGERT_ARM_DSP",
    "mve.fp": "EDGERT_ARM_MVE",
}
"""The loader's bit for each target feature."""



@dataclass(frozen=True)
class Image:
    """Constants laid out as the artifact holds them: the bytes, and each buffer's offset by ``id``."""

    data: bytes
    offsets: dict[int, int]


def lay_out(constants: Sequence[Buffer]) -> Image:
    """Constants one after the other, each aligned to a cache line (small ones to 16 bytes)."""
    chunks: list[bytes] = []
    offsets: dict[int, int] = {}
    size = 0
    for buffer in constants:
        data = np.ascontiguousarray(buffer.data).tobytes()
        alignment = ALIGNMENT if len(data) >= 4 * ALIGNMENT else 16
        padding = -size % alignment
        chunks += [b"\0" * padding, data]
        offsets[id(buffer)] = size + padding
        size += padding + len(data)
    return Image(b"".join(chunks), offsets)



@dataclass(frozen=True)
class Sources:
    """Files to compile and link: the descriptor in C, what it includes in assembly, and the kernels' objects."""

    descriptor: Path
    blobs: Path
    kernels: list[Path]


def write_sources(
    folder: Path, program: Program, code: Code, target: Target, manifest: bytes, symbol: str = SYMBOL, entry: str = "",
    gpu: GpuCode | None = None, vectors: Vectors | None = None, coded: bytes = b"",
) -> Sources:  # fmt: skip
    """Write what an artifact is linked from.

    Args:
        folder: an empty one; the assembly file names what stands in it by absolute paths.
        program: what the steps and tensors are taken from.
        code: the kernels, and the constants they read.
        target: the processor.
        manifest: JSON; a target without files keeps it outside what is loaded.
        symbol: the descriptor's name.
        entry: the name of a function that runs the model without a library; none by default.
        gpu: the same program for a GPU.
        vectors: the tests that the artifact is to hold.
        coded: the constants as :func:`edgec.format.coding.code_weights` codes them, to be held instead of them.
    """
    image = lay_out(code.constants)
    (folder / "weights.bin").write_bytes(coded or image.data or b"\0")
    (folder / "manifest.json").write_bytes(manifest + b"\0")
    sources = Sources(folder / "descriptor.c", folder / "blobs.s", code.write_objects(folder))
    part = GpuWriter(program, gpu, lay_out(gpu.constants)) if gpu is not None else None
    if part is not None:
        part.write_blobs(folder)
    if vectors:
        (folder / "inputs.bin").write_bytes(vectors.inputs or b"\0")
        (folder / "outputs.bin").write_bytes(vectors.outputs or b"\0")
    writer = _DescriptorWriter(program, code, target, image, manifest, folder, part, vectors, coded)
    sources.descriptor.write_text(writer.source(symbol, entry), encoding="utf-8")
    sources.blobs.write_text(writer.assembly(), encoding="utf-8")
    return sources


class _DescriptorWriter:
    """Writes the C file with the descriptor and one function per step, and the assembly file with its blobs."""

    def __init__(
        self, program: Program, code: Code, target: Target, image: Image, manifest: bytes, folder: Path,
        gpu: GpuWriter | None, vectors: Vectors | None, coded: bytes,
    ) -> None:  # fmt: skip
        self.vectors, self.coded = vectors, coded
        self.program, self.code, self.target, self.image = program, code, target, image
        self.manifest = b"" if target.bare_metal else manifest
        self.loaded, self.folder, self.gpu = not target.bare_metal, folder, gpu
        self._io = {id(t.buffer): i for i, t in enumerate([*program.inputs, *program.outputs])}

    def source(self, symbol: str, entry: str) -> str:
        parts = [
            "#include <edgert/model.h>\n",
            *(f'extern const uint8_t {name}[] __attribute__((visibility("hidden")));' for name in self._blobs()),
            *self._prototypes(),
            *(self._step(f"step{index}", call.symbol, call) for index, call in enumerate(self.code.calls)),
            *(self._step(f"narrow{index}", call.narrow, call) for index, call in self._narrow()),
            self._tensors("inputs", self.program.inputs),
            self._tensors("outputs", self.program.outputs),
            self._steps(),
            *([self._widths()] if self._narrow() else []),
            *([self.gpu.source()] if self.gpu else []),
            *(sources(self.vectors, self._io, len(self.code.calls)) if self.vectors else []),
            self._model(symbol),
            *([self._entry(entry)] if entry else []),
        ]
        return "\n".join(parts)

    def assembly(self) -> str:
        """What includes the blobs."""
        return "".join(
            f".section {self._section(name)}\n.globl {name}\n.hidden {name}\n.balign {ALIGNMENT}\n{name}:\n"
            f'.incbin "{self.folder / file}"\n'
            for name, file in self._blobs().items()
        )

    def _section(self, blob: str) -> str:
        """Where a blob goes: constants, or for the manifest of a target without files what no linker puts there."""
        if blob == "edgec_manifest" and not self.loaded:
            return f'.{blob},""'
        return f'.rodata.{blob},"a"'

    def _blobs(self) -> dict[str, str]:
        """The file of each."""
        blobs = {"edgec_weights": "weights.bin", "edgec_manifest": "manifest.json"}
        if self.gpu is not None:
            blobs |= {"edgec_gpu_source": SOURCE_FILE, "edgec_gpu_weights": WEIGHTS_FILE}
        if self.vectors:
            blobs |= {"edgec_test_inputs": "inputs.bin", "edgec_test_outputs": "outputs.bin"}
        return blobs

    def _prototypes(self) -> list[str]:
        named = [(name, call) for call in self.code.calls for name in (call.symbol, call.narrow) if name]
        counts = {name: len(call.operands) for name, call in named}
        return [f"void {symbol}({'void *, ' * count}int32_t, int32_t);" for symbol, count in counts.items()]

    def _narrow(self) -> list[tuple[int, Call]]:
        """The steps that have a function for fewer bits."""
        return [(index, call) for index, call in enumerate(self.code.calls) if call.narrow]

    def _widths(self) -> str:
        """What the model can be switched to: each width with a function for every step."""
        narrow = {index for index, _ in self._narrow()}
        count = len(self.code.calls)
        wide = [f"step{index}" for index in range(count)]
        other = [f"narrow{index}" if index in narrow else f"step{index}" for index in range(count)]
        tables = [
            f"static const edgert_step_fn width{bits}[] = {{{', '.join(functions)}}};"
            for bits, functions in zip(WIDTHS, (wide, other), strict=True)
        ]
        rows = ", ".join(f"{{{bits}u, 0u, width{bits}}}" for bits in WIDTHS)
        return "\n".join([*tables, f"static const edgert_width widths[] = {{{rows}}};"])

    def _step(self, name: str, symbol: str, call: Call) -> str:
        operands = ", ".join(f"(void *)({self._address(buffer)})" for buffer in call.operands)
        return (
            f"static void {name}(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, "
            f"int32_t threads) {{\n  (void)arena; (void)weights; (void)io;\n"
            f"  {symbol}({operands}, thread, threads);\n}}"
        )

    def _address(self, buffer: Buffer) -> str:
        root = buffer.root
        skip = buffer.root_offset * np.dtype(buffer.dtype).itemsize
        if root.space in (ARENA, STATE):
            assert root.offset is not None
            return f"arena + {root.offset + skip}"
        if root.space == CONSTANT:
            return f"weights + {self.image.offsets[id(root)] + skip}"
        return f"(uint8_t *)io[{self._io[id(root)]}] + {skip}"

    def _tensors(self, name: str, tensors: Sequence[Tensor]) -> str:
        rows = []
        for tensor in tensors:
            shape = ", ".join(map(str, tensor.shape)) or "0"
            rows.append(
                f"  {{{quoted(tensor.name)}, {tensor.buffer.nbytes}u, {{{shape}}}, {len(tensor.shape)}u, "
                f"{DTYPE_CODES[tensor.dtype]}u, {tensor.scale!r}f, {tensor.zero_point}}},"
            )
        return "\n".join([f"static const edgert_tensor {name}[] = {{", *rows, "};"])

    def _steps(self) -> str:
        names = list(dict.fromkeys(name for call in self.code.calls for name in (call.step.name, call.contract)))
        offsets, size = {}, 0
        for name in names:
            offsets[name] = size
            size += len(name.encode()) + 1
        rows = [
            f"  {{step{index}, {call.step.kernel.macs}u, {offsets[call.step.name]}u, {offsets[call.contract]}u, "
            f"{int(call.parallel)}u, 0u}},"
            for index, call in enumerate(self.code.calls)
        ]
        strings = [f'  {quoted(name)} "\\0"' for name in names] or ['  ""']
        parts = ["static const char strings[] =", *strings, ";", "static const edgert_step steps[] = {", *rows, "};"]
        return "\n".join(parts)

    def _entry(self, name: str) -> str:
        """A function that runs every step on the calling thread: arena, then all inputs, then all outputs."""
        inputs, outputs = len(self.program.inputs), len(self.program.outputs)
        names = [f"t{index}" for index in range(inputs + outputs)]
        kinds = ["const void *"] * inputs + ["void *"] * outputs
        parameters = ", ".join(["void *arena", *(kind + each for kind, each in zip(kinds, names, strict=True))])
        pointers = ", ".join(f"(void *)(uintptr_t){each}" for each in names)
        return (
            f"void {name}({parameters}) {{\n  void *const io[] = {{{pointers}}};\n"
            f"  for (uint32_t i = 0; i < {len(self.code.calls)}u; i++) steps[i].run(arena, edgec_weights, io, 0, 1);\n"
            f"}}\n"
        )

    def _model(self, symbol: str) -> str:
        target, program = self.target, self.program
        manifest = "(const char *)edgec_manifest" if self.loaded else "0"
        content = hashlib.sha256((self.coded or self.image.data) + self.manifest).digest()
        features = " | ".join(FEATURE_MACROS[f] for f in target.features) or "0"
        digest = ", ".join(f"0x{byte:02x}" for byte in content)
        fields = [
            f"{ABI_VERSION}u", "(uint32_t)sizeof(edgert_model)", quoted(program.name), quoted(target.name),
            quoted(target.triple), ARCH_CODES[target.arch], features, f"{len(program.inputs)}u",
            f"{len(program.outputs)}u", "inputs", "outputs", f"{program.arena_bytes}u", f"{ALIGNMENT}u",
            f"{len(self.code.calls)}u", "steps", "strings", "(uint64_t)sizeof strings",
            "0" if self.coded else "edgec_weights", f"{len(self.image.data)}u",
            manifest, f"{len(self.manifest)}u", f"{{{digest}}}", "&edgec_gpu" if self.gpu else "0",
            f"{program.state_bytes}u", "&tests" if self.vectors else "0",
            "edgec_weights" if self.coded else "0", f"{len(self.coded)}u",
            *(["widths", f"{len(WIDTHS)}u"] if self._narrow() else ["0", "0u"]), "0u",
        ]  # fmt: skip
        body = ",\n  ".join(fields)
        return f'__attribute__((visibility("default"))) const edgert_model {symbol} = {{\n  {body}\n}};\n'


def quoted(text: str) -> str:
    """``text`` as a C string literal."""
    return '"' + "".join(c if c.isascii() and c.isprintable() and c not in '"\\?' else _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())


