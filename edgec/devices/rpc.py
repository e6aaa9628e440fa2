"""Boards that report to a tracker of TVM's: ``rpc://tracker[:port]/key`` is whichever board of that key is free.

A board runs ``python -m tvm.exec.rpc_server --tracker HOST:PORT --key KEY``, as TVM has it. What that server lacks, a
shell, is loaded into it as a library of a few kB (``runtimes/rpc/shell.c``); everything else goes as over ssh and adb.
The files of a session lie in a folder of the server's, which it removes when the session ends, however that happens.
"""

from __future__ import annotations

import functools
import json
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgec.building.toolchain import find_toolchain
from edgec.devices.remote import CONNECT_SECONDS, Ended, Lost, Timeout, Transport
from edgec.errors import EdgecError
from edgec.runtimes.build import SOURCE_FOLDER

T = TypeVar("T")

PORT = 9190
"""Of a tracker, by default."""
MAGIC = struct.pack("<i", 0x2F271)
"""What a tracker and its clients greet each other with (``tvm/rpc/base.py``: RPC_TRACKER_MAGIC)."""
REQUEST, SUMMARY = 4, 6
"""What a tracker is asked for (``tvm/rpc/base.py``: TrackerCode); it answers with a list that begins with 0."""
WAIT_SECONDS = 300
"""How long all boards of a key may be at work for others."""
TRIES = 3
"""Boards that are taken up until one answers."""
GRACE_SECONDS = 20
"""How much later than the script itself should have ended, its board is given up."""

TRANSFER_SECONDS = 600
"""How long a file may be on its way."""

AGENT, OUTPUT, ERRORS = "edgec_shell.so", "edgec.out", "edgec.err"
OUT_OF_TIME = -2
"""What ``edgec_shell`` answers with after the time it was given."""
REFUSED = {-1: "can start no process; restart it", -3: "has another calling convention; give it this TVM's version"}
"""Its other answers that are no exit codes."""

MACHINES = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu", 40: "arm-linux-gnueabihf"}
"""Systems by the machine that an ELF file is for."""


class Tracker:
    """A connection to a tracker.

    Raises:
        EdgecError: nothing answers there, or it is no tracker.
    """

    def __init__(self, host: str, port: int) -> None:
        self.address = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), CONNECT_SECONDS)
            self._socket.sendall(MAGIC)
            is_tracker = self._receive(len(MAGIC)) == MAGIC
        except OSError as error:
            raise EdgecError(
                f"the tracker {self.address} cannot be reached: {error.strerror or error}; start one with: "
                f"python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {port}"
            ) from error
        if not is_tracker:
            self.close()
            raise EdgecError(f"what answers at {self.address} is no tracker of TVM's; correct the address")

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def boards(self) -> list[str]:
        """The keys of all boards that report here, one for each board."""
        servers = self._ask([SUMMARY], CONNECT_SECONDS)["server_info"]
        return [each["key"].partition(":")[2] for each in servers]

    def request(self, key: str) -> tuple[str, int, str]:
        """The address of a board that is now ours, and the word that it knows us by.

        Raises:
            EdgecError: there is no board of that key, or none becomes free.
        """
        known = self.boards()
        if key not in known:
            others = f"only of {', '.join(sorted(set(known)))}" if known else "none at all"
            raise EdgecError(
                f"the tracker {self.address} knows no board of the key '{key}', {others}; start one on the board: "
                f"python -m tvm.exec.rpc_server --tracker {self.address} --key {key}"
            )
        try:
            host, port, word = self._ask([REQUEST, key, "", 1], WAIT_SECONDS)
        except TimeoutError as error:
            raise EdgecError(
                f"no board of the key '{key}' became free within {WAIT_SECONDS} s ({known.count(key)} report to "
                f"{self.address}); wait for the others that use them, or attach more"
            ) from error
        return str(host), int(port), str(word)

    def _ask(self, question: list[Any], seconds: float) -> Any:
        try:
            self._socket.settimeout(seconds)
            text = json.dumps(question).encode()
            self._socket.sendall(struct.pack("<i", len(text)) + text)
            code, answer = json.loads(self._receive(*struct.unpack("<i", self._receive(4))))
        except TimeoutError:
            raise
        except (OSError, ValueError, struct.error) as error:
            raise EdgecError(f"the tracker {self.address} does not answer: {error}; start it again") from error
        if code != 0:
            raise EdgecError(f"the tracker {self.address} refuses what it is asked; is it one of this TVM's version?")
        return answer

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise OSError("it ended the connection")
            data += part
        return data


@dataclass
class RpcTransport(Transport):
    """One board of a key at a time: each block of :meth:`connected` has its own."""

    host: str
    port: int
    key: str
    scratch: str = "$PWD"
    _board: _Board | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.url = f"rpc://{self.host}:{self.port}/{self.key}"

    @property
    def name(self) -> str:
        return self.key

    @property
    def boards(self) -> int:
        tracker = Tracker(self.host, self.port)
        try:
            return max(1, tracker.boards().count(self.key))
        finally:
            tracker.close()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """All commands of the block go to one board, which nobody else has meanwhile."""
        if self._board is not None:
            yield
            return
        self._board = self._take_one()
        try:
            yield
        finally:
            self._board = None

    def shell(self, script: str, *, seconds: float | None = None) -> Ended:
        with self.connected():
            assert self._board is not None
            return self._board.shell(script, seconds)

    def push(self, files: Sequence[Path], folder: str) -> None:
        with self.connected():
            assert self._board is not None
            for path in files:
                self._board.upload(path.read_bytes(), f"{folder}/{path.name}")

    def pull(self, source: str, target: Path) -> None:
        with self.connected():
            assert self._board is not None
            target.write_bytes(self._board.download(source))

    def _take_one(self) -> _Board:
        connect = _client()
        tracker = Tracker(self.host, self.port)
        reason = ""
        try:
            for _ in range(TRIES):
                host, port, word = tracker.request(self.key)
                try:
                    return _Board(self.url, connect(host, port, word))
                except RuntimeError as error:  # what TVM raises of everything
                    reason = _last_line(error)
        finally:
            tracker.close()
        raise EdgecError(f"no board of {self.url} answers at the address that its tracker tells: {reason}")


class _Board:
    """A session on a TVM RPC server, with a shell."""

    def __init__(self, url: str, session: Any) -> None:
        self.url, self._session, self._is_lost = url, session, False
        self.upload(_agent(_triple(self.download("/bin/sh"), url)), AGENT)
        self._shell = self._call(lambda: session.load_module(AGENT)["edgec_shell"])

    def upload(self, content: bytes, target: str) -> None:
        self._call(lambda: self._session.upload(bytearray(content), target))

    def download(self, source: str) -> bytes:
        return bytes(self._call(lambda: self._session.download(source)))

    def shell(self, script: str, seconds: float | None) -> Ended:
        most = 0 if seconds is None else max(1, int(seconds * 1000))
        patience = None if seconds is None else seconds + GRACE_SECONDS
        code = int(self._call(lambda: self._shell(script, OUTPUT, ERRORS, most), patience))
        if code in REFUSED:
            raise EdgecError(f"a board of {self.url} {REFUSED[code]}")
        output, errors = (self.download(name).decode(errors="replace") for name in (OUTPUT, ERRORS))
        if code == OUT_OF_TIME:
            raise Timeout(output, seconds or 0)
        return Ended(code, output, errors)

    def _call(self, call: Callable[[], T], seconds: float | None = TRANSFER_SECONDS) -> T:
        """Call the server; one that does not answer within ``seconds`` is left to itself from then on."""
        if self._is_lost:
            raise Lost(f"a board of {self.url} does not answer any more; look after it")
        found: list[T] = []
        failed: list[Exception] = []

        def work() -> None:
            try:
                found.append(call())
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(seconds)
        if found:
            return found[0]
        if failed and "from RPC call" in str(failed[0]):
            raise EdgecError(f"a board of {self.url} refused: {_last_line(failed[0])}") from failed[0]
        self._is_lost = True
        if not failed:
            raise Lost(f"a board of {self.url} does not answer any more; look after it")
        text = _last_line(failed[0])
        raise Lost(f"a board of {self.url} ended the session: {text}; look after it") from failed[0]


def _client() -> Callable[[str, int, str], Any]:
    """TVM's function that connects to a server."""
    try:
        from tvm.rpc import connect
    except ImportError as error:
        raise EdgecError(f"--device rpc:// needs the package {error.name}; run: pip install 'edgec[rpc]'") from error
    return connect


def _triple(program: bytes, url: str) -> str:
    """The system that ``program``, a file of the board, is for."""
    machine = int.from_bytes(program[18:20], "little")
    if program[:4] != b"\x7fELF" or machine not in MACHINES:
        raise EdgecError(f"a board of {url} is for no system that edgec knows; its boards are ARM or x86-64 Linux")
    return MACHINES[machine]


@functools.cache
def _agent(triple: str) -> bytes:
    """The library with a shell."""
    flags = ["-std=c11", "-fvisibility=hidden", "-s", "-Wl,-z,norelro"]
    with tempfile.TemporaryDirectory(prefix="edgec-rpc-") as folder:
        source = SOURCE_FOLDER.parent / "rpc" / "shell.c"
        return find_toolchain(triple).compile([source], Path(folder) / AGENT, flags=flags).read_bytes()


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]


def open_rpc(rest: str) -> RpcTransport | None:
    """The boards that ``tracker[:port]/key`` names; None if it is not spelled so."""
    address, _, key = rest.partition("/")
    host, colon, port = address.rpartition(":") if ":" in address else (address, "", "")
    if not host or not key or "/" in key or (colon and not (port.isdigit() and int(port) < 1 << 16)):
        return None
    return RpcTransport(host, int(port) if port else PORT, key)
