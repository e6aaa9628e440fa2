"""Floats stored in 16 bits, and kernels that only phones' GPUs are made for: what can be shown of them here."""

from __future__ import annotations

import shutil
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.errors import EdgecError
from edgec.targets.gpu.backend import GpuProgram
from edgec.targets.gpu.target import gpu_names, load_gpu
from tests.agreement import onnxruntime_outputs
from tests.gpu import needs_device, quiet, run_on_gpu
from tests.programs import assert_close, program_of, random_inputs, run_reference
from tests.test_gpu_kernels import float64_program
from tests.test_integer_kernels import SHAPES, layer
from tests.test_kernels import CONVS

CLANG = next(filter(None, (shutil.which(f"clang-{version}") for version in (19, 18, 17, 16, 15, 14))), None)
"""PoCL comes with one."""


@pytest.fixture(scope="module")
def artifact(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgec.compile(sample_model, "opencl-fp16", tmp_path_factory.mktemp("half") / "digits.so").path


@needs_device
def test_sample_model(artifact: Path, sample_model: Path, sample_data: dict[str, np.ndarray]) -> None:
    """``vload_half`` needs no device with 16-bit arithmetic, so that PoCL shows the answers."""
    images = sample_data["image"][:50]
    wanted = onnxruntime_outputs(sample_model, "image", images)
    with edgec.load(artifact) as session:
        found = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    assert 0 < np.abs(found - wanted).max() <= 2e-3 * np.ptp(wanted)
    assert np.array_equal(found.argmax(1), wanted.argmax(1))


def test_memory_is_halved(artifact: Path, sample_model: Path, tmp_path: Path) -> None:
    full = edgec.compile(sample_model, "opencl", tmp_path / "full.so").manifest
    half = read_manifest(artifact)
    assert half["gpu"]["storage"] == "float16"
    assert half["arena_bytes"] <= full["arena_bytes"] / 2 + 128  # places are whole cache lines


@needs_device
@pytest.mark.parametrize("name", ["first layer, stride 2", "asymmetric pads", "depthwise, 5x5, stride 2, dilated"])
def test_convolution(name: str, tmp_path: Path) -> None:
    program = program_of(CONVS[name])
    inputs = random_inputs(program)
    want = run_reference(program, inputs)
    assert_close(run_on_gpu(program, tmp_path, inputs, "opencl-fp16"), want, 4e-3)


def test_float64_is_refused() -> None:
    program, _ = float64_program()
    with pytest.raises(EdgecError, match="without -fp16"):
        GpuProgram(program, load_gpu("android-mali-fp16")).compile(quiet)


def test_weights_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    program = program_of(CONVS["one output channel"])
    (weight,) = [b for b in program.constants if b.elements > 100]
    assert weight.data is not None
    weight.data = weight.data * np.float32(1e6)
    with pytest.raises(EdgecError, match=r"16-bit floats end at 65504"):
        GpuProgram(program, load_gpu("opencl-fp16"))


needs_clang = pytest.mark.skipif(CLANG is None, reason="no clang for OpenCL C; .ci/install-tools installs PoCL's")
FRONT_END = ["-x", "cl", "-target", "spir64-unknown-unknown", "-Xclang", "-finclude-default-header", "-Werror"]


@needs_clang
@pytest.mark.parametrize("target", gpu_names())
def test_kernels_compile_for_any_device(target: str, sample_model: Path, tmp_path: Path) -> None:
    """By clang's OpenCL front end, for the SPIR of a device with cl_khr_fp16 and of one without, with weights from an
    image where the target has them there, and from the buffer."""
    source = GpuProgram(program_of(sample_model), load_gpu(target)).compile(quiet).source
    assert ("vload_half" in source.partition("__kernel")[2]) == target.endswith("-fp16")
    (tmp_path / "kernels.cl").write_text(source, encoding="utf-8")
    assert ("EDGERT_IMAGES" in source) == target.startswith("android-adreno")
    for extension, images in product(("+cl_khr_fp16", "-cl_khr_fp16"), ([], ["-DEDGERT_IMAGES"])):
        device = ["-cl-std=CL1.2", "-Xclang", f"-cl-ext={extension}", *images, "-emit-llvm", "-c"]
        command = [str(CLANG), *FRONT_END, *device, "kernels.cl", "-o", "kernels.bc"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "kernels.bc").stat().st_size > 0


@needs_clang
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_products_of_bytes_are_one_instruction_where_there_is_one(dtype: str, tmp_path: Path) -> None:
    """OpenCL C 3.0 names it ``dot``, ARM's extension ``arm_dot``; a device without either gets the sum."""
    program = program_of(layer(*SHAPES["3x3"], dtype)[0], activation_dtype=dtype)
    source = GpuProgram(program, load_gpu("android-mali")).compile(quiet).source
    (tmp_path / "kernels.cl").write_text(source, encoding="utf-8")
    feature = "__opencl_c_integer_dot_product_input_4x8bit"
    devices = {
        "@_Z3dotDv4_": ["-cl-std=CL3.0", f"-D{feature}=1", "-Wno-builtin-macro-redefined"],
        "@_Z7arm_dotDv4_": ["-cl-std=CL1.2", "-Xclang", "-cl-ext=+cl_arm_integer_dot_product_int8"],
        "": ["-cl-std=CL1.2", "-Xclang", "-cl-ext=-cl_arm_integer_dot_product_int8"],
    }
    for function, device in devices.items():
        command = [str(CLANG), *FRONT_END, *device, "-S", "-emit-llvm", "kernels.cl", "-o", "-"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = [name for name in devices if name and name in done.stdout]
        # ARM's multiplies two signed bytes, and not an unsigned one with a signed one
        assert found == ([function] if function and (dtype == "int8" or "arm" not in function) else [])
