"""Views: what numpy does with strides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgec.program import Buffer, View, dense_strides

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def view_of(array: np.ndarray) -> View:
    strides = tuple(s // array.itemsize for s in array.strides)
    return View(Buffer("a", str(array.dtype), array.size), array.shape, strides)


@given(shapes, st.randoms(use_true_random=False), shapes)
def test_reshape_is_a_view_exactly_when_it_can_be(shape, random, wanted) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    axes = list(range(len(shape)))
    random.shuffle(axes)
    turned = array.transpose(axes)
    new = wanted if np.prod(wanted) == array.size else tuple(reversed(turned.shape))
    view = view_of(array).permute(axes).reshape(new)
    if view is not None:
        strides = [s * 4 for s in view.strides]
        np.testing.assert_array_equal(np.lib.stride_tricks.as_strided(array, new, strides), turned.reshape(new))
    else:
        assert not np.shares_memory(turned.reshape(new), array)


def test_order_names_the_memory_layout() -> None:
    nhwc = View(Buffer("a", "float32", 120), (2, 3, 4, 5), dense_strides((2, 3, 4, 5), (0, 2, 3, 1)))
    assert nhwc.order == (0, 2, 3, 1) and nhwc.is_dense((0, 2, 3, 1)) and not nhwc.is_dense()


def test_slices_with_negative_steps() -> None:
    array = np.arange(30, dtype=np.float32).reshape(5, 6)
    view = view_of(array).slice((4, 1), (3, 2), (-2, 3))
    data = [
        array.reshape(-1)[view.offset + i * view.strides[0] + j * view.strides[1]] for i in range(3) for j in range(2)
    ]
    np.testing.assert_array_equal(np.reshape(data, (3, 2)), array[4::-2, 1:5:3][:3])


def test_broadcast_repeats_without_a_copy() -> None:
    view = View(Buffer("a", "float32", 3), (3, 1), (1, 1)).broadcast_to((2, 3, 4))
    assert view.strides == (0, 1, 0) and view.elements == 24
