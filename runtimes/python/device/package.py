"""Runs models that edgec compiled: libedgert and its binding, for devices that have Python and numpy.

    import edgert

    with edgert.load("model.so", threads=4) as session:
        outputs = session.run({"input": image})  # {name: array}
"""

from __future__ import annotations

from edgert.library import EdgecError
from edgert.session import Session, StepProfile, Tensor, load, pin_caller

__all__ = ["EdgecError", "Session", "StepProfile", "Tensor", "load", "pin_caller"]
