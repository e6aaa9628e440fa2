"""edgec compiles trained ONNX models into small, fast, self-contained artifacts for edge devices.

>>> import edgec
>>> compiled = edgec.compile("model.onnx", target="rpi4", output="model.so")    # doctest: +SKIP
>>> outputs = edgec.load("model.so").run({"input": x})                          # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgec.compiler import Compiled, compile, tune
    from edgec.errors import EdgecError, UnsupportedModelError
    from edgec.freezing import freeze
    from edgec.generation import generate
    from edgec.report import Report
    from edgec.runtimes.python.session import Session, load

__all__ = [
    "Compiled", "EdgecError", "Report", "Session", "UnsupportedModelError", "compile", "freeze", "generate", "load",
    "tune",
]  # fmt: skip
__version__ = "0.1.0"

_HOMES = {
    "Compiled": "edgec.compiler",
    "compile": "edgec.compiler",
    "tune": "edgec.compiler",
    "EdgecError": "edgec.errors",
    "freeze": "edgec.freezing",
    "generate": "edgec.generation",
    "UnsupportedModelError": "edgec.errors",
    "Report": "edgec.report",
    "Session": "edgec.runtimes.python.session",
    "load": "edgec.runtimes.python.session",
}
"""Where each public name lives; it is imported when it is first used, since TVM and friends load slowly."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgec' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
