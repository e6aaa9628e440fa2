"""The artifact: one shared object with one exported descriptor, and the trailer that guards it.

The descriptor (``runtimes/c/include/edgert/model.h``) is written as a C file and compiled by the target's C
compiler together with the kernels' object and the weights; the linker exports nothing else. What is linked into a
program instead is made in :mod:`edgec.format.static_object`.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.building.kernel_cache import KernelCache, source_key
from edgec.building.toolchain import Toolchain, find_toolchain
from edgec.errors import EdgecError
from edgec.format.coding import code_weights
from edgec.format.descriptor import SYMBOL, Sources, lay_out, write_sources
from edgec.format.manifest import manifest_text, parse_manifest
from edgec.program import INPUT, Program, Tensor
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.targets.formats import is_tflite, read_format_manifest
from edgec.targets.fpga.artifact import is_project, read_project

if TYPE_CHECKING:
    from edgec.format.vectors import Vectors
    from edgec.targets.cpu.backend import Code
    from edgec.targets.gpu.backend import GpuCode
    from edgec.targets.target import Target

ELF_MAGIC = b"\x7fELF"
DESCRIPTOR_FLAGS = ("-std=c11", "-Os", "-fno-asynchronous-unwind-tables", f"-I{SOURCE_FOLDER / 'include'}")
TRAILER_MAGIC = b"EDGERT-TRAILER-1"
TRAILER = struct.Struct("<16sQQ32s")
"""Magic, the manifest's offset and size in the file, and the SHA-256 of all bytes before the digest."""
SIGNATURE_MAGIC = b"EDGERT-SIGNED-01"
SIGNATURE = struct.Struct("<64s16s")
"""Ed25519 signature and magic, behind the trailer of a signed artifact (see :mod:`edgec.format.signing`)."""


def build_artifact(
    program: Program, code: Code, target: Target, manifest: dict[str, Any], gpu: GpuCode | None = None,
    vectors: Vectors | None = None, compress: bool = False,
) -> tuple[bytes, dict[str, Any]]:  # fmt: skip
    """Link ``code``, and what there is for a GPU, into an artifact, whose weights are entropy-coded if ``compress``.

    Returns:
        The artifact's bytes, and its manifest as stored.

    Raises:
        EdgecError: no compiler for the target, or it fails.
    """
    toolchain = find_toolchain(target.triple)
    image = lay_out(code.constants)
    coded = code_weights(image, code.constants) if compress and image.data else b""
    manifest = {**manifest, "weights_bytes": len(image.data), "coded_bytes": len(coded)}
    text = manifest_text(manifest)
    with tempfile.TemporaryDirectory(prefix="edgec-") as name:
        folder = Path(name)
        sources = write_sources(folder, program, code, target, text, gpu=gpu, vectors=vectors, coded=coded)
        linked = _link(folder, toolchain, sources)
        return with_trailer(linked.read_bytes(), text), manifest


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


def _link(folder: Path, toolchain: Toolchain, sources: Sources) -> Path:
    """Link the descriptor with kernels and weights."""
    (folder / "exports.map").write_text(f"{{ global: {SYMBOL}; local: *; }};\n")
    output = folder / "model.so"
    toolchain.compile(
        [descriptor_object(toolchain, sources.descriptor, DESCRIPTOR_FLAGS), sources.blobs, *sources.kernels],
        output,
        shared=True,
        flags=[
            "-s", "-Wl,--gc-sections", f"-Wl,--version-script={folder / 'exports.map'}",
            "-Wl,-z,noexecstack", "-Wl,-z,norelro", *toolchain.unpadded_flags(), "-lm",
        ],
    )  # fmt: skip
    return output


def descriptor_object(toolchain: Toolchain, source: Path, flags: Sequence[str]) -> Path:
    """Compile the descriptor's C file ``source`` to an object beside it, or take that from the cache of the kernels.

    Raises:
        EdgecError: with the compiler's last lines.
    """
    output, cache = source.with_suffix(".o"), KernelCache.of_user()
    key = source_key(toolchain, source.read_bytes(), flags)
    content = cache.get(key)
    if content is not None:
        output.write_bytes(content)
    else:
        toolchain.compile_object(source, output, flags=flags)
        cache.put(key, output.read_bytes())
    return output


def with_trailer(data: bytes, manifest: bytes) -> bytes:
    """A file that holds ``manifest``, and behind it what tells where, and the digest of it all."""
    offset = data.find(manifest)
    head = data + TRAILER.pack(TRAILER_MAGIC, offset, len(manifest), b"")[:-32]
    return head + hashlib.sha256(head).digest()


def is_artifact(path: Path) -> bool:
    """Whether ``path`` looks like an artifact rather than a model; it may still be damaged."""
    if is_project(path) or is_tflite(path):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(ELF_MAGIC)) == ELF_MAGIC
    except OSError:
        return False


def split_signature(data: bytes) -> tuple[bytes, bytes | None]:
    """An artifact's bytes without its signature, and the signature, if it has one."""
    if data[-len(SIGNATURE_MAGIC) :] != SIGNATURE_MAGIC or len(data) < SIGNATURE.size:
        return data, None
    return data[: -SIGNATURE.size], SIGNATURE.unpack(data[-SIGNATURE.size :])[0]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the artifact at ``path``, checked against its digest, without executing the file.

    An FPGA project has no digest: its sources may be changed, and what runs is built from them; nor have files of
    other runtimes.

    Raises:
        EdgecError: not an artifact, truncated, or changed since it was written.
    """
    if is_project(path):
        return read_project(path)
    if path.suffix == ".onnx" or is_tflite(path):
        return read_format_manifest(path)
    try:
        data, _ = split_signature(path.read_bytes())
    except OSError as error:
        raise EdgecError(f"cannot read the artifact {path}: {error.strerror}") from error
    if len(data) < TRAILER.size or data[-TRAILER.size :][:16] != TRAILER_MAGIC:
        raise EdgecError(f"{path} is not an edgec artifact or is cut short; compile it again with edgec compile")
    _, offset, size, digest = TRAILER.unpack(data[-TRAILER.size :])
    if hashlib.sha256(data[:-32]).digest() != digest:
        raise EdgecError(f"{path} was changed after it was compiled: its digest does not match; compile it again")
    try:
        return parse_manifest(data[offset : offset + size])
    except ValueError as error:
        raise EdgecError(f"the manifest of {path} is damaged: {error}; compile it again with edgec compile") from error


def tensor_entry(tensor: Tensor) -> dict[str, Any]:
    """An input or output as the manifest lists it."""
    kind = "input" if tensor.buffer.space == INPUT else "output"
    grid = {"scale": tensor.scale, "zero_point": tensor.zero_point} if tensor.scale else {}
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "kind": kind, **grid}
