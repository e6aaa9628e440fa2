"""Channels as vectors: what the matrix-like kernels of processors and GPUs have in common."""

from __future__ import annotations

SHORT = {"float32": "f32", "float16": "f16", "int8": "s8", "uint8": "u8", "int16": "s16"}
"""What a kernel's name calls the dtype of its input."""

CHANNEL_AXIS = 3
"""Epilogue axis that vectors run along: (n, h, w, c)."""


def pieces(extent: int, lanes: int) -> list[int]:
    """``extent`` channels as vectors of at most ``lanes``, each a power of two wide: 27 → 16, 8, 2, 1."""
    widths = [lanes] * (extent // lanes)
    rest = extent % lanes
    return widths + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


def padded_pieces(extent: int, lanes: int, least: int = 4) -> list[int]:
    """As :func:`pieces`, the rest in one vector wide enough for it, of at least ``least``: 27 → 16, 16; 17 → 16, 4."""
    rest = extent % lanes
    return [lanes] * (extent // lanes) + ([max(least, 1 << (rest - 1).bit_length())] if rest else [])
