"""TVM's modules for kernel generators, imported when one is first used: a compilation whose kernels are all cached
needs none of them, and they take a second."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Module:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next time it is found without this function
        return value


tvm = _Module("tvm")
tirx = _Module("tvm.tirx")
stmt = _Module("tvm.tirx.stmt")
