"""Which OpenCL devices this machine has: asked through ctypes, the way libedgert does."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

LIBRARIES = ("libOpenCL.so.1", "libOpenCL.so")
_NAME, _ALL = 0x102B, 0xFFFFFFFF
_MOST = 16


def device_names() -> list[str]:
    """The names of all devices; empty without a driver."""
    library = _library()
    return [] if library is None else [_text(library, device, _NAME) for device in _devices(library)]


def _library() -> ctypes.CDLL | None:
    for name in filter(None, (os.environ.get("EDGERT_OPENCL_LIBRARY"), *LIBRARIES)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _devices(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    platforms, count = (ctypes.c_void_p * _MOST)(), ctypes.c_uint32(0)
    if library.clGetPlatformIDs(_MOST, platforms, ctypes.byref(count)) != 0:
        return
    for platform in platforms[: count.value]:
        devices, found = (ctypes.c_void_p * _MOST)(), ctypes.c_uint32(0)
        kind = ctypes.c_uint64(_ALL)
        if library.clGetDeviceIDs(ctypes.c_void_p(platform), kind, _MOST, devices, ctypes.byref(found)) == 0:
            yield from (ctypes.c_void_p(device) for device in devices[: found.value])


def _text(library: ctypes.CDLL, device: ctypes.c_void_p, what: int) -> str:
    text = ctypes.create_string_buffer(4096)
    library.clGetDeviceInfo(device, what, ctypes.c_size_t(len(text)), text, None)
    return text.value.decode(errors="replace").strip()
