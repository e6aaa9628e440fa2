"""Fold a zero Pad into the convolution behind it.

A Conv pads its input with zeros before it slides the filter, so Conv(Pad(x; p, 0); q) = Conv(x; p + q) when p
pads spatial axes only and crops none. A pad of another value or mode stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from onnxscript.rewriter import RewriteRule
from onnxscript.rewriter.rules.common import fuse_pad_into_conv_integer_rule, fuse_pad_into_conv_rule

from edgec.passes.base import RulePass


class FoldPadding(RulePass):
    """Folds zero padding into the padding of the convolution that reads it."""

    name: ClassVar[str] = "fold-padding"

    def rules(self) -> Sequence[RewriteRule]:
        return [fuse_pad_into_conv_rule, fuse_pad_into_conv_integer_rule]
