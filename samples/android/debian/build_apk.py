"""Builds and signs an Android app without Google's SDK and NDK: with edgec, ziglang, a JDK and Debian's packages alone.

    python build_apk.py MODEL.onnx --preprocess RECIPE.toml --labels LABELS.txt --picture PICTURE.png -o sample.apk

The app names the picture, or one that its user chooses. Needs, from Debian: aapt apksigner zipalign
android-framework-res and a JDK; and, from its release bullseye, dalvik-exchange libandroid-23-java, which are unpacked
into a cache and not installed. The key is made for the occasion; give your own with --keystore and --password.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import edgec
from edgec.building.toolchain import find_toolchain
from edgec.runtimes.build import SOURCE_FOLDER, build_runtime, cache_folder
from edgec.targets.target import load_target

HERE = Path(__file__).resolve().parent
BINDING = SOURCE_FOLDER.parent / "java" / "src" / "main"
ABIS = {"arm64-v8a": "android-arm64", "armeabi-v7a": "android-armv7", "x86_64": "android-x86_64"}
"""The folders of native libraries in a package, and edgec's targets for them."""
GPU_ABI = "arm64-v8a"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
TOOLS = {"javac": "default-jdk-headless", "aapt2": "aapt", "zipalign": "zipalign", "apksigner": "apksigner"}
OLD_PACKAGES = ("dalvik-exchange", "libandroid-23-java")
OLD_RELEASE = "bullseye"
LEAST_ANDROID = 29


def run(*command: object) -> None:
    """Run a program.

    Raises:
        EdgecError: it fails; with what it says.
    """
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr + done.stdout).strip().splitlines()[-8:]
        raise edgec.EdgecError("\n  ".join([f"{Path(str(command[0])).name} failed:", *lines]))


def require_tools() -> None:
    """Refuse to go on where a tool is missing.

    Raises:
        EdgecError: saying what to install.
    """
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    missing += [] if FRAMEWORK.is_file() else ["android-framework-res"]
    if missing:
        raise edgec.EdgecError(f"tools for Android are missing; run: apt-get install {' '.join(missing)}")


def old_tools() -> tuple[Path, Path]:
    """The compiler to Dalvik's byte code and the classes of Android 6, of an older Debian; fetched once.

    Raises:
        EdgecError: they cannot be fetched.
    """
    folder = cache_folder() / "android"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            scratch = Path(name)
            _fetch(scratch)
            for package in scratch.glob("*.deb"):
                run("dpkg", "-x", package, scratch / "root")
            (scratch / "root").rename(folder)
    compilers, classes = (sorted(folder.rglob(name)) for name in ("*com.android.dx.jar", "*com.android.android-23.jar"))
    if not compilers or not classes:
        raise edgec.EdgecError(f"'{folder}' lacks the packages {' '.join(OLD_PACKAGES)}; remove it and try again")
    return compilers[0], classes[0]


def _fetch(scratch: Path) -> None:
    """Download the packages with a list of sources of their own, so that the system's apt knows nothing of them."""
    for each in ("lists/partial", "cache/archives/partial", "etc"):
        (scratch / each).mkdir(parents=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    source = f"deb [signed-by={keys}] http://deb.debian.org/debian {OLD_RELEASE} main\n"
    (scratch / "etc" / "sources.list").write_text(source, encoding="utf-8")
    (scratch / "status").touch()
    options = {
        "Dir::State::lists": scratch / "lists", "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": scratch / "etc" / "sources.list", "Dir::Etc::sourceparts": "-",
        "Acquire::Check-Valid-Until": "false", "APT::Sandbox::User": "root",
    }  # fmt: skip
    flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
    run("apt-get", *flags, "update")
    run("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", scratch, "apt-get", *flags, "download", *OLD_PACKAGES)


def build_library(triple: str, jdk: Path, output: Path) -> None:
    """Java's binding with libedgert in it."""
    files = build_runtime(triple)
    includes = [f"-I{files.include}", f"-I{jdk / 'include'}", f"-I{jdk / 'include' / 'linux'}"]
    find_toolchain(triple).compile(
        [BINDING / "cpp" / "edgert_jni.c", files.static],
        output,
        flags=["-std=c11", "-fvisibility=hidden", *includes, "-s", "-Wl,--gc-sections", "-Wl,-soname,libedgert_jni.so",
               "-ldl"],
    )  # fmt: skip


def java_home() -> Path:
    """The folder of the JDK."""
    return Path(shutil.which("javac") or "javac").resolve().parent.parent


def compile_classes(folder: Path) -> Path:
    """The byte code of the app and of the binding: ``classes.dex``."""
    dx, classes = old_tools()
    sources = [
        *(BINDING / "java").rglob("*.java"), *(HERE.parent / "app" / "src" / "main" / "java").rglob("*.java"),
        *(HERE / "java").rglob("*.java"),
    ]  # fmt: skip
    (folder / "classes").mkdir()
    # Java 8 without lambdas is what this compiler to Dalvik understands
    flags = ["-nowarn", "-source", "8", "-target", "8", "-bootclasspath", classes, "-d", folder / "classes"]
    run("javac", *flags, *sources)
    output = folder / "classes.dex"
    run("java", "-cp", dx, "com.android.dx.command.Main", "--dex", f"--min-sdk-version={LEAST_ANDROID}",
        f"--output={output}", folder / "classes")  # fmt: skip
    return output


def build_libraries(options: argparse.Namespace, folder: Path) -> list[Path]:
    """What the package has for each ABI, in a folder of its name below ``folder``."""
    jdk = java_home()
    calibrated = {"quantize": "int8", "calib": options.calib} if options.calib else {}
    libraries = []
    for abi in options.abi:
        (folder / abi).mkdir(parents=True)
        libraries += [folder / abi / "libedgert_jni.so", folder / abi / "libmodel_cpu.so"]
        build_library(load_target(ABIS[abi]).triple, jdk, libraries[-2])
        edgec.compile(options.model, ABIS[abi], libraries[-1], **calibrated)
    if options.gpu:
        libraries.append(folder / GPU_ABI / "libmodel_gpu.so")
        shutil.copy(options.gpu, libraries[-1])
    return libraries


def pack(folder: Path, assets: Path, libraries: Sequence[Path], output: Path) -> None:
    """Put the parts together, aligned, without a signature. Libraries go into the folders of their ABIs."""
    base, whole = folder / "base.apk", folder / "whole.apk"
    # aapt2 is older than uses-native-library, warns, and keeps it
    run("aapt2", "link", "-o", base, "-I", FRAMEWORK, "--manifest", HERE / "AndroidManifest.xml", "-A", assets,
        "--warn-manifest-validation")  # fmt: skip
    shutil.copy(base, whole)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.write(compile_classes(folder), "classes.dex", zipfile.ZIP_DEFLATED)
        for library in libraries:
            archive.write(library, f"lib/{library.parent.name}/{library.name}", zipfile.ZIP_DEFLATED)
    run("zipalign", "-f", "-p", "4", whole, output)


def sign(package: Path, output: Path, keystore: Path | None, password: str, folder: Path) -> None:
    """Sign the package; without a ``keystore`` by a key that is made now."""
    if keystore is None:
        keystore = folder / "debug.p12"
        run("keytool", "-genkeypair", "-keystore", keystore, "-storetype", "PKCS12", "-storepass", password, "-alias",
            "key", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000", "-dname", "CN=edgec sample")  # fmt: skip
    run("apksigner", "sign", "--ks", keystore, "--ks-pass", f"pass:{password}", "--min-sdk-version", LEAST_ANDROID,
        "--out", output, package)  # fmt: skip


def build(options: argparse.Namespace) -> None:
    """Everything, into ``options.output``."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="edgec-apk-") as name:
        folder = Path(name)
        assets = folder / "assets"
        assets.mkdir()
        for source, asset in ((options.preprocess, "recipe.toml"), (options.labels, "labels.txt")):
            shutil.copy(source, assets / asset)
        shutil.copy(options.picture, assets / "picture.png")
        libraries = build_libraries(options, folder / "lib")
        pack(folder, assets, libraries, folder / "unsigned.apk")
        sign(folder / "unsigned.apk", folder / "signed.apk", options.keystore, options.password, folder)
        shutil.move(folder / "signed.apk", options.output)


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--preprocess", type=Path, required=True, help="the recipe, as for edgec eval")
    parser.add_argument("--labels", type=Path, required=True, help="names of the classes, one a line")
    parser.add_argument("--picture", type=Path, required=True, help="a PNG file to begin with")
    parser.add_argument("--calib", type=Path, help="typical inputs, to quantise the model by")
    parser.add_argument("--gpu", type=Path, help=f"an artifact for the phone's GPU, for the app's switch on {GPU_ABI}")
    parser.add_argument("--abi", action="append", choices=ABIS, help="build for this ABI alone; may be repeated")
    parser.add_argument("--keystore", type=Path, help="of your own key; by default one is made")
    parser.add_argument("--password", default="password", help="of the keystore")
    parser.add_argument("--output", "-o", type=Path, default=Path("sample.apk"))
    options = parser.parse_args()
    options.abi = list(dict.fromkeys(options.abi or ABIS))
    if options.gpu and GPU_ABI not in options.abi:
        parser.error(f"--gpu is for {GPU_ABI}, which --abi leaves out")
    build(options)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except edgec.EdgecError as error:
        sys.exit(f"build_apk.py: {error}")
