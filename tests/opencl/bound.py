"""Started by test_gpu_objects.py with the counting library as driver: binds memory of many kinds, and counts copies."""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np
import numpy.typing as npt

from edgec.runtimes.python.session import Session

LINE = 64
"""Bytes of a cache line."""


def memory(elements: int, skip: int = 0) -> npt.NDArray[np.float32]:
    """float32 memory that begins ``skip`` bytes after a cache line."""
    raw = np.zeros(4 * elements + 2 * LINE, np.uint8)
    first = -raw.ctypes.data % LINE + skip
    return raw[first : first + 4 * elements].view(np.float32)


def main(artifact: str, library: str) -> None:
    counting = ctypes.CDLL(library)
    counting.counting_alive.restype = ctypes.c_long
    counting.counting_copies.restype = counting.counting_imports.restype = ctypes.c_ulong
    found: dict[str, object] = {}
    with Session(artifact) as session:
        (given,), (made,) = session.inputs, session.outputs
        sizes = int(np.prod(given.shape)), int(np.prod(made.shape))
        values = np.random.default_rng(0).random(sizes[0], np.float32)
        found["wanted"] = session.run({given.name: values.reshape(given.shape)})[made.name].ravel().tolist()

        def run(source: npt.NDArray[np.float32], result: npt.NDArray[np.float32]) -> dict[str, object]:
            """What two runs in this memory copy and give, the second of other values."""
            api, handle = session._library, session._handle
            assert api.edgert_bind_input(handle, 0, source.ctypes.data, source.nbytes) == 0
            assert api.edgert_bind_output(handle, 0, result.ctypes.data, result.nbytes) == 0
            before = counting.counting_copies()
            source[:] = 0
            session.invoke()
            source[:] = values
            session.invoke()
            return {"copies": counting.counting_copies() - before, "found": result.tolist()}

        source, result, both = memory(sizes[0]), memory(sizes[1]), memory(sizes[0])
        kinds = {
            "aligned": (source, result),
            "other": (memory(sizes[0]), memory(sizes[1])),
            "input": (source, memory(sizes[1], 4)),
            "neither": (memory(sizes[0], 4), memory(sizes[1], 4)),
            "overlapping": (both, both[: sizes[1]]),
            "again": (source, result),
        }
        found |= {kind: run(*pair) for kind, pair in kinds.items()}
        found["alive"] = [counting.counting_alive() for _ in range(20) if run(source, result)]
    found["imports"] = counting.counting_imports()
    print(json.dumps({**found, "closed": counting.counting_alive()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
