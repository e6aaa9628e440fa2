"""Fold multi-branch convolution blocks into one convolution each.

A block trained as a sum of branches over one input, each with its own batch norm (RepVGG: k×k, 1×1 and identity;
MobileOne: several k×k; ACNet: 1×k and k×1; DBB: 1×1→k×k and 1×1→average pool; RepMixer:
x + scale·(mixer(x) - norm(x)); LoRA on a convolution), is one convolution at inference. For each branch

    identity      the 1×1 depthwise filter of ones
    batch norm    a diagonal filter and a bias, composed with what stands before it
    average pool  a depthwise filter of 1/(k_h·k_w), if padding counts as zeros
    1×1 in k×k    the tap where the two read the same element: number pad_k - pad_1, the centre of same-padded ones

:mod:`edgec.passes.linear_sums` finds the branches and adds their filters, :mod:`edgec.passes.filters` has the
algebra. Strides must agree; pads and dilations need not, as long as the united kernel costs no more MACs.
"""

from __future__ import annotations

from typing import ClassVar

from edgec.passes.linear import Convolutions, Family
from edgec.passes.linear_sums import LinearSumPass


class FoldBranches(LinearSumPass):
    """Folds the parallel convolutions, norms, poolings and identities of a sum into one convolution."""

    name: ClassVar[str] = "fold-branches"
    family: ClassVar[Family] = Convolutions()
