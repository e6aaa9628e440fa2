"""Objects for Cortex-M: equal to the reference under emulation, called from C, measured, refused where too large."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgec
from edgec.artifact import read_manifest
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.data.samples import Samples, specs
from edgec.devices.cortex_m import emulate
from edgec.devices.counting import count_instructions
from edgec.devices.device import QemuDevice, open_device
from edgec.quantisation.quantise import companions
from edgec.runtimes.build import SOURCE_FOLDER, build_runtime
from tests.programs import assert_close, program_of, run_reference
from tests.shared_models import AUTOENCODER, KWS, RESNET8, VWW, SharedModel
from tests.test_aarch64_kernels import FLOAT_SHAPES, LAYERS, float_layer, together
from tests.test_integer_kernels import layer

CORES = ["cortex-m4", "cortex-m7", "cortex-m55"]

every_core = pytest.mark.parametrize("core", CORES)


@pytest.fixture(scope="session")
def bare_metal() -> None:
    """The compiler and the emulator of Cortex-M."""
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; .ci/install-tools does it")


@pytest.fixture(scope="session")
def quantised_digits(sample_model: Path, sample_data: dict[str, np.ndarray], tmp_path_factory) -> Path:
    """The sample model in 8-bit integers, as QDQ ONNX."""
    path = tmp_path_factory.mktemp("digits") / "digits.so"
    with np.load(sample_model.with_name("digits_calib.npz")) as data:
        calibration = [{"image": image[None]} for image in data["image"][:50]]
    edgec.compile(sample_model, "host", path, quantize="int8", calib=calibration)
    return companions(path)[2]


def outputs(artifact: Path, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of one run under emulation."""
    results = QemuDevice().run(artifact, Samples(1, None, lambda index: values))
    return {name: array[0] for name, array in results.outputs.items()}


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_integer_layers_equal_the_reference(bare_metal, tmp_path: Path, core: str) -> None:
    made = [layer(*shape, dtype) for _, shape, dtype in LAYERS]
    model = together(each for each, _ in made)
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    wanted = run_reference(program_of(model), inputs)
    found = outputs(edgec.compile(model, core, tmp_path / "layers.o").path, inputs)
    different = [name for i, (name, _, _) in enumerate(LAYERS) if (found[f"{i}_y"] != wanted[f"{i}_y"]).any()]
    assert not different


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_float_layers_agree_with_the_reference(bare_metal, tmp_path: Path, core: str, half: int) -> None:
    """Every other one at a time: the memory does not hold all of them."""
    made = [float_layer(*shape) for shape in list(FLOAT_SHAPES.values())[half::2]]
    model = together(each for each, _ in made)
    inputs = {f"{index}_x": values["x"] for index, (_, values) in enumerate(made)}
    found = outputs(edgec.compile(model, core, tmp_path / "layers.o").path, inputs)
    assert_close(found, run_reference(program_of(model), inputs))


@every_core
def test_the_sample_model_has_the_hosts_bits(bare_metal, tmp_path, quantised_digits, sample_data, core) -> None:
    images = sample_data["image"][:40]
    samples = Samples(len(images), None, lambda index: {"image": images[index][None]})
    host = edgec.compile(quantised_digits, "host", tmp_path / "digits.so").path
    board = edgec.compile(quantised_digits, core, tmp_path / "digits.o").path
    wanted = open_device("local").run(host, samples).outputs["logits"]
    np.testing.assert_array_equal(open_device("qemu").run(board, samples).outputs["logits"], wanted)


def test_what_it_takes_is_measured(bare_metal, tmp_path, quantised_digits, sample_data) -> None:
    compiled = edgec.compile(quantised_digits, "cortex-m4", tmp_path / "digits.o")
    manifest = read_manifest(compiled.path)
    assert manifest == {key: manifest[key] for key in compiled.manifest} == compiled.manifest
    weights, code, arena = (manifest[f"{name}_bytes"] for name in ("weights", "code", "arena"))
    assert weights + code <= manifest["flash_bytes"] <= weights + code + 2048
    assert manifest["ram_bytes"] == arena + 4 * 64 + 4 * 10
    values = {"image": sample_data["image"][:1]}
    counts = count_instructions(compiled.path, values, QemuDevice())
    assert counts.instructions < 4 * counts.macs
    assert 0.98 < counts.instructions / sum(step.instructions for step in counts.steps) <= 1
    run = emulate(compiled.path, manifest, Samples(1, None, lambda index: values), tmp_path)
    assert 0 < run.stack_bytes < 2048


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_no_floats_are_needed_for_inputs(bare_metal, tmp_path, quantised_digits, sample_data, core) -> None:
    floats = edgec.compile(quantised_digits, core, tmp_path / "floats.o")
    compiled = edgec.compile(quantised_digits, core, tmp_path / "integers.o", integer_io=True)
    assert compiled.manifest["ram_bytes"] == floats.manifest["ram_bytes"] - 3 * 64
    header = (tmp_path / "integers.h").read_text()
    assert "const int8_t *image" in header and "INTEGERS_IMAGE_ZERO_POINT" in header
    (spec,) = specs(compiled.manifest["inputs"])
    image = sample_data["image"][:1]
    wanted = outputs(floats.path, {"image": image})
    found = outputs(compiled.path, {"image": spec.integers(image)})
    np.testing.assert_array_equal(found["logits"], wanted["logits"])


def test_the_object_needs_little_of_the_c_library(bare_metal, tmp_path, quantised_digits) -> None:
    path = edgec.compile(quantised_digits, "cortex-m4", tmp_path / "digits.o").path
    listing = find_toolchain("arm-none-eabi").run_tool("nm", "--extern-only", path).split("\n")
    names = {line.split()[-1]: line.split()[-2] for line in listing if line}
    assert {name for name, kind in names.items() if kind != "U"} == {"digits_run", "digits_model"}
    assert {name for name, kind in names.items() if kind == "U"} <= {"memset", "memcpy", "nearbyintf"}


def test_two_models_in_one_program(tmp_path: Path, tiny_model: Path, quantised_digits: Path) -> None:
    """Static objects of this machine, called directly and through libedgert."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 3, 7, 5), np.float32)
    image = rng.uniform(0, 1, (1, 1, 8, 8)).astype(np.float32)
    edgec.compile(tiny_model, "host", tmp_path / "tiny.o")
    edgec.compile(quantised_digits, "host", tmp_path / "digits.o")
    source = tmp_path / "main.c"
    source.write_text(MAIN)
    library = build_runtime(host_triple()).static
    program = tmp_path / "main"
    objects = [tmp_path / "tiny.o", tmp_path / "digits.o", library]
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{SOURCE_FOLDER / 'include'}", f"-I{tmp_path}"]
    subprocess.run(["cc", *flags, source, *objects, "-o", program, "-lm", "-lpthread", "-ldl"], check=True)
    (tmp_path / "in.bin").write_bytes(x.tobytes() + image.tobytes())
    subprocess.run([program], cwd=tmp_path, check=True)
    found = np.fromfile(tmp_path / "out.bin", np.float32)
    wanted = []
    for model, values in ((tiny_model, {"x": x}), (quantised_digits, {"image": image})):
        artifact = edgec.compile(model, "host", tmp_path / "whole.so").path
        with edgec.load(artifact) as session:
            wanted += [array.ravel() for array in session.run(values).values()]
    np.testing.assert_array_equal(found, np.concatenate(wanted + wanted[1:]))


MAIN = r"""
#include <edgert/edgert.h>
#include <stdio.h>
#include "digits.h"
#include "tiny.h"

static _Alignas(TINY_ARENA_ALIGNMENT) uint8_t arena[TINY_ARENA_BYTES];
static _Alignas(DIGITS_ARENA_ALIGNMENT) uint8_t other[DIGITS_ARENA_BYTES];
static _Alignas(EDGERT_ALIGNMENT) uint8_t memory[65536];

int main(void) {
  float x[TINY_X_ELEMENTS], y[TINY_Y_ELEMENTS], image[DIGITS_IMAGE_ELEMENTS], logits[DIGITS_LOGITS_ELEMENTS];
  FILE *in = fopen("in.bin", "rb"), *out = fopen("out.bin", "wb");
  if (fread(x, 1, TINY_X_BYTES, in) != TINY_X_BYTES) return 1;
  if (fread(image, 1, DIGITS_IMAGE_BYTES, in) != DIGITS_IMAGE_BYTES) return 1;
  tiny_run(arena, x, y);
  digits_run(other, image, logits);
  fwrite(y, 1, TINY_Y_BYTES, out);
  fwrite(logits, 1, DIGITS_LOGITS_BYTES, out);
  edgert_options options = EDGERT_OPTIONS_DEFAULT;
  edgert_session *session = NULL;
  options.memory = memory;
  options.memory_bytes = sizeof memory;
  if (edgert_open_model(&digits_model, &options, &session) != EDGERT_OK) return 2;
  if (edgert_bind_input(session, 0, image, sizeof image) != EDGERT_OK) return 3;
  if (edgert_run(session) != EDGERT_OK) return 4;
  fwrite(edgert_output_data(session, 0), 1, DIGITS_LOGITS_BYTES, out);
  edgert_close(session);
  fclose(in);
  return fclose(out);
}
"""

REFUSALS = {
    "a shared object": ("cortex-m4", "model.so", "cortex-m4 has no loader for '.*model.so'; .* ends in .o"),
    "no C identifier": ("cortex-m4", "my-model.o", "'my-model' is no C identifier; .* such as my_model.o"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_names_that_do_not_do(tmp_path: Path, tiny_model: Path, name: str) -> None:
    core, file, sentence = REFUSALS[name]
    with pytest.raises(edgec.EdgecError, match=sentence):
        edgec.compile(tiny_model, core, tmp_path / file)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("field", "what"), [("flash_bytes", "flash"), ("ram_bytes", "RAM")])
def test_a_model_larger_than_the_board(bare_metal, tmp_path, tiny_model, monkeypatch, field, what) -> None:
    board = tmp_path / "small.toml"
    lines = (SOURCE_FOLDER.parent.parent / "targets" / "cortex-m4.toml").read_text().splitlines()
    board.write_text("\n".join(f"{field} = 512" if line.startswith(field) else line for line in lines))
    monkeypatch.setattr("edgec.targets.target.TARGET_FOLDER", tmp_path)
    with pytest.raises(edgec.EdgecError, match=rf"'tiny' needs \d+ kB of {what} and small has 0 kB"):
        edgec.compile(tiny_model, "small", tmp_path / "tiny.o")
    assert not (tmp_path / "tiny.o").exists() and not (tmp_path / "tiny.h").exists()


def test_without_the_compiler(tmp_path: Path, tiny_model: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(edgec.EdgecError, match=r"no C compiler for arm-none-eabi .* apt-get install gcc-arm-none-eabi"):
        edgec.compile(tiny_model, "cortex-m4", tmp_path / "tiny.o")


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` up to the integers that its last node, a softmax in floats, turns into probabilities."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.output[0].name = last.input[0]
        del model.graph.node[-1]
    return model


@pytest.mark.heavy
@pytest.mark.parametrize("model", [RESNET8, VWW, KWS, AUTOENCODER], ids=lambda model: model.name)
def test_mlperf_tiny_models_equal_the_reference(bare_metal, tmp_path, shared: Path, model: SharedModel) -> None:
    source = model.onnx(shared)
    shapes = {model.input: (1, *model.samples(shared, 1).shape[1:])}
    host = tmp_path / "model.so"
    edgec.compile(source, "host", host, shapes=shapes, quantize="int8", calib=model.calibration_samples(shared))
    quantised = without_softmax(onnx.load(companions(host)[2]))
    samples = model.samples(shared, 2)
    program = program_of(quantised)
    wanted = [run_reference(program, {model.input: sample[None]}) for sample in samples]
    for core in CORES:
        path = edgec.compile(quantised, core, tmp_path / "model.o").path
        for sample, want in zip(samples, wanted, strict=True):
            for name, array in outputs(path, {model.input: sample[None]}).items():
                np.testing.assert_array_equal(array, want[name])
