"""Modules of other packages that the command line loads when they are first used, and mostly never does.

onnx-ir imports SymPy for sums of symbolic dimensions, and onnxscript the operators of ONNX's reference for constants to
fold: a third of a second at every start. :func:`defer` makes such a module's place hold an empty one that loads itself
when something is looked up in it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

RARELY_USED = ("sympy", "onnx_ir._symbolic_shapes", "onnx.reference.ops")


def defer(names: Collection[str] = RARELY_USED) -> None:
    """Load the modules of ``names`` when they are first used; those that are loaded already stay so."""
    sys.meta_path.insert(0, _Finder(names))


class _Finder(MetaPathFinder):
    """Finds the modules as ever, and has them loaded later."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


class _Later(Loader):
    """Leaves a module empty until it is used."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__deferred__"] = self._loader, RLock()
        module.__class__ = _Deferred


class _Deferred(ModuleType):
    """A module that is executed when a name is looked up that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        loader, lock = self.__dict__["__deferred__"]
        with lock:
            if type(self) is _Deferred:
                # what it looks up in itself while it is executed is there or is not
                object.__setattr__(self, "__class__", ModuleType)
                loader.exec_module(self)
        return getattr(self, name)
