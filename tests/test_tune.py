"""The tuner: budgets, early ends, resumption after a kill, failures, and both ways of measuring."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import edgec
from edgec.errors import EdgecError
from edgec.targets.target import load_target
from edgec.targets.template import parameters
from edgec.tuning import cycles, measuring, records
from edgec.tuning.cycles import Analyser, find_analyser
from edgec.tuning.measuring import HostMeter, Meter, Outcome, QemuMeter, tasks_of
from edgec.tuning.records import Records
from edgec.tuning.tuner import BATCH, meter_for, tune_program
from tests.loopback import loopback
from tests.test_cli import call, results_of, sentence_of, start
from tests.test_records import conv_program

HOST = load_target("host")


@dataclass
class Simulated(Meter):
    """A processor on which a plan takes as long as ``cost`` says, and each batch ``seconds``."""

    method = "time"
    machine: str | None = "simulated"
    seconds: float = 1.0
    broken: frozenset[int] = frozenset()
    now: float = 0.0
    batches: list[list[int]] = field(default_factory=list)

    def measure(self, task, plans):
        self.now += self.seconds
        places = [task.plans.index(plan) for plan in plans]
        self.batches.append(places)
        return [
            Outcome(error="it crashed") if place in self.broken else Outcome(self.cost(task, place)) for place in places
        ]

    def cost(self, task, place: int) -> float:
        """Every place is better than the one before, down to half."""
        return 100.0 * max(0.5, 1 - 0.01 * place)


class Flat(Simulated):
    """A processor on which every plan takes as long."""

    def cost(self, task, place: int) -> float:
        return 100.0


def tuned(meter: Simulated, known: Records | None = None, minutes: float = 10.0, path: Path | None = None):
    known = Records() if known is None else known
    return tune_program(
        conv_program(), HOST, meter, minutes=minutes, known=known, path=path, clock=lambda: meter.now
    )  # fmt: skip


# ---- the search ---------------------------------------------------------------------------------------------


def test_the_best_plan_is_found_and_kept(tmp_path):
    meter, known, path = Simulated(), Records(), tmp_path / "db"
    found = tuned(meter, known, path=path)
    assert found.ended == "nothing improved" and found.method == "time"
    for choice, task in zip(found.choices, tasks_of(conv_program(), HOST), strict=True):
        assert choice.untuned == 100 and choice.best == 100 * max(0.5, 1 - 0.01 * (len(task.plans) - 1))
        assert choice.parameters in [parameters(plan) for plan in task.plans]
    assert {record.key for record in records.read(path)} == {record.key for record in known}
    assert found.ratio == pytest.approx(sum(c.best for c in found.choices) / sum(c.untuned for c in found.choices))


def test_every_batch_holds_the_untuned_plan_first():
    meter = Simulated()
    tuned(meter)
    assert all(batch[0] == 0 and len(batch) <= BATCH for batch in meter.batches)
    assert meter.batches[0] == list(range(BATCH))


def test_it_ends_early_where_nothing_improves():
    meter = Flat()
    found = tuned(meter)
    assert found.ended == "nothing improved"
    assert len(meter.batches) == 2 * len(found.choices)
    assert all(choice.best == choice.untuned for choice in found.choices)


def test_the_budget_is_kept():
    meter = Simulated(seconds=7.0)
    found = tuned(meter, minutes=0.5)
    assert found.ended == "the budget was spent"
    assert 4 * 7 == found.seconds <= 30


def test_the_kernel_that_takes_most_comes_first():
    meter = Simulated(seconds=4.0)
    found = tuned(meter, minutes=9 / 60)
    measured = [choice.plans for choice in found.choices]
    assert measured[0] == BATCH and found.choices[0].untuned is not None


def test_neighbours_of_the_best_come_next():
    meter = Simulated()
    tuned(meter)
    plans = [parameters(plan) for plan in tasks_of(conv_program(), HOST)[0].plans]
    second = next(batch for batch in meter.batches[1:] if batch[1] >= BATCH)
    assert sum(abs(plans[second[1]][name] - plans[BATCH - 1][name]) for name in plans[0]) == 1


# ---- resumption and failures --------------------------------------------------------------------------------


def test_a_run_goes_on_where_the_last_one_ended(tmp_path):
    path = tmp_path / "db"
    first = Simulated()
    tuned(first, path=path, minutes=8 / 60)
    second = Simulated()
    tuned(second, records.read(path), path=path)
    again = [place for batch in first.batches for place in batch[1:]]
    assert again and not set(first.batches[0][1:]) & set(second.batches[0][1:])


def test_a_plan_that_failed_is_not_tried_again(tmp_path):
    path = tmp_path / "db"
    first = Simulated(broken=frozenset({3, 5}))
    found = tuned(first, path=path, minutes=8 / 60)
    assert sum(choice.failed for choice in found.choices) >= 2
    second = Simulated()
    found = tuned(second, records.read(path), path=path)
    assert not any({3, 5} <= set(batch) for batch in second.batches[:1])
    assert sum(choice.failed for choice in found.choices) >= 2
    assert {record.error for record in records.read(path) if record.cost is None} == {"it crashed"}


def test_a_kill_loses_at_most_a_batch(sample_model, tmp_path):
    path = tmp_path / "db.jsonl"
    process = start("tune", sample_model, "--minutes", "1", "--tune-db", path)
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(records.read(path))
    assert before
    results = results_of("tune", sample_model, "--minutes", "0.1", "--tune-db", path)
    assert len(records.read(path)) > before
    assert results["records"] == str(path)


# ---- measuring ----------------------------------------------------------------------------------------------


def test_plans_are_timed_on_the_host(monkeypatch):
    monkeypatch.setattr(measuring, "BATCH_SECONDS", 0.01)
    task = tasks_of(conv_program(), HOST)[0]
    outcomes = HostMeter(HOST).measure(task, task.plans[:5])
    assert all(outcome.cost > 0 and outcome.error is None for outcome in outcomes)


def test_instructions_are_counted_under_the_emulator(emulator, monkeypatch):
    monkeypatch.setattr(measuring, "find_analyser", lambda target, cpu: (None, "none"))
    board = load_target("rpi4")
    task = tasks_of(conv_program(), board)[0]
    meter = QemuMeter(board)
    first, second = (meter.measure(task, task.plans[:3]) for _ in range(2))
    assert first == second and all(outcome.cost > task.kernel.macs / 4 for outcome in first)
    assert (meter.method, meter.note) == ("instructions", "none")


def test_cycles_are_told_by_the_analyser(emulator, analyser):
    board = load_target("rpi3")
    task = tasks_of(conv_program(), board)[0]
    meter = QemuMeter(board)
    assert (meter.method, meter.note) == ("cycles", "")
    first, second = (meter.measure(task, task.plans[:3]) for _ in range(2))
    assert first == second and all(outcome.cost > task.kernel.macs / 4 for outcome in first)
    meter.analyser = Analyser("aarch64-linux-gnu", "no-such-core", ())
    assert all(outcome.cost is None and outcome.error for outcome in meter.measure(task, task.plans[:2]))


@pytest.fixture
def analyser():
    if shutil.which(cycles.COMMAND) is None:
        pytest.skip("llvm-mca is not installed; run: apt-get install llvm")


def test_products_that_wait_for_each_other_take_more_cycles(analyser):
    found, _ = find_analyser(load_target("rpi5"), "cortex-a76")
    chain, apart = (
        "".join(f"fmla v{i * step}.4s, v30.4s, v31.4s\n" for i in range(8)) for step in (0, 1)
    )  # fmt: skip
    assert found.per_instruction(chain) > 2 * found.per_instruction(apart) >= 1
    with pytest.raises(ValueError, match="error"):
        found.per_instruction("no such instruction\n")


def test_where_the_analyser_is_missing_that_is_said(monkeypatch, emulator, tiny_model, tmp_path):
    monkeypatch.setattr(cycles, "COMMAND", "llvm-mca-of-nobody")
    arguments = ("tune", tiny_model, "--target", "rpi4", "--minutes", "0.1", "--tune-db", tmp_path / "db")
    found = results_of(*arguments)
    assert found["method"] == "instructions" and "apt-get install llvm" in found["note"]
    line = json.loads((tmp_path / "db").read_text().splitlines()[0])
    assert line["processor"].startswith("aarch64 cortex-a72") and line["cost"] == int(line["cost"])
    assert "costs are instructions alone" in call(*arguments).stdout


def test_a_core_without_a_model_is_counted(analyser):
    found, note = find_analyser(load_target("rpi2"), "cortex-a7")
    assert found is None and "has no cycles for cortex-a7" in note


ASSEMBLY = """
\t.type\tk0,@function
k0:
\tmov w9, #3 // =0x3
.LBB0_1:
\tadd x1, x1, #1
.Ltmp3:
\tld1 { v0.4s }, [x0], #16
\tfmla v1.4s, v0.4s, v2.s[0]
\tsubs w9, w9, #1
\t.loc 1 0 0
\tb.ne .Ltmp3
\tcbnz x2, .LBB0_1
.LBB0_2:
\tsubs w8, w8, #1
\tb.ne .LBB0_2
\tret
\t.type\tk1,@function
k1:
\tfadd v0.4s, v0.4s, v1.4s
\tret
"""


def test_the_hot_loop_is_the_largest_of_the_innermost():
    found = cycles.functions(ASSEMBLY)
    assert list(found) == ["k0", "k1"]
    lines = ["ld1 { v0.4s }, [x0], #16", "fmla v1.4s, v0.4s, v2.s[0]", "subs w9, w9, #1", "b.ne .Ltmp3"]
    assert cycles.hot_loop(found["k0"]).splitlines() == lines
    assert cycles.hot_loop(found["k1"]).splitlines() == ["fadd v0.4s, v0.4s, v1.4s", "ret"]


def test_a_plan_that_cannot_be_built_fails_alone(monkeypatch):
    monkeypatch.setattr(measuring, "BATCH_SECONDS", 0.01)
    task = tasks_of(conv_program(), HOST)[0]
    generate = task.template.generate

    def broken(plan, dtypes):
        if plan == task.plans[1]:
            raise ValueError("there is no such register")
        return generate(plan, dtypes)

    task.template = replace(task.template, generate=broken)
    outcomes = HostMeter(HOST).measure(task, task.plans[:3])
    assert outcomes[1].cost is None and "there is no such register" in outcomes[1].error
    assert outcomes[0].cost and outcomes[2].cost


def test_a_plan_in_which_the_program_ends_fails_alone(monkeypatch):
    task = tasks_of(conv_program(), HOST)[0]
    outputs = iter(["try 0\ntry 1\n", "try 0\ntry 1\nbest 0 500\nbest 1 700\n"])

    def start_program(command, **options):
        output = next(outputs)
        if "best" not in output:
            raise measuring.Crashed(output, "ended with code -11")
        return output

    monkeypatch.setattr(measuring, "start", start_program)
    outcomes = HostMeter(HOST).measure(task, task.plans[:3])
    assert outcomes == [Outcome(500.0), Outcome(error="ended with code -11"), Outcome(700.0)]


def test_plans_are_timed_over_ssh(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "BATCH_SECONDS", 0.01)
    with loopback(tmp_path) as device:
        monkeypatch.setenv("PATH", f"{device.client}:{os.environ['PATH']}")
        meter = meter_for(HOST, device.url)
        task = tasks_of(conv_program(), HOST)[0]
        assert meter.method == "time" and meter.machine == f"127.0.0.1:{device.port}"
        assert all(outcome.cost > 0 for outcome in meter.measure(task, task.plans[:3]))
        with pytest.raises(EdgecError, match=r"is x86_64 and the target rpi4 aarch64|is aarch64 and the target"):
            meter_for(load_target("rpi4"), device.url)
        assert not list(device.scratch.iterdir())


def test_a_device_that_cannot_be_reached_is_named():
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed")
    with pytest.raises(EdgecError, match=r"the device ssh://127\.0\.0\.1:1 cannot be reached: .*try: ssh -p 1"):
        meter_for(HOST, "ssh://127.0.0.1:1")
    with pytest.raises(EdgecError, match="is not spelled ssh://"):
        meter_for(HOST, "ssh://board:x")
    with pytest.raises(EdgecError, match="is not spelled ssh://"):
        meter_for(HOST, "ssh://-oProxyCommand=x")


def test_a_program_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(measuring, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(measuring.Crashed, match=r"did not end within 0\.2 s"):
        measuring.start(["sleep", "9"])


# ---- commands -----------------------------------------------------------------------------------------------


def test_compile_takes_what_tune_found(tiny_model, tmp_path):
    path = tmp_path / "db.jsonl"
    found = results_of("tune", tiny_model, "--minutes", "0.1", "--tune-db", path)
    assert found["method"] == "time" and found["measured"] == len(path.read_text().splitlines())
    assert found["seconds"] < 0.1 * 60 + 3
    compiled = edgec.compile(tiny_model, "host", tmp_path / "tiny.so", tune_db=path)
    assert compiled.tuned is None and compiled.report.as_dict()["tuning"] is None


def test_compile_tunes_and_reports(tiny_model, tmp_path):
    found = results_of(
        "compile", tiny_model, "--tune", "0.05", "--tune-db", tmp_path / "db", "-o", tmp_path / "tiny.so"
    )  # fmt: skip
    assert found["tuning"]["ended"] in ("nothing improved", "the budget was spent")
    shown = call("compile", tiny_model, "--tune", "0.05", "--tune-db", tmp_path / "db", "-o", tmp_path / "tiny.so")
    assert re.search(r"tuned by time on .*\n.*plans in \d+ s, until", shown.stdout, re.DOTALL)


def test_a_board_is_tuned_by_counting(emulator, tiny_model, tmp_path):
    found = results_of("tune", tiny_model, "--target", "rpi4", "--minutes", "0.1", "--tune-db", tmp_path / "db")
    assert found["method"] in ("cycles", "instructions") and found["machine"] == "qemu cortex-a72"
    compiled = edgec.compile(tiny_model, "rpi4", tmp_path / "tiny.so", tune_db=tmp_path / "db")
    assert compiled.path.is_file()


def test_files_are_merged(tiny_model, tmp_path):
    for name in ("a", "b"):
        results_of("tune", tiny_model, "--minutes", "0.05", "--tune-db", tmp_path / name)
    merged = results_of("tune", "--merge", tmp_path / "a", "--merge", tmp_path / "b", "--tune-db", tmp_path / "all")
    assert merged["records"] == len((tmp_path / "all").read_text().splitlines()) > 0


def test_mistakes_end_in_one_sentence(tiny_model, tmp_path):
    assert "needs a budget above 0 minutes" in sentence_of("tune", tiny_model, "--minutes", "0")
    assert "needs a MODEL, or --merge" in sentence_of("tune")
    assert "give both files" in sentence_of("tune", "--merge", tmp_path / "a")
    assert "cannot read the tuning records" in sentence_of("compile", tiny_model, "--tune-db", tmp_path / "absent")
    (tmp_path / "empty").touch()
    assert "has nothing for the target host" in sentence_of("compile", tiny_model, "--tune-db", tmp_path / "empty")
    assert "run: edgec tune" in sentence_of("compile", tiny_model, "--tune-db", tmp_path / "empty")


def test_a_device_that_cannot_measure_is_refused(emulator):
    with pytest.raises(EdgecError, match="cannot run code for rpi4; tune with --device qemu"):
        meter_for(load_target("rpi4"), "local")
    with pytest.raises(EdgecError, match="the device 'qemu' cannot measure kernels for host"):
        meter_for(HOST, "qemu")
    assert meter_for(load_target("rpi5")).method in ("cycles", "instructions")
