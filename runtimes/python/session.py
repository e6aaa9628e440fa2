"""Running artifacts in this process, through libedgert.

The same file is a part of edgec and of the wheel ``edgert`` for devices; each has its own :mod:`.library`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from .library import EdgecError, library_path

Array = np.ndarray[Any, Any]

DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("float32"),
    2: np.dtype("uint8"),
    3: np.dtype("int8"),
    4: np.dtype("uint16"),
    5: np.dtype("int16"),
    6: np.dtype("int32"),
    7: np.dtype("int64"),
    9: np.dtype("bool"),
    10: np.dtype("float16"),
    11: np.dtype("float64"),
    12: np.dtype("uint32"),
    13: np.dtype("uint64"),
}
"""``edgert_dtype`` by value."""

SKIP_DIGEST, PIN_BIG_CORES, NO_IO_BUFFERS, ON_CPU, FALLBACK_CPU = 1, 2, 4, 8, 16
"""``edgert_flag`` bits."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("bytes", ctypes.c_uint64),
        ("shape", ctypes.c_int64 * 8),
        ("rank", ctypes.c_uint32),
        ("dtype", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
    )


class _Options(ctypes.Structure):
    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("memory", ctypes.c_void_p),
        ("memory_bytes", ctypes.c_uint64),
    )


class _StepStats(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("macs", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("total_ns", ctypes.c_uint64),
        ("min_ns", ctypes.c_uint64),
    )


_SESSION = ctypes.c_void_p
_TENSOR = ctypes.POINTER(_Tensor)

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "edgert_version": (ctypes.c_char_p, ()),
    "edgert_last_error": (ctypes.c_char_p, ()),
    "edgert_open": (ctypes.c_int, (ctypes.c_char_p, ctypes.POINTER(_Options), ctypes.POINTER(_SESSION))),
    "edgert_close": (None, (_SESSION,)),
    "edgert_device": (ctypes.c_char_p, (_SESSION,)),
    "edgert_input_count": (ctypes.c_uint32, (_SESSION,)),
    "edgert_output_count": (ctypes.c_uint32, (_SESSION,)),
    "edgert_input": (_TENSOR, (_SESSION, ctypes.c_uint32)),
    "edgert_output": (_TENSOR, (_SESSION, ctypes.c_uint32)),
    "edgert_bind_input": (ctypes.c_int, (_SESSION, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)),
    "edgert_bind_output": (ctypes.c_int, (_SESSION, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)),
    "edgert_run": (ctypes.c_int, (_SESSION,)),
    "edgert_selftest": (ctypes.c_int, (_SESSION, ctypes.POINTER(ctypes.c_uint32))),
    "edgert_reset": (ctypes.c_int, (_SESSION,)),
    "edgert_set_width": (ctypes.c_int, (_SESSION, ctypes.c_uint32)),
    "edgert_width_of": (ctypes.c_uint32, (_SESSION,)),
    "edgert_profile": (ctypes.c_int, (_SESSION, ctypes.c_int)),
    "edgert_step_count": (ctypes.c_uint32, (_SESSION,)),
    "edgert_step_stats_get": (ctypes.c_int, (_SESSION, ctypes.c_uint32, ctypes.POINTER(_StepStats))),
    "edgert_pin_caller": (ctypes.c_int, (ctypes.c_uint32,)),
}


@functools.cache
def library() -> ctypes.CDLL:
    """libedgert for this machine (see :mod:`.library`).

    Raises:
        EdgecError: if it cannot be built.
    """
    loaded = ctypes.CDLL(library_path())
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


@dataclass(frozen=True)
class Tensor:
    """An input or output. ``real = scale * (q - zero_point)``; ``scale`` is 0 if it is not quantised."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class StepProfile:
    """One step's share of all runs since the profile was started; times are wall time in nanoseconds."""

    name: str
    kernel: str
    macs: int
    calls: int
    total_ns: int
    min_ns: int


class Session:
    """A compiled model, ready to run in this process. Close it, or use it in a ``with``.

    A session may be shared between Python threads: its runs then follow one another.

    Attributes:
        inputs: what :meth:`run` takes, in the ONNX model's order.
        outputs: what it returns.
        device: what it runs on: ``CPU``, or the name of the GPU.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        threads: int = 1,
        *,
        pin_big_cores: bool = False,
        check_digest: bool = True,
        gpu: bool = True,
        fallback: str | None = None,
        own_buffers: bool = False,
    ) -> None:
        """Open the artifact at ``path``.

        Args:
            path: what ``edgec compile`` wrote.
            threads: how many share the work of a run, 1 to 64; the calling thread is one of them.
            pin_big_cores: keep the other threads on the fastest cores.
            check_digest: compare the file's SHA-256 first; switch it off only for files that you trust.
            gpu: run an artifact for a GPU there, and not on the processor, for which it has code, too.
            fallback: ``cpu`` runs it on the processor where no GPU can be used.
            own_buffers: give the session memory for its inputs and outputs, which :meth:`selftest` works in.

        Raises:
            EdgecError: if the file is no artifact, damaged, or not for this machine; without a fallback also if its
                GPU cannot be used.
        """
        self._handle: int | None = None
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._bound: tuple[list[Array], dict[str, Array]] | None = None
        if not 1 <= threads <= 64:
            raise EdgecError(f"a session runs on 1 to 64 threads, not {threads}")
        if fallback not in (None, "cpu"):
            raise EdgecError(f"an artifact falls back on the cpu or not at all, and not on '{fallback}'")
        flags = NO_IO_BUFFERS * (not own_buffers) | PIN_BIG_CORES * pin_big_cores | SKIP_DIGEST * (not check_digest)
        flags |= ON_CPU * (not gpu) | FALLBACK_CPU * (fallback == "cpu")
        self._library = library()
        self._open(os.fspath(path), threads, flags)
        self.inputs = self._tensors(self._library.edgert_input, self._library.edgert_input_count)
        self.outputs = self._tensors(self._library.edgert_output, self._library.edgert_output_count)
        self.device: str = self._library.edgert_device(self._handle).decode(errors="replace")

    @classmethod
    def from_bytes(cls, data: bytes, threads: int = 1, **options: Any) -> Session:
        """Open an artifact whose bytes are in memory; what a file holds meanwhile does not matter.

        Args:
            data: what ``edgec compile`` wrote.
            threads: as for a file.
            options: as for a file.

        Raises:
            EdgecError: as for a file.
        """
        descriptor = os.memfd_create("edgert", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(data)
            session = cls(f"/proc/self/fd/{descriptor}", threads, **options)
        except BaseException:
            os.close(descriptor)
            raise
        # kept until close: the loader knows what it has loaded by this name
        session._descriptor = descriptor
        return session

    def _open(self, path: str, threads: int, flags: int) -> None:
        options = _Options(struct_bytes=ctypes.sizeof(_Options), threads=threads, flags=flags)
        handle = _SESSION()
        self._require(self._library.edgert_open(os.fsencode(path), options, handle))
        self._handle = handle.value

    def _tensors(self, get: Callable[..., Any], count: Callable[..., int]) -> tuple[Tensor, ...]:
        return tuple(_tensor(get(self._handle, i).contents) for i in range(count(self._handle)))

    def _require(self, status: int) -> None:
        if status != 0:
            raise EdgecError(self._library.edgert_last_error().decode(errors="replace"))

    def _opened(self) -> int:
        if self._handle is None:
            raise EdgecError("the session is closed; open the artifact again with edgec.load")
        return self._handle

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference.

        Args:
            inputs: an array for every input, of exactly its shape and dtype. C-contiguous arrays are read
                in place.

        Returns:
            A new array for every output, by name.

        Raises:
            EdgecError: for a wrong name, shape or dtype.
        """
        with self._lock:
            outputs = self._bind(inputs)
            self._require(self._library.edgert_run(self._opened()))
            return outputs

    def bind(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Choose the arrays that :meth:`invoke` reads and writes, without running.

        Returns:
            The arrays that every later :meth:`invoke` fills, until the next ``bind`` or ``run``.

        Raises:
            EdgecError: for a wrong name, shape or dtype.
        """
        with self._lock:
            return self._bind(inputs)

    def invoke(self) -> None:
        """One inference on the arrays of the last :meth:`bind`; nothing is checked, copied or allocated.

        Raises:
            EdgecError: if nothing is bound.
        """
        self._require(self._library.edgert_run(self._opened()))

    def reset(self) -> None:
        """Make zero what the artifact keeps from one run to the next (see :mod:`edgec.states`)."""
        with self._lock:
            self._require(self._library.edgert_reset(self._opened()))

    @property
    def width(self) -> int | None:
        """The bits a weight that a nested model runs at; None for others."""
        return self._library.edgert_width_of(self._opened()) or None

    def set_width(self, bits: int) -> None:
        """Run a nested model (``quantize="w4", nested=True``) at 8 or 4 bits a weight from now on.

        Raises:
            EdgecError: it has no such width.
        """
        with self._lock:
            self._require(self._library.edgert_set_width(self._opened(), bits))

    def _bind(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        handle = self._opened()
        self._check_names(inputs)
        arrays = [_checked(tensor, inputs[tensor.name]) for tensor in self.inputs]
        outputs = {tensor.name: np.empty(tensor.shape, tensor.dtype) for tensor in self.outputs}
        self._bind_all(self._library.edgert_bind_input, handle, arrays)
        self._bind_all(self._library.edgert_bind_output, handle, outputs.values())
        self._bound = (arrays, outputs)
        return outputs

    def _bind_all(self, bind: Callable[..., int], handle: int, arrays: Iterable[Array]) -> None:
        for index, array in enumerate(arrays):
            self._require(bind(handle, index, array.__array_interface__["data"][0], array.nbytes))

    def _check_names(self, inputs: Mapping[str, Array]) -> None:
        wanted = {tensor.name for tensor in self.inputs}
        listing = ", ".join(map(str, self.inputs)) or "none"
        for name in inputs:
            if name not in wanted:
                raise EdgecError(f"the model has no input '{name}'; its inputs are {listing}")
        for tensor in self.inputs:
            if tensor.name not in inputs:
                raise EdgecError(f"the input {tensor} is missing; the model's inputs are {listing}")

    def selftest(self) -> int:
        """Run the tests inside the artifact, and answer with how many there are; nothing is bound afterwards.

        Raises:
            EdgecError: the session has no ``own_buffers``, the artifact holds no tests, or a step stores something
                else than the compiler's reference did.
        """
        count = ctypes.c_uint32()
        with self._lock:
            self._require(self._library.edgert_selftest(self._opened(), count))
        return count.value

    def start_profile(self) -> None:
        """Measure every step of every run from now on, from zero."""
        self._require(self._library.edgert_profile(self._opened(), 1))

    def profile(self) -> list[StepProfile]:
        """The steps in order, over all runs since :meth:`start_profile`."""
        handle = self._opened()
        return [self._step(handle, i) for i in range(self._library.edgert_step_count(handle))]

    def _step(self, handle: int, index: int) -> StepProfile:
        stats = _StepStats()
        self._require(self._library.edgert_step_stats_get(handle, index, stats))
        return StepProfile(
            stats.name.decode(), stats.kernel.decode(), stats.macs, stats.calls, stats.total_ns, stats.min_ns
        )

    def close(self) -> None:
        """Free the session's memory and threads. Closing twice is allowed."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None:
                self._library.edgert_close(handle)
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


def load(path: str | os.PathLike[str], threads: int = 1, *, fallback: str | None = None) -> Session:
    """Open an artifact to run it here: see :class:`Session`.

    Raises:
        EdgecError: if the file is no artifact, damaged, or not for this machine.
    """
    return Session(path, threads, fallback=fallback)


def pin_caller(threads: int = 1) -> bool:
    """Keep the calling thread on the fastest ``threads`` cores; False where the system does not allow it."""
    return bool(library().edgert_pin_caller(threads))


def _tensor(raw: Any) -> Tensor:
    shape = tuple(raw.shape[: raw.rank])
    return Tensor(raw.name.decode(), shape, DTYPES[raw.dtype], raw.scale, raw.zero_point)


def _checked(tensor: Tensor, value: Array) -> Array:
    """``value`` as the kernels read it: itself if it is dense and aligned, else a copy that is."""
    array = np.asarray(value)
    if array.dtype != tensor.dtype:
        raise EdgecError(
            f"the input {tensor} was given {array.dtype} values; convert them with .astype('{tensor.dtype}')"
        )
    if array.shape != tensor.shape:
        raise EdgecError(f"the input {tensor} was given an array of shape {list(array.shape)}")
    return np.require(array, requirements=("C", "A"))
