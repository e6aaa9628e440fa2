"""Pictures to inputs, by the recipe that ``edgec eval --preprocess`` reads, and results drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomllib
from detection import Box
from PIL import Image, ImageDraw, ImageFont

RED, WHITE = (220, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes an input: resized, cropped, then (pixel − mean) · scale; sizes are (height, width)."""

    layout: str = "NCHW"
    order: str = "rgb"
    resize: int | list[int] | None = None
    crop: int | list[int] | None = None
    mean: float | list[float] = 0.0
    scale: float | list[float] = 1.0


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file."""
    return Recipe(**tomllib.loads(path.read_text(encoding="utf-8")))


def make_input(picture: Image.Image, recipe: Recipe, shape: Sequence[int]) -> np.ndarray:
    """``picture`` as a float32 input of ``shape``, [1, C, H, W] or [1, H, W, C] as the recipe says.

    Raises:
        ValueError: the recipe gives another shape.
    """
    channels = shape[1 if recipe.layout == "NCHW" else 3]
    sized = _crop(_resize(picture.convert("L" if channels == 1 else "RGB"), recipe.resize), recipe.crop)
    pixels = np.asarray(sized, np.float32).reshape(sized.height, sized.width, channels)
    if recipe.order == "bgr":
        pixels = pixels[:, :, ::-1]
    values = (pixels - np.float32(recipe.mean)) * np.float32(recipe.scale)
    made = np.ascontiguousarray((values if recipe.layout == "NHWC" else values.transpose(2, 0, 1))[None], np.float32)
    if made.shape != tuple(shape):
        raise ValueError(f"the recipe makes an input of shape {made.shape}, and the model takes {tuple(shape)}")
    return made


def _resize(picture: Image.Image, size: int | list[int] | None) -> Image.Image:
    if size is None:
        return picture
    if isinstance(size, int):
        factor = size / min(picture.size)
        height, width = (max(size, round(side * factor)) for side in (picture.height, picture.width))
    else:
        height, width = size
    # one axis after the other: Pillow's own order depends on its version, and the rounding on the order
    wide = picture.resize((width, picture.height), Image.Resampling.BILINEAR)
    return wide.resize((width, height), Image.Resampling.BILINEAR)


def _crop(picture: Image.Image, size: int | list[int] | None) -> Image.Image:
    if size is None:
        return picture
    height, width = (size, size) if isinstance(size, int) else size
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def draw(picture: Image.Image, lines: Sequence[str], boxes: Sequence[tuple[Box, str]]) -> Image.Image:
    """A copy with ``lines`` in the corner and every box with its label; small pictures are enlarged to be read."""
    factor = max(1, -(-320 // picture.width))
    drawn = picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(12, drawn.height // 28))
    for box, label in boxes:
        left, top, right, bottom = (
            min(max(side, 0.0), 1.0) * (extent - 1)
            for side, extent in zip(box.sides, [drawn.width, drawn.height] * 2, strict=True)
        )
        pen.rectangle((left, top, right, bottom), outline=RED, width=max(2, drawn.height // 200))
        _write(pen, font, (left, top), label)
    top = 0.0
    for line in lines:
        top = _write(pen, font, (0, top), line)
    return drawn


def _write(pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont, at: tuple[float, float], text: str) -> float:
    """Write white on red; answers where the next line begins."""
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=RED)
    pen.text(at, text, fill=WHITE, font=font)
    return bottom + 3
