"""Fold adapters that run beside a matrix product into its weight.

A low-rank adapter (LoRA and its kin) adds s·(x·A)·B to the base x·W + b, hence

    y = x·W + b + s·(x·A)·B = x·(W + s·A·B) + b

with a number or a value per channel for s, and any number of adapters, each a chain of constant products and maps
per channel; what is dropped in training is gone by then. An adapter written into the weight instead (W + s·B·A,
a Kronecker product of factors) is a constant expression, which :mod:`edgec.passes.simplify` evaluates. The folded
product costs no more than the base alone, whatever the rank. An adapter with an activation inside stays.
"""

from __future__ import annotations

from typing import ClassVar

from edgec.passes.linear import Family, Products
from edgec.passes.linear_sums import LinearSumPass


class FoldAdapters(LinearSumPass):
    """Folds low-rank branches beside a matrix product into its weight."""

    name: ClassVar[str] = "fold-adapters"
    family: ClassVar[Family] = Products()
