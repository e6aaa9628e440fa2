"""What generates the code of one kind of kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from edgec.program import Conv, Kernel


@dataclass(frozen=True)
class Template:
    """A kernel generator: what a contract of :mod:`edgec.program` needs from a target.

    Attributes:
        plan: chooses the parameters (tile, order of loops) of a kernel; equal plans are one function.
        generate: the ``tirx.PrimFunc`` of a plan, given the operands' dtypes, the output's last.
        contract: the kernel's name, which spells the contract and the plan.
        pack: turns the weight (operand 1, where it is a constant) into what the kernel reads.
        table: makes a constant from the contract that the kernel reads before its other operands.
        candidates: every plan worth trying, the most promising by the template's own estimate first, which is the
            one that ``plan`` chooses; None where there is nothing to choose.
        pack_scales: turns the scales of packed weights (operand 2) into what the kernel reads; None where that is
            what :class:`edgec.program.Packing` says.
    """

    plan: Callable[[Any, Any], Any]
    generate: Callable[[Any, list[str]], Any]
    contract: Callable[[Any], str]
    pack: Callable[[Any, np.ndarray], np.ndarray] | None = None
    table: Callable[[Any, Any], np.ndarray] | None = None
    candidates: Callable[[Any, Any], Sequence[Any]] | None = None
    pack_scales: Callable[[Any, np.ndarray], np.ndarray] | None = None

    def packed(self, plan: Any, kernel: Kernel, weight: np.ndarray) -> np.ndarray:
        """What the code of ``plan`` reads as the weight of ``kernel``; of a grouped convolution, group after group."""
        assert self.pack is not None
        if isinstance(kernel, Conv) and kernel.grouped:
            return np.concatenate([self.pack(plan, each).reshape(-1) for each in weight])
        return self.pack(plan, weight)


def parameters(plan: Any) -> dict[str, int | str]:
    """What a plan chose, by name: the fields that are numbers or words."""
    values = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return {name: value for name, value in values.items() if isinstance(value, int | str)}
