"""Sliding windows: what convolutions and pooling read around each output position."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgec.lowering.context import attribute


@dataclass(frozen=True)
class Window:
    """A sliding window over spatial axes, from a node's attributes; pads are (begin, end) per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def window(node: ir.Node, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a convolution or pooling node, ``auto_pad`` resolved (ONNX Conv, ``auto_pad``)."""
    rank = len(spatial)
    strides, dilations = steps(node, rank)
    mode = str(attribute(node, "auto_pad", "NOTSET"))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = tuple(
            _same_pads(size, k, s, d, mode == "SAME_UPPER")
            for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)
        )
    elif mode == "VALID":
        pads = ((0, 0),) * rank
    else:
        flat = attribute(node, "pads", [0] * (2 * rank))
        pads = tuple(zip(flat[:rank], flat[rank:], strict=True))
    return Window(kernel, strides, dilations, pads)


def steps(node: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The strides and the dilations of a node over ``rank`` spatial axes."""
    return tuple(attribute(node, "strides", [1] * rank)), tuple(attribute(node, "dilations", [1] * rank))


def _same_pads(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def channels_last(rank: int) -> tuple[int, ...]:
    """The memory order of (N, C, …) with its channels innermost."""
    return (0, *range(2, rank), 1)
