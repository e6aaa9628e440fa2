"""Samples from files: what is read, and the sentence for everything that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgec.data.images import Recipe, load_recipe, read_image
from edgec.data.samples import TensorSpec, load_npz, load_samples, save_npz, summarise_array
from edgec.errors import EdgecError

F32 = np.dtype("float32")
ONE = (TensorSpec("x", (1, 3, 7, 5), F32),)
BATCH = (TensorSpec("x", (4, 3), F32),)


def save(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def values(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# ---- npz ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "runs"), [((1, 3, 7, 5), 1), ((17, 3, 7, 5), 17), ((5, 1, 3, 7, 5), 5)])
def test_the_first_axis_counts_samples(tmp_path, shape, runs):
    data = values(*shape)
    samples = load_npz(save(tmp_path, x=data), ONE)
    assert len(samples) == runs
    np.testing.assert_array_equal([run["x"] for run in samples], data.reshape(runs, 1, 3, 7, 5))


def test_a_batch_takes_several_samples_a_run(tmp_path):
    samples = load_npz(save(tmp_path, x=values(12, 3), labels=np.arange(12)), BATCH)
    assert len(samples) == 3
    assert [run["x"].shape for run in samples] == [(4, 3)] * 3
    np.testing.assert_array_equal(samples.labels, np.arange(12))


def test_a_scalar_input(tmp_path):
    samples = load_npz(save(tmp_path, x=np.float32([3, 4])), (TensorSpec("x", (), F32),))
    assert [float(run["x"]) for run in samples] == [3, 4]


def test_an_input_may_be_called_labels(tmp_path):
    samples = load_npz(save(tmp_path, labels=values(5, 3)), (TensorSpec("labels", (1, 3), F32),))
    assert samples.labels is None and len(samples) == 5


def test_what_is_saved_is_read_back_whatever_it_is_called(tmp_path):
    arrays = {"file": values(5), "a/b": np.int8([[1, -2]]), "": np.float32(7)}
    save_npz(tmp_path / "out.npz", arrays)
    with np.load(tmp_path / "out.npz") as loaded:
        assert {name: loaded[name].tolist() for name in loaded.files} == {n: a.tolist() for n, a in arrays.items()}
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


MISFITS = {
    "missing": ({"y": values(1, 3, 7, 5)}, "no array for the input 'x' float32.*it holds 'y'"),
    "rank": ({"x": values(3, 7, 5)}, r"shape \[3, 7, 5\].*must be \[1, 3, 7, 5\] or \[samples, 3, 7, 5\]"),
    "extent": ({"x": values(2, 3, 7, 6)}, r"shape \[2, 3, 7, 6\]"),
    "dtype": ({"x": values(1, 3, 7, 5).astype("f8")}, r"float64 values.*\.astype\('float32'\)"),
    "empty": ({"x": values(0, 3, 7, 5)}, "empty array"),
    "nan": ({"x": np.full((2, 3, 7, 5), np.nan, "f4")}, r"210 NaN values.*first at \[0, 0, 0, 0\]"),
    "labels, count": ({"x": values(2, 3, 7, 5), "labels": np.arange(3)}, "3 labels for 2 samples"),
    "labels, real": ({"x": values(2, 3, 7, 5), "labels": values(2)}, "must be class indices"),
    "objects": ({"x": np.array([{}])}, "cannot be read: .*pickle"),
}


@pytest.mark.parametrize(("arrays", "sentence"), MISFITS.values(), ids=MISFITS.keys())
def test_an_array_that_does_not_fit_is_refused(tmp_path, arrays, sentence):
    with pytest.raises(EdgecError, match=sentence):
        load_npz(save(tmp_path, **arrays), ONE)


def test_inputs_must_have_the_same_number_of_samples(tmp_path):
    inputs = (TensorSpec("a", (1, 3), F32), TensorSpec("b", (1, 5), F32))
    with pytest.raises(EdgecError, match="2 for 'a', 7 for 'b'"):
        load_npz(save(tmp_path, a=values(2, 3), b=values(7, 5)), inputs)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(EdgecError, match=r"not an \.npz file"):
        load_npz(path, ONE)


def test_a_damaged_npz_is_refused(tmp_path):
    path = save(tmp_path, x=values(5, 3, 7, 5))
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(EdgecError, match="cannot be read"):
        load_npz(path, ONE)


def test_paths_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(EdgecError, match="there is no file"):
        load_samples(tmp_path / "absent.npz", ONE)
    with pytest.raises(EdgecError, match=r"is a folder; .*--preprocess"):
        load_samples(tmp_path, ONE)
    with pytest.raises(EdgecError, match="--preprocess is for a folder"):
        load_samples(save(tmp_path, x=values(1, 3, 7, 5)), ONE, tmp_path / "recipe.toml")


def test_an_empty_array_has_no_range():
    assert summarise_array("y", values(0, 3)).mean is None
    assert summarise_array("y", np.int8([-128, 127])).mean == -0.5


# ---- images -------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two RGB images of 17 × 11 pixels."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 17, 11, 3), np.uint8)
    for name, each in zip(("b.png", "a.png"), pixels, strict=True):
        image.fromarray(each).save(folder / name)
    np.save(tmp_path / "pixels.npy", pixels)
    return folder


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_pixels_are_cropped_shifted_scaled_and_laid_out(tmp_path, pictures):
    recipe = write_recipe(tmp_path, 'order = "bgr"\ncrop = [7, 5]\nmean = [1, 2, 3]\nscale = 0.5')
    samples = load_samples(pictures, ONE, recipe)
    pixels = np.load(tmp_path / "pixels.npy")[::-1, 5:12, 3:8, ::-1].astype(np.float32)
    wanted = ((pixels - np.float32([1, 2, 3])) * np.float32(0.5)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal([run["x"][0] for run in samples], wanted)
    assert samples.labels is None


def test_integer_inputs_are_rounded_and_clamped(tmp_path, pictures):
    spec = TensorSpec("x", (1, 17, 11, 3), np.dtype("int8"))
    samples = load_samples(pictures, (spec,), write_recipe(tmp_path, 'layout = "NHWC"\nmean = 128\nscale = 1.5'))
    pixels = np.load(tmp_path / "pixels.npy")[1].astype(np.float32)
    wanted = np.rint((pixels - 128) * 1.5).clip(-128, 127)
    np.testing.assert_array_equal(samples.read(0)["x"][0], wanted)


@pytest.mark.parametrize(("resize", "shape"), [("34", (1, 3, 53, 34)), ("[7, 5]", (1, 3, 7, 5))])
def test_resize_takes_the_shorter_side_or_both(tmp_path, pictures, resize, shape):
    recipe = load_recipe(write_recipe(tmp_path, f"resize = {resize}"))
    assert read_image(pictures / "a.png", TensorSpec("x", shape, F32), recipe).shape == shape


def test_a_grey_input_takes_grey_pixels(pictures):
    pixels = read_image(pictures / "a.png", TensorSpec("x", (1, 1, 17, 11), F32), Recipe())
    assert pixels.shape == (1, 1, 17, 11) and pixels.max() > 1


def test_labels_come_from_a_table(tmp_path, pictures):
    (pictures / "labels.csv").write_text("file,label\nb.png,7\n")
    recipe = write_recipe(tmp_path, "resize = [7, 5]")
    samples = load_samples(pictures, ONE, recipe)
    assert len(samples) == 1 and samples.labels.tolist() == [7]


TABLES = {
    "no header": ("b.png,7\n", "first line .* must be file,label"),
    "no number": ("file,label\nb.png,cat\n", "cannot be read: .*cat"),
    "no column": ("file,label\nb.png\n", "cannot be read"),
    "no such file": ("file,label\nc.png,1\n", "names 'c.png'"),
}


@pytest.mark.parametrize(("text", "sentence"), TABLES.values(), ids=TABLES.keys())
def test_a_table_of_labels_that_does_not_fit_is_refused(tmp_path, pictures, text, sentence):
    (pictures / "labels.csv").write_text(text)
    with pytest.raises(EdgecError, match=sentence):
        load_samples(pictures, ONE, write_recipe(tmp_path, ""))


RECIPES = {
    "syntax": ("resize = ", "cannot be read"),
    "key": ("size = 224", "key 'size'; the keys are layout, order, resize, crop, mean, scale"),
    "choice": ('layout = "HWC"', "layout = 'HWC'; it must be NCHW or NHWC"),
    "size": ("crop = [224]", "number of pixels or"),
    "zero": ("resize = 0", "number of pixels or"),
    "numbers": ('mean = ["a"]', "one number or a list of three"),
}


@pytest.mark.parametrize(("text", "sentence"), RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_with_a_mistake_is_refused(tmp_path, text, sentence):
    with pytest.raises(EdgecError, match=sentence):
        load_recipe(write_recipe(tmp_path, text))


IMAGE_MISFITS = {
    "size": (ONE, "", r"becomes an array of shape \[1, 3, 17, 11\]"),
    "small": (ONE, "crop = 64", "17×11 pixels are fewer than crop takes"),
    "two inputs": (ONE * 2, "", "one 4-D input"),
    "batch": ((TensorSpec("x", (4, 3, 7, 5), F32),), "", "one by one"),
    "channels": ((TensorSpec("x", (1, 7, 5, 3), F32),), "", "7 channels in layout NCHW"),
    "grey": ((TensorSpec("x", (1, 1, 7, 5), F32),), "mean = [1, 2, 3]", "one mean and one scale"),
}


@pytest.mark.parametrize(("inputs", "recipe", "sentence"), IMAGE_MISFITS.values(), ids=IMAGE_MISFITS.keys())
def test_images_that_do_not_fit_the_model_are_refused(tmp_path, pictures, inputs, recipe, sentence):
    with pytest.raises(EdgecError, match=sentence):
        load_samples(pictures, inputs, write_recipe(tmp_path, recipe)).read(0)


def test_a_file_that_is_no_image_is_refused(tmp_path, pictures):
    (pictures / "a.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(EdgecError, match=r"a\.png' cannot be read"):
        load_samples(pictures, ONE, write_recipe(tmp_path, "crop = [7, 5]")).read(0)


def test_a_folder_without_images_is_refused(tmp_path, pictures):
    for path in pictures.iterdir():
        path.unlink()
    with pytest.raises(EdgecError, match="holds no images"):
        load_samples(pictures, ONE, write_recipe(tmp_path, ""))
