"""Samples from files: ``.npz`` with arrays named as the inputs, or a folder of images with a recipe.

A model of batch B takes B samples a run; the first axis of every array in a file counts samples. Nothing is
converted silently: an array of another dtype, with a NaN or of another shape is refused in one sentence. Only for an
input of integers that stand for real numbers, floats are quantised as the model would do it.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.grid import dequantise, quantise

Array = np.ndarray[Any, Any]

LABELS = "labels"
"""The array of class indices in an ``.npz``, unless an input has this name."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output as a file of samples must match it: the ONNX value's name, shape and dtype.

    Integers with a ``scale`` stand for real numbers, scale · (q − zero_point).
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float = 0.0
    zero_point: int = 0

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype}{list(self.shape)}"

    def integers(self, array: Array) -> Array:
        """The integers that stand for float32 of any shape; an array of anything else, or for floats, as it is."""
        if not self.scale or array.dtype != np.float32:
            return array
        return quantise(array, self.scale, self.zero_point, self.dtype)

    def reals(self, array: Array) -> Array:
        """float32 that the integers stand for; an array of floats, or that stands for nothing, as it is."""
        if not self.scale or array.dtype == np.float32:
            return array
        return dequantise(array, self.scale, self.zero_point)


def in_reals(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays with floats in place of integers that stand for them."""
    return {**arrays, **{spec.name: spec.reals(arrays[spec.name]) for spec in specs}}


def in_integers(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays with integers in place of floats that they stand for."""
    return {**arrays, **{spec.name: spec.integers(arrays[spec.name]) for spec in specs}}


@dataclass(frozen=True)
class ArraySummary:
    """An array in one line; ``least``, ``mean`` and ``largest`` are None where it is empty."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    least: float | None
    mean: float | None
    largest: float | None


@dataclass(frozen=True)
class Samples:
    """Inputs for a number of runs, read one run at a time.

    Attributes:
        runs: how many runs there are.
        labels: int64 class index of every sample (``runs`` × batch of them), or None.
        read: the inputs of one run by name, each of exactly its input's shape and dtype.
    """

    runs: int
    labels: Array | None
    read: Callable[[int], dict[str, Array]]

    def __len__(self) -> int:
        return self.runs

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return map(self.read, range(self.runs))


def specs(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """The ``inputs`` or ``outputs`` of a manifest; an FPGA's floats have a scale inside the board, which is its own."""
    plain = [TensorSpec(e["name"], tuple(e["shape"]), np.dtype(e["dtype"])) for e in entries]
    return tuple(
        replace(spec, scale=e.get("scale", 0.0), zero_point=e.get("zero_point", 0)) if spec.dtype.kind in "iu" else spec
        for spec, e in zip(plain, entries, strict=True)
    )


def load_samples(path: Path, inputs: Sequence[TensorSpec], preprocess: Path | None = None) -> Samples:
    """The samples in an ``.npz`` file or, with a ``preprocess`` recipe, in a folder of images.

    Raises:
        EdgecError: the file, an array in it, an image or the recipe does not fit; says which and how.
    """
    if path.is_dir():
        if preprocess is None:
            raise EdgecError(f"'{path}' is a folder; say how its images become inputs with --preprocess FILE.toml")
        from edgec.data.images import load_images

        return load_images(path, inputs, preprocess)
    if preprocess is not None:
        raise EdgecError(f"--preprocess is for a folder of images, and '{path}' is none; leave the flag out")
    return load_npz(path, inputs)


def load_npz(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    """The samples in an ``.npz``: each array is one input of exactly its shape, or has samples as first axis.

    Raises:
        EdgecError: not an ``.npz``, an array is missing, or one does not fit its input.
    """
    arrays = read_arrays(path)
    named = {spec.name for spec in inputs}
    stacked = {spec.name: _stack(_array(arrays, spec, path), spec, path) for spec in inputs}
    runs = _common_count(stacked, path)
    labels = None if LABELS in named or LABELS not in arrays else arrays[LABELS]
    return Samples(
        runs,
        None if labels is None else check_labels(labels, runs * batch_size(inputs), path),
        lambda index: {name: array[index] for name, array in stacked.items()},
    )


def read_arrays(path: Path) -> dict[str, Array]:
    """Every array of an ``.npz`` file.

    Raises:
        EdgecError: there is no such file, or it is no ``.npz``, damaged, or holds Python objects.
    """
    if not path.is_file():
        raise EdgecError(f"there is no file '{path}'; check the path")
    if not zipfile.is_zipfile(path):
        raise EdgecError(f"'{path}' is not an .npz file, or it is cut off; write it with numpy.savez(FILE, NAME=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise EdgecError(f"'{path}' cannot be read: {reason}; write it with numpy.savez(FILE, NAME=array)") from error


def save_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an ``.npz`` file, whole or not at all.

    Raises:
        EdgecError: the file cannot be written.
    """
    from edgec.artifact import write_atomically

    stream = io.BytesIO()
    # not numpy.savez, which takes the names as keyword arguments beside its own
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
    write_atomically({path: stream.getvalue()})


def summarise_array(name: str, array: Array) -> ArraySummary:
    """What there is to say of ``array`` without printing it."""
    if not array.size:
        return ArraySummary(name, str(array.dtype), array.shape, None, None, None)
    values = array.astype(np.float64)
    return ArraySummary(
        name, str(array.dtype), array.shape, float(values.min()), float(values.mean()), float(values.max())
    )


def batch_size(inputs: Sequence[TensorSpec]) -> int:
    """Samples a run: the first axis of the first input, 1 for a scalar."""
    return inputs[0].shape[0] if inputs and inputs[0].shape else 1


def check_labels(labels: Array, count: int, source: os.PathLike[str] | str) -> Array:
    """``labels`` as int64 of shape (count,).

    Raises:
        EdgecError: they are not whole numbers, or not one for each sample.
    """
    if labels.dtype.kind not in "iu":
        raise EdgecError(f"the labels in '{source}' are {labels.dtype} values; they must be class indices (integers)")
    if labels.size != count:
        raise EdgecError(f"'{source}' holds {labels.size} labels for {count} samples; there must be one for each")
    return labels.reshape(-1).astype(np.int64)


def _array(arrays: Mapping[str, Array], spec: TensorSpec, path: Path) -> Array:
    """The array for ``spec``, of its dtype, not empty and without a NaN."""
    if spec.name not in arrays:
        found = ", ".join(f"'{name}'" for name in arrays) or "nothing"
        raise EdgecError(f"'{path}' has no array for the input {spec}; it holds {found}")
    _reject_nan(arrays[spec.name], spec, path)
    array = spec.integers(arrays[spec.name])
    if array.dtype != spec.dtype:
        raise EdgecError(
            f"'{path}' has {array.dtype} values for the input {spec}; convert them with .astype('{spec.dtype}')"
        )
    if array.size == 0 and spec.shape and 0 not in spec.shape:
        raise EdgecError(f"'{path}' has an empty array of shape {list(array.shape)} for the input {spec}")
    return array


def _reject_nan(array: Array, spec: TensorSpec, path: Path) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.isnan(array)
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        raise EdgecError(
            f"'{path}' has {int(bad.sum())} NaN values for the input {spec}, the first at {where}; "
            "remove or repair those samples"
        )


def _stack(array: Array, spec: TensorSpec, path: Path) -> Array:
    """``array`` as [runs, *shape of the input]."""
    if array.shape == spec.shape:
        return array[np.newaxis]
    if array.shape[1:] == spec.shape:
        return array
    if spec.shape and array.shape[1:] == spec.shape[1:] and array.shape[0] % max(spec.shape[0], 1) == 0:
        return array.reshape(-1, *spec.shape)
    wanted = ["samples", *spec.shape[1:]] if spec.shape[:1] == (1,) else ["samples", *spec.shape]
    raise EdgecError(
        f"'{path}' has an array of shape {list(array.shape)} for the input {spec}; "
        f"it must be {list(spec.shape)} or [{', '.join(map(str, wanted))}]"
    )


def _common_count(stacked: Mapping[str, Array], path: Path) -> int:
    counts = {name: len(array) for name, array in stacked.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{count} for '{name}'" for name, count in counts.items())
        raise EdgecError(f"'{path}' has a different number of samples for each input: {listing}")
    return next(iter(counts.values()), 1)


def write_raw(path: Path, inputs: Sequence[TensorSpec], samples: Samples) -> None:
    """Write the dense inputs of every run, one after the other, as the runners read them."""
    with path.open("wb") as file:
        for arrays in samples:
            for spec in inputs:
                file.write(np.ascontiguousarray(arrays[spec.name]).tobytes())


def read_raw(path: Path, outputs: Sequence[TensorSpec], runs: int) -> dict[str, Array]:
    """The dense outputs that a runner wrote, run by run, as [runs, *shape] each."""
    record = np.dtype([(f"{index}", spec.dtype, spec.shape) for index, spec in enumerate(outputs)])
    data = np.fromfile(path, record, runs)
    return {spec.name: np.ascontiguousarray(data[f"{index}"]) for index, spec in enumerate(outputs)}
