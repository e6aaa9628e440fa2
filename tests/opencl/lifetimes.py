"""Started by test_gpu_objects.py with the counting library as driver: counts the OpenCL objects of sessions."""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np

from edgec.errors import EdgecError
from edgec.runtimes.python.session import Session


def main(artifact: str, library: str, runs: int, cycles: int) -> None:
    counting = ctypes.CDLL(library)
    counting.counting_alive.restype = ctypes.c_long
    found: dict[str, object] = {"error": None, "between": []}
    between: list[int] = []
    try:
        with Session(artifact) as session:
            inputs = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in session.inputs}
            session.run(inputs)
            found["open"] = counting.counting_alive()
            for run in range(runs):
                session.invoke()
                if run % 1000 == 999:
                    session.start_profile()  # events are made from here on
                    between.append(counting.counting_alive())
        for _ in range(cycles):
            with Session(artifact) as session:
                session.run(inputs)
            between.append(counting.counting_alive())
    except EdgecError as error:
        found["error"] = str(error)
    print(json.dumps({**found, "between": between, "closed": counting.counting_alive()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
