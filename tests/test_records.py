"""Tuning records: what they are keyed by, how files of them are read, written and merged, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgec.errors import EdgecError
from edgec.targets.target import load_target
from edgec.targets.template import parameters
from edgec.tuning import records
from edgec.tuning.measuring import tasks_of
from edgec.tuning.records import Record, Records, processor, signature, tvm_pair
from tests.programs import HostProgram, assert_close, model, program_of, random_inputs, run_reference

HOST = load_target("host")
generator = np.random.default_rng(11)


def conv_program(bias: float = 0.5, channels: int = 17, activation: str = "Relu"):
    """A 3×3 convolution of a 7×9 image, a bias, an activation, and a pointwise convolution."""
    constants = {
        "w": generator.standard_normal((channels, 5, 3, 3), np.float32),
        "b": np.full(channels, bias, np.float32),
        "v": generator.standard_normal((3, channels, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node(activation, ["c"], ["a"]),
        helper.make_node("Conv", ["a", "v"], ["y"]),
    ]
    return program_of(model(nodes, {"x": (1, 5, 9, 11)}, {"y": (1, 3, 7, 9)}, constants))


def kernel_of(program):
    return tasks_of(program, HOST)[0].kernel


def record(program, place: int, ratio: float | None, **changes) -> Record:
    """A record of the plan at ``place`` that costs ``ratio`` of the untuned one."""
    task = tasks_of(program, HOST)[0]
    plan = task.plans[place]
    made = Record(
        kernel=signature(task.kernel), processor=processor(HOST), tvm=tvm_pair(), plan=type(plan).__name__,
        parameters=parameters(plan), method="time", cost=None if ratio is None else 100 * ratio, untuned=100.0,
    )  # fmt: skip
    return replace(made, **changes)


def chosen(program, known: Records):
    task = tasks_of(program, HOST)[0]
    return known.choice(task.kernel, HOST, task.plans)


# ---- keys ---------------------------------------------------------------------------------------------------


def test_a_signature_leaves_out_constants_and_places():
    one, other = (kernel_of(conv_program(bias)) for bias in (0.5, 1.5))
    assert signature(one) == signature(other)
    assert signature(replace(one, input_offset=64)) == signature(one)


def test_a_signature_tells_shapes_operators_and_layouts_apart():
    base = kernel_of(conv_program())
    others = [
        kernel_of(conv_program(channels=16)), kernel_of(conv_program(activation="LeakyRelu")),
        replace(base, stride=(2, 1)), replace(base, input_strides=(999, 55, 5, 1)), replace(base, input_dtype="int8"),
    ]  # fmt: skip
    assert len({signature(kernel) for kernel in (base, *others)}) == 6


def test_steps_of_equal_signature_are_one_task():
    nodes = []
    for source, result in ("xa", "ab", "bc", "cy"):
        nodes.append(helper.make_node("Conv", [source, "w"], [f"{result}0"]))
        nodes.append(helper.make_node("Relu", [f"{result}0"], [result]))
    weights = {"w": generator.standard_normal((5, 5, 1, 1), np.float32)}
    program = program_of(model(nodes, {"x": (1, 5, 7, 7)}, {"y": (1, 5, 7, 7)}, weights))
    # the last one leaves its activation to the step that restores the graph's layout
    assert [task.count for task in tasks_of(program, HOST)] == [3, 1]


# ---- choices ------------------------------------------------------------------------------------------------


def test_the_best_record_decides():
    program = conv_program()
    plans = tasks_of(program, HOST)[0].plans
    known = Records([record(program, 3, 0.9), record(program, 5, 0.7), record(program, 6, None, error="crashed")])
    assert chosen(program, known) == plans[5]
    assert chosen(program, Records()) == plans[0]


def test_a_gain_within_the_noise_changes_nothing():
    program = conv_program()
    assert chosen(program, Records([record(program, 3, 0.99)])) == tasks_of(program, HOST)[0].plans[0]


def test_time_is_trusted_more_than_instructions():
    program = conv_program()
    plans = tasks_of(program, HOST)[0].plans
    known = Records([record(program, 3, 0.5, method="instructions"), record(program, 4, 0.9)])
    assert chosen(program, known) == plans[4]


@pytest.mark.parametrize(
    "changes", [{"kernel": "Conv other"}, {"processor": "x86_64 another"}, {"parameters": {"rows": 999}}]
)
def test_a_record_of_something_else_is_passed_over(changes):
    program = conv_program()
    assert chosen(program, Records([record(program, 3, 0.5, **changes)])) == tasks_of(program, HOST)[0].plans[0]


def test_whatever_is_chosen_the_answers_are_the_same(tmp_path):
    program = conv_program()
    inputs = random_inputs(program)
    want = run_reference(program, inputs)
    for place in (1, 7, len(tasks_of(program, HOST)[0].plans) - 1):
        folder = tmp_path / str(place)
        folder.mkdir()
        compiled = HostProgram(program, folder, records=Records([record(program, place, 0.5)]))
        assert_close(compiled.run(inputs, threads=2), want)


# ---- files --------------------------------------------------------------------------------------------------


def test_records_come_back_as_they_were_written(tmp_path):
    program, path = conv_program(), tmp_path / "folder" / "db.jsonl"
    written = [record(program, 1, 0.9), record(program, 2, None, error="out of registers"), record(program, 3, 1.2)]
    records.append(path, written[:1])
    records.append(path, written[1:])
    assert list(records.read(path)) == written


def test_a_line_cut_short_is_dropped(tmp_path):
    program, path = conv_program(), tmp_path / "db.jsonl"
    records.append(path, [record(program, 1, 0.9), record(program, 2, 0.8)])
    path.write_bytes(path.read_bytes()[:-30])
    assert len(records.read(path)) == 1
    records.append(path, [record(program, 3, 0.7)])
    assert [found.cost for found in records.read(path)] == [90.0, 70.0]


def test_a_merge_keeps_the_later_of_equal_records(tmp_path):
    program = conv_program()
    for name, ratios in (("a", {1: 0.9, 2: 0.8}), ("b", {2: 0.6, 3: None})):
        records.append(tmp_path / name, [record(program, place, ratio) for place, ratio in ratios.items()])
    records.merge(tmp_path / "all", [tmp_path / "a", tmp_path / "b"])
    assert [found.cost for found in records.read(tmp_path / "all")] == [90.0, 60.0, None]


def test_the_records_of_the_package_fit():
    records.shipped()


# ---- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 1}, "line 1 .* has schema 1 and this edgec reads 2; tune again"),
        ({"tvm": "apache-tvm==0.1"}, r"was measured with apache-tvm==0\.1 and this is apache-tvm==0\.27"),
        ({"method": "guess"}, "wrong value of method"),
        ({"untuned": 0}, "wrong value of method or untuned"),
        ({"cost": "fast"}, "wrong value of cost"),
        ({"colour": "red"}, "lacks or should not have the fields colour"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(tmp_path, change, reason):
    line = json.loads(record(conv_program(), 1, 0.9).line())
    (tmp_path / "db").write_text(json.dumps({**line, **change}) + "\n")
    with pytest.raises(EdgecError, match=reason):
        records.read(tmp_path / "db")


@pytest.mark.parametrize(("text", "reason"), [("no json\n", "is not JSON"), ("[1]\n", "is no tuning record")])
def test_what_is_no_record_is_refused(tmp_path, text, reason):
    (tmp_path / "db").write_text(text)
    with pytest.raises(EdgecError, match=f"line 1 .*{reason}"):
        records.read(tmp_path / "db")


def test_a_merge_with_a_wrong_file_changes_nothing(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    records.append(good, [record(conv_program(), 1, 0.9)])
    bad.write_text("no json\n")
    before = good.read_bytes()
    with pytest.raises(EdgecError, match="is not JSON"):
        records.merge(good, [bad])
    assert good.read_bytes() == before


def test_a_file_for_another_processor_is_refused():
    known = Records([record(conv_program(), 1, 0.9)])
    with pytest.raises(EdgecError, match=r"nothing for the target rpi4 .*its 1 records are for .*run: edgec tune"):
        records.require_some(known, Path("db"), load_target("rpi4"))
    with pytest.raises(EdgecError, match="it holds no record"):
        records.require_some(Records(), Path("db"), HOST)


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(EdgecError, match=r"cannot read the tuning records .*check --tune-db"):
        records.read(tmp_path / "absent")
    with pytest.raises(EdgecError, match="cannot write the tuning records"):
        records.append(tmp_path, [])
