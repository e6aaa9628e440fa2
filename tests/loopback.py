"""A device behind ssh that is this machine: a real sshd on the loopback, with keys and a home folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Loopback:
    """The device: ``url`` as ``--device`` takes it, its ``home`` and its folder for ``scratch`` files, a folder of
    commands that it finds first, and a folder with an ``ssh`` that knows its key, for the PATH of whoever calls it."""

    url: str
    port: int
    home: Path
    scratch: Path
    commands: Path
    client: Path

    def command(self, name: str, script: str) -> None:
        """Put a shell script on the device's PATH."""
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)


@contextmanager
def loopback(folder: Path) -> Iterator[Loopback]:
    """Start the sshd, and stop it at the end; skips the test where there is none."""
    if not Path(SSHD).exists() or shutil.which("ssh") is None:
        pytest.skip("there is no sshd to connect to; .ci/install-tools installs openssh-server and openssh-client")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    device = Loopback(
        f"ssh://{getpass.getuser()}@127.0.0.1:{port}", port,
        *(folder / name for name in ("home", "scratch", "commands", "client")),
    )  # fmt: skip
    for each in (device.home, device.scratch, device.commands, device.client):
        each.mkdir()
    for key in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it separates its privileges
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/own.pub\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n"
        f"SetEnv HOME={device.home} TMPDIR={device.scratch} PATH={device.commands}:{os.environ['PATH']}\n"
    )
    host_key = (folder / "host.pub").read_text(encoding="utf-8")
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}", encoding="utf-8")
    options = f"-F none -i {folder}/own -o UserKnownHostsFile={folder}/known_hosts -o IdentitiesOnly=yes"
    wrapper = device.client / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _wait(server, port)
        yield device
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {server.stderr.read().decode() if server.stderr else ''}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip("sshd does not answer here")
