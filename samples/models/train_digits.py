"""Trains the sample model and writes it with its data: digits_repvgg.onnx, digits_eval.npz, digits_calib.npz.

A RepVGG-style network (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021) with one
depthwise separable stage, on the 1797 scanned digits that come with scikit-learn. It is exported unfolded,
with parallel branches and batch norms still apart, so that a compiler has something to fold.

    pip install -e ".[train]"
    python samples/models/train_digits.py

The seed and the thread count are fixed: the same torch release on the same kind of CPU writes the same weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 20
EVAL_SAMPLES = 450
CALIB_SAMPLES = 200
EPOCHS = 60
BATCH = 32
LEARNING_RATE = 4e-3
OPSET = 17


def conv_bn(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, "same" padding at stride 1, and a batch norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out))


class RepVGGBlock(nn.Module):
    """relu(3×3 branch + 1×1 branch + batch norm of the input); the last one only where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        branches = [conv_bn(channels_in, channels_out, 3, stride), conv_bn(channels_in, channels_out, 1, stride)]
        if channels_in == channels_out and stride == 1:
            branches.append(nn.BatchNorm2d(channels_out))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return torch.relu(total)


def separable(channels_in: int, channels_out: int) -> nn.Sequential:
    """Depthwise 3×3, then pointwise; each with batch norm and ReLU."""
    return nn.Sequential(
        conv_bn(channels_in, channels_in, 3, groups=channels_in), nn.ReLU(),
        conv_bn(channels_in, channels_out, 1), nn.ReLU(),
    )  # fmt: skip


def build_model() -> nn.Sequential:
    """Input [N, 1, 8, 8] with grey levels 0 to 16, output [N, 10] logits."""
    return nn.Sequential(
        RepVGGBlock(1, 16),
        RepVGGBlock(16, 16),
        RepVGGBlock(16, 32, stride=2),
        RepVGGBlock(32, 32),
        RepVGGBlock(32, 48, stride=2),
        RepVGGBlock(48, 48),
        separable(48, 96),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def split_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images [n, 1, 8, 8] float32 and labels int64, then the held-out ones, stratified by label."""
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, digits.target.astype(np.int64), test_size=EVAL_SAMPLES, random_state=SEED, stratify=digits.target
    )
    return train, train_labels, held_out, held_out_labels


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to one pixel in both directions, with zeros moving in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, offsets, strict=True)])


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train in place: AdamW, one-cycle schedule, cross entropy, shifted images."""
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-2)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        losses = []
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(model(shifted(images[batch], generator)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:2} of {EPOCHS}: loss {np.mean(losses):.4f}")
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write ``model`` as ONNX with batch 1, branches and batch norms as they were trained."""
    torch.onnx.export(
        model, (torch.zeros(1, 1, 8, 8),), path, input_names=["image"], output_names=["logits"], opset_version=OPSET,
        dynamo=False, do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    proto = onnx.load(path)
    norms = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    expected = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if norms != expected:
        raise SystemExit(f"the exporter folded batch norms: {norms} of {expected} are left")
    for node in proto.graph.node:
        node.ClearField("doc_string")
    proto.graph.name = "digits_repvgg"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of the three files")
    folder = parser.parse_args().output
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    images, labels, held_out, held_out_labels = split_digits()
    model = build_model()
    train(model, torch.from_numpy(images), torch.from_numpy(labels))
    with torch.no_grad():
        right = (model(torch.from_numpy(held_out)).argmax(1).numpy() == held_out_labels).sum()
    print(f"held-out accuracy: {right} of {len(held_out)} = {100 * right / len(held_out):.2f} %")
    export(model, folder / "digits_repvgg.onnx")
    np.savez_compressed(folder / "digits_eval.npz", image=held_out, labels=held_out_labels)
    np.savez_compressed(folder / "digits_calib.npz", image=images[:CALIB_SAMPLES])


if __name__ == "__main__":
    main()
