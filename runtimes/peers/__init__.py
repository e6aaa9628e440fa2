"""Other runtimes, behind one small interface, for checking and for comparison.

A peer runs the ONNX file as it is, or what its own converter makes of it, or a file of its own format. Its adapter
is one module here, loaded when it is named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar, cast

from edgec.data.samples import Array, TensorSpec
from edgec.errors import EdgecError
from edgec.quiet import quiet

Shapes = Mapping[str, Sequence[int]]

_EXTRA = "pip install 'edgec[peers]'"
PEERS = {
    "onnxruntime": "pip install onnxruntime",
    "openvino": _EXTRA,
    "litert": _EXTRA,
    "mnn": _EXTRA,
    "ncnn": f"{_EXTRA} && pip install --no-deps pnnx",
}
"""The peers by the name of their adapter's module, and the command that installs each."""


class Peer(ABC):
    """A model in another runtime, on a given number of threads.

    Attributes:
        name: as in :data:`PEERS`.
        version: of the runtime.
        inputs: in the ONNX model's order, with static shapes.
        output_names: in the ONNX model's order.
    """

    name: ClassVar[str]
    version: str
    inputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]

    @abstractmethod
    def __init__(self, model: Path, threads: int, shapes: Shapes) -> None:
        """Load ``model``, its dynamic inputs pinned to ``shapes``.

        Raises:
            EdgecError: the runtime cannot load it, or an input stays dynamic.
        """

    @abstractmethod
    def bind(self, inputs: Mapping[str, Array]) -> None:
        """Choose the arrays that :meth:`invoke` reads; they are checked and, where possible, not copied."""

    @abstractmethod
    def invoke(self) -> None:
        """One inference on what is bound: the call that is worth timing."""

    @abstractmethod
    def outputs(self) -> list[Array]:
        """Copies of what the last :meth:`invoke` computed, in the ONNX model's order."""


def open_peer(name: str, model: Path, *, threads: int = 1, shapes: Shapes | None = None) -> Peer:
    """``model`` in the runtime called ``name``.

    Raises:
        EdgecError: there is no such peer, it is not installed, or it cannot load the model.
    """
    if name not in PEERS:
        raise EdgecError(f"there is no runtime '{name}' to compare with; edgec knows {', '.join(PEERS)}")
    if not model.is_file():
        raise EdgecError(f"there is no file '{model}'; check the path")
    with quiet():  # runtimes greet in the middle of the results; their errors come as exceptions
        try:
            adapter = import_module(f"{__name__}.{name}")
        except ImportError as error:
            raise EdgecError(f"{name} cannot be imported ({error}); run: {PEERS[name]}") from error
        return cast(Peer, adapter.Adapter(model, threads, shapes or {}))


def static_shape(name: str, declared: Sequence[object], shapes: Shapes) -> tuple[int, ...]:
    """The shape of input ``name``: pinned by ``shapes``, or as the model declares it.

    Args:
        name: the input's name.
        declared: its axes; whatever is not a positive integer is dynamic.
        shapes: pinned shapes by input name.

    Raises:
        EdgecError: an axis is dynamic and not pinned, or pinned against the declaration.
    """
    axes = [axis if isinstance(axis, int) and axis > 0 else None for axis in declared]
    pinned = tuple(shapes.get(name, ()))
    shown = "x".join("?" if axis is None else str(axis) for axis in axes)
    if name not in shapes and None in axes:
        raise EdgecError(f"input '{name}' has dynamic shape {shown}; pin it with --shape {name}={_suggestion(axes)}")
    if name in shapes and not _agree(pinned, axes):
        given = "x".join(map(str, pinned))
        raise EdgecError(f"--shape {name}={given} contradicts the model, which declares '{name}' as {shown}")
    return pinned if name in shapes else tuple(axis for axis in axes if axis is not None)


def _agree(pinned: Sequence[int], axes: Sequence[int | None]) -> bool:
    return len(pinned) == len(axes) and all(a is None or a == p for p, a in zip(pinned, axes, strict=True))


def _suggestion(axes: Sequence[int | None]) -> str:
    return "x".join(str(axis or 1) for axis in axes)


def reject_unknown(inputs: Sequence[TensorSpec], shapes: Shapes) -> None:
    """Refuse pinned shapes of inputs that the model does not have.

    Raises:
        EdgecError: naming the inputs there are.
    """
    for name in shapes:
        if name not in {spec.name for spec in inputs}:
            raise EdgecError(f"--shape names '{name}', and the model's inputs are {', '.join(map(str, inputs))}")
