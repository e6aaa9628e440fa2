"""Convolutions, matrix products, pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgec.data.samples import Array
from edgec.targets.tflite.convert import Call, Constant, Unsupported, Value, emits
from edgec.targets.tflite.writer import Quant


@emits("Conv", integers=True)
def convolution(call: Call) -> Value:
    """CONV_2D, or DEPTHWISE_CONV_2D where every channel has filters of its own."""
    source, weights = call.value(0), call.constant(1)
    if weights is None:
        raise Unsupported("its weights are computed when the model runs")
    if len(source.shape) != 4:
        raise Unsupported(f"it has {len(source.shape) - 2} spatial axes and not 2", "give it a second axis of 1")
    group, channels = call.integer("group", 1), source.shape[1]
    depthwise = group == channels and group > 1
    axes = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    source, padding = _padded(call, call.last(source), weights.array.shape[2:])
    filters = _filters(call, weights, axes)
    bias = _bias(call, source, weights, weights.array.shape[0])
    strides, dilations = call.integers("strides", (1, 1)), call.integers("dilations", (1, 1))
    fields = {
        "padding": padding, "strideH": strides[0], "strideW": strides[1], "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1], "fusedActivationFunction": call.activation_code,
    }  # fmt: skip
    if depthwise:
        fields["depthMultiplier"] = weights.array.shape[0] // channels
    name, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    return call.operator(name, [source, filters, bias], call.result(last=True), options, **fields)


def _filters(call: Call, weights: Constant, axes: Sequence[int]) -> int:
    """The weights with their axes moved, of which the output channels were the first."""
    if call.quant is None:
        return call.writer.constant("weights", np.ascontiguousarray(weights.array.transpose(axes)))
    is_bytes = weights.integers is not None and weights.integers.dtype == np.int8
    if weights.integers is None or weights.quant is None or not is_bytes or any(weights.quant.zeros):
        raise Unsupported("its weights are not symmetric signed bytes")
    place = list(axes).index(0)
    quant = Quant(_per_channel(weights), (0,) * weights.integers.shape[0], place)
    return call.writer.constant("weights", np.ascontiguousarray(weights.integers.transpose(axes)), quant)


def _per_channel(weights: Constant) -> tuple[float, ...]:
    assert weights.quant is not None and weights.integers is not None
    if len(weights.quant.scales) > 1 and weights.quant.axis != 0:
        raise Unsupported("the scales of its weights are not of output channels")
    scales = weights.quant.scales
    return scales if len(scales) > 1 else scales * weights.integers.shape[0]


def _bias(call: Call, source: Value, weights: Constant, channels: int, factor: float = 1.0) -> int:
    """The third input, or zeros; for integers at the product of the scales."""
    given = call.constant(2)
    if call.has(2) and given is None:
        raise Unsupported("its bias is computed when the model runs")
    array = np.zeros(channels, np.float32) if given is None else np.broadcast_to(given.array.reshape(-1), (channels,))
    if call.quant is None:
        return call.writer.constant("bias", (array * factor).astype(np.float32))
    assert source.quant is not None
    scales = np.float32(source.quant.scales[0]) * np.asarray(_per_channel(weights), np.float32)
    integers = np.rint(array.astype(np.float64) * factor / scales).astype(np.int32)
    return call.writer.constant("bias", integers, Quant(tuple(map(float, scales)), (0,) * channels, 0))


def _padded(call: Call, source: Value, kernel: Sequence[int]) -> tuple[Value, int]:
    """The source, with explicit borders where TensorFlow Lite's two kinds of padding are not what is asked for."""
    pads = _pads(call, source, kernel)
    if not any(map(any, pads)):
        return source, _padding(call, "VALID")
    if pads == _same(call, source, kernel):
        return source, _padding(call, "SAME")
    return _bordered(call, source, pads, None), _padding(call, "VALID")


def _padding(call: Call, name: str) -> int:
    return int(getattr(call.writer.schema.Padding, name))


def _spans(call: Call, kernel: Sequence[int]) -> list[int]:
    """What the kernel covers."""
    return [(size - 1) * step + 1 for size, step in zip(kernel, call.integers("dilations", (1, 1)), strict=True)]


def _pads(call: Call, source: Value, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Before and after, for both spatial axes, and so much that the result has its extent."""
    given = call.integers("pads", (0, 0, 0, 0))
    automatic = call.text("auto_pad", "NOTSET")
    strides, found = call.integers("strides", (1, 1)), []
    for axis, span in enumerate(_spans(call, kernel)):
        extent, result = source.shape[2 + axis], call.shape[2 + axis]
        needed = max((result - 1) * strides[axis] + span - extent, 0)
        before = {"SAME_UPPER": needed // 2, "SAME_LOWER": -(-needed // 2)}.get(automatic, given[axis])
        found.append((before, max(needed - before, 0)))
    return found


def _same(call: Call, source: Value, kernel: Sequence[int]) -> list[tuple[int, int]] | None:
    """What TensorFlow Lite's SAME adds; None where the result has another extent."""
    strides, found = call.integers("strides", (1, 1)), []
    for axis, span in enumerate(_spans(call, kernel)):
        extent = source.shape[2 + axis]
        result = -(-extent // strides[axis])
        if result != call.shape[2 + axis]:
            return None
        needed = max((result - 1) * strides[axis] + span - extent, 0)
        found.append((needed // 2, needed - needed // 2))
    return found


def _bordered(call: Call, source: Value, pads: Sequence[tuple[int, int]], fill: float | None) -> Value:
    """With borders of zeros, or of the lowest number."""
    shape = (*source.shape[:2], *(extent + sum(pad) for extent, pad in zip(source.shape[2:], pads, strict=True)))
    widths = call.writer.constant("pads", np.asarray([(0, 0), *pads, (0, 0)], np.int32))
    result = call.result(shape, last=True, quant=source.quant)
    if fill is None:
        return call.operator("PAD", [source, widths], result, "PadOptions")
    lowest = np.asarray(fill, np.float32) if call.quant is None else np.asarray(-128, np.int8)
    made = call.writer.constant("lowest", lowest, source.quant)
    return call.operator("PADV2", [source, widths, made], result, "PadV2Options")


@emits("MaxPool", "AveragePool", integers=True)
def pool(call: Call) -> Value:
    """MAX_POOL_2D or AVERAGE_POOL_2D, which leaves borders out of the mean."""
    source, kernel = call.last(call.value(0)), call.integers("kernel_shape", ())
    if len(kernel) != 2 or any(step != 1 for step in call.integers("dilations", (1, 1))):
        raise Unsupported("it has other than 2 spatial axes, or dilations")
    is_max = call.node.op_type == "MaxPool"
    if not is_max and call.quant is not None:
        raise Unsupported("the mean of integers is computed in floats, which rounds as edgec does")
    pads, same = _pads(call, source, kernel), _same(call, source, kernel)
    padding = "SAME" if pads == same and any(map(any, pads)) else "VALID"
    if any(map(any, pads)) and (is_max and padding == "VALID"):
        source = _bordered(call, source, pads, float(np.finfo(np.float32).min))
    elif any(map(any, pads)) and not is_max and call.integer("count_include_pad", 0):
        if call.integer("ceil_mode", 0):
            raise Unsupported("its windows reach behind the border")
        source, padding = _bordered(call, source, pads, None), "VALID"
    elif any(map(any, pads)) and padding == "VALID":
        raise Unsupported("its borders are not those of SAME, and do not count in the mean")
    strides = call.integers("strides", (1, 1))
    name = "MAX_POOL_2D" if is_max else "AVERAGE_POOL_2D"
    made = call.operator(
        name, [source], call.result(last=True, quant=source.quant), "Pool2DOptions", padding=_padding(call, padding),
        strideH=strides[0], strideW=strides[1], filterHeight=kernel[0], filterWidth=kernel[1],
    )  # fmt: skip
    return call.finished(made)


@emits("Gemm", integers=True)
def gemm(call: Call) -> Value:
    """FULLY_CONNECTED; on integers, whose scales are of columns, a convolution of one pixel."""
    weights = call.constant(1)
    if weights is None or call.integer("transA", 0):
        raise Unsupported("its second factor is computed when the model runs, or its first is transposed")
    if not call.integer("transB", 0):
        weights = _transposed(weights)
    return _product(call, weights, call.number("alpha", 1.0), call.number("beta", 1.0))


@emits("MatMul", integers=True)
def matmul(call: Call) -> Value:
    """A constant matrix as in Gemm; else BATCH_MATMUL."""
    weights = call.constant(1)
    if weights is not None and weights.array.ndim == 2 and len(call.shape) == 2:
        return _product(call, _transposed(weights), 1.0, 1.0)
    if call.quant is not None:
        raise Unsupported("the product of two computed matrices of integers is computed in floats")
    factors = [call.plain(call.value(index)) for index in (0, 1)]
    made = call.operator("BATCH_MATMUL", factors, call.result(), "BatchMatMulOptions", adjX=False, adjY=False)
    return _activated(call, made)


def _activated(call: Call, value: Value) -> Value:
    if call.activation == "NONE":
        return value
    return call.operator(call.activation, [value], call.result())


def _transposed(weights: Constant) -> Constant:
    """With the output channels first."""
    quant = weights.quant
    if quant is not None:
        quant = Quant(quant.scales, quant.zeros, 1 - quant.axis)
    integers = None if weights.integers is None else weights.integers.T
    return Constant(np.ascontiguousarray(weights.array.T), integers, quant)


def _product(call: Call, weights: Constant, alpha: float, beta: float) -> Value:
    source, (rows, columns) = call.plain(call.value(0)), weights.array.shape
    if call.quant is None:
        scaled = Constant((weights.array * np.float32(alpha)).astype(np.float32))
        parts: list[Value | int] = [source, _filters(call, scaled, (0, 1)), _bias(call, source, weights, rows, beta)]
        fused = {"fusedActivationFunction": call.activation_code}
        return call.operator("FULLY_CONNECTED", parts, call.result(), "FullyConnectedOptions", **fused)
    if alpha != 1.0 or beta != 1.0:
        raise Unsupported("its factors alpha and beta are not 1")
    spread = Constant(weights.array.reshape(rows, columns, 1, 1), _reshaped(weights, rows, columns), weights.quant)
    count = source.shape[0]
    pixels = call.converter.tensor("pixels", (count, columns, 1, 1), "int8", True, source.quant)
    shape = list(pixels.stored)
    call.operator("RESHAPE", [source, call.numbers(shape)], pixels, "ReshapeOptions", newShape=shape)
    filters, bias = _filters(call, spread, (0, 2, 3, 1)), _bias(call, source, weights, rows)
    made = call.operator(
        "CONV_2D", [pixels, filters, bias], call.result((count, rows, 1, 1), last=True), "Conv2DOptions",
        padding=_padding(call, "VALID"), strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
        fusedActivationFunction=call.activation_code,
    )  # fmt: skip
    return call.operator("RESHAPE", [made, call.numbers(call.shape)], call.result(), "ReshapeOptions",
                         newShape=list(call.shape))  # fmt: skip


def _reshaped(weights: Constant, rows: int, columns: int) -> Array | None:
    return None if weights.integers is None else weights.integers.reshape(rows, columns, 1, 1)


@emits("ConvTranspose")
def transposed_convolution(call: Call) -> Value:
    """TRANSPOSE_CONV without padding, of which the borders are cut off."""
    source, weights = call.last(call.value(0)), call.known(1, "weights")
    dilated = any(step != 1 for step in call.integers("dilations", (1, 1)))
    if call.integer("group", 1) != 1 or dilated or weights.ndim != 4:
        raise Unsupported("it has groups, dilations or other than 2 spatial axes")
    strides, pads = call.integers("strides", (1, 1)), call.integers("pads", (0, 0, 0, 0))
    kernel, channels = weights.shape[2:], weights.shape[1]
    extents = [(source.shape[2 + i] - 1) * strides[i] + kernel[i] for i in (0, 1)]
    if call.text("auto_pad", "NOTSET") != "NOTSET" or any(pads[i] + call.shape[2 + i] > extents[i] for i in (0, 1)):
        raise Unsupported("its result reaches behind what its input gives")
    filters = call.writer.constant("weights", np.ascontiguousarray(weights.transpose(1, 2, 3, 0)))
    bias = call.known(2, "bias") if call.has(2) else np.zeros(channels, np.float32)
    full = call.result((source.shape[0], channels, *extents), last=True)
    term = call.writer.constant("bias", bias.astype(np.float32))
    parts: list[Value | int] = [call.numbers(full.stored), filters, source, term]
    made = call.operator(
        "TRANSPOSE_CONV", parts, full, "TransposeConvOptions", padding=_padding(call, "VALID"), strideH=strides[0],
        strideW=strides[1],
    )  # fmt: skip
    if full.shape == call.shape:
        return made
    result = call.result(last=True)
    begin = [0, pads[0], pads[1], 0]
    return call.operator("SLICE", [made, call.numbers(begin), call.numbers(result.stored)], result, "SliceOptions")


@emits("Resize")
def resize(call: Call) -> Value:
    """RESIZE_BILINEAR, or RESIZE_NEAREST_NEIGHBOR to a multiple."""
    source, mode = call.last(call.value(0)), call.text("mode", "nearest")
    how = call.text("coordinate_transformation_mode", "half_pixel")
    if len(call.shape) != 4 or call.shape[:2] != source.shape[:2]:
        raise Unsupported("it resizes other axes than the picture's")
    if call.has(2) and call.known(2, "scale").size:
        exact = np.asarray(source.shape) * call.known(2, "scale")
        if np.abs(exact - call.shape).max() > 1e-3:
            raise Unsupported("its scales give no whole number of pixels", "give it sizes")
    size = call.numbers(call.shape[2:])
    result = call.result(last=True)
    if mode == "nearest":
        multiple = all(new % old == 0 for new, old in zip(call.shape[2:], source.shape[2:], strict=True))
        rounding = call.text("nearest_mode", "round_prefer_floor")
        plain = (how == "asymmetric" and rounding == "floor") or (how == "half_pixel" and rounding.startswith("round"))
        if not multiple or not plain:
            raise Unsupported(f"its nearest neighbours are chosen by {how} and {rounding}, or it is no multiple")
        fields = {"alignCorners": False, "halfPixelCenters": False}
        name = "RESIZE_NEAREST_NEIGHBOR"
        return call.operator(name, [source, size], result, "ResizeNearestNeighborOptions", **fields)
    if mode != "linear" or how not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        raise Unsupported(f"it interpolates by {mode} and {how}")
    fields = {"alignCorners": how == "align_corners", "halfPixelCenters": how.endswith("half_pixel")}
    return call.operator("RESIZE_BILINEAR", [source, size], result, "ResizeBilinearOptions", **fields)
