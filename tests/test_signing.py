"""Signed artifacts: opened by their key alone, in C and in Python, and refused after any change."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgec
from edgec.artifact import SIGNATURE, TRAILER, read_manifest
from edgec.cli import main
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.runtimes.python.session import Session
from tests.programs import with_library

signing = pytest.importorskip("edgec.format.signing")
pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "release.key"
    signing.generate_key(path)
    return path


@pytest.fixture(scope="module")
def public(key: Path) -> Path:
    return key.with_name("release.key.pub")


@pytest.fixture(scope="module")
def signed(tiny_artifact: Path, key: Path, tmp_path_factory) -> Path:
    return signing.sign(tiny_artifact, key, tmp_path_factory.mktemp("signed") / "tiny.so")


PROGRAM = r"""
#include <edgert/edgert.h>
#include <stdio.h>
#include <stdlib.h>

/* program KEY-IN-HEX MODEL...: opens each, and says how that went. All stay open. */
int main(int argc, char **argv) {
  uint8_t key[32];
  for (int i = 0; i < 32; i++) {
    char digits[3] = {argv[1][2 * i], argv[1][2 * i + 1], 0};
    key[i] = (uint8_t)strtoul(digits, NULL, 16);
  }
  for (int i = 2; i < argc; i++) {
    edgert_session *session;
    edgert_status status = edgert_open_signed(argv[i], key, NULL, &session);
    if (status == EDGERT_OK) status = edgert_run(session);
    printf("%s %s\n", edgert_status_name(status), status == EDGERT_OK ? "" : edgert_last_error());
  }
  return 0;
}
"""


@pytest.fixture(scope="module", params=["openssl", "sodium"])
def opener(request, tmp_path_factory) -> Path:
    """A program that opens signed artifacts through a library with signatures."""
    header = {"openssl": "openssl/evp.h", "sodium": "sodium.h"}[request.param]
    if not shutil.which("cmake") or not Path("/usr/include", header).exists():
        pytest.skip(f"cmake or the headers of {request.param} are not installed; .ci/install-tools does it")
    folder = tmp_path_factory.mktemp("opener")
    prefix = folder / "prefix"
    for command in (
        ["cmake", "-S", SOURCE_FOLDER, "-B", folder / "build", f"-DEDGERT_SIGNATURES={request.param}"],
        ["cmake", "--build", folder / "build", "-j2"],
        ["cmake", "--install", folder / "build", "--prefix", prefix],
    ):
        subprocess.run(command, check=True, capture_output=True)
    (folder / "main.c").write_text(PROGRAM)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(user C)\nfind_package(edgert REQUIRED)\n"
        "add_executable(user main.c)\ntarget_link_libraries(user edgert::edgert)\n"
    )
    subprocess.run(
        ["cmake", "-S", folder, "-B", folder / "user", f"-DCMAKE_PREFIX_PATH={prefix}"], check=True, capture_output=True
    )
    subprocess.run(["cmake", "--build", folder / "user"], check=True, capture_output=True)
    return folder / "user" / "user"


def opened(opener: Path, public: Path, *artifacts: Path) -> list[str]:
    """How each went, in order."""
    done = subprocess.run([opener, signing.public_bytes(public).hex(), *artifacts], capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout.splitlines()


def test_c_opens_what_the_key_has_signed(opener: Path, public: Path, signed: Path, tiny_artifact: Path) -> None:
    lines = opened(opener, public, *[signed] * 20, tiny_artifact)
    assert [line.strip() for line in lines[:-1]] == ["EDGERT_OK"] * 20
    assert lines[-1].startswith("EDGERT_ERROR_SIGNATURE") and "is not signed" in lines[-1]


def test_c_refuses_a_flipped_bit_anywhere(opener: Path, public: Path, signed: Path, tmp_path: Path) -> None:
    data = signed.read_bytes()
    generator = np.random.default_rng(6)
    ends = [0, 4, 18, len(data) - 1, len(data) - 17, len(data) - SIGNATURE.size, len(data) - SIGNATURE.size - 1]
    places = [*ends, len(data) - SIGNATURE.size - TRAILER.size, *map(int, generator.integers(0, len(data), 92))]
    files = []
    for index, place in enumerate(places):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        files.append(tmp_path / f"{index}.so")
        files[-1].write_bytes(changed)
    lines = opened(opener, public, *files)
    assert len(lines) == len(files) and all(line.startswith("EDGERT_ERROR_SIGNATURE") for line in lines)


def test_c_refuses_a_flipped_bit_in_every_byte(public: Path, signed: Path, tmp_path: Path) -> None:
    if not Path("/usr/include/openssl/evp.h").exists():
        pytest.skip("the headers of OpenSSL are not installed; .ci/install-tools does it")
    copy = shutil.copy(signed, tmp_path / "copy.so")
    program = with_library("flip", tmp_path, "-DEDGERT_SIGNATURES_OPENSSL=1", "-lcrypto")
    command = [program, copy, signing.public_bytes(public).hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{signed.stat().st_size} bytes\n"), done.stderr


def test_c_refuses_other_keys_and_cut_files(opener: Path, public: Path, signed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    signing.generate_key(other)
    foreign = signing.sign(signed, other, tmp_path / "foreign.so")
    cut = tmp_path / "cut.so"
    cut.write_bytes(signed.read_bytes()[:-40])
    empty = tmp_path / "empty.so"
    empty.write_bytes(b"")
    lines = opened(opener, public, foreign, cut, empty, tmp_path / "missing.so")
    assert [line.split()[0] for line in lines] == ["EDGERT_ERROR_SIGNATURE"] * 3 + ["EDGERT_ERROR_FILE"]
    assert "signed by another" in lines[0]


def test_the_library_without_signatures_says_so(signed: Path, public: Path, tmp_path: Path) -> None:
    from edgec.building.toolchain import host_triple
    from edgec.runtimes.build import build_runtime

    (tmp_path / "main.c").write_text(PROGRAM)
    files = build_runtime(host_triple())
    command = ["cc", tmp_path / "main.c", files.static, f"-I{files.include}", "-lpthread", "-ldl"]
    subprocess.run([*command, "-o", tmp_path / "user"], check=True)
    assert "built without signatures" in opened(tmp_path / "user", public, signed)[0]


def test_python_opens_the_bytes_it_has_verified(signed: Path, public: Path, tiny_artifact: Path) -> None:
    x = np.ones((1, 3, 7, 5), np.float32)
    with edgec.load(tiny_artifact) as session:
        wanted = session.run({"x": x})["y"]
    sessions = [signing.load_signed(signed, public) for _ in range(3)]
    for session in sessions:
        np.testing.assert_array_equal(session.run({"x": x})["y"], wanted)
        session.close()
    with edgec.load(signed) as session:  # without a key the signature is not looked at
        np.testing.assert_array_equal(session.run({"x": x})["y"], wanted)
    with pytest.raises(EdgecError, match="is not signed"):
        signing.load_signed(tiny_artifact, public)


def test_python_refuses_a_flipped_byte(signed: Path, public: Path, tmp_path: Path) -> None:
    data = signed.read_bytes()
    path = tmp_path / "flipped.so"
    for place in np.random.default_rng(3).integers(0, len(data) - 16, 200):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        with pytest.raises(EdgecError, match="does not bear the signature"):
            signing.verify(path, public)


def test_a_memory_session_is_its_own(tiny_artifact: Path) -> None:
    with Session.from_bytes(tiny_artifact.read_bytes()) as session:
        assert session.inputs[0].name == "x"
    with pytest.raises(EdgecError, match="too short for an artifact"):
        Session.from_bytes(b"\x7fELF")


def test_signing_again_replaces_the_signature(signed: Path, public: Path, key: Path, tmp_path: Path) -> None:
    again = signing.sign(signed, key, tmp_path / "again.so")
    assert again.read_bytes() == signed.read_bytes()
    assert read_manifest(again) == read_manifest(signed)


def test_openssl_makes_keys_too(signed: Path, tiny_artifact: Path, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, public = tmp_path / "o.key", tmp_path / "o.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    signing.verify(signing.sign(tiny_artifact, key, tmp_path / "o.so"), public)


def test_commands(tmp_path: Path, tiny_artifact: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_artifact, "model.so")

    def command(line: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["edgec", *line.split()])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), " ".join((said.out + said.err).split())

    code, text = command("keygen -o my.key")
    assert code == 0 and len(re.findall("0x[0-9a-f]{2}", text)) == 32
    assert Path("my.key").stat().st_mode & 0o777 == 0o600
    assert command("verify model.so --key my.key.pub")[0] == 2
    assert command("sign model.so --key my.key")[0] == 0
    assert command("verify model.so --key my.key.pub")[0] == 0
    for line, sentence in {
        "keygen -o my.key": "'my.key' exists",
        "sign model.so --key my.key.pub": "holds no key of the right kind",
        "sign model.so --key missing.key": "cannot read the key missing.key",
        "sign my.key --key my.key": "not an edgec artifact",
        "verify model.so --key my.key": "holds no key of the right kind",
    }.items():
        code, text = command(line)
        assert code == 2 and sentence in text
