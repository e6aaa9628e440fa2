"""What a program is built for: a target is data, one TOML file each beside this module.

``host`` is the machine that compiles; its features are read from the machine itself.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from edgec.data.toml_files import read_toml
from edgec.errors import EdgecError
from edgec.planning.memory import ALIGNMENT
from edgec.targets.floats import FULL, HALF, SUFFIX
from edgec.targets.formats import FORMATS, Format
from edgec.targets.fpga.board import Board, board_names, load_board
from edgec.targets.gpu.target import GpuTarget, gpu_names, load_gpu

TARGET_FOLDER = Path(__file__).parent
HALF_FEATURE = "fullfp16"
"""LLVM's name of FEAT_FP16, arithmetic in 16-bit floats."""

X86_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi")
"""x86 features that kernels use, as LLVM and (with underscores) /proc/cpuinfo name them."""


@dataclass(frozen=True)
class Target:
    """A CPU and its system.

    Attributes:
        name: what ``--target`` takes.
        description: one line for ``edgec targets``.
        triple: system triple, e.g. ``aarch64-linux-gnu``.
        arch: ``x86_64``, ``aarch64``, ``armv7`` or ``cortex-m``.
        cpu: LLVM's name of the core, e.g. ``cortex-a72``.
        features: CPU features that the kernels may use and that the loader checks.
        vector_bytes: width of a vector register.
        vector_registers: how many there are.
        llvm_triple: LLVM's name of the system, where it is another than the C compiler's.
        c_flags: what a C compiler needs to be told about the processor.
        arena_alignment: bytes of which every buffer's place in the arena is a multiple.
        flash_bytes: what the code and the weights must fit into; 0 where they lie in a file.
        ram_bytes: what arena, inputs and outputs must fit into; 0 without such a limit.
        floats: dtype in which floats stand in memory and are computed: "float32", or "float16" (see
            :mod:`edgec.targets.half`).
        float_unit: whether the processor computes with floats itself; else a library does, slowly.
    """

    name: str
    description: str
    triple: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int
    llvm_triple: str = ""
    c_flags: tuple[str, ...] = ()
    arena_alignment: int = ALIGNMENT
    flash_bytes: int = 0
    ram_bytes: int = 0
    floats: str = FULL
    float_unit: bool = True

    packs_weights: ClassVar[bool] = True
    """Whether products of floats read packed integer weights."""
    fuses_sums: ClassVar[bool] = True
    """Whether a convolution is computed together with the sum that reads it, so that what lies between can have any
    width."""
    weight_factors: ClassVar[bool] = True
    """Whether weights of 4 bits that multiply integers may have factors: see :class:`edgec.program.Packing`."""

    @property
    def bare_metal(self) -> bool:
        """Whether there is no operating system: no files, no loader, no threads, and the program gives the memory."""
        return self.triple.endswith("-none-eabi")

    @property
    def llvm(self) -> dict[str, object]:
        """The target as TVM takes it."""
        attributes = [f"+{feature}" for feature in self.features]
        triple = self.llvm_triple or self.triple
        found: dict[str, object] = {"kind": "llvm", "mtriple": triple, "mcpu": self.cpu, "mattr": attributes}
        found |= {"mfloat-abi": "hard"} if triple.endswith("hf") else {}
        return found | ({"vector-width": 128} if self.bare_metal else {})  # or TVM warns that it has to guess

    @property
    def processor(self) -> str:
        """What code depends on: architecture, core and features."""
        return " ".join((self.arch, self.cpu, *(f"+{feature}" for feature in self.features)))

    @property
    def activation_dtype(self) -> str:
        """In which 8-bit integers the products of this processor read their activations: x86 takes unsigned ones."""
        return "uint8" if self.arch == "x86_64" else "int8"

    def default_output(self, name: str) -> Path:
        """Where the artifact of the model called ``name`` goes unless told otherwise."""
        return Path(f"{name}.o" if self.bare_metal else f"{name}.so")

    def lanes(self, dtype_bytes: int) -> int:
        """Vector lanes that kernels use for an element size: a register's worth of at least 32-bit lanes."""
        return self.vector_bytes // max(4, dtype_bytes)


def target_names() -> list[str]:
    """Every processor that ``--target`` takes; it also takes the GPUs of
    :func:`edgec.targets.gpu.target.gpu_names` and the boards of :func:`edgec.targets.fpga.board.board_names`."""
    plain = ["host", *_files()]
    return [each for name in plain for each in (name, *([name + SUFFIX] if _computes_in_half(name) else []))]


def _files() -> list[str]:
    return sorted(path.stem for path in TARGET_FOLDER.glob("*.toml"))


def _computes_in_half(name: str) -> bool:
    """Whether the processor ``name`` has arithmetic in 16-bit floats; that of a host without kernels has not."""
    try:
        return HALF_FEATURE in load_target(name).features
    except EdgecError:
        return False


def resolve_target(name: str) -> Target | GpuTarget | Board | Format:
    """The processor, the GPU, the FPGA board or the other runtime's format called ``name``.

    Raises:
        EdgecError: if there is none, with the names there are.
    """
    if name in FORMATS:
        return FORMATS[name]
    if name in gpu_names():
        return load_gpu(name)
    return load_board(name) if name in board_names() else load_target(name)


def load_target(name: str) -> Target:
    """The processor called ``name``; with "-fp16" behind it, computing in 16-bit floats.

    Raises:
        EdgecError: if there is none, with the names of all targets, or it does not compute in 16-bit floats, with the
            names of those that do.
    """
    if name == "host":
        return host_target()
    plain = name.removesuffix(SUFFIX)
    if plain != name and plain in ("host", *_files()):
        return _in_half(load_target(plain))
    if name not in _files():
        known = [*target_names(), *gpu_names(), *board_names(), *FORMATS]
        raise EdgecError(f"there is no target '{name}'; edgec knows {', '.join(known)} (see: edgec targets)")
    fields = read_toml(TARGET_FOLDER / f"{name}.toml")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Target(name=name, **values)


def _in_half(target: Target) -> Target:
    if HALF_FEATURE not in target.features:
        able = ", ".join(each for each in target_names() if each.endswith(SUFFIX))
        raise EdgecError(
            f"{target.name} has no arithmetic in 16-bit floats (FEAT_FP16), which {target.name}{SUFFIX} asks for; "
            f"compile for {target.name}, or for one of {able}"
        )
    description = f"{target.description}; computes in 16-bit floats"
    return replace(target, name=target.name + SUFFIX, floats=HALF, description=description)


def host_target() -> Target:
    """This machine.

    Raises:
        EdgecError: on an architecture that edgec has no kernels for.
    """
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return _x86_host(_cpu_flags("flags"))
    if machine in ("aarch64", "arm64"):
        return _aarch64_host(_cpu_flags("Features"))
    raise EdgecError(f"edgec has no kernels for a {machine} host; compile with --target rpi4 or another board")


def _x86_host(flags: frozenset[str]) -> Target:
    features = tuple(f for f in X86_FEATURES if f in flags or f.replace("avx512v", "avx512_v") in flags)
    wide = set(X86_FEATURES[:6]) <= set(features)
    return Target(
        name="host",
        description="the machine that compiles",
        triple="x86_64-linux-gnu",
        arch="x86_64",
        cpu="x86-64-v4" if wide else "x86-64-v3" if "fma" in features else "x86-64",
        features=features if wide else tuple(f for f in features if not f.startswith("avx512")),
        vector_bytes=64 if wide else 32 if "avx2" in features else 16,
        vector_registers=32 if wide else 16,
    )


def _aarch64_host(flags: frozenset[str]) -> Target:
    names = {"asimdhp": "fullfp16", "asimddp": "dotprod", "i8mm": "i8mm"}
    features = ("neon", *(feature for flag, feature in names.items() if flag in flags))
    return Target(
        name="host",
        description="the machine that compiles",
        triple="aarch64-linux-gnu",
        arch="aarch64",
        cpu="generic",
        features=features,
        vector_bytes=16,
        vector_registers=32,
    )


def _cpu_flags(key: str) -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == key)
    return frozenset(next(found, "").split())
