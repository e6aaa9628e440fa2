"""Modules that the command line loads when they are first used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

USE = """
import sys
from edgec.terminal.deferred import RARELY_USED, defer

def loaded():
    return [name for name in RARELY_USED if type(sys.modules.get(name)).__name__ == "module"]

defer()
import onnx_ir as ir
import onnxscript.optimizer
assert loaded() == [], loaded()
"""

SYMBOLS = """
size = ir.SymbolicDim("N") * 2 + 1
assert "sympy" in loaded() and str(size.value).replace(" ", "") == "2*N+1", size
import sympy
from sympy.core.symbol import Symbol
assert isinstance(sympy.Symbol("x"), Symbol) and sympy.__version__
"""

OPERATORS = """
import onnx.reference.ops
assert onnx.reference.ops.load_op("", "Relu", 18).__name__.startswith("Relu")
assert loaded() == ["onnx.reference.ops"], loaded()
"""

MISSING = """
import sympy
try:
    sympy.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error), error
else:
    raise AssertionError
"""


@pytest.mark.parametrize("use", [SYMBOLS, OPERATORS, MISSING], ids=["symbols", "operators", "missing"])
def test_module_loads_when_it_is_used(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", USE + use], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_compiling_needs_none_of_them(sample_model: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom edgec.cli import main\n"
        f"sys.argv = ['edgec', 'compile', {str(sample_model)!r}, '-o', {str(tmp_path / 'm.so')!r}]\n"
        "try:\n    main()\nfinally:\n    sympy = sys.modules['sympy']\n"
        "    assert type(sympy).__name__ != 'module', 'SymPy was loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
