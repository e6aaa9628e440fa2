"""From graph to program: one rule per ONNX operator, each in the file of its family."""

from __future__ import annotations

import importlib
import pkgutil

import onnx_ir as ir

from edgec.errors import UnsupportedModelError
from edgec.lowering.context import RULES, Lowering
from edgec.program import Program

for _family in pkgutil.iter_modules(__path__):
    # importing a family registers its rules
    importlib.import_module(f"{__name__}.{_family.name}")


def lower(model: ir.Model) -> Program:
    """The program of a model whose shapes are static and whose constants are initialisers.

    Raises:
        UnsupportedModelError: listing every node that cannot be lowered.
    """
    lowering = Lowering(model)
    program = lowering.run()
    if lowering.refusals:
        raise UnsupportedModelError(lowering.refusals)
    return program


def supported_operators() -> list[str]:
    """Every operator with a rule, as ``domain.Operator`` (standard ones without a domain)."""
    return sorted(f"{domain}.{op}" if domain else op for domain, op in RULES)
