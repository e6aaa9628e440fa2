"""An artifact to link into a program: one relocatable object and its C header.

The object has two global symbols, after the file's name: ``NAME_run``, which runs the model on memory that the caller
gives, and ``NAME_model``, the descriptor that libedgert opens with ``edgert_open_model``. Both are in sections of their
own, so that a linker that collects garbage keeps only what is used. It is the only form for microcontrollers.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.artifact import DESCRIPTOR_FLAGS, descriptor_object, with_trailer
from edgec.building.toolchain import Toolchain, find_toolchain
from edgec.errors import EdgecError
from edgec.format.descriptor import lay_out, write_sources
from edgec.format.manifest import manifest_text
from edgec.targets.gpu.target import GpuTarget

if TYPE_CHECKING:
    from edgec.format.vectors import Vectors
    from edgec.program import Program, Tensor
    from edgec.targets.cpu.backend import Code
    from edgec.targets.target import Target

SUFFIX = ".o"

C_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t", "float16": "uint16_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""How C writes an element of each dtype; half floats are bits to it."""


@dataclass(frozen=True)
class Static:
    """The object's bytes, its header's text, and the manifest as stored."""

    data: bytes
    header: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Footprint:
    """What ``NAME_run`` and all it needs take of a program that links it, in bytes.

    Attributes:
        code: machine code, the C library's and the compiler's functions included.
        constants: weights and tables.
        ram: arena, inputs and outputs, and what code and library write to; without the stack.
    """

    code: int
    constants: int
    ram: int

    @property
    def flash(self) -> int:
        """Code and constants."""
        return self.code + self.constants


def is_static(path: Path) -> bool:
    """Whether an artifact of this name is an object to link."""
    return path.suffix == SUFFIX


def check_form(path: Path, target: Target | GpuTarget) -> None:
    """Refuse a shared object for a system that cannot load one, an object for a GPU, and a name that C cannot spell.

    Raises:
        EdgecError: in one sentence.
    """
    if isinstance(target, GpuTarget):
        if is_static(path):
            raise EdgecError(f"an artifact for {target.name} is a shared object; give a name that ends in .so")
        return
    if target.bare_metal and not is_static(path):
        raise EdgecError(
            f"{target.name} has no loader for '{path}'; what it runs is linked: give a name that ends in {SUFFIX}"
        )
    if is_static(path) and not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", path.stem):
        raise EdgecError(
            f"'{path.name}' names C functions, and '{path.stem}' is no C identifier; choose another -o, such as "
            f"{identifier(path.stem)}{SUFFIX}"
        )


def build_static(
    program: Program, code: Code, target: Target, manifest: dict[str, Any], name: str, vectors: Vectors | None = None
) -> Static:
    """Link ``code`` into an object whose symbols begin with ``name``.

    Raises:
        EdgecError: no compiler for the target, it fails, or the model is larger than the target's memory.
    """
    toolchain = find_toolchain(target.triple)
    image = lay_out(code.constants)
    with tempfile.TemporaryDirectory(prefix="edgec-") as scratch:
        folder = Path(scratch)
        sources = write_sources(folder, program, code, target, b"", f"{name}_model", f"{name}_run")
        linked = _link(folder, toolchain, target, sources, name)
        footprint = _footprint(folder, toolchain, linked, program, target, name)
        _check_fits(footprint, program, target)
        manifest = {
            **manifest, "symbol": name, "weights_bytes": len(image.data), "flash_bytes": footprint.flash,
            "code_bytes": footprint.code, "ram_bytes": footprint.ram,
        }  # fmt: skip
        text = manifest_text(manifest)
        sources = write_sources(folder, program, code, target, text, f"{name}_model", f"{name}_run", vectors=vectors)
        data = _link(folder, toolchain, target, sources, name).read_bytes()
    return Static(with_trailer(data, text), _header(program, target, footprint, name), manifest)


def _link(folder: Path, toolchain: Toolchain, target: Target, sources: Any, name: str) -> Path:
    """Compile the descriptor, join it with the kernels, and hide every symbol but the two.

    Nothing in it throws; the tables for unwinding would only bring in what reads them.
    """
    output = folder / "model.o"
    flags = (*target.c_flags, *DESCRIPTOR_FLAGS, "-ffunction-sections", "-fdata-sections")
    descriptor = descriptor_object(toolchain, sources.descriptor, flags)
    link_flags = [*target.c_flags, "-r", "-nostdlib", "-Wl,-z,noexecstack"]
    toolchain.compile([descriptor, sources.blobs, *sources.kernels], output, shared=False, flags=link_flags)
    keep = [f"--keep-global-symbol={name}_{what}" for what in ("run", "model")]
    tables = ("--remove-section=.ARM.exidx*", "--remove-section=.rel.ARM.exidx*") if target.bare_metal else ()
    toolchain.run_tool("objcopy", *keep, *tables, "--strip-unneeded", output)
    return output


def _footprint(
    folder: Path, toolchain: Toolchain, linked: Path, program: Program, target: Target, name: str
) -> Footprint:
    """Measure a program that holds ``NAME_run`` and nothing else."""
    image = folder / "image.elf"
    flags = [
        *target.c_flags, "-nostartfiles", f"-Wl,-e,{name}_run", "-Wl,--gc-sections", "-Wl,--build-id=none", "-lm",
    ]  # fmt: skip
    toolchain.compile([linked], image, shared=False, flags=flags)
    sizes = dict(_sections(toolchain.run_tool("size", "-A", image)))
    code = sum(size for section, size in sizes.items() if section.startswith((".text", ".ARM.", ".plt", ".init")))
    constants = sum(size for section, size in sizes.items() if section.startswith(".rodata"))
    variable = sum(size for section, size in sizes.items() if section.startswith((".data", ".bss")))
    tensors = sum(tensor.buffer.nbytes for tensor in (*program.inputs, *program.outputs))
    return Footprint(code, constants, program.arena_bytes + tensors + variable)


def _sections(listing: str) -> Iterator[tuple[str, int]]:
    """Name and bytes of each section, as ``size -A`` prints them."""
    for line in listing.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].startswith(".") and words[1].isdigit():
            yield words[0], int(words[1])


def _check_fits(footprint: Footprint, program: Program, target: Target) -> None:
    for kind, needed, there in (
        ("flash", footprint.flash, target.flash_bytes),
        ("RAM", footprint.ram, target.ram_bytes),
    ):
        if there and needed > there:
            raise EdgecError(
                f"the model '{program.name}' needs {needed // 1024 + 1} kB of {kind} and {target.name} has "
                f"{there // 1024} kB; make it smaller with --quantize int8 or --prune, or choose a larger target"
            )


def identifier(text: str) -> str:
    """``text`` as a C identifier."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return name if name[:1].isalpha() else f"m{name}"


def _header(program: Program, target: Target, footprint: Footprint, name: str) -> str:
    upper = name.upper()
    tensors = [*program.inputs, *program.outputs]
    names = _parameters(tensors)
    lines = [
        f"/* {name}: the model '{program.name}', compiled by edgec for {target.name}.",
        " *",
        f" * Code {footprint.code} bytes, constants {footprint.constants} bytes; arena, inputs and outputs "
        f"{footprint.ram} bytes.",
        " * It calls memcpy, memset and functions of libm, allocates nothing and has no variables.",
        " */",
        f"#ifndef EDGEC_{upper}_H", f"#define EDGEC_{upper}_H", "", "#include <stdint.h>", "",
        "#ifdef __cplusplus", 'extern "C" {', "#endif", "",
        f"/* {_arena_comment(program)} */",
        f"#define {upper}_ARENA_BYTES {max(program.arena_bytes, 1)}u",
        f"#define {upper}_ARENA_ALIGNMENT {target.arena_alignment}u",
        "",
    ]  # fmt: skip
    for index, (tensor, parameter) in enumerate(zip(tensors, names, strict=True)):
        lines += _described(tensor, parameter, index < len(program.inputs), upper)
    lines += [
        "/* One inference. Calls on different arenas may overlap. */",
        f"void {name}_run({', '.join(['void *arena', *_prototype(program, names)])});",
        "",
        "/* The descriptor, for edgert_open_model of <edgert/edgert.h>, which includes its type. */",
        "#ifdef EDGERT_MODEL_H",
        f"extern const edgert_model {name}_model;",
        "#endif",
        "",
        "#ifdef __cplusplus", "}", "#endif", "", "#endif", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _arena_comment(program: Program) -> str:
    if program.state_bytes:
        return (
            f"Memory of a sequence of calls: its first {program.state_bytes} bytes are zero before the first call, and "
            "are kept between calls."
        )
    return "Scratch memory of a call; its content does not matter before, and is lost after."


def _parameters(tensors: Sequence[Tensor]) -> list[str]:
    """A parameter's name for each tensor: its own where C allows it and it is not taken."""
    names: list[str] = []
    for tensor in tensors:
        wanted = identifier(tensor.name)
        taken = wanted in names or wanted == "arena"
        names.append(f"{wanted}_{len(names)}" if taken else wanted)
    return names


def _described(tensor: Tensor, parameter: str, is_input: bool, prefix: str) -> list[str]:
    """The macros of an input or output."""
    macro = f"{prefix}_{parameter.upper()}"
    shape = "x".join(map(str, tensor.shape)) or "a scalar"
    kind = "Input" if is_input else "Output"
    lines = [
        f"/* {kind} {parameter}: {tensor.dtype} {shape}, dense, the last axis contiguous. */",
        f"#define {macro}_ELEMENTS {tensor.buffer.elements}u",
        f"#define {macro}_BYTES {tensor.buffer.nbytes}u",
    ]
    if tensor.scale:
        lines += [
            f"#define {macro}_SCALE {tensor.scale!r}f /* real = scale * (q - zero point) */",
            f"#define {macro}_ZERO_POINT {tensor.zero_point}",
        ]
    return [*lines, ""]


def _prototype(program: Program, names: Sequence[str]) -> Iterator[str]:
    tensors = [*program.inputs, *program.outputs]
    for index, (tensor, name) in enumerate(zip(tensors, names, strict=True)):
        constant = "const " if index < len(program.inputs) else ""
        yield f"{constant}{C_TYPES[tensor.dtype]} *{name}"
