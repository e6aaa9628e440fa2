"""Files that are almost artifacts, on everything that reads them: ``python -m tests.fuzz_loader --minutes 60``.

The libFuzzer programs of ``runtimes/c/fuzz`` (AddressSanitizer, UndefinedBehaviorSanitizer) get mutated artifacts,
signed artifacts and descriptors; edgec's own reader gets mutated manifests with a digest that is right. What is found
is left in ``--keep``, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

import edgec
from edgec.artifact import TRAILER, TRAILER_MAGIC, read_manifest
from edgec.building.toolchain import find_toolchain, host_triple
from edgec.data.samples import specs
from edgec.errors import EdgecError
from edgec.inspection import draw_memory, inspect_artifact
from edgec.runtimes.build import SOURCE_FOLDER
from edgec.terminal import tables
from tests import toy
from tests.programs import model

CLANGS = ("clang", *(f"clang-{version}" for version in range(21, 13, -1)))
WAYS = 5
"""What ``fuzz_signed`` may do with a file."""
FUZZERS = ("fuzz_artifact", "fuzz_signed", "fuzz_model")
STRINGS = ("", "x" * 300, "[/red]", "\x1b[2J", "\0", "ä\ud800", "../../x", "%s%n", "float31", "aarch64-linux-gnu")
NUMBERS = (0, 1, -1, 2**31, 2**62, 2**63, 2**64, -(2**63), 0.5, float("inf"), float("nan"), True, None)


def clang() -> str | None:
    """The newest clang that can build the programs."""
    found = [each for each in CLANGS if shutil.which(each)]
    for each in found:
        fuzzer = subprocess.run(
            [each, "-fsanitize=fuzzer", "-x", "c", "-", "-o", "/dev/null"], text=True, capture_output=True,
            input="#include <stdint.h>\n#include <stddef.h>\n"
            "int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { (void)d; return n > 9; }\n",
        )  # fmt: skip
        if fuzzer.returncode == 0:
            return each
    return None


def build(compiler: str, folder: Path) -> Path:
    """The programs, in the folder that is the answer."""
    configure = ["cmake", "-S", SOURCE_FOLDER, "-B", folder, "-DEDGERT_FUZZ=ON", f"-DCMAKE_C_COMPILER={compiler}"]
    for command in (configure, ["cmake", "--build", folder, "--target", *FUZZERS, "-j2"]):
        subprocess.run(command, check=True, capture_output=True)
    return folder / "fuzz"


def seeds(folder: Path) -> list[Path]:
    """Artifacts to begin with: the toy, and a small model in integers with its tests."""
    weights = {"w": np.ones((5, 3, 3, 3), np.float32), "g": np.ones((75, 4), np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]), helper.make_node("Gemm", ["f", "g"], ["y"]),
    ]  # fmt: skip
    tiny = model(nodes, {"x": (1, 3, 7, 5)}, {"y": (1, 4)}, weights)
    samples = [{"x": np.random.default_rng(seed).standard_normal((1, 3, 7, 5), np.float32)} for seed in range(3)]
    np.savez(folder / "tests.npz", x=np.concatenate([sample["x"] for sample in samples]))
    made = edgec.compile(
        tiny, "host", folder / "tiny.so", quantize="int8", calib=samples, bundle_tests=folder / "tests.npz"
    )  # fmt: skip
    return [toy.link(find_toolchain(host_triple()), folder / "toy.so"), made.path]


def corpus(name: str, artifacts: list[Path], folder: Path) -> Path:
    """What a program starts from."""
    folder.mkdir(parents=True)
    for path in artifacts if name != "fuzz_model" else ():
        for way in range(WAYS) if name == "fuzz_signed" else (None,):
            control = b"" if way is None else (way + WAYS * 4321).to_bytes(4, "little")
            (folder / f"{path.name}{way}").write_bytes(path.read_bytes() + control)
    return folder


def run_fuzzer(program: Path, start: Path, seconds: float, keep: Path) -> tuple[int, str]:
    """Inputs that were tried, and what was found: nothing, if all is well."""
    done = subprocess.run(
        [program, start, f"-max_total_time={max(1, round(seconds))}", "-timeout=20", "-rss_limit_mb=2048",
         "-print_final_stats=1", f"-artifact_prefix={keep}/{program.name}-"],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    count = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    return int(count[1]) if count else 0, "" if done.returncode == 0 else done.stderr[-4000:]


def sealed(data: bytes, manifest: bytes, offset: int | None = None, size: int | None = None) -> bytes:
    """An artifact's bytes with another manifest, and a trailer whose digest is right."""
    head = data[: -TRAILER.size] + manifest
    place = len(data) - TRAILER.size if offset is None else offset
    head += TRAILER.pack(TRAILER_MAGIC, place, len(manifest) if size is None else size, b"")[:-32]
    return head + hashlib.sha256(head).digest()


def mutated(manifest: Any, rng: random.Random) -> Any:
    """``manifest`` with one to three changes, anywhere."""
    made = copy.deepcopy(manifest)
    for _ in range(rng.randint(1, 3)):
        holder = made
        while rng.random() < 0.75 and isinstance(holder, dict | list) and holder:
            deeper = holder[rng.choice(list(holder))] if isinstance(holder, dict) else rng.choice(holder)
            if not isinstance(deeper, dict | list) or not deeper:
                break
            holder = deeper
        if not isinstance(holder, dict | list) or not holder:
            continue
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        change = rng.randrange(5)
        if change == 0:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[rng.choice(STRINGS)] = holder[key]
        else:
            others = (*STRINGS, *NUMBERS, [], {}, [[]], [1, 2], {"rows": [], "columns": []}, made.copy())
            holder[key] = copy.deepcopy(rng.choice(others))
    return made


def manifests(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """Artifacts without end whose manifests are not what edgec writes."""
    _, offset, size, _ = TRAILER.unpack(data[-TRAILER.size :])
    text = data[offset : offset + size]
    whole = json.loads(text)
    while True:
        kind = rng.randrange(8)
        if kind == 0:
            changed = bytearray(text)
            for _ in range(rng.randint(1, 8)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            yield sealed(data, bytes(changed))
        elif kind == 1:
            yield sealed(data, text[: rng.randrange(len(text))])
        elif kind == 2:
            places = (0, 1, offset, len(data), 2**32, 2**63, 2**64 - 1)
            yield sealed(data, text, rng.choice(places), rng.choice(places))
        elif kind == 3 and rng.random() < 0.05:
            yield sealed(data, b"[" * rng.choice((10, 100_000)))
        else:
            yield sealed(data, json.dumps(mutated(whole, rng)).encode())


def read_all(path: Path) -> None:
    """What edgec does with a manifest.

    Raises:
        EdgecError: it is damaged.
    """
    facts = inspect_artifact(path)
    specs(facts["inputs"]), specs(facts["outputs"])
    draw_memory(facts)
    with redirect_stdout(StringIO()):
        tables.print_manifest(path, facts)


def fuzz_manifests(artifact: Path, seconds: float, keep: Path, seed: int) -> tuple[int, str]:
    """As :func:`run_fuzzer`."""
    count, end, data = 0, time.monotonic() + seconds, artifact.read_bytes()
    path = keep / f"manifest-{seed}.so"
    read_manifest(artifact)
    for changed in manifests(data, random.Random(seed)):
        if time.monotonic() > end:
            break
        path.write_bytes(changed)
        count += 1
        try:
            read_all(path)
        except EdgecError:
            continue
        except Exception as error:
            return count, f"{type(error).__name__}: {error}; see {path}"
    path.unlink()
    return count, ""


def fuzz(seconds: float, keep: Path, seed: int = 0) -> dict[str, tuple[int, str]]:
    """Run everything, each for its share of ``seconds``, two at a time.

    Returns:
        For each program, and ``manifests``: inputs tried, and what was found.
    """
    compiler = clang()
    if compiler is None or shutil.which("cmake") is None:
        raise SystemExit("the fuzzers need clang with libFuzzer, and cmake; run: apt-get install clang cmake")
    with tempfile.TemporaryDirectory(prefix="edgec-fuzz-") as name:
        folder = Path(name)
        artifacts = seeds(folder)
        programs = build(compiler, folder / "build")
        share = seconds / (len(FUZZERS) + 1)
        jobs: dict[str, Callable[[], tuple[int, str]]] = {
            each: lambda each=each: run_fuzzer(
                programs / each, corpus(each, artifacts, folder / "corpus" / each), share, keep
            )
            for each in FUZZERS
        }
        jobs["manifests"] = lambda: fuzz_manifests(artifacts[1], share, keep, seed)
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="of all programs together")
    parser.add_argument("--seed", type=int, default=0, help="of the mutated manifests")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs go that found something")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    found = fuzz(options.minutes * 60, options.keep, options.seed)
    for name, (count, what) in found.items():
        print(f"{name}: {count:,} inputs, {what or 'nothing found'}")
    return int(any(what for _, what in found.values()))


if __name__ == "__main__":
    sys.exit(main())
