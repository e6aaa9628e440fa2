"""A farm of boards that is this machine: TVM's own tracker, and TVM's own servers, all with one key."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

KEY = "board"
PATIENCE_SECONDS = 120


@dataclass
class Farm:
    """``url`` as ``--device`` takes it; each server writes what it does to a file of ``logs``."""

    port: int
    folder: Path
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"rpc://127.0.0.1:{self.port}/{KEY}"

    @property
    def logs(self) -> list[str]:
        return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.folder.glob("server-*"))]

    def attach(self) -> None:
        """Start one more board."""
        command = ["rpc_server", "--tracker", f"127.0.0.1:{self.port}", "--key", KEY, "--host", "127.0.0.1"]
        port, name = free_port(), f"server-{len(self.servers)}"
        ports = ["--port", str(port), "--port-end", str(port + 1)]
        self.servers.append(_start([*command, *ports], self.folder / name))


@contextmanager
def farm(folder: Path, boards: int) -> Iterator[Farm]:
    """Start the tracker and ``boards`` servers, and stop them at the end."""
    pytest.importorskip("tornado", reason="the tracker needs tornado; run: pip install 'edgec[rpc]'")
    pytest.importorskip("cloudpickle", reason="the servers need cloudpickle; run: pip install 'edgec[rpc]'")
    made = Farm(free_port(), folder)
    command = ["rpc_tracker", "--host", "127.0.0.1", "--port", str(made.port), "--port-end", str(made.port + 1)]
    tracker = _start([*command, "--silent"], folder / "tracker")
    try:
        for _ in range(boards):
            made.attach()
        wait_for_boards(made, boards)
        yield made
    finally:
        for each in (*made.servers, tracker):
            stop(each)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_boards(made: Farm, boards: int) -> None:
    """Until so many report."""
    from edgec.devices.rpc import Tracker
    from edgec.errors import EdgecError

    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_SECONDS:
        with suppress(EdgecError):
            tracker = Tracker("127.0.0.1", made.port)
            found = tracker.boards()
            tracker.close()
            if len(found) == boards:
                return
        if boards and any(server.poll() is not None for server in made.servers):
            break
        time.sleep(0.2)
    pytest.fail(f"{boards} boards do not report to the tracker: {made.logs}")


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", f"tvm.exec.{arguments[0]}", *arguments[1:]]
        return subprocess.Popen(
            command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
