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
from tests.android import PHONES, Phone

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DIGITS = 4

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed; run: pip install ziglang"
)


@pytest.fixture(scope="module", params=PHONES, ids=lambda phone: phone.abi)
def phone(request) -> Phone:
    """Each of Android's systems."""
    return request.param


@pytest.fixture(scope="module")
def libraries(phone, tmp_path_factory) -> Path:
    """A folder of libraries with Android's names."""
    phone.require()
    return phone.libraries(tmp_path_factory.mktemp("bionic"))


@pytest.fixture(scope="module")
def artifact(phone, sample_model, tmp_path_factory) -> Path:
    """The sample model."""
    return edgec.compile(sample_model, phone.target, tmp_path_factory.mktemp("android") / "libdigits.so").path


def test_the_runtime_is_built_without_the_ndk(phone):
    files = build_runtime(phone.triple)
    listing = subprocess.run(["readelf", "-dlW", files.runner], capture_output=True, text=True, check=True).stdout
    assert f"{phone.interpreter}]" in listing and listing.count("0x4000\n") >= 3
    assert all(name in listing for name in ("[libc.so]", "[libdl.so]")) and "libpthread" not in listing
    assert files.shared.stat().st_size < 64_000
    for file in (files.shared, files.runner, files.selftest):
        assert undefined(file) <= BIONIC


def test_artifacts_call_nothing_but_androids_libraries(phone, artifact):
    listing = subprocess.run(["readelf", "-hdW", artifact], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.*)\]", listing)) <= {"libc.so", "libm.so"}
    assert "hard-float" not in listing and undefined(artifact) <= BIONIC


def undefined(file: Path) -> set[str]:
    """The functions and variables that a file takes from others."""
    lines = subprocess.run(["nm", "-uD", file], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


BIONIC = set(
    """
    __errno __libc_init __sched_cpucount __tls_get_addr calloc clock_gettime close dladdr dlclose dlerror dlopen dlsym
    exit expf fclose fcntl ferror fileno fopen fprintf fputc fputs fread free fscanf fseek fstat ftell fwrite getauxval
    getenv getpid malloc memchr memcmp memcpy memmove memset mkdir open posix_memalign pread printf
    pthread_cond_broadcast pthread_cond_destroy pthread_cond_init pthread_cond_signal pthread_cond_wait pthread_create
    pthread_join pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock puts remove rename
    sched_getaffinity sched_setaffinity snprintf stderr stdout strchr strcmp strcpy strerror strlen strncmp strstr
    strtoul syscall vfprintf write
    """.split()  # noqa: SIM905 - a list of so many quotes would not be read
)
"""What is used of what Android 10 has on every processor."""


@pytest.mark.parametrize("threads", [1, 3])
def test_digits_are_told_apart(phone, libraries, artifact, sample_data, tmp_path, threads):
    samples = sample_data["image"][:DIGITS]
    samples.tofile(tmp_path / "in.bin")
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin", "--threads", threads]
    done = phone.run(libraries, build_runtime(phone.triple).runner, artifact, *files)
    assert done.returncode == 0, done.stderr
    found = np.fromfile(tmp_path / "out.bin", np.float32).reshape(DIGITS, 10)
    assert (found.argmax(axis=1) == sample_data["labels"][:DIGITS]).all()


@pytest.fixture(scope="module")
def integers(sample_model) -> dict[str, object]:
    """Arguments for the sample model in 8 bits."""
    return {"quantize": "int8", "calib": sample_model.with_name("digits_calib.npz")}


@pytest.fixture(scope="module")
def bits_here(sample_model, sample_data, integers, tmp_path_factory) -> bytes:
    """What it answers on this machine."""
    path = edgec.compile(sample_model, "host", tmp_path_factory.mktemp("host") / "digits.so", **integers).path
    with edgec.load(path) as session:
        found = [session.run({"image": image[None]})["logits"] for image in sample_data["image"][:DIGITS]]
    return np.concatenate(found).tobytes()


def test_integers_are_those_of_this_machine(phone, libraries, sample_model, sample_data, integers, bits_here, tmp_path):
    artifact = edgec.compile(sample_model, phone.target, tmp_path / "digits.so", **integers).path
    sample_data["image"][:DIGITS].tofile(tmp_path / "in.bin")
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin"]
    done = phone.run(libraries, build_runtime(phone.triple).runner, artifact, *files)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.bin").read_bytes() == bits_here


def test_the_runner_says_what_is_wrong(phone, libraries, artifact, tmp_path):
    (tmp_path / "in.bin").write_bytes(b"")
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(artifact.read_bytes()[:-1])
    files = ["--inputs", tmp_path / "in.bin", "--outputs", tmp_path / "out.bin"]
    for model, sentence in ((damaged, "is truncated"), (tmp_path / "none.so", "No such file")):
        done = phone.run(libraries, build_runtime(phone.triple).runner, model, *files)
        assert done.returncode == 2 and sentence in done.stderr


NATIVE = ("libedgert_jni.so", "libmodel_cpu.so")
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
    for line in ("name='org.edgec.sample'", "sdkVersion:'29'", "org.edgec.sample.PictureActivity"):
        assert line in badging
    assert "native-code: 'arm64-v8a' 'armeabi-v7a' 'x86_64'" in badging
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        for phone in PHONES:
            library, model = (archive.extract(f"lib/{phone.abi}/{name}", tmp_path) for name in NATIVE)
            assert undefined(Path(library)) <= BIONIC
            assert read_manifest(Path(model))["target"] == phone.target
        classes = archive.read("classes.dex")
    assert {"assets/recipe.toml", "assets/labels.txt"} <= set(names)
    assert classes[:4] == b"dex\n" and b"Lorg/edgec/edgert/Session;" in classes
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
    for phone in PHONES:
        (model,) = (main / "jniLibs" / phone.abi).iterdir()
        assert model.name == "libmodel_cpu.so" and read_manifest(model)["triple"] == phone.triple
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
