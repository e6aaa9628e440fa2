"""Operators that move elements: integers stay on their grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgec.targets.tflite.convert import LAST, Call, Unsupported, Value, emits


@emits("Reshape", "Flatten", "Squeeze", "Unsqueeze", integers=True)
def reshape(call: Call) -> Value:
    """To the shape that import has found; pictures of one pixel need not be transposed for it."""
    source = call.plain(call.value(0))
    made = call.result(quant=source.quant)
    call.operator("RESHAPE", [source, call.numbers(call.shape)], made, "ReshapeOptions", newShape=list(call.shape))
    return call.finished(made)


@emits("Transpose", integers=True)
def transpose(call: Call) -> Value:
    """Together with the move of the channels that the source needs; nothing where both cancel out."""
    source = call.value(0)
    axes = call.integers("perm", range(len(source.shape))[::-1])
    places = [call.axis(source, axis) for axis in axes]
    if places == list(range(len(places))):
        return call.finished(Value(source.tensor, call.shape, source.dtype, False, source.quant))
    made = call.result(quant=source.quant)
    return call.finished(call.operator("TRANSPOSE", [source, call.numbers(places)], made, "TransposeOptions"))


@emits("Concat", integers=True)
def concat(call: Call) -> Value:
    """Of values on one grid."""
    values = [call.finished(call.value(index)) for index in range(len(call.node.inputs))]
    last = any(value.last for value in values)
    values = [call.last(value) for value in values] if last else values
    axis = call.axis(values[0], call.integer("axis"))
    return call.operator("CONCATENATION", values, call.result(last=last), "ConcatenationOptions", axis=axis)


@emits("Slice", integers=True)
def cut(call: Call) -> Value:
    """STRIDED_SLICE with constant bounds."""
    source = call.value(0)
    starts, ends = (call.known(index, "range").tolist() for index in (1, 2))
    axes = call.known(3, "list of axes").tolist() if call.has(3) else list(range(len(starts)))
    steps = call.known(4, "list of steps").tolist() if call.has(4) else [1] * len(starts)
    if any(step < 1 for step in steps):
        raise Unsupported("it steps backwards")
    ranges = [(0, extent, 1) for extent in source.shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        ranges[axis] = slice(start, end, step).indices(source.shape[axis])
    return call.finished(_sliced(call, source, ranges, call.shape))


def _sliced(call: Call, source: Value, ranges: Sequence[tuple[int, int, int]], shape: Sequence[int]) -> Value:
    if source.last:
        ranges = [ranges[axis] for axis in LAST]
    bounds = [call.numbers([each[place] for each in ranges]) for place in range(3)]
    made = call.result(shape, last=source.last, quant=source.quant)
    return call.operator("STRIDED_SLICE", [source, *bounds], made, "StridedSliceOptions")


@emits("Split")
def split(call: Call) -> list[Value]:
    """A slice for each part."""
    source, axis, begin, parts = call.value(0), call.integer("axis", 0), 0, []
    axis %= len(source.shape)
    for output in call.node.outputs:
        assert output.shape is not None
        shape = tuple(int(extent) for extent in output.shape.numpy())
        ranges = [(0, extent, 1) for extent in source.shape]
        ranges[axis] = (begin, begin + shape[axis], 1)
        begin += shape[axis]
        parts.append(_sliced(call, source, ranges, shape))
    return parts


@emits("Pad", integers=True)
def pad(call: Call) -> Value:
    """Borders of a constant, or mirrored."""
    source, mode, pads = call.value(0), call.text("mode", "constant"), call.known(1, "width").tolist()
    fill = float(call.known(2, "value").ravel()[0]) if call.has(2) else 0.0
    rank = len(source.shape)
    if call.has(3) or any(width < 0 for width in pads) or mode not in ("constant", "reflect"):
        raise Unsupported(f"its mode is {mode}, or it cuts off, or it names axes")
    widths = [(pads[axis], pads[axis + rank]) for axis in (LAST if source.last else range(rank))]
    made = call.result(last=source.last, quant=source.quant)
    table = call.writer.constant("pads", np.asarray(widths, np.int32))
    if mode == "reflect":
        return call.finished(call.operator("MIRROR_PAD", [source, table], made, "MirrorPadOptions", mode=0))
    if fill == 0.0:
        return call.finished(call.operator("PAD", [source, table], made, "PadOptions"))
    if call.quant is not None:
        raise Unsupported("it fills integers with another number than 0")
    number = call.writer.constant("fill", np.asarray(fill, np.float32))
    return call.operator("PADV2", [source, table, number], made, "PadV2Options")


@emits("Gather", integers=True)
def gather(call: Call) -> Value:
    """With constant indices."""
    source, indices = call.value(0), call.known(1, "list of indices").astype(np.int32)
    axis = call.integer("axis", 0) % len(source.shape)
    indices = np.where(indices < 0, indices + source.shape[axis], indices).astype(np.int32)
    source = source if indices.ndim == 1 else call.plain(source)
    made = call.result(last=source.last, quant=source.quant)
    table = call.writer.constant("indices", indices)
    options = {"axis": call.axis(source, axis), "batchDims": 0}
    return call.finished(call.operator("GATHER", [source, table], made, "GatherOptions", **options))


@emits("DepthToSpace", integers=True)
def depth_to_space(call: Call) -> Value:
    """With the blocks as the slower part of the channels."""
    source = call.last(call.value(0))
    if call.text("mode", "DCR") != "DCR":
        raise Unsupported("it takes channels before blocks (CRD)")
    made = call.result(last=True, quant=source.quant)
    size = call.integer("blocksize")
    return call.finished(call.operator("DEPTH_TO_SPACE", [source], made, "DepthToSpaceOptions", blockSize=size))


@emits("Expand")
def expand(call: Call) -> Value:
    """BROADCAST_TO."""
    source = call.plain(call.value(0))
    return call.operator("BROADCAST_TO", [source, call.numbers(call.shape)], call.result(), "BroadcastToOptions")
