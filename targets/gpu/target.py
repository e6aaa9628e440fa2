"""What a GPU program is built for: the GPU as data, one TOML file each beside this module, and its host processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgec.data.toml_files import read_toml
from edgec.targets.floats import FULL, HALF, SUFFIX

if TYPE_CHECKING:
    from edgec.targets.target import Target

GPU_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class GpuTarget:
    """A GPU that OpenCL C runs on, and the processor that starts its kernels and takes over where there is no GPU.

    Attributes:
        name: what ``--target`` takes.
        description: one line for ``edgec targets``.
        host: the processor beside it.
        work_group: work items that a group may have.
        local_memory: bytes that the items of a group may share.
        vector: lanes of a vector that the GPU loads at once, of 32 bits each.
        registers: 32-bit values that a work item may keep at hand without too few items running at a time.
        in_flight: work items that keep the device busy; with fewer, several share a sum.
        weights: how kernels read weights: through ``buffer`` or as ``image``, which has a cache of its own; where the
            device makes no image of them, they read the buffer.
        integer_dot: whether it is known to multiply four bytes by four at once; kernels that ask for it run on any
            device.
        sub_buffers: a multiple of these bytes is where a sub-buffer may begin on such devices; one that asks for more
            has the arena whole.
        double: whether kernels may compute in float64; where not, such steps run on the host.
        storage: dtype in which floats stand in memory.
    """

    name: str
    description: str
    host: Target
    work_group: int
    local_memory: int
    vector: int
    registers: int
    in_flight: int
    weights: str
    integer_dot: bool
    sub_buffers: int
    double: bool
    storage: str = FULL

    packs_weights: ClassVar[bool] = False
    fuses_sums: ClassVar[bool] = True
    """See :class:`edgec.targets.target.Target`."""
    weight_factors: ClassVar[bool] = True

    @property
    def triple(self) -> str:
        """The host's system."""
        return self.host.triple

    @property
    def processor(self) -> str:
        """What the kernels' code depends on, as tuning records have it."""
        sizes = f"group{self.work_group} local{self.local_memory} vector{self.vector} registers{self.registers}"
        sizes += f" flight{self.in_flight} {self.weights}"
        return f"opencl {sizes} dot{self.integer_dot:d} {self.storage}"

    @property
    def arena_alignment(self) -> int:
        """What the host asks for, and sub-buffers."""
        return max(self.host.arena_alignment, self.sub_buffers)

    @property
    def activation_dtype(self) -> str:
        """In which 8-bit integers products read their activations: as the host does, which runs the same program."""
        return self.host.activation_dtype

    def default_output(self, name: str) -> Path:
        """Where the artifact of the model called ``name`` goes unless told otherwise."""
        return self.host.default_output(name)

    def lanes(self, dtype_bytes: int) -> int:
        """Channels that are computed together."""
        return self.vector


def gpu_names() -> list[str]:
    """Every GPU that ``--target`` takes."""
    names = sorted(path.stem for path in GPU_FOLDER.glob("*.toml"))
    return [each for name in names for each in (name, name + SUFFIX)]


def load_gpu(name: str) -> GpuTarget:
    """The GPU called ``name``, one of :func:`gpu_names`."""
    from edgec.targets.target import load_target

    stem = name.removesuffix(SUFFIX)
    fields = read_toml(GPU_FOLDER / f"{stem}.toml")
    target = GpuTarget(name=name, **{**fields, "host": load_target(fields["host"])})
    if stem == name:
        return target
    return replace(target, storage=HALF, description=f"{target.description}; floats stored in 16 bits")
