"""The larger trained models beside the project: what each of them is fed, and what is known of it.

They lie in a folder that is no part of the project (``EDGEC_SHARED``), each with the data that fits it and
with a description of the preprocessing that it was trained with.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

EVALUATION, CALIBRATION = "evaluation", "calibration"
"""The two splits of the data; a model is calibrated on the second, and never on the first."""

Loader = Callable[[Path, int, str], np.ndarray]
"""The first ``count`` samples of a split, float32 [count, *shape without the batch], from the shared folder."""

Labels = Callable[[Path], np.ndarray]
"""The int64 classes of all samples of the evaluation split."""


@dataclass(frozen=True)
class Scaling:
    """RGB bytes to a model's numbers: ``(x · scale − mean) / deviation`` for each channel in the model's order."""

    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB to float32 [N, 3, H, W]."""
        ordered = images[..., ::-1] if self.bgr else images
        scaled = (ordered * self.scale - np.array(self.mean)) / np.array(self.deviation)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


@dataclass(frozen=True)
class SharedModel:
    """One trained model.

    Attributes:
        name: its folder.
        path: of its ONNX file, within the folder of models.
        input: name of its only input, whose batch is 1 or dynamic.
        load: reads its samples.
        count: how many of them are compared.
        classifier: whether the output is one score per class.
        labels: reads the classes, where there are any that mean the same as the model's.
        calibration: how many samples it is calibrated with.
        evaluation: how many samples its accuracy is measured on.
    """

    name: str
    path: str
    input: str
    load: Loader
    count: int
    classifier: bool = True
    labels: Labels | None = None
    calibration: int = 125
    evaluation: int = 375

    def onnx(self, shared: Path) -> Path:
        """The ONNX file."""
        return shared / "models" / self.name / self.path

    def samples(self, shared: Path, count: int | None = None) -> np.ndarray:
        """float32 [count, *shape without the batch] of the evaluation split."""
        return self.load(shared, count or self.count, EVALUATION)

    def calibration_samples(self, shared: Path) -> list[dict[str, np.ndarray]]:
        """One input of batch 1 for each sample of the calibration split."""
        return [{self.input: x[None]} for x in self.load(shared, self.calibration, CALIBRATION)]


def cifar(scaling: Scaling, shared: Path, count: int, split: str) -> np.ndarray:
    with np.load(shared / "data" / f"cifar10_{'test' if split == EVALUATION else 'train'}.npz") as data:
        return scaling(data["images"][:count])


def keywords(shared: Path, count: int, split: str) -> np.ndarray:
    with np.load(shared / "data" / f"kws_{'eval' if split == EVALUATION else 'calib'}.npz") as data:
        return data["features"][:count]


def handwriting(shared: Path, count: int, split: str) -> np.ndarray:
    """The last 200 calibrate."""
    with np.load(shared / "data" / "mnist_test.npz") as data:
        part = data["images"][:1800] if split == EVALUATION else data["images"][1800:]
    return part[:count].transpose(0, 3, 1, 2).astype(np.float32)


def log_mel(shared: Path, count: int, split: str) -> np.ndarray:
    """Random windows within the input range of the int8 network of the same training, in dB."""
    generator = np.random.default_rng(0 if split == EVALUATION else 1)
    return generator.uniform(-84.8, 14.9, (count, 640)).astype(np.float32)


def photographs(scaling: Scaling, size: int, crop: bool, shared: Path, count: int, split: str) -> np.ndarray:
    """Cropped at the centre or resized to ``size`` × ``size``."""
    folder = shared / "data" / "imagenet"
    names = [row["file"] for row in photograph_table(shared, split)][:count]
    return scaling(np.stack([square(folder / "images" / name, size, crop) for name in names]))


def photograph_table(shared: Path, split: str) -> list[dict[str, str]]:
    """File and label of every photograph of a split."""
    name = "eval.csv" if split == EVALUATION else "calib.csv"
    with (shared / "data" / "imagenet" / name).open(newline="") as table:
        return list(csv.DictReader(table))


def stored_labels(file: str, count: int, shared: Path) -> np.ndarray:
    """The first ``count`` labels of an ``.npz`` of the data."""
    with np.load(shared / "data" / file) as data:
        return data["labels"][:count].astype(np.int64)


def photograph_labels(first: int, shared: Path) -> np.ndarray:
    """The classes of the evaluation split for a model whose first class is ``first``."""
    return np.array([int(row["label"]) + first for row in photograph_table(shared, EVALUATION)])


def square(path: Path, size: int, crop: bool) -> np.ndarray:
    """uint8 [size, size, 3] RGB."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if not crop:
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def detections(shared: Path, count: int, split: str) -> np.ndarray:
    """The detector's own two pictures to evaluate, then photographs."""
    scaling = Scaling(1 / 255, bgr=True)
    if split == CALIBRATION:
        return photographs(scaling, 352, False, shared, count, split)
    own = [square(shared / "models" / "fastestdet" / name, 352, crop=False) for name in ("0.jpg", "1.jpg")]
    return np.concatenate([scaling(np.stack(own)), photographs(scaling, 352, False, shared, count, split)])[:count]


RAW = Scaling()
UNIT = Scaling(1 / 255)
SYMMETRIC = Scaling(1 / 127.5, (1, 1, 1))
CAFFE = Scaling(mean=(104, 117, 123), bgr=True)
IMAGENET = Scaling(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Scaling(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR_WIDE = Scaling(1 / 255, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PORTRAIT = Scaling(1.0, (107.304565, 115.69884, 132.35703), (63.97182 * 255, 65.1337 * 255, 68.29726 * 255), bgr=True)
"""As in the demonstration programs of the network's authors, which divide by 255 after the deviation."""

CIFAR_LABELS = partial(stored_labels, "cifar10_test.npz", 3000)

RESNET8 = SharedModel(
    "resnet8", "resnet8_cifar10.onnx", "input", partial(cifar, RAW), 200,
    labels=CIFAR_LABELS, calibration=500, evaluation=3000,
)
VWW = SharedModel("vww", "vww_mobilenetv1_025_96.onnx", "input", partial(photographs, UNIT, 96, False), 60)
KWS = SharedModel(
    "kws", "kws_dscnn.onnx", "input", keywords, 400,
    labels=partial(stored_labels, "kws_eval.npz", 800), calibration=200, evaluation=800,
)
AUTOENCODER = SharedModel(
    "autoencoder", "ad01_autoencoder.onnx", "input", log_mel, 50, classifier=False, calibration=200, evaluation=500
)
MOBILENET = SharedModel(
    "mobilenet_v2", "tf2_mobilenet_v2_1.0_224_dequant.onnx", "input", partial(photographs, SYMMETRIC, 224, True), 40,
    labels=partial(photograph_labels, 1),
)
RESNET20 = SharedModel(
    "resnet20", "resnet20_cifar10.onnx", "input", partial(cifar, IMAGENET), 100,
    labels=CIFAR_LABELS, calibration=500, evaluation=3000,
)
REPVGG = SharedModel(
    "repvgg_tiny", "repvgg_tiny.onnx", "input", partial(cifar, CIFAR), 100,
    labels=CIFAR_LABELS, calibration=500, evaluation=3000,
)
VIT = SharedModel(
    "vit", "vit_ibp_3_3_8.onnx", "input", partial(cifar, CIFAR_WIDE), 100,
    labels=CIFAR_LABELS, calibration=500, evaluation=3000,
)
SQUEEZENET = SharedModel(
    "squeezenet", "squeezenet_fp32.onnx", "data_0", partial(photographs, CAFFE, 224, True), 40,
    labels=partial(photograph_labels, 0),
)
MNIST = SharedModel(
    "mnist", "mnist.onnx", "Input3", handwriting, 200,
    labels=partial(stored_labels, "mnist_test.npz", 1800), calibration=200, evaluation=1800,
)
FASTESTDET = SharedModel(
    "fastestdet", "FastestDet.onnx", "input.1", detections, 22, classifier=False, calibration=64, evaluation=64
)
SINET = SharedModel(
    "sinet", "sinet_224.onnx", "input", partial(photographs, PORTRAIT, 224, False), 20,
    classifier=False, calibration=64, evaluation=64,
)  # fmt: skip

MODELS = (
    RESNET8, VWW, KWS, AUTOENCODER, MOBILENET, RESNET20, REPVGG, VIT, SQUEEZENET, MNIST, FASTESTDET, SINET,
)  # fmt: skip

EMULATED = (RESNET8, VWW, KWS, AUTOENCODER, MOBILENET)
"""The four of MLPerf Tiny, and the one that phones know; an emulator is too slow for all of them."""
