"""Stands in for adb: a phone that is a folder, which runs Android's programs under the emulator.

The variable PHONE names its folder: ``tmp`` is /data/local/tmp there, ``sys`` is /sys, and ``bionic`` holds libraries
with Android's names. What is called is written to ``log``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PHONE = Path(os.environ["PHONE"])
SCRATCH = "/data/local/tmp"
SYSROOT = "/usr/aarch64-linux-gnu"
SERIAL = "emulator-5554"
GETPROP = 'getprop() { echo "Pixel of a test"; }; uname() { echo aarch64; }; getconf() { return 1; }; '


def here(path: str) -> str:
    """A path of the phone on this machine."""
    return path.replace(SCRATCH, str(PHONE / "tmp"))


def shell(script: str) -> int:
    """Run a script as the phone would."""
    text = here(script).replace("/sys/", f"{PHONE}/sys/")
    done = subprocess.run(["sh", "-c", GETPROP + text], capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout.replace(str(PHONE / "tmp"), SCRATCH))
    sys.stderr.write(done.stderr)
    return done.returncode


def push(*arguments: str) -> int:
    """Copy files; a program becomes one that starts the emulator."""
    *files, folder = arguments
    for path in map(Path, files):
        target = Path(here(folder)) / path.name
        shutil.copy(path, target)
        if path.read_bytes()[:4] == b"\x7fELF" and path.suffix != ".so":
            hidden = target.with_name(f".{target.name}")
            target.rename(hidden)
            loader = f"{SYSROOT}/lib/ld-linux-aarch64.so.1 --library-path {PHONE}/bionic:{SYSROOT}/lib"
            target.write_text(f'#!/bin/sh\nexec qemu-aarch64 -cpu cortex-a76 -L {SYSROOT} {loader} {hidden} "$@"\n')
    print(f"{len(files)} files pushed")
    return 0


def pull(source: str, target: str) -> int:
    """Copy a file back."""
    if not Path(here(source)).is_file():
        print(f"adb: error: failed to stat remote object '{source}': No such file or directory", file=sys.stderr)
        return 1
    shutil.copy(here(source), target)
    return 0


def main() -> int:
    """As adb would be called."""
    arguments = sys.argv[1:]
    with (PHONE / "log").open("a") as log:
        log.write(" ".join(arguments).replace("\n", " ") + "\n")
    if arguments[:1] == ["-s"]:
        if arguments[1] != SERIAL:
            print(f"adb: device '{arguments[1]}' not found", file=sys.stderr)
            return 1
        arguments = arguments[2:]
    return {"shell": shell, "push": push, "pull": pull}[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
