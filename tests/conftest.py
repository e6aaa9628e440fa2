"""What the tests share: the sample model and its data, and the larger models beside the project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with larger trained models and their data, which is no part of the project."""
    folder = Path(os.environ.get("EDGEC_SHARED", ROOT.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip(f"no shared models in {folder}; set EDGEC_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def sample_model() -> Path:
    """The RepVGG-style digits classifier: input ``image`` float32 [1, 1, 8, 8], output ``logits`` [1, 10]."""
    return ROOT / "samples" / "models" / "digits_repvgg.onnx"


@pytest.fixture(scope="session")
def sample_data() -> dict[str, np.ndarray]:
    """Its held-out split: ``image`` float32 [450, 1, 8, 8] and ``labels`` int64 [450]."""
    with np.load(ROOT / "samples" / "models" / "digits_eval.npz") as data:
        return dict(data)
