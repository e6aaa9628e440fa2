"""The wheel ``edgert`` for devices: libedgert and its Python binding, which need numpy and nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edgec.artifact import write_atomically
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER, build_runtime

TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
"""By the machine, as a wheel's name has it."""

BINDING = SOURCE_FOLDER.parent / "python"
OLDEST_GLIBC = 17
"""Minor version of the oldest glibc that pip has a tag for."""

METADATA = """Metadata-Version: 2.1
Name: edgert
Version: {version}
Summary: Runs models that edgec compiled
Requires-Python: >=3.10
Requires-Dist: numpy>=1.26
"""


def build_wheel(machine: str, folder: Path) -> Path:
    """Build the wheel for ``machine`` into ``folder``.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        folder: where it goes.

    Raises:
        EdgecError: another machine, no compiler for it, or the folder cannot be written.
    """
    if machine not in TRIPLES:
        raise EdgecError(f"there is no wheel for '{machine}'; there is one for {' and '.join(TRIPLES)}")
    library = build_runtime(TRIPLES[machine]).shared.read_bytes()
    version = _version()
    tag = f"py3-none-manylinux_2_{_newest_glibc(library)}_{machine}"
    info = f"edgert-{version}.dist-info"
    files = {
        "edgert/libedgert.so": library,
        "edgert/session.py": (BINDING / "session.py").read_bytes(),
        "edgert/__init__.py": (BINDING / "device" / "package.py").read_bytes(),
        "edgert/library.py": (BINDING / "device" / "library.py").read_bytes(),
        f"{info}/METADATA": METADATA.format(version=version).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: edgec\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    path = folder / f"edgert-{version}-{tag}.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgecError(f"the folder {folder} cannot be made: {error.strerror}; choose another -o") from error
    write_atomically({path: _packed(files, f"{info}/RECORD")})
    return path


def _version() -> str:
    found = re.search(r'EDGERT_VERSION "(.*)"', (SOURCE_FOLDER / "include" / "edgert" / "edgert.h").read_text("utf-8"))
    assert found
    return found[1]


def _newest_glibc(library: bytes) -> int:
    """The minor version of glibc that ``library`` needs, by the versions of the functions that it names."""
    return max([OLDEST_GLIBC, *(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", library))])


def _packed(files: Mapping[str, bytes], record: str) -> bytes:
    """A wheel of ``files``, with its RECORD; the same bytes for the same files."""
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    listing = "\n".join([*rows, f"{record},,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, record: listing}.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = (0o755 if name.endswith(".so") else 0o644) << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
