"""The benchmark folder: instruction counts against what is expected, and the tables."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from samples.benchmarks import instructions
from samples.benchmarks.instructions import AVX2, SAMPLE, Row, can_count, count, expected, grown
from samples.compare import Row as Compared
from samples.compare import precision_of, table
from tests.programs import model

ROWS = {row.key: row for row in expected()["rows"]}


@pytest.mark.parametrize("target", ["rpi3", "rpi4", "rpi5", "rpi5-fp16"])
def test_the_sample_model_takes_no_more_instructions_than_expected(emulator, tmp_path, target):
    row = ROWS[SAMPLE, "fp32", target]
    assert grown([count(row, tmp_path, tmp_path)], expected()["margin"]) == []


def test_the_sample_model_takes_no_more_instructions_than_expected_on_x86(tmp_path):
    row = ROWS[SAMPLE, "fp32", AVX2]
    if not can_count(row):
        pytest.skip("valgrind on x86-64 is missing; run: apt-get install valgrind")
    first, second = (count(row, tmp_path, tmp_path) for _ in range(2))
    assert abs(first.instructions - second.instructions) < 0.01 * first.instructions
    assert grown([first], expected()["margin"]) == []


@pytest.mark.heavy
@pytest.mark.parametrize("key", [key for key in ROWS if key[0] != SAMPLE and key[1] == "fp32"], ids=" ".join)
def test_trained_models_take_no_more_instructions_than_expected(emulator, shared, tmp_path, key):
    if not can_count(ROWS[key]):
        pytest.skip("valgrind on x86-64 is missing; run: apt-get install valgrind")
    assert grown([count(ROWS[key], shared, tmp_path)], expected()["margin"]) == []


def test_what_has_grown_is_named():
    row = next(iter(ROWS.values()))
    assert grown([row, replace(row, instructions=int(1.09 * row.instructions))], 1.1) == []
    [sentence] = grown([replace(row, instructions=2 * row.instructions)], 1.1)
    assert " ".join(row.key) in sentence and "more than 1.1 ×" in sentence


def test_a_row_is_compared_with_the_best_peer():
    row = Row("m", "int8", "rpi5", 700, 350, "litert", 1000)
    assert row.ratio == 0.7 and replace(row, peer_instructions=None).ratio is None
    assert instructions.table([row]).splitlines()[-1] == "| m | int8 | rpi5 | 0.001 | 2.000 | litert | 0.001 | 0.70 |"


def test_the_file_of_expectations_is_sound():
    found = json.loads(instructions.EXPECTED.read_text())
    assert 1 < found["margin"] < 1.5
    assert all(row["instructions"] > 0 and row["macs"] > 0 for row in found["rows"])


def test_a_table_marks_the_fastest_peer_and_those_that_disagree():
    row = Compared("m", "fp32", 1.0, {"a": 2.0, "b": 3.0}, 0.5, 1e-6, ("b",), 64, 64, 1000, 2000, 0.1)
    cells = table([row], ["a", "b", "c"]).splitlines()[-1].split(" | ")
    assert cells[2:7] == ["1.000", "**2.000**", "3.000 *", "–", "0.50"]


def test_a_quantised_model_is_told_from_a_float_one(sample_model, tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = {"s": np.float32(0.5), "z": np.int8(3)}
    onnx.save(model(nodes, {"x": (1, 5)}, {"y": (1, 5)}, constants), tmp_path / "quantised.onnx")
    assert (precision_of(sample_model), precision_of(tmp_path / "quantised.onnx")) == ("fp32", "int8")
