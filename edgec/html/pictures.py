"""Arrays as small pictures inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np

from edgec.data.samples import Array

_LEAST = 5
"""Extents below this are no picture."""


def picture(array: Array) -> str | None:
    """A PNG as a data URI of the first image in ``array``: [1, 3 or 1, H, W], [1, H, W, 3 or 1], [H, W]; else None.

    The least value is black and the largest white; a plane alone goes from dark to light in the viridis map.
    """
    plane = _plane(array)
    if plane is None:
        return None
    from matplotlib.image import imsave

    low, high = float(plane.min()), float(plane.max())
    scaled = (plane.astype(np.float64) - low) / ((high - low) or 1.0)
    stream = io.BytesIO()
    imsave(stream, scaled, format="png", cmap="viridis", vmin=0, vmax=1)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _plane(array: Array) -> Array | None:
    """[H, W] or [H, W, 3] of the first image."""
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        return None
    while array.ndim > 3:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and min(array.shape[1:]) >= _LEAST:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    return array if is_image and min(array.shape[:2]) >= _LEAST else None
