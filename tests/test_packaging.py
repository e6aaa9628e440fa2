"""The package: everything is in the wheel, the wheel works by itself, and importing it is cheap."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = {"edgec": "edgec", "passes": "edgec.passes", "runtimes": "edgec.runtimes", "targets": "edgec.targets"}
HEAVY_MODULES = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tvm", "rich", "typer")

USE_THE_WHEEL = """
import sys, numpy as np, edgec
site, model = sys.argv[1:]
assert edgec.__file__.startswith(site), edgec.__file__
compiled = edgec.compile(model, output=site + "/sample.so")
with edgec.load(compiled.path) as session:
    print(session.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["logits"].shape)
"""


def run_python(*arguments: str, **environment: str) -> str:
    """What a new interpreter prints, away from the project's folder; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd="/", env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def packages() -> set[str]:
    """The dotted name of every folder with an ``__init__.py``."""
    inits = [(folder, path) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")]
    return {".".join([FOLDERS[folder], *path.parent.relative_to(ROOT / folder).parts]) for folder, path in inits}


def test_every_package_is_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listing = re.search(r"^packages = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert listing is not None
    assert set(re.findall(r'"([\w.]+)"', listing[1])) == packages()


def test_import_loads_nothing_heavy() -> None:
    loaded = run_python("-c", "import sys, edgec; print(*sys.modules)").split()
    assert "edgec" in loaded
    assert not set(HEAVY_MODULES) & set(loaded)


def test_unknown_name_is_an_attribute_error() -> None:
    import edgec

    with pytest.raises(AttributeError, match="'edgec' has no attribute 'complie'"):
        _ = edgec.complie


def test_wheel_works_by_itself(tmp_path: Path, sample_model: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, source / file)
    run_python(
        "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)
    )
    (wheel,) = tmp_path.glob("edgec-*.whl")
    run_python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    missing = [path for path in data_files() if not (site / "edgec" / path).is_file()]
    assert not missing
    cache = str(tmp_path / "cache")
    shape = run_python("-c", USE_THE_WHEEL, str(site), str(sample_model), PYTHONPATH=str(site), EDGEC_CACHE_DIR=cache)
    assert shape.strip() == "(1, 10)"


def data_files() -> list[Path]:
    """What the package needs beside its Python modules, as paths within it."""
    runtime = ROOT / "runtimes" / "c"
    sources = [path for folder in ("src", "include", "tools", "cmake") for path in (runtime / folder).rglob("*.*")]
    targets = list((ROOT / "targets").rglob("*.toml"))
    for folder in ("include", "stubs", "templates", "verilog"):
        targets += (ROOT / "targets" / "fpga" / folder).iterdir()
    return [path.relative_to(ROOT) for path in [*sources, runtime / "CMakeLists.txt", *targets]]
