"""What every back end does to bind a step to the code of its kernel: choose the plan, pack and share its constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgec.program import CONSTANT, Buffer, Conv, Kernel
from edgec.targets.template import Template
from edgec.tuning.records import Records


class OperandBinder:
    """Plans kernels for one target and stores the constants that they read, equal ones once."""

    def __init__(self, target: Any, records: Records) -> None:
        self.target, self.records = target, records
        self.constants: list[Buffer] = []
        self._plans: dict[tuple[Any, ...], Any] = {}
        self._packed: dict[tuple[Any, ...], Buffer] = {}
        self._stored: dict[tuple[Any, ...], Buffer] = {}

    def plan(self, template: Template, kernel: Kernel) -> Any:
        """The best plan on record, or the template's own choice; equal kernels are planned once."""
        key = (template.plan, kernel)
        if key not in self._plans:
            self._plans[key] = self._choose(template, kernel)
        return self._plans[key]

    def _choose(self, template: Template, kernel: Kernel) -> Any:
        if template.candidates is None or not self.records.of(kernel, self.target):
            return template.plan(kernel, self.target)
        return self.records.choice(kernel, self.target, template.candidates(kernel, self.target))

    def operands(
        self, template: Template, planned: Any, kernel: Kernel, inputs: Sequence[Buffer], output: Buffer
    ) -> list[Buffer]:
        """What the code of ``planned`` is called with: its table if it has one, the inputs, and the output."""
        found = [self._operand(index, buffer, template, planned, kernel) for index, buffer in enumerate(inputs)]
        if template.table:
            found.insert(0, self._store(_constant("table", template.table(planned, kernel))))
        return [*found, output]

    def _operand(self, index: int, buffer: Buffer, template: Template, planned: Any, kernel: Kernel) -> Buffer:
        if buffer.root.space != CONSTANT:
            return buffer
        pack = self._pack(index, template, planned, kernel)
        if pack is not None:
            key = (id(buffer), planned)
            if key not in self._packed:
                self._packed[key] = _constant(buffer.name, pack(np.asarray(buffer.data)))
            buffer = self._packed[key]
        return self._store(buffer)

    def _pack(
        self, index: int, template: Template, planned: Any, kernel: Kernel
    ) -> Callable[[np.ndarray], np.ndarray] | None:
        """What turns the constant operand ``index`` into what the kernel reads; None where that is the same."""
        if index == 1 and template.pack:
            return partial(template.packed, planned, kernel)
        has_scales = index == 2 and isinstance(kernel, Conv) and kernel.own_operands > index
        return partial(template.pack_scales, planned) if has_scales and template.pack_scales else None

    def _store(self, buffer: Buffer) -> Buffer:
        """The stored constant with these bytes: equal constants are stored once."""
        data = np.ascontiguousarray(buffer.data)
        key = (str(data.dtype), data.tobytes())
        if key not in self._stored:
            self._stored[key] = buffer
            self.constants.append(buffer)
        return self._stored[key]


def _constant(name: str, data: np.ndarray) -> Buffer:
    return Buffer(name, str(data.dtype), data.size, CONSTANT, data)
