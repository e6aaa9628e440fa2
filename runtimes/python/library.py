"""Where edgec finds the library that its binding calls: built for this machine on the first use.

The wheel for devices has another file in this one's place (``device/library.py``), which finds it beside itself.
"""

from __future__ import annotations

from edgec.building.toolchain import host_triple
from edgec.errors import EdgecError
from edgec.runtimes.build import build_runtime

__all__ = ["EdgecError", "library_path"]


def library_path() -> str:
    """The shared library.

    Raises:
        EdgecError: if it cannot be built.
    """
    return str(build_runtime(host_triple()).shared)
