"""The OpenCL C of a whole program: what all kernels share, then each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgec.targets.gpu.opencl import IN_MEMORY, Source

MATH = Path(__file__).parent / "math.cl"

WEIGHT = 1
"""The operand that may be an image."""

_HEAD = """\
#pragma OPENCL FP_CONTRACT OFF
#ifdef FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) mad(a, b, c)
#endif
"""

_DOT = """\
#if defined(__opencl_c_integer_dot_product_input_4x8bit)
#define DOT4(a, b) dot(a, b)
#elif defined(cl_arm_integer_dot_product_int8) && !defined(MIXED_SIGNS)
#pragma OPENCL EXTENSION cl_arm_integer_dot_product_int8 : enable
#define DOT4(a, b) arm_dot(a, b)
#else
#define DOT4(a, b) ((a).s0 * (b).s0 + (a).s1 * (b).s1 + (a).s2 * (b).s2 + (a).s3 * (b).s3)
#endif
"""
"""Four products of bytes; the same sum on every device."""

_DIVIDE = """\
#define DIVISIONS(T, TRAPS) \\
  static T div_##T(T a, T b) { return TRAPS(b) ? (b == 0 ? a : (T)-a) : (T)(a / b); } \\
  static T truncmod_##T(T a, T b) { return TRAPS(b) ? 0 : (T)(a % b); }
#define FLOORS(T) \\
  static T floordiv_##T(T a, T b) { \\
    T q = div_##T(a, b); \\
    return (T)(q - (b != 0 && (T)(q * b) != a && (a < 0) != (b < 0))); \\
  } \\
  static T floormod_##T(T a, T b) { T r = truncmod_##T(a, b); return (T)(r != 0 && (r < 0) != (b < 0) ? r + b : r); }
#define SIGNED_TRAPS(b) (b == 0 || b == -1)
#define UNSIGNED_TRAPS(b) (b == 0)
DIVISIONS(char, SIGNED_TRAPS) DIVISIONS(short, SIGNED_TRAPS) DIVISIONS(int, SIGNED_TRAPS) DIVISIONS(long, SIGNED_TRAPS)
FLOORS(char) FLOORS(short) FLOORS(int) FLOORS(long)
DIVISIONS(uchar, UNSIGNED_TRAPS) DIVISIONS(ushort, UNSIGNED_TRAPS) DIVISIONS(uint, UNSIGNED_TRAPS)
DIVISIONS(ulong, UNSIGNED_TRAPS)
"""
"""Division of any integers as :mod:`edgec.reference` has it: a / 0 is a, and nothing traps."""


_IMAGE = """\
#ifdef EDGERT_IMAGES
#define WEIGHTS __read_only image1d_buffer_t
#define WEIGHT4_float32(m, at) read_imagef(m, (int)(at))
#define WEIGHT4_float16(m, at) read_imagef(m, (int)(at))
#define WEIGHT4_int8(m, at) read_imagei(m, (int)(at))
#else
#define WEIGHTS __global const uchar *
#define WEIGHT4_float32(m, at) vload4(at, (__global const float *)(m))
#define WEIGHT4_float16(m, at) vload_half4(at, (__global const half *)(m))
#define WEIGHT4_int8(m, at) convert_int4(vload4(at, (__global const char *)(m)))
#endif
"""
"""Weights as an image of four numbers a point, where the runtime could make one; the same numbers of the buffer."""


def _math(lanes: int) -> str:
    """``math.cl`` for one width."""
    width = "" if lanes == 1 else str(lanes)
    macros = {
        "NAME(f)": f"f##_{lanes}",
        "FLOAT": f"float{width}",
        "INT": f"int{width}",
        "TO_INT": f"convert_int{width}",
        "TO_FLOAT": f"convert_float{width}",
        "AS_INT": f"as_int{width}",
        "AS_FLOAT": f"as_float{width}",
        "MASK(c)": "(-(c))" if lanes == 1 else "(c)",
        "SELECT(a, b, c)": "((c) ? (b) : (a))" if lanes == 1 else "select(a, b, c)",
        "VSTORE_HALF": f"vstore_half{width}_rte",
        "VLOAD_HALF": f"vload_half{width}",
        "USHORT": f"ushort{width}",
    }
    defined = "".join(f"#define {name} {text}\n" for name, text in macros.items())
    undefined = "".join(f"#undef {name.partition('(')[0]}\n" for name in macros)
    return defined + MATH.read_text(encoding="utf-8").partition("*/\n")[2] + undefined


def program_source(kernels: Mapping[str, tuple[Source, Sequence[str]]]) -> str:
    """The OpenCL C of a whole program.

    Args:
        kernels: by name, with the dtypes of their operands, the output last. Each operand is a buffer and the bytes
            from its start on at which the operand begins.
    """
    widths = sorted(set().union(*(source.widths for source, _ in kernels.values())))
    parts = [_HEAD, *map(_math, widths)]
    text = "\n".join(_function(name, source, dtypes) for name, (source, dtypes) in kernels.items())
    if any(f"{name}_" in text for name in ("div", "truncmod", "floordiv", "floormod")):
        parts.append(_DIVIDE)
    if any(source.image for source, _ in kernels.values()):
        parts.append(_IMAGE)
    if "DOT4(" in text:
        mixed = any(dtypes[0] == "uint8" for _, dtypes in kernels.values())
        parts.append("#define MIXED_SIGNS\n" * mixed + _DOT)
    return "\n".join([*parts, text])


def _function(name: str, source: Source, dtypes: Sequence[str]) -> str:
    last = len(dtypes) - 1
    kinds = [f"__global {'' if index == last else 'const '}" for index in range(len(dtypes))]
    types = [f"{kind}uchar *" for kind in kinds]
    if source.image:
        types[WEIGHT] = "WEIGHTS "
    arguments = ", ".join(f"{kind}m{index}, const uint from{index}" for index, kind in enumerate(types))
    lines = [f"__kernel void {name}({arguments}) {{"]
    for index, (kind, dtype) in enumerate(zip(kinds, dtypes, strict=True)):
        if source.image and index == WEIGHT:
            continue
        pointer = f"{kind}{IN_MEMORY[dtype]} *"
        lines.append(f"  {pointer}const p{index} = ({pointer})(m{index} + from{index});")
    return "\n".join([*lines, source.text, "}\n"])
