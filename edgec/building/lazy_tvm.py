"""TVM's modules for kernel generators, imported when one is first used: a compilation whose kernels are all cached
needs none of them, and they take a second."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any


def load_tvm(name: str = "tvm") -> Any:
    """Import a module of TVM without PyTorch, which TVM loads where it is installed, for tensors that edgec never has.

    Args:
        name: dotted, ``tvm`` or below.
    """
    if not {"tvm_ffi", "torch"} & sys.modules.keys():
        sys.modules["torch"] = None  # type: ignore[assignment]  # for Python: there is no such module
        try:
            import_module("tvm")
        finally:
            del sys.modules["torch"]
    return import_module(name)


class _Module:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(load_tvm(self._name), attribute)
        setattr(self, attribute, value)  # the next time it is found without this function
        return value


tvm = _Module("tvm")
tirx = _Module("tvm.tirx")
stmt = _Module("tvm.tirx.stmt")
