"""The Python binding: exact results, sentences for mistakes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from edgec.building.toolchain import find_toolchain, host_triple
from edgec.errors import EdgecError
from edgec.runtimes.python.session import Session, load, pin_caller
from tests import toy


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.link(find_toolchain(host_triple()), tmp_path_factory.mktemp("toy") / "toy.so")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_run(artifact: Path, threads: int) -> None:
    with load(artifact, threads=threads) as session:
        for seed in range(20):
            inputs = toy.sample(seed)
            toy.assert_expected(session.run(inputs), inputs)


def test_tensors(artifact: Path) -> None:
    with Session(str(artifact), pin_big_cores=True, check_digest=False) as session:
        assert [str(tensor) for tensor in session.inputs] == ["'x' float32[7, 17]", "'q' int8[5]"]
        assert [str(tensor) for tensor in session.outputs] == ["'y' float32[7, 17]", "'sum' int32[1]"]
        assert (session.inputs[0].scale, session.inputs[1].scale, session.inputs[1].zero_point) == (0.0, 0.5, -3)


def test_outputs_are_new_arrays(artifact: Path) -> None:
    with load(artifact) as session:
        first = session.run(toy.sample(1))
        session.run(toy.sample(2))
        toy.assert_expected(first, toy.sample(1))


def test_strided_and_misaligned_inputs(artifact: Path) -> None:
    inputs = toy.sample()
    transposed = {**inputs, "x": np.asfortranarray(inputs["x"])}
    raw = np.zeros(7 * 17 * 4 + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(7, 17)
    misaligned[:] = inputs["x"]
    with load(artifact) as session:
        toy.assert_expected(session.run(transposed), inputs)
        toy.assert_expected(session.run({**inputs, "x": misaligned}), inputs)
        toy.assert_expected(session.run({**inputs, "q": np.repeat(inputs["q"], 2)[::2]}), inputs)


def test_bind_reads_and_writes_in_place(artifact: Path) -> None:
    inputs = toy.sample(1)
    with load(artifact) as session:
        with pytest.raises(EdgecError, match="'x' has no buffer"):
            session.invoke()
        outputs = session.bind(inputs)
        session.invoke()
        toy.assert_expected(outputs, inputs)
        inputs["x"][:] = toy.sample(2)["x"]
        session.invoke()
        toy.assert_expected(outputs, inputs)


def test_read_only_inputs(artifact: Path) -> None:
    inputs = toy.sample()
    for value in inputs.values():
        value.setflags(write=False)
    with load(artifact) as session:
        toy.assert_expected(session.run(inputs), inputs)


def test_profile(artifact: Path) -> None:
    with load(artifact) as session:
        session.run(toy.sample())
        assert [step.calls for step in session.profile()] == [0, 0, 0]
        session.start_profile()
        for _ in range(5):
            session.run(toy.sample())
        steps = session.profile()
    assert [(step.name, step.kernel, step.macs, step.calls) for step in steps] == [
        ('Mul "a"', "toy_multiply", 119, 5),
        ("Concat", "toy_rotate", 0, 5),
        ("ReduceSum", "toy_sum", 5, 5),
    ]
    assert all(0 <= step.min_ns * 5 <= step.total_ns for step in steps)


def change(**changes: object) -> dict[str, object]:
    return {name: value for name, value in {**toy.sample(), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (change(q=None), r"the input 'q' int8\[5\] is missing; the model's inputs are 'x' float32\[7, 17\], 'q'"),
        (change(image=np.zeros(3)), r"no input 'image'; its inputs are 'x' float32\[7, 17\], 'q' int8\[5\]"),
        (change(x=np.zeros((7, 17))), r"'x' float32\[7, 17\] was given float64 .* \.astype\('float32'\)"),
        (change(x=np.zeros((7, 17), ">f4")), r"'x' float32\[7, 17\] was given >f4"),
        (change(x=np.zeros((17, 7), np.float32)), r"'x' float32\[7, 17\] was given an array of shape \[17, 7\]"),
        (change(x=np.zeros((1, 7, 17), np.float32)), r"shape \[1, 7, 17\]"),
        (change(q=[1, 2, 3, 4, 5]), r"'q' int8\[5\] was given int64"),
        (change(q=np.int8(3)), r"'q' int8\[5\] was given an array of shape \[\]"),
    ],
)
def test_wrong_inputs(artifact: Path, inputs: dict[str, np.ndarray], words: str) -> None:
    with load(artifact) as session:
        with pytest.raises(EdgecError, match=words):
            session.run(inputs)
        toy.assert_expected(session.run(toy.sample()), toy.sample())


def test_closed_session(artifact: Path) -> None:
    session = load(artifact)
    session.close()
    session.close()
    for use in (lambda: session.run(toy.sample()), session.invoke, session.profile, session.start_profile):
        with pytest.raises(EdgecError, match=r"the session is closed; .*edgec\.load"):
            use()


@pytest.mark.parametrize("threads", [0, 65, -1])
def test_wrong_thread_count(artifact: Path, threads: int) -> None:
    with pytest.raises(EdgecError, match=f"1 to 64 threads, not {threads}"):
        load(artifact, threads=threads)


def test_wrong_files(artifact: Path, tmp_path: Path) -> None:
    data = artifact.read_bytes()
    cases = {
        "missing": (None, "cannot be read: No such file"),
        "empty": (b"", "is too short for an artifact"),
        "text": (b"not a model " * 100, "is not an artifact"),
        "truncated": (data[:-100], "is truncated"),
        "flipped": (data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "SHA-256"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(EdgecError, match=words):
            load(path)
    with pytest.raises(EdgecError, match="not a regular file"):
        load(tmp_path)


def test_recompiled_file(artifact: Path, tmp_path: Path) -> None:
    """An open session keeps its model; the next load of the same path gets the new one."""
    path = tmp_path / "model.so"
    shutil.copy(artifact, path)
    other = toy.link(find_toolchain(host_triple()), tmp_path / "other.so", ["-DTOY_OTHER_WEIGHTS"])
    with load(path) as old:
        other.replace(path)
        with load(path) as new:
            inputs = toy.sample()
            toy.assert_expected(old.run(inputs), inputs)
            assert not np.array_equal(new.run(inputs)["y"], toy.expected(inputs)["y"])


def test_session_shared_between_threads(artifact: Path) -> None:
    failures: list[BaseException] = []

    def use(session: Session, seed: int) -> None:
        try:
            for _ in range(50):
                toy.assert_expected(session.run(toy.sample(seed)), toy.sample(seed))
        except BaseException as error:
            failures.append(error)

    with load(artifact, threads=2) as session:
        users = [threading.Thread(target=use, args=(session, seed)) for seed in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert not failures


def test_pin_caller() -> None:
    done: list[bool] = []
    user = threading.Thread(target=lambda: done.append(pin_caller(1)))
    user.start()
    user.join()
    assert done[0] in (True, False)
