"""The integer operators that ONNX lacks, as bodies for :mod:`edgec.passes.functions`.

Each dequantises, computes in real numbers and quantises, so that any runtime can execute it. The compiler computes
the same in exact integer arithmetic, by the rule that the lowering states for each (``edgec/lowering/integers.py``);
the two can differ by one unit in the last place where a real result lies halfway between two integers.

====================  ===========================================================  ================================
name                  inputs                                                       output
====================  ===========================================================  ================================
Table                 x, table [256] or [65536]; attribute first: least value      table[x − first]
                      of x
QLinearGemm           a […, K], its grid; b [K, N], b_scale [N], b_zero [N];       Q(a · b + c)
                      c int32 [N], in steps of a_scale · b_scale; y's grid
QLinearAdd            a, its grid, b, its grid, y's grid; shapes broadcast         Q(a + b)
QLinearSub            the same                                                     Q(a − b)
QLinearMul            the same                                                     Q(a · b)
QLinearMean           x, its grid, axes, y's grid; attribute keepdims              Q(mean of x along the axes)
QLinearAveragePool    x, its grid, y's grid; AveragePool's attributes              Q(mean of each window)
QLinearSoftmax        x, its grid, y's grid; attribute axis                        Q(softmax(x))
QLinearPRelu          x, its grid, slope, y's grid                                 Q(x where x ≥ 0, else slope · x)
QLinearAffine         x, its grid, scale, shift, y's grid                          Q(scale · x + shift)
QLinearResize         x, its grid, sizes, y's grid; attributes                     Q(x interpolated linearly)
                      coordinate_transformation_mode, exclude_outside
GemmDequantize        as QLinearGemm, without y's grid                             a · b + c, real numbers
ClipWords             x of 16 bits, least, most; ONNX Runtime has no such Clip     x in [least, most]
QLinearConvolution    as ConvDequantize, then y's grid; for x or y of 16 bits      Q(conv(x, w) + bias)
ConvDequantize        x, its grid, w, w_scale, w_zero, bias int32 in steps of      conv(x, w) + bias, real numbers
                      x_scale · w_scale; Conv's attributes
MatMulOfWeights       x […, K] float; w [K, N] int8, w_scale [K / block, N];       x · w + bias
                      bias [N]; attribute block_size
ConvOfWeights         x float; w [co, taps · ci] int8 with ci innermost, w_scale   conv(x, w) + bias
                      [co, blocks]; shape [co, …taps, ci]; bias [co];
                      attributes block_size, perm [0, −1, 1, …] and Conv's
====================  ===========================================================  ================================

A grid is two inputs: a scale and a zero point.
"""

from __future__ import annotations

from collections.abc import Mapping

_BINARY = """(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero) => (y) {{
        left = DequantizeLinear (a, a_scale, a_zero)
        right = DequantizeLinear (b, b_scale, b_zero)
        real = {operator} (left, right)
        y = QuantizeLinear (real, y_scale, y_zero)
    }}"""

INTEGER_BODIES: Mapping[str, str] = {
    "Table": """<first> (x, table) => (y) {
        least = Constant <value_int: int = @first> ()
        wide = Cast <to: int = 7> (x)
        place = Sub (wide, least)
        y = Gather <axis: int = 0> (table, place)
    }""",
    "ClipWords": """(x, least, most) => (y) {
        wide = Cast <to: int = 6> (x)
        low = Cast <to: int = 6> (least)
        high = Cast <to: int = 6> (most)
        inside = Clip (wide, low, high)
        y = CastLike (inside, x)
    }""",
    "QLinearGemm": """(a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero) => (y) {
        left = DequantizeLinear (a, a_scale, a_zero)
        right = DequantizeLinear <axis: int = 1> (b, b_scale, b_zero)
        step = Mul (a_scale, b_scale)
        count = CastLike (c, step)
        bias = Mul (count, step)
        product = MatMul (left, right)
        real = Add (product, bias)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "GemmDequantize": """(a, a_scale, a_zero, b, b_scale, b_zero, c) => (y) {
        left = DequantizeLinear (a, a_scale, a_zero)
        right = DequantizeLinear <axis: int = 1> (b, b_scale, b_zero)
        step = Mul (a_scale, b_scale)
        count = CastLike (c, step)
        bias = Mul (count, step)
        product = MatMul (left, right)
        y = Add (product, bias)
    }""",
    "ConvDequantize": """<dilations, group, kernel_shape, pads, strides>
        (x, x_scale, x_zero, w, w_scale, w_zero, c) => (y) {
        real = DequantizeLinear (x, x_scale, x_zero)
        weights = DequantizeLinear <axis: int = 0> (w, w_scale, w_zero)
        step = Mul (x_scale, w_scale)
        count = CastLike (c, step)
        bias = Mul (count, step)
        y = Conv <dilations: ints = @dilations, group: int = @group, kernel_shape: ints = @kernel_shape,
            pads: ints = @pads, strides: ints = @strides> (real, weights, bias)
    }""",
    "QLinearConvolution": """<dilations, group, kernel_shape, pads, strides>
        (x, x_scale, x_zero, w, w_scale, w_zero, c, y_scale, y_zero) => (y) {
        real = DequantizeLinear (x, x_scale, x_zero)
        weights = DequantizeLinear <axis: int = 0> (w, w_scale, w_zero)
        step = Mul (x_scale, w_scale)
        count = CastLike (c, step)
        bias = Mul (count, step)
        sum = Conv <dilations: ints = @dilations, group: int = @group, kernel_shape: ints = @kernel_shape,
            pads: ints = @pads, strides: ints = @strides> (real, weights, bias)
        y = QuantizeLinear (sum, y_scale, y_zero)
    }""",
    "QLinearAffine": """(x, x_scale, x_zero, scale, shift, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        scaled = Mul (all, scale)
        real = Add (scaled, shift)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "QLinearResize": """<coordinate_transformation_mode, exclude_outside>
        (x, x_scale, x_zero, sizes, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        real = Resize <mode: string = "linear", exclude_outside: int = @exclude_outside,
            coordinate_transformation_mode: string = @coordinate_transformation_mode> (all, , , sizes)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "QLinearAdd": _BINARY.format(operator="Add"),
    "QLinearSub": _BINARY.format(operator="Sub"),
    "QLinearMul": _BINARY.format(operator="Mul"),
    "QLinearMean": """<keepdims> (x, x_scale, x_zero, axes, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        real = ReduceMean <keepdims: int = @keepdims> (all, axes)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "QLinearAveragePool": """<kernel_shape, strides, pads, ceil_mode, count_include_pad>
        (x, x_scale, x_zero, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        real = AveragePool <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
            ceil_mode: int = @ceil_mode, count_include_pad: int = @count_include_pad> (all)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "QLinearSoftmax": """<axis> (x, x_scale, x_zero, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        real = Softmax <axis: int = @axis> (all)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "QLinearPRelu": """(x, x_scale, x_zero, slope, y_scale, y_zero) => (y) {
        all = DequantizeLinear (x, x_scale, x_zero)
        real = PRelu (all, slope)
        y = QuantizeLinear (real, y_scale, y_zero)
    }""",
    "MatMulOfWeights": """<block_size> (x, w, w_scale, bias) => (y) {
        weights = DequantizeLinear <axis: int = 0, block_size: int = @block_size> (w, w_scale)
        product = MatMul (x, weights)
        y = Add (product, bias)
    }""",
    "ConvOfWeights": """<block_size, perm, dilations, group, kernel_shape, pads, strides>
        (x, w, w_scale, shape, bias) => (y) {
        flat = DequantizeLinear <axis: int = 1, block_size: int = @block_size> (w, w_scale)
        split = Reshape (flat, shape)
        weights = Transpose <perm: ints = @perm> (split)
        y = Conv <dilations: ints = @dilations, group: int = @group, kernel_shape: ints = @kernel_shape,
            pads: ints = @pads, strides: ints = @strides> (x, weights, bias)
    }""",
}
