"""Boards behind TVM's RPC tracker: its own tracker and two of its own servers, on this machine."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgec.data.samples import load_npz, specs
from edgec.devices import rpc as remote_rpc
from edgec.devices.device import LocalDevice, open_device
from edgec.devices.remote import Lost, Timeout, open_transport, workplace
from edgec.devices.rpc import RpcTransport
from edgec.errors import EdgecError
from edgec.inspection import inspect_artifact
from edgec.targets.target import load_target
from edgec.tuning.measuring import RemoteMeter, retried, tasks_of
from edgec.tuning.records import Records
from edgec.tuning.tuner import meter_for, tune_program
from tests.farm import KEY, Farm, farm, free_port, stop, wait_for_boards
from tests.test_cli import call, results_of, sentence_of
from tests.test_records import conv_program

HOST = load_target("host")


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> Farm:
    """Two of them."""
    with farm(tmp_path_factory.mktemp("farm"), 2) as made:
        yield made


def test_a_board_gives_the_bits_of_this_machine(boards, tiny_artifact, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((3, 3, 7, 5), np.float32))
    samples = load_npz(tmp_path / "x.npz", specs(inspect_artifact(tiny_artifact)["inputs"]))
    results = open_device(boards.url).run(tiny_artifact, samples)
    wanted = LocalDevice().run(tiny_artifact, samples)
    assert results.outputs["y"].tobytes() == wanted.outputs["y"].tobytes() and len(results.run_ns) == 3
    assert results.machine is not None and results.machine.cores >= 1


def test_the_commands_take_a_tracker(boards, tiny_artifact, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 7, 5), np.float32), labels=np.zeros(2, int))
    files = ("--device", boards.url, "--json")
    assert results_of("run", tiny_artifact, "--input", tmp_path / "x.npz", *files)["outputs"][0]["shape"] == [2, 4]
    assert results_of("eval", tiny_artifact, "--data", tmp_path / "x.npz", *files)["samples"] == 2
    assert "edgec" in call("bench", tiny_artifact, "--device", boards.url, "--rounds", 2).stdout


def test_nothing_is_left_on_a_board(boards):
    transport = open_transport(boards.url)
    with transport.connected(), workplace(transport) as there:
        folder = Path(there.folder)
        assert folder.is_dir()
    for _ in range(100):  # the server clears up after the session
        if not folder.parent.exists():
            return
        time.sleep(0.1)
    pytest.fail(f"{folder.parent} is still there")


def test_a_script_ends_as_the_shell_says(boards):
    transport = open_transport(boards.url)
    with transport.connected():
        assert transport.shell("echo out; echo err >&2; exit 7").__dict__ == {
            "code": 7, "output": "out\n", "errors": "err\n",
        }  # fmt: skip
        assert transport.shell("kill -9 $$").code == 137
        with pytest.raises(Timeout) as caught:
            transport.shell("echo begun; sleep 60; echo never", seconds=0.3)
        assert caught.value.output == "begun\n"
        with pytest.raises(EdgecError, match=r"refused: .*Cannot open .*none"):
            transport.pull("none", Path("none"))


def test_plans_are_measured_on_all_boards_at_a_time(boards, tmp_path, monkeypatch):
    now, most, lock, both = 0, 0, threading.Lock(), threading.Event()
    ended = RemoteMeter._ended

    def counted(self, program, arguments):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        if most == 2:
            both.set()
        try:
            both.wait(30)  # until the next batch is built, however long that takes
            return ended(self, program, arguments)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(RemoteMeter, "_ended", counted)
    before = [log.count("connected from") for log in boards.logs]
    meter = meter_for(HOST, boards.url)
    assert meter.boards == 2 and meter.machine == KEY
    program = conv_program()
    assert len(tasks_of(program, HOST)) >= 2
    tuned = tune_program(program, HOST, meter, minutes=1, known=Records(), path=tmp_path / "db.jsonl")
    assert tuned.measured == len((tmp_path / "db.jsonl").read_text().splitlines()) > 0
    assert all(choice.untuned and choice.untuned > 0 for choice in tuned.choices)
    assert most == 2
    assert all(log.count("connected from") > count for log, count in zip(boards.logs, before, strict=True))


def test_a_board_of_another_kind_is_refused(boards, tiny_board_artifact, tmp_path):
    with pytest.raises(EdgecError, match=r"is x86_64 and the target rpi4 aarch64|is aarch64 and the target"):
        meter_for(load_target("rpi2" if HOST.arch == "aarch64" else "rpi4"), boards.url)
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 7, 5), np.float32))
    sentence = sentence_of("run", tiny_board_artifact, "--input", tmp_path / "x.npz", "--device", boards.url)
    assert "is for aarch64-linux-gnu" in sentence


def test_a_key_without_boards(boards):
    with pytest.raises(EdgecError, match=r"knows no board of the key 'pi9', only of board; start one .* --key pi9"):
        open_transport(f"rpc://127.0.0.1:{boards.port}/pi9").shell("true")


def test_boards_that_are_all_at_work(boards, monkeypatch):
    monkeypatch.setattr(remote_rpc, "WAIT_SECONDS", 0.5)
    first, second, third = (open_transport(boards.url) for _ in range(3))
    busy = r"no board of the key 'board' became free within 0\.5 s \(2 report to"
    with first.connected(), second.connected(), pytest.raises(EdgecError, match=busy):
        third.shell("true")
    monkeypatch.undo()
    assert third.shell("true").code == 0


def test_a_tracker_that_is_not_there(tiny_artifact):
    port = free_port()
    sentence = sentence_of("bench", tiny_artifact, "--device", f"rpc://127.0.0.1:{port}/pi4")
    assert f"the tracker 127.0.0.1:{port} cannot be reached: Connection refused; start one with: python -m" in sentence
    assert "tvm.exec.rpc_tracker" in sentence
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(64)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(EdgecError, match="is no tracker of TVM's; correct the address"):
            open_transport(f"rpc://127.0.0.1:{address[1]}/pi4").shell("true")


@pytest.mark.parametrize("url", ["rpc://", "rpc://host", "rpc://host:1/", "rpc://:1/x", "rpc://h:x/k", "rpc://h:1/a/b"])
def test_other_urls_are_refused(url):
    with pytest.raises(EdgecError, match=r"is not spelled .* or rpc://tracker\[:port\]/key; correct it"):
        open_device(url)


def test_the_trackers_usual_port():
    assert open_transport("rpc://farm/pi4").url == "rpc://farm:9190/pi4"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tvm.rpc", None)
    with pytest.raises(EdgecError, match=r"needs the package tvm\.rpc; run: pip install 'edgec\[rpc\]'"):
        remote_rpc._client()


def test_another_board_takes_over():
    tries = []

    def measure() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise Lost("gone")
        return 5

    assert retried(3, measure) == 5
    with pytest.raises(Lost):
        tries.clear()
        retried(2, measure)


def test_a_board_that_is_switched_off_meanwhile(tmp_path):
    with farm(tmp_path, 1) as made:
        transport = RpcTransport("127.0.0.1", made.port, KEY)
        lost = pytest.raises(Lost, match=r"a board of rpc://.* (ended the session: .*|does not answer any more); look")
        with lost, transport.connected(), workplace(transport):
            threading.Timer(0.5, stop, made.servers).start()
            transport.shell("sleep 20")
        wait_for_boards(made, 0)
        with pytest.raises(EdgecError, match="knows no board of the key 'board', none at all"):
            transport.shell("true")
