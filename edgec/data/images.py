"""A folder of images as samples, by a recipe (TOML):

    layout = "NCHW"            # or "NHWC"
    order = "rgb"              # or "bgr"; greyscale inputs need neither
    resize = 256               # the shorter side, or [height, width]; left out: no resizing
    crop = 224                 # the centre, or [height, width]; left out: no cropping
    mean = [123.7, 116.3, 103.5]   # subtracted; one number or one for each channel, in ``order``; default 0
    scale = 0.0171             # multiplied afterwards; one number or one for each channel; default 1

so an input is (pixel − mean) · scale, the pixel from 0 to 255. Integer inputs are rounded to the nearest and
clamped. Labels come from ``labels.csv`` in the folder, with a header line ``file,label``; where it exists, only
the files it names are read.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.data.samples import Array, Samples, TensorSpec, check_labels
from edgec.data.toml_files import read_settings
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LABEL_FILE = "labels.csv"
_CHOICES = {"layout": ("NCHW", "NHWC"), "order": ("rgb", "bgr")}


@dataclass(frozen=True)
class Recipe:
    """How a picture becomes an input; sizes are (height, width), a single ``resize`` is the shorter side."""

    layout: str = "NCHW"
    order: str = "rgb"
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        EdgecError: the file cannot be read, or a key or its value is not one of the recipe's.
    """
    values = read_settings(path, [field.name for field in fields(Recipe)])
    return Recipe(**{key: _value(path, key, value) for key, value in values.items()})


def _value(path: Path, key: str, value: Any) -> Any:
    """The recipe's value for ``key``, in the type that :class:`Recipe` has for it."""
    if key in _CHOICES:
        if value in _CHOICES[key]:
            return value
        raise EdgecError(f"the recipe '{path}' has {key} = {value!r}; it must be {' or '.join(_CHOICES[key])}")
    if key in ("mean", "scale"):
        return _numbers(path, key, value)
    return _size(path, key, value)


def _numbers(path: Path, key: str, value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 3) or not all(type(x) in (int, float) and np.isfinite(x) for x in numbers):
        raise EdgecError(f"the recipe '{path}' has {key} = {value!r}; it must be one number or a list of three")
    return tuple(float(x) for x in numbers)


def _size(path: Path, key: str, value: Any) -> int | tuple[int, int]:
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(x) is int and x > 0 for x in sides):
        raise EdgecError(f"the recipe '{path}' has {key} = {value!r}; it must be a number of pixels or [height, width]")
    return value if key == "resize" and type(value) is int else (sides[0], sides[1])


def load_images(folder: Path, inputs: Sequence[TensorSpec], preprocess: Path) -> Samples:
    """The images in ``folder``, in the order of their names or of ``labels.csv``, for a model with one input.

    Raises:
        EdgecError: the model is not one for images, the recipe does not fit it, or a file cannot be read.
    """
    _require_pillow()
    recipe = load_recipe(preprocess)
    spec = _image_input(inputs)
    files, labels = _listing(folder)
    if not files:
        raise EdgecError(f"the folder '{folder}' holds no images ({' '.join(SUFFIXES)})")
    return Samples(len(files), labels, lambda index: {spec.name: read_image(files[index], spec, recipe)})


def read_image(path: Path, spec: TensorSpec, recipe: Recipe) -> Array:
    """One image as the input ``spec``.

    Raises:
        EdgecError: the file is no image, or the recipe gives another size than the input has.
    """
    from PIL import Image, UnidentifiedImageError

    channels = _channels(spec, recipe)
    try:
        with Image.open(path) as picture:
            sized = _crop(_resize(picture.convert("L" if channels == 1 else "RGB"), recipe), recipe)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise EdgecError(f"the image '{path}' cannot be read: {error}") from error
    pixels = np.asarray(sized, np.float32).reshape(sized.height, sized.width, channels)
    if recipe.order == "bgr":
        pixels = pixels[:, :, ::-1]
    values = (pixels - np.array(recipe.mean, np.float32)) * np.array(recipe.scale, np.float32)
    return _fitted(values if recipe.layout == "NHWC" else values.transpose(2, 0, 1), path, spec)


def _fitted(values: Array, path: Path, spec: TensorSpec) -> Array:
    if (1, *values.shape) != spec.shape:
        raise EdgecError(
            f"the image '{path}' becomes an array of shape {[1, *values.shape]} for the input {spec}; "
            "mend resize, crop or layout in the recipe"
        )
    if spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        values = np.rint(values).clip(limits.min, limits.max)
    return np.ascontiguousarray(values[np.newaxis], spec.dtype)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise EdgecError("reading images needs pillow; run: pip install 'edgec[vision]'") from error


def _image_input(inputs: Sequence[TensorSpec]) -> TensorSpec:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        listing = ", ".join(map(str, inputs))
        raise EdgecError(f"images fit a model with one 4-D input, and this one takes {listing}; use an .npz file")
    if inputs[0].shape[0] != 1:
        raise EdgecError(f"images are run one by one, and the input {inputs[0]} takes {inputs[0].shape[0]} at a time")
    return inputs[0]


def _channels(spec: TensorSpec, recipe: Recipe) -> int:
    channels = spec.shape[1 if recipe.layout == "NCHW" else 3]
    if channels not in (1, 3):
        raise EdgecError(f"the input {spec} has {channels} channels in layout {recipe.layout}; images have 1 or 3")
    if channels == 1 and (len(recipe.mean), len(recipe.scale)) != (1, 1):
        raise EdgecError(f"the input {spec} has one channel; give one mean and one scale in the recipe")
    return channels


def _resize(picture: Image, recipe: Recipe) -> Image:
    from PIL.Image import Resampling

    if recipe.resize is None:
        return picture
    if isinstance(recipe.resize, tuple):
        height, width = recipe.resize
    else:
        factor = recipe.resize / min(picture.size)
        height, width = (max(recipe.resize, round(side * factor)) for side in (picture.height, picture.width))
    return picture.resize((width, height), Resampling.BILINEAR)


def _crop(picture: Image, recipe: Recipe) -> Image:
    if recipe.crop is None:
        return picture
    height, width = recipe.crop
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    if left < 0 or top < 0:
        raise OSError(f"its {picture.height}×{picture.width} pixels are fewer than crop takes")
    return picture.crop((left, top, left + width, top + height))


def _listing(folder: Path) -> tuple[list[Path], Array | None]:
    """The image files and, where there is a label file, their labels."""
    table = folder / LABEL_FILE
    if not table.is_file():
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES), None
    rows = _label_rows(table)
    files = [folder / name for name, _ in rows]
    for path in files:
        if not path.is_file():
            raise EdgecError(f"'{table}' names '{path.name}', which is not in the folder")
    return files, check_labels(np.array([label for _, label in rows], np.int64), len(files), table)


def _label_rows(table: Path) -> list[tuple[str, int]]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise EdgecError(f"the first line of '{table}' must be file,label")
            return [(row["file"], int(row["label"])) for row in reader]
    except (OSError, ValueError, TypeError) as error:
        raise EdgecError(f"'{table}' cannot be read: {error}; each line must be FILE,CLASS_INDEX") from error
