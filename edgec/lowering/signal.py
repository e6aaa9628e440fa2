"""Fourier transforms as products with constant matrices, and the constants of signal processing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgec.lowering.context import Lowering, Operands, array_of, attribute, lowers, refuse, shape_of
from edgec.lowering.matmul import product
from edgec.program import CONSTANT, View
from edgec.scalar import Expr, binary

LONGEST = 4096
"""Up to this length a transform is a product; its matrix would hold more elements than a model's weights."""


def fourier_matrix(length: int, count: int, bins: int, parts: int, inverse: bool) -> np.ndarray:
    """The matrix of a discrete Fourier transform [length · parts, bins · 2] (float64).

    Args:
        length: how many inputs take part.
        count: the transform's own length, up to which inputs count as 0.
        bins: how many outputs are wanted.
        parts: 1 for real inputs, 2 for inputs of real and imaginary part.
        inverse: exp(+2πi·nk / count) / count instead of exp(−2πi·nk / count).
    """
    angle = 2 * np.pi * (np.outer(np.arange(length), np.arange(bins)) % count) / count
    cosine, sine = np.cos(angle), np.sin(angle) if inverse else -np.sin(angle)
    real = np.stack([cosine, sine], axis=-1)
    rows = [real] if parts == 1 else [real, np.stack([-sine, cosine], axis=-1)]
    matrix = np.stack(rows, axis=1).reshape(length * parts, bins * 2)
    return matrix / count if inverse else matrix


def real_inverse_matrix(length: int, count: int) -> np.ndarray:
    """The matrix from the first ``length`` complex bins of a real signal to its ``count`` samples."""
    twice = np.full(length, 2.0)
    twice[0] = 1.0
    if count % 2 == 0 and length > count // 2:
        twice[count // 2] = 1.0
    angle = 2 * np.pi * (np.outer(np.arange(length), np.arange(count)) % count) / count
    rows = np.stack([np.cos(angle), -np.sin(angle)], axis=1) * twice[:, None, None] / count
    return rows.reshape(length * 2, count)


def _transformed(ctx: Lowering, x: View, matrix: np.ndarray, parts: int) -> View:
    """x [..., length, parts of the input] times a matrix: [..., bins, ``parts`` of the output]."""
    *outer, length, own = x.shape
    rows = ctx.reshape(x, (*outer, length * own))
    bins = matrix.shape[1] // parts
    out = ctx.new((*outer, matrix.shape[1]), x.dtype)
    flat = ctx.reshape(out, (int(np.prod(outer)), matrix.shape[1]))
    product(ctx, flat, ctx.reshape(rows, (flat.shape[0], length * own)), ctx.constant(matrix.astype(x.dtype), "dft"))
    return ctx.reshape(out, (*outer, bins, parts))


@lowers("DFT")
def lower_dft(ctx: Lowering, node: ir.Node) -> None:
    x, rank = ctx.input(node, 0), len(ctx.input(node, 0).shape)
    axis = _dft_axis(ctx, node) % rank
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    given = ctx.known(node, 1, "length")
    default = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    count = default if given is None else int(given.reshape(-1)[0])
    if count > LONGEST:
        refuse(f"its length {count} is more than {LONGEST}", "transform shorter frames")
    order = [*(a for a in range(rank - 1) if a != axis), axis, rank - 1]
    bins = count // 2 + 1 if onesided else count
    used = min(x.shape[axis], bins if inverse and onesided else count)
    moved = x.permute(order)
    moved = moved.slice([0] * rank, (*moved.shape[:-2], used, moved.shape[-1]))
    if inverse and onesided:
        if x.shape[-1] != 2:
            refuse("a one-sided inverse needs complex input", "give it real and imaginary parts")
        out = _transformed(ctx, moved, real_inverse_matrix(used, count), 1)
    else:
        out = _transformed(ctx, moved, fourier_matrix(used, count, bins, x.shape[-1], inverse), 2)
    ctx.set(node.outputs[0], out.permute([order.index(a) for a in range(rank)]))


def _dft_axis(ctx: Lowering, node: ir.Node) -> int:
    """The axis: an input since opset 20, an attribute before."""
    given = ctx.known(node, 2, "axis")
    if given is not None:
        return int(given.reshape(-1)[0])
    return int(attribute(node, "axis", -2 if ctx.model.opset_imports.get("", 20) >= 20 else 1))


@lowers("STFT")
def lower_stft(ctx: Lowering, node: ir.Node) -> None:
    """The transform of each frame of the signal times the window: [batch, frames, bins, 2]."""
    signal, window = ctx.input(node, 0), ctx.optional(node, 2)
    step, given = ctx.known(node, 1, "frame step"), ctx.known(node, 3, "frame length")
    assert step is not None
    length = signal.shape[1] if window is None else window.shape[0]
    count = length if given is None else int(given.reshape(-1)[0])
    if window is not None and count != length:
        refuse(f"its window of {length} does not fit its frames of {count}", "give a window as long as a frame")
    if count > LONGEST:
        refuse(f"its frame length {count} is more than {LONGEST}", "use shorter frames")
    parts = signal.shape[2] if len(signal.shape) == 3 else 1
    frames, bins = shape_of(node.outputs[0])[1:3]
    hop = int(step.reshape(-1)[0])
    n_step, sample = signal.strides[:2]
    part = signal.strides[2] if len(signal.shape) == 3 else 0
    framed = View(
        signal.buffer, (signal.shape[0], frames, count, parts), (n_step, sample * hop, sample, part), signal.offset
    )
    matrix = fourier_matrix(count, count, bins, parts, inverse=False)
    if window is not None and window.buffer.space == CONSTANT:
        matrix = matrix * np.repeat(array_of(window).astype(np.float64), parts)[:, None]
    elif window is not None:
        framed = _windowed(ctx, framed, window)
    ctx.set(node.outputs[0], _transformed(ctx, framed, matrix, 2))


def _windowed(ctx: Lowering, framed: View, window: View) -> View:
    def weighted(ops: Operands, n: Expr, frame: Expr, sample: Expr, part: Expr) -> Expr:
        return binary("mul", ops.load(framed, n, frame, sample, part), ops.load(window, sample))

    return ctx.compute(ctx.new(framed.shape, framed.dtype), weighted)


_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0),
    "HammingWindow": (25 / 46, -21 / 46, 0.0),
    "BlackmanWindow": (0.42, -0.5, 0.08),
}
"""Each window as factors of 1, cos(2πn / N) and cos(4πn / N)."""


@lowers(*_WINDOWS)
def lower_window(ctx: Lowering, node: ir.Node) -> None:
    """Cosine sums over N = size, or size − 1 where the window is symmetric."""
    size = int(np.asarray(ctx.known(node, 0, "size")).reshape(-1)[0])
    period = size if attribute(node, "periodic", 1) else size - 1
    angle = 2 * np.pi * np.arange(size) / max(period, 1)
    constant, once, twice = _WINDOWS[node.op_type]
    values = constant + once * np.cos(angle) + twice * np.cos(2 * angle)
    ctx.set(node.outputs[0], ctx.constant(values.astype(_output_dtype(node)), "window"))


def _output_dtype(node: ir.Node) -> np.dtype:
    return np.dtype(ir.DataType(attribute(node, "output_datatype", 1)).numpy())


@lowers("MelWeightMatrix")
def lower_mel_weight_matrix(ctx: Lowering, node: ir.Node) -> None:
    """Triangles over spectrogram bins, evenly spaced in mel: [dft_length / 2 + 1, num_mel_bins]."""
    names = ("number of mel bins", "DFT length", "sample rate", "lower edge", "upper edge")
    bins, length, rate, low, high = (
        np.asarray(ctx.known(node, index, name)).reshape(-1)[0].item() for index, name in enumerate(names)
    )
    edges = np.array([low, high])
    lowest, highest = 2595 * np.log1p(edges / 700) / np.log(10)
    mel = np.arange(bins + 2) * ((highest - lowest) / (bins + 2)) + lowest
    points = ((length + 1) * (700 * np.expm1(mel / 2595 * np.log(10))) // rate).astype(int)
    triangles = np.zeros((length // 2 + 1, bins))
    for column, (left, centre, right) in enumerate(zip(points, points[1:], points[2:], strict=False)):
        if left == centre:
            triangles[centre, column] = 1
        else:
            rising = np.arange(left, centre + 1)
            triangles[rising, column] = (rising - left) / (centre - left)
        falling = np.arange(centre, right)
        triangles[falling, column] = (right - falling) / max(right - centre, 1)
    ctx.set(node.outputs[0], ctx.constant(triangles.astype(_output_dtype(node)), "mel_weights"))
