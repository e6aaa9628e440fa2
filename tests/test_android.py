"""For Android: the runtime without the NDK, its Java binding, and the sample's APK."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import edgec
from edgec.artifact import read_manifest
from edgec.runtimes.build import build_runtime

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TRIPLE = "aarch64-linux-android"
SYSROOT = Path("/usr/aarch64-linux-gnu")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed; run: pip install ziglang"
)


@pytest.fixture(scope="module")
def artifact(sample_model, tmp_path_factory) -> Path:
    """The sample model for Android."""
    return edgec.compile(sample_model, "android-arm64", tmp_path_factory.mktemp("android") / "libdigits.so").path


@pytest.fixture(scope="module")
def bionic(emulator, tmp_path_factory) -> Path:
    """A folder of libraries with Android's names, on top of glibc."""
    folder = tmp_path_factory.mktemp("bionic")
    source = Path(__file__).with_name("bionic.c")
    link = ["aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-o"]
    subprocess.run([*link, folder / "libc.so", source, "-Wl,-soname,libc.so"], check=True)
    for name in ("libm.so", "libdl.so"):
        subprocess.run([*link, folder / name, "-x", "c", "/dev/null", f"-Wl,-soname,{name}", "-lm"], check=True)
    return folder


def android(bionic: Path, program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program for Android under the emulator and glibc's loader."""
    loader = [SYSROOT / "lib" / "ld-linux-aarch64.so.1", "--library-path", f"{bionic}:{SYSROOT}/lib"]
    command = ["qemu-aarch64", "-cpu", "cortex-a76", "-L", SYSROOT, *loader, program, *arguments]
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)


def test_the_runtime_for_android_is_built_without_the_ndk():
    files = build_runtime(TRIPLE)
    listing = subprocess.run(["readelf", "-dlW", files.runner], capture_output=True, text=True, check=True).stdout
    assert "/system/bin/linker64" in listing and listing.count("0x4000\n") >= 3
    assert all(name in listing for name in ("[libc.so]", "[libdl.so]")) and "libpthread" not in listing
    assert files.shared.stat().st_size < 64_000
    symbols = subprocess.run(["nm", "-uD", files.shared], capture_output=True, text=True, check=True).stdout
    assert "__errno" in symbols and "__aarch64" not in symbols and "__emutls" not in symbols


@pytest.mark.parametrize("threads", [1, 3])
def test_the_runner_gives_the_bits_of_a_board(bionic, artifact, sample_model, sample_data, tmp_path, threads):
    samples = sample_data["image"][:4]
    samples.tofile(tmp_path / "in.bin")
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin", "--threads", threads]
    done = android(bionic, build_runtime(TRIPLE).runner, artifact, *files)
    assert done.returncode == 0, done.stderr
    found = np.fromfile(tmp_path / "out.bin", np.float32).reshape(4, 10)
    assert (found.argmax(axis=1) == sample_data["labels"][:4]).all()
    board = edgec.compile(sample_model, "rpi4", tmp_path / "board.so").path
    subprocess.run(
        ["qemu-aarch64", "-L", SYSROOT, build_runtime("aarch64-linux-gnu").runner, board, *map(str, files[:2]),
         "--outputs", tmp_path / "board.bin"], check=True,
    )  # fmt: skip
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "board.bin").read_bytes()


def test_the_runner_for_android_says_what_is_wrong(bionic, artifact, tmp_path):
    (tmp_path / "in.bin").write_bytes(b"")
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(artifact.read_bytes()[:-1])
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin"]
    for model, sentence in ((damaged, "is truncated"), (tmp_path / "none.so", "No such file")):
        done = android(bionic, build_runtime(TRIPLE).runner, model, *files)
        assert done.returncode == 2 and sentence in done.stderr


PI, SAMPLE = ROOT / "samples" / "raspberry_pi", ROOT / "samples" / "android"


@pytest.mark.heavy
def test_a_package_is_built_and_signed(sample_model, sample_data, tmp_path):
    for tool, package in (("aapt", "aapt"), ("apksigner", "apksigner"), ("zipalign", "zipalign")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; run: apt-get install {package} android-framework-res")
    Image.fromarray(np.rint(sample_data["image"][0, 0] * 255 / 16).astype(np.uint8)).save(tmp_path / "digit.png")
    files = ["--preprocess", PI / "models" / "digits.toml", "--labels", PI / "models" / "digits.txt"]
    command = [sys.executable, SAMPLE / "debian" / "build_apk.py", sample_model, *files]
    command += ["--picture", tmp_path / "digit.png", "-o", tmp_path / "sample.apk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    package = tmp_path / "sample.apk"
    for check in (["apksigner", "verify", package], ["zipalign", "-c", "4", package]):
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0, check
    badging = subprocess.run(["aapt", "dump", "badging", package], capture_output=True, text=True, check=True).stdout
    for line in ("name='org.edgec.sample'", "sdkVersion:'29'", "org.edgec.sample.PictureActivity", "'arm64-v8a'"):
        assert line in badging
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        archive.extract("lib/arm64-v8a/libmodel_cpu.so", tmp_path)
        classes = archive.read("classes.dex")
    assert {"lib/arm64-v8a/libedgert_jni.so", "assets/recipe.toml", "assets/labels.txt"} <= set(names)
    assert classes[:4] == b"dex\n" and b"Lorg/edgec/edgert/Session;" in classes
    assert read_manifest(tmp_path / "lib" / "arm64-v8a" / "libmodel_cpu.so")["target"] == "android-arm64"
    package.write_bytes(package.read_bytes().replace(b"assets/labels.txt", b"assets/labelz.txt"))
    assert subprocess.run(["apksigner", "verify", package], capture_output=True, check=False).returncode != 0


def test_a_missing_tool_is_named(sample_model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    files = [f"--{name}={tmp_path / name}" for name in ("preprocess", "labels", "picture")]
    command = [sys.executable, SAMPLE / "debian" / "build_apk.py", sample_model, *files, "-o", tmp_path / "out.apk"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "run: apt-get install default-jdk-headless aapt zipalign apksigner" in done.stderr
    assert not (tmp_path / "out.apk").exists()


def test_a_model_is_added_to_the_project(sample_model, tmp_path):
    copy = tmp_path / "android"
    shutil.copytree(SAMPLE, copy)
    files = [sample_model, PI / "models" / "digits.toml", PI / "models" / "digits.txt"]
    environment = os.environ | {"EDGEC": f"{Path(sys.executable).parent}/edgec"}
    done = subprocess.run(
        [copy / "add_model.sh", *files], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    main = copy / "app" / "src" / "main"
    assert [path.name for path in (main / "jniLibs" / "arm64-v8a").iterdir()] == ["libmodel_cpu.so"]
    assert read_manifest(main / "jniLibs" / "arm64-v8a" / "libmodel_cpu.so")["triple"] == TRIPLE
    assert sorted(path.name for path in (main / "assets").iterdir()) == ["labels.txt", "recipe.toml"]


def test_the_projects_files_name_what_there_is():
    """What Gradle would say of a slip, as far as it can be said without Gradle."""
    project = SAMPLE / "app" / "src" / "main"
    catalogue = tomllib.loads((SAMPLE / "gradle" / "libs.versions.toml").read_text())
    known = {f"libs.{name.replace('-', '.')}" for name in catalogue["libraries"]}
    known |= {f"libs.plugins.{name.replace('-', '.')}" for name in catalogue["plugins"]}
    scripts = [*SAMPLE.rglob("*.gradle.kts"), ROOT / "runtimes" / "java" / "build.gradle.kts"]
    used = {name for path in scripts for name in re.findall(r"\((libs\.[a-z0-9.]+)\)", path.read_text())}
    assert used == known
    entries = [*catalogue["libraries"].values(), *catalogue["plugins"].values()]
    assert {entry["version"]["ref"] for entry in entries} == set(catalogue["versions"])
    layout = ElementTree.parse(project / "res" / "layout" / "activity_main.xml").getroot()
    ids = {value.removeprefix("@+id/") for view in layout.iter() for key, value in view.items() if key.endswith("}id")}
    strings = {each.get("name") for each in ElementTree.parse(project / "res" / "values" / "strings.xml").getroot()}
    kotlin = "".join(path.read_text() for path in project.rglob("*.kt"))
    assert set(re.findall(r"R\.id\.(\w+)", kotlin)) == ids
    assert set(re.findall(r"R\.string\.(\w+)", kotlin)) <= strings
    for path in SAMPLE.rglob("AndroidManifest.xml"):
        activity = ElementTree.parse(path).getroot().find("application/activity")
        assert activity is not None
        name = activity.get("{http://schemas.android.com/apk/res/android}name", "")
        assert list(SAMPLE.rglob(f"{name.removeprefix('.')}.*"))
