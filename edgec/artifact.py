"""The artifact: one shared object with one exported descriptor, and the trailer that guards it.

The descriptor (``runtimes/c/include/edgert/model.h``) is written as a C file and compiled by the target's C
compiler together with the kernels' object and the weights; the linker exports nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.gpu_artifact import SOURCE_FILE, WEIGHTS_FILE, GpuWriter
from edgec.memory import ALIGNMENT
from edgec.program import ARENA, CONSTANT, INPUT, Buffer, Program, Tensor
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.fpga.artifact import is_project, read_project
from edgec.toolchain import Toolchain, find_toolchain

if TYPE_CHECKING:
    from edgec.targets.cpu.backend import Call, Code
    from edgec.targets.gpu.backend import GpuCode
    from edgec.targets.target import Target

ABI_VERSION = 1
ELF_MAGIC = b"\x7fELF"
TABLES = ("steps", "memory", "fallback")
"""The manifest's lists of rows, which the artifact stores as tables."""
TRAILER_MAGIC = b"EDGERT-TRAILER-1"
TRAILER = struct.Struct("<16sQQ32s")
"""Magic, the manifest's offset and size in the file, and the SHA-256 of all bytes before the digest."""

DTYPE_CODES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""``edgert_dtype`` (onnx.TensorProto.DataType) of each dtype the runtime carries."""

ARCH_CODES = {"x86_64": "EDGERT_X86_64", "aarch64": "EDGERT_AARCH64", "armv7": "EDGERT_ARMV7"}

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


def build_artifact(
    program: Program, code: Code, target: Target, manifest: dict[str, Any], gpu: GpuCode | None = None
) -> tuple[bytes, dict[str, Any]]:
    """Link ``code``, and what there is for a GPU, into an artifact.

    Returns:
        The artifact's bytes, and its manifest as stored.

    Raises:
        EdgecError: no compiler for the target, or it fails.
    """
    toolchain = find_toolchain(target.triple)
    image = lay_out(code.constants)
    manifest = {**manifest, "weights_bytes": len(image.data)}
    writer = GpuWriter(program, gpu, lay_out(gpu.constants)) if gpu is not None else None
    compact = {key: _as_table(value) if key in TABLES else value for key, value in manifest.items()}
    text = json.dumps(compact, separators=(",", ":"), sort_keys=True)
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        descriptor = _DescriptorWriter(program, code, target, image, text.encode(), Path(folder), writer)
        linked = _link(Path(folder), toolchain, descriptor)
        return _with_trailer(linked.read_bytes(), text.encode()), manifest


def check_writable(path: Path) -> None:
    """Refuse an output path that cannot be written, before any work is done for it.

    Raises:
        EdgecError: naming the folder or file and why.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise EdgecError(f"the folder {folder} of output '{path}' does not exist; create it or choose another -o")
    if path.is_dir():
        raise EdgecError(f"the output '{path}' is a folder; give a file name with -o")
    if not os.access(folder, os.W_OK):
        raise EdgecError(f"the folder {folder} of output '{path}' is not writable; choose another -o")


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write files whole or not at all: every one beside its place first, then each renamed, in order.

    Raises:
        EdgecError: when the system refuses (disk full, permission); nothing is written then.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in files}
    try:
        for path, part in parts.items():
            _write_synced(part, files[path])
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise EdgecError(
            f"could not write {path} ({len(files[path])} bytes): {error.strerror}; free space or choose another -o"
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(folder: Path, toolchain: Toolchain, descriptor: _DescriptorWriter) -> Path:
    """Compile the descriptor and link it with kernels and weights."""
    descriptor.write_blobs()
    (folder / "exports.map").write_text("{ global: edgert_model_v1; local: *; };\n")
    source = folder / "model.c"
    source.write_text(descriptor.source())
    output = folder / "model.so"
    toolchain.compile(
        [source, *folder.glob("kernels.o")],
        output,
        shared=True,
        flags=[
            "-std=c11", "-Os", "-fPIC", "-fno-asynchronous-unwind-tables", f"-I{SOURCE_FOLDER / 'include'}", "-s",
            "-Wl,--gc-sections",
            f"-Wl,--version-script={folder / 'exports.map'}", "-Wl,-z,noexecstack", "-Wl,-z,norelro", "-lm",
        ],
    )  # fmt: skip
    return output


def _with_trailer(data: bytes, manifest: bytes) -> bytes:
    offset = data.find(manifest)
    head = data + TRAILER.pack(TRAILER_MAGIC, offset, len(manifest), b"")[:-32]
    return head + hashlib.sha256(head).digest()


def is_artifact(path: Path) -> bool:
    """Whether ``path`` looks like an artifact rather than a model; it may still be damaged."""
    if is_project(path):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(ELF_MAGIC)) == ELF_MAGIC
    except OSError:
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the artifact at ``path``, checked against its digest, without executing the file.

    An FPGA project has no digest: its sources may be changed, and what runs is built from them.

    Raises:
        EdgecError: not an artifact, truncated, or changed since it was written.
    """
    if is_project(path):
        return read_project(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EdgecError(f"cannot read the artifact {path}: {error.strerror}") from error
    if len(data) < TRAILER.size or data[-TRAILER.size :][:16] != TRAILER_MAGIC:
        raise EdgecError(f"{path} is not an edgec artifact or is cut short; compile it again with edgec compile")
    _, offset, size, digest = TRAILER.unpack(data[-TRAILER.size :])
    if hashlib.sha256(data[:-32]).digest() != digest:
        raise EdgecError(f"{path} was changed after it was compiled: its digest does not match; compile it again")
    manifest = json.loads(data[offset : offset + size])
    return {key: _as_rows(value) if key in TABLES else value for key, value in manifest.items()}


def _as_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of equal keys as the artifact stores them: the keys once."""
    columns = list(rows[0]) if rows else []
    return {"columns": columns, "rows": [[row[column] for column in columns] for row in rows]}


def _as_rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


class _DescriptorWriter:
    """Writes the C file with the descriptor and one function per step."""

    def __init__(
        self, program: Program, code: Code, target: Target, image: Image, manifest: bytes, folder: Path,
        gpu: GpuWriter | None,
    ) -> None:  # fmt: skip
        self.program, self.code, self.target, self.image = program, code, target, image
        self.manifest, self.folder, self.gpu = manifest, folder, gpu
        self._io = {id(t.buffer): i for i, t in enumerate([*program.inputs, *program.outputs])}

    def write_blobs(self) -> None:
        """Put what the C file includes, and is linked with, into the folder."""
        (self.folder / "weights.bin").write_bytes(self.image.data or b"\0")
        (self.folder / "manifest.json").write_bytes(self.manifest + b"\0")
        if self.code.object_bytes:
            (self.folder / "kernels.o").write_bytes(self.code.object_bytes)
        if self.gpu:
            self.gpu.write_blobs(self.folder)

    def source(self) -> str:
        """The C file."""
        parts = [
            "#include <edgert/model.h>\n",
            self._blob("edgec_weights", "weights.bin"),
            self._blob("edgec_manifest", "manifest.json"),
            *self._prototypes(),
            *(self._step(index, call) for index, call in enumerate(self.code.calls)),
            self._tensors("inputs", self.program.inputs),
            self._tensors("outputs", self.program.outputs),
            self._steps(),
            *self._gpu(),
            self._model(),
        ]
        return "\n".join(parts)

    def _blob(self, name: str, file: str) -> str:
        return (
            f'__asm__(".section .rodata.{name},\\"a\\"\\n.balign {ALIGNMENT}\\n{name}:\\n'
            f'.incbin \\"{self.folder / file}\\"\\n.previous\\n");\n'
            f'extern const uint8_t {name}[] __attribute__((visibility("hidden")));\n'
        )

    def _gpu(self) -> list[str]:
        if self.gpu is None:
            return []
        blobs = [self._blob("edgec_gpu_source", SOURCE_FILE), self._blob("edgec_gpu_weights", WEIGHTS_FILE)]
        return [*blobs, self.gpu.source()]

    def _prototypes(self) -> list[str]:
        counts = {call.symbol: len(call.operands) for call in self.code.calls}
        return [f"void {symbol}({'void *, ' * count}int32_t, int32_t);" for symbol, count in counts.items()]

    def _step(self, index: int, call: Call) -> str:
        operands = ", ".join(f"(void *)({self._address(buffer)})" for buffer in call.operands)
        return (
            f"static void step{index}(uint8_t *arena, const uint8_t *weights, void *const *io, int32_t thread, "
            f"int32_t threads) {{\n  (void)arena; (void)weights; (void)io;\n"
            f"  {call.symbol}({operands}, thread, threads);\n}}"
        )

    def _address(self, buffer: Buffer) -> str:
        root = buffer.root
        skip = buffer.root_offset * np.dtype(buffer.dtype).itemsize
        if root.space == ARENA:
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

    def _model(self) -> str:
        target, program = self.target, self.program
        features = " | ".join(FEATURE_MACROS[f] for f in target.features) or "0"
        content = hashlib.sha256(self.image.data + self.manifest).digest()
        digest = ", ".join(f"0x{byte:02x}" for byte in content)
        fields = [
            f"{ABI_VERSION}u", "(uint32_t)sizeof(edgert_model)", quoted(program.name), quoted(target.name),
            quoted(target.triple), ARCH_CODES[target.arch], features, f"{len(program.inputs)}u",
            f"{len(program.outputs)}u", "inputs", "outputs", f"{program.arena_bytes}u", f"{ALIGNMENT}u",
            f"{len(self.code.calls)}u", "steps", "strings", "(uint64_t)sizeof strings", "edgec_weights",
            f"{len(self.image.data)}u",
            "(const char *)edgec_manifest", f"{len(self.manifest)}u", f"{{{digest}}}",
            "&edgec_gpu" if self.gpu else "(const edgert_gpu *)0",
        ]  # fmt: skip
        body = ",\n  ".join(fields)
        return f'__attribute__((visibility("default"))) const edgert_model edgert_model_v1 = {{\n  {body}\n}};\n'


def quoted(text: str) -> str:
    """``text`` as a C string literal."""
    return '"' + "".join(c if c.isascii() and c.isprintable() and c not in '"\\?' else _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def tensor_entry(tensor: Tensor) -> dict[str, Any]:
    """An input or output as the manifest lists it."""
    kind = "input" if tensor.buffer.space == INPUT else "output"
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "kind": kind}
