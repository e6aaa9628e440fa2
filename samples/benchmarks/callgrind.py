"""Instructions of an inference on an x86-64 processor, by valgrind's callgrind: exact and repeatable, and never a time.

The processor that valgrind shows to a program has AVX2 and no AVX-512, so artifacts are for the target ``x86-64-v3``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgec.artifact import read_manifest
from edgec.data.samples import Samples, specs, write_raw
from edgec.runtimes.build import build_runtime

COMMAND = "valgrind"


def is_there() -> bool:
    """Whether valgrind is installed."""
    return shutil.which(COMMAND) is not None


def count(artifact: Path, values: Mapping[str, np.ndarray]) -> int:
    """Instructions of the inference of ``values`` on one thread, after another one: of two less those of one.

    Raises:
        RuntimeError: valgrind is not there, or cannot run the artifact.
    """
    once, twice = (_whole(artifact, values, repeat) for repeat in (1, 2))
    return twice - once


def _whole(artifact: Path, values: Mapping[str, np.ndarray], repeat: int) -> int:
    """Instructions of the whole process, which runs the sample ``repeat`` times."""
    manifest = read_manifest(artifact)
    runner = build_runtime(manifest["triple"]).runner
    with tempfile.TemporaryDirectory(prefix="edgec-callgrind-") as folder:
        inputs = Path(folder) / "inputs.bin"
        write_raw(inputs, specs(manifest["inputs"]), Samples(1, None, lambda index: dict(values)))
        command = [
            COMMAND, "--tool=callgrind", "--callgrind-out-file=/dev/null", str(runner), str(artifact.resolve()),
            "--inputs", str(inputs), "--outputs", str(inputs.with_name("outputs.bin")), "--count", "1",
            "--repeat", str(repeat),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        except FileNotFoundError as error:
            raise RuntimeError(f"{COMMAND} is not installed; run: apt-get install {COMMAND}") from error
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"{COMMAND} cannot run {artifact}: {done.stderr.strip()[-300:]}")
    return int(found[1])
