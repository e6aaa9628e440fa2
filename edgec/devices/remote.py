"""Machines that are reached over ssh, adb or a tracker: files and commands go there, results and their state come back.

Everything happens in a folder of its own on the machine, which is removed at the end, also after a failure.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgec.errors import EdgecError

NOT_FOUND, SSH_FAILED = 127, 255
"""What a shell, and ssh itself, end with."""
CONNECT_SECONDS = 15
SPELLINGS = "ssh://[user@]host[:port], adb://serial or rpc://tracker[:port]/key"


@dataclass(frozen=True)
class Ended:
    """How a command on the machine ended."""

    code: int
    output: str
    errors: str


class Timeout(Exception):
    """A command on the machine did not end in time; ``output`` is what it printed until then."""

    def __init__(self, output: str, seconds: float) -> None:
        self.output = output
        super().__init__(f"did not end within {seconds:g} s")


class Lost(EdgecError):
    """The machine was there, and has gone since; another one of its kind may do."""


class Transport(ABC):
    """A way to one machine. ``url`` is as ``--device`` takes it; ``scratch`` where folders may be made there."""

    url: str
    scratch: str

    @abstractmethod
    def shell(self, script: str, *, seconds: float | None = None) -> Ended:
        """Run a script of the POSIX shell.

        Raises:
            EdgecError: the machine cannot be reached.
            Timeout: after ``seconds``.
        """

    @abstractmethod
    def push(self, files: Sequence[Path], folder: str) -> None:
        """Copy files into a folder of the machine.

        Raises:
            EdgecError: the machine cannot be reached, or has no room.
        """

    @abstractmethod
    def pull(self, source: str, target: Path) -> None:
        """Copy a file of the machine here.

        Raises:
            EdgecError: the machine cannot be reached, or has no such file.
        """

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the connection while the block runs, where that spares anything."""
        yield

    @property
    def name(self) -> str:
        """The machine's own, for records."""
        return self.url.partition("://")[2].rpartition("@")[2]

    @property
    def boards(self) -> int:
        """How many machines of this kind can be had at a time.

        Raises:
            EdgecError: nobody who knows can be reached.
        """
        return 1

    def require(self, ended: Ended, doing: str) -> str:
        """The output of a command that must not fail.

        Raises:
            EdgecError: it failed.
        """
        if ended.code != 0:
            reason = (ended.errors.strip() or ended.output.strip() or f"exit code {ended.code}").splitlines()[-1]
            raise EdgecError(f"{self.url} could not {doing}: {reason}")
        return ended.output


def _run(command: Sequence[str], seconds: float | None, source: int | None = subprocess.DEVNULL) -> Ended:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=source, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        raise Timeout(text, error.timeout) from error
    return Ended(done.returncode, done.stdout, done.stderr)


@dataclass
class SshTransport(Transport):
    """OpenSSH's client, without passwords: keys and hosts are those of the user's own configuration."""

    host: str
    port: int | None = None
    scratch: str = "${TMPDIR:-/tmp}"
    _shared: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.url = f"ssh://{self.host}" + (f":{self.port}" if self.port else "")

    @contextmanager
    def connected(self) -> Iterator[None]:
        """All commands of the block go through one connection."""
        with tempfile.TemporaryDirectory(prefix="edgec-ssh-") as folder:
            path = f"ControlPath={folder}/master"
            self._shared = ["-o", "ControlMaster=auto", "-o", path, "-o", "ControlPersist=60"]
            try:
                yield
            finally:
                self._shared = []
                subprocess.run(["ssh", "-O", "exit", "-o", path, self.host], capture_output=True, check=False)

    def _command(self, script: str) -> list[str]:
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-o", "ServerAliveInterval=15"]
        ports = [] if self.port is None else ["-p", str(self.port)]
        return ["ssh", *options, *self._shared, *ports, self.host, f"sh -c {shlex.quote(script)}"]

    def shell(self, script: str, *, seconds: float | None = None) -> Ended:
        return self._reached(_run(self._command(script), seconds))

    def push(self, files: Sequence[Path], folder: str) -> None:
        script = f"tar -C {shlex.quote(folder)} -xf -"
        with tempfile.TemporaryFile() as archive:
            names = [each for path in files for each in ("-C", str(path.parent), path.name)]
            command = ["tar", "-h", "-cf", "-", *names]
            packed = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, check=False)
            if packed.returncode != 0:
                raise EdgecError(f"files for {self.url} cannot be read: {packed.stderr.decode(errors='replace')}")
            archive.seek(0)
            self.require(self._reached(_run(self._command(script), None, archive.fileno())), "take files")

    def pull(self, source: str, target: Path) -> None:
        with target.open("wb") as file:
            command = self._command(f"cat {shlex.quote(source)}")
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False)
        ended = Ended(done.returncode, "", done.stderr.decode(errors="replace"))
        self.require(self._reached(ended), f"send {Path(source).name}")

    def _reached(self, ended: Ended) -> Ended:
        if ended.code == SSH_FAILED:
            lines = ended.errors.strip().splitlines() or ["ssh gives no reason"]
            check = f"ssh {f'-p {self.port} ' if self.port else ''}{self.host} uname -m"
            raise EdgecError(f"the device {self.url} cannot be reached: {lines[-1]}; try: {check}")
        return ended


@dataclass
class AdbTransport(Transport):
    """Android's debug bridge; without a ``serial`` the only device that is attached."""

    serial: str = ""
    scratch: str = "/data/local/tmp"

    def __post_init__(self) -> None:
        self.url = f"adb://{self.serial}"
        if shutil.which("adb") is None:
            raise EdgecError("--device adb:// needs the program adb; run: apt-get install adb")

    def _adb(self, arguments: Sequence[str], seconds: float | None = None) -> Ended:
        ended = _run(["adb", *(["-s", self.serial] if self.serial else []), *arguments], seconds)
        first = ended.errors.strip().partition("\n")[0]
        if ended.code != 0 and first.partition(": ")[2].startswith(("device", "no devices", "more than")):
            raise EdgecError(f"the device {self.url} cannot be reached: {first.partition(': ')[2]}; try: adb devices")
        return ended

    def shell(self, script: str, *, seconds: float | None = None) -> Ended:
        return self._adb(["shell", script], seconds)

    def push(self, files: Sequence[Path], folder: str) -> None:
        self.require(self._adb(["push", *map(str, files), folder]), "take files")

    def pull(self, source: str, target: Path) -> None:
        self.require(self._adb(["pull", source, str(target)]), f"send {Path(source).name}")


def open_transport(url: str) -> Transport:
    """The way to the machine that one of :data:`SPELLINGS` names.

    Raises:
        EdgecError: it is not spelled so, or the program for it is missing.
    """
    kind, _, rest = url.partition("://")
    if kind == "adb" and not rest.startswith("-"):
        return AdbTransport(rest)
    found = _ssh(rest) if kind == "ssh" else _rpc(rest) if kind == "rpc" else None
    if found is None:
        raise EdgecError(f"the device '{url}' is not spelled {SPELLINGS}; correct it")
    return found


def _ssh(rest: str) -> Transport | None:
    host, colon, port = rest.partition(":")
    if not host or host.startswith("-") or (colon and not port.isdigit()):
        return None
    return SshTransport(host, int(port) if port else None)


def _rpc(rest: str) -> Transport | None:
    from edgec.devices.rpc import open_rpc

    return open_rpc(rest)


class Workplace:
    """A folder on a machine, for the files of one task."""

    def __init__(self, transport: Transport, folder: str) -> None:
        self.transport, self.folder = transport, folder

    def push(self, *files: Path) -> None:
        """Copy files there, to be run if they are programs."""
        self.transport.push(files, self.folder)

    def pull(self, name: str, target: Path) -> None:
        """Copy a file of the folder here."""
        self.transport.pull(f"{self.folder}/{name}", target)

    def run(self, program: str, *arguments: str, seconds: float | None = None) -> Ended:
        """Run a program of the folder, in it."""
        words = " ".join(map(shlex.quote, (f"./{program}", *arguments)))
        script = f"cd {shlex.quote(self.folder)} && chmod +x {shlex.quote(program)} && echo $$ > pid && exec {words}"
        return self.transport.shell(script, seconds=seconds)


@contextmanager
def workplace(transport: Transport) -> Iterator[Workplace]:
    """Make a folder on the machine; afterwards end what still runs in it, and remove it.

    Raises:
        EdgecError: the machine cannot be reached, or has no place for it.
    """
    made = transport.shell(f"mktemp -d {transport.scratch}/edgec-XXXXXX")
    folder = transport.require(made, "make a folder").strip()
    try:
        yield Workplace(transport, folder)
    finally:
        quoted = shlex.quote(folder)
        transport.shell(f"kill $(cat {quoted}/pid 2>/dev/null) 2>/dev/null; rm -rf {quoted}")
