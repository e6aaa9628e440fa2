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

Loader = Callable[[Path, int], np.ndarray]
"""The first ``count`` samples, float32 [count, *shape without the batch], from the shared folder."""


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
    """

    name: str
    path: str
    input: str
    load: Loader
    count: int
    classifier: bool = True

    def onnx(self, shared: Path) -> Path:
        """The ONNX file."""
        return shared / "models" / self.name / self.path

    def samples(self, shared: Path, count: int | None = None) -> np.ndarray:
        """float32 [count, *shape without the batch]."""
        return self.load(shared, count or self.count)


def cifar(scaling: Scaling, shared: Path, count: int) -> np.ndarray:
    with np.load(shared / "data" / "cifar10_test.npz") as data:
        return scaling(data["images"][:count])


def keywords(shared: Path, count: int) -> np.ndarray:
    with np.load(shared / "data" / "kws_eval.npz") as data:
        return data["features"][:count]


def handwriting(shared: Path, count: int) -> np.ndarray:
    with np.load(shared / "data" / "mnist_test.npz") as data:
        return data["images"][:count].transpose(0, 3, 1, 2).astype(np.float32)


def log_mel(shared: Path, count: int) -> np.ndarray:
    """Random windows within the input range of the int8 network of the same training, in dB."""
    return np.random.default_rng(0).uniform(-84.8, 14.9, (count, 640)).astype(np.float32)


def photographs(scaling: Scaling, size: int, crop: bool, shared: Path, count: int) -> np.ndarray:
    """The evaluation split's, cropped at the centre or resized to ``size`` × ``size``."""
    folder = shared / "data" / "imagenet"
    with (folder / "eval.csv").open(newline="") as table:
        names = [row["file"] for row in csv.DictReader(table)][:count]
    return scaling(np.stack([square(folder / "images" / name, size, crop) for name in names]))


def square(path: Path, size: int, crop: bool) -> np.ndarray:
    """uint8 [size, size, 3] RGB."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if not crop:
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def detections(shared: Path, count: int) -> np.ndarray:
    """The detector's own two pictures, then photographs."""
    scaling = Scaling(1 / 255, bgr=True)
    own = [square(shared / "models" / "fastestdet" / name, 352, crop=False) for name in ("0.jpg", "1.jpg")]
    return np.concatenate([scaling(np.stack(own)), photographs(scaling, 352, False, shared, count)])[:count]


RAW = Scaling()
UNIT = Scaling(1 / 255)
SYMMETRIC = Scaling(1 / 127.5, (1, 1, 1))
CAFFE = Scaling(mean=(104, 117, 123), bgr=True)
IMAGENET = Scaling(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Scaling(1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR_WIDE = Scaling(1 / 255, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PORTRAIT = Scaling(1.0, (107.304565, 115.69884, 132.35703), (63.97182 * 255, 65.1337 * 255, 68.29726 * 255), bgr=True)
"""As in the demonstration programs of the network's authors, which divide by 255 after the deviation."""

RESNET8 = SharedModel("resnet8", "resnet8_cifar10.onnx", "input", partial(cifar, RAW), 200)
VWW = SharedModel("vww", "vww_mobilenetv1_025_96.onnx", "input", partial(photographs, UNIT, 96, False), 60)
KWS = SharedModel("kws", "kws_dscnn.onnx", "input", keywords, 400)
AUTOENCODER = SharedModel("autoencoder", "ad01_autoencoder.onnx", "input", log_mel, 50, classifier=False)
MOBILENET = SharedModel(
    "mobilenet_v2", "tf2_mobilenet_v2_1.0_224_dequant.onnx", "input", partial(photographs, SYMMETRIC, 224, True), 40
)

MODELS = (
    RESNET8, VWW, KWS, AUTOENCODER, MOBILENET,
    SharedModel("resnet20", "resnet20_cifar10.onnx", "input", partial(cifar, IMAGENET), 100),
    SharedModel("repvgg_tiny", "repvgg_tiny.onnx", "input", partial(cifar, CIFAR), 100),
    SharedModel("vit", "vit_ibp_3_3_8.onnx", "input", partial(cifar, CIFAR_WIDE), 100),
    SharedModel("squeezenet", "squeezenet_fp32.onnx", "data_0", partial(photographs, CAFFE, 224, True), 40),
    SharedModel("mnist", "mnist.onnx", "Input3", handwriting, 200),
    SharedModel("fastestdet", "FastestDet.onnx", "input.1", detections, 22, classifier=False),
    SharedModel("sinet", "sinet_224.onnx", "input", partial(photographs, PORTRAIT, 224, False), 20, classifier=False),
)  # fmt: skip

EMULATED = (RESNET8, VWW, KWS, AUTOENCODER, MOBILENET)
"""The four of MLPerf Tiny, and the one that phones know; an emulator is too slow for all of them."""
