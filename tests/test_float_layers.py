"""Layers that stay float because integers take longer there: what is compared, what is measured, what users see."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from edgec.artifact import read_manifest
from edgec.graph import load_graph
from edgec.passes.pipeline import FLOAT, run
from edgec.passes.quantize import Recipe
from edgec.program import Conv, Fill, Loops
from edgec.quantisation.float_layers import Costs, FloatLayers, Unknown, find_float_layers
from edgec.quantisation.quantise import companions
from edgec.targets.target import load_target
from edgec.tuning import records
from edgec.tuning.measuring import HostMeter, ProgramMeter, QemuMeter
from edgec.tuning.records import STEP, Record, Records, processor, signature, tvm_pair
from tests.programs import model, program_of
from tests.test_cli import call, results_of, sentence_of

HOST = load_target("host")
LAYERS = ("a", "b", "c", "d", "e")
generator = np.random.default_rng(4)

Price = Callable[[str, str], float]
"""Of a step, by its first node and by what it does: convolve "integers" or "floats", or anything "else"."""


@dataclass
class Priced(ProgramMeter):
    """A processor on which steps cost what ``price`` says."""

    price: Price
    method = "time"
    machine: str | None = "priced"
    measured: list[list[str]] = field(default_factory=list)

    def costs(self, program: Path, plans: int) -> list[float]:
        raise NotImplementedError

    def steps(self, artifact: Path) -> list[float]:
        facts = read_manifest(artifact)["steps"]
        self.measured.append([step["name"] for step in facts])
        return [self.price(step["name"].partition(" ")[0], _kind(step["kernel"])) for step in facts]


def _kind(contract: str) -> str:
    if "conv" not in contract:
        return "else"
    return "floats" if contract.startswith("f32") else "integers"


def chain() -> ir.Model:
    """Five convolutions, one behind the other, of 3, 4, 5, 6, 7 and 8 channels."""
    nodes, constants = [], {}
    names = ["x", *(f"{name}_out" for name in LAYERS[:-1]), "y"]
    for place, (name, source, result) in enumerate(zip(LAYERS, names[:-1], names[1:], strict=True)):
        constants[f"w{name}"] = generator.standard_normal((4 + place, 3 + place, 3, 3), np.float32) / 5
        nodes.append(helper.make_node("Conv", [source, f"w{name}"], [result], name=name, pads=[1, 1, 1, 1]))
    graph = load_graph(model(nodes, {"x": (1, 3, 9, 7)}, {"y": (1, 8, 9, 7)}, constants))
    run(graph, FLOAT)
    return graph


SAMPLES = [{"x": generator.standard_normal((1, 3, 9, 7)).astype(np.float32)} for _ in range(3)]


def found_by(price: Price, recipe: Recipe | None = None, known: Records | None = None) -> tuple[FloatLayers, Costs]:
    costs = Costs(Records() if known is None else known, HOST, Priced(price), seconds=600)
    found = find_float_layers(chain(), SAMPLES, recipe or Recipe(), costs, lambda what, done, total: None)
    assert isinstance(found, FloatLayers)
    return found, costs


def slow(*layers: str, by: float = 100.0, border: float = 1.0) -> Price:
    """Convolutions of integers cost 10, and ``by`` in ``layers``, those of floats 20, and all else ``border``."""

    def price(name: str, kind: str) -> float:
        if kind == "else":
            return border
        return 20.0 if kind == "floats" else by if name in layers else 10.0

    return price


def test_a_layer_that_is_slower_in_integers_stays_float() -> None:
    found, _ = found_by(slow("c"))
    assert found.layers == ("c",)
    assert found.mixed < found.integers - 50
    assert "c; " in str(found) and "0.1" in str(found.reason("c")) and found.reason("a") is None


def test_none_does_where_integers_are_faster() -> None:
    found, _ = found_by(slow())
    assert found.layers == () and found.mixed == found.integers < found.floats
    assert str(found).startswith("no layer gains by staying float on priced")


def test_neighbours_stay_together() -> None:
    """One alone gains 5, which a quantisation more costs; three together have one between them."""
    found, _ = found_by(slow("b", "c", "d", by=25.0, border=6.0))
    assert set(found.layers) == {"b", "c", "d"} and len(found.islands) == 1


def test_all_layers_do_where_integers_are_slower_everywhere() -> None:
    found, _ = found_by(slow(*LAYERS, by=22.0, border=30.0))
    assert set(found.layers) == set(LAYERS) and found.mixed == found.floats < found.integers


def test_a_layer_that_the_recipe_names_keeps_its_precision() -> None:
    found, _ = found_by(slow("b", "d"), Recipe(layers={"b": "int8"}))
    assert found.layers == ("d",)


@pytest.mark.parametrize("seed", range(4))
def test_the_model_is_never_slower_by_the_same_records(seed: int) -> None:
    def price(name: str, kind: str) -> float:
        return float(zlib.crc32(f"{seed} {name} {kind}".encode()) % 1000 + 1)

    found, costs = found_by(price)
    assert found.mixed <= min(found.integers, found.floats)
    meter = costs.meter
    assert isinstance(meter, Priced) and meter.measured
    again, other = found_by(price, known=costs.known)
    assert again == found and isinstance(other.meter, Priced) and not other.meter.measured


def test_records_alone_give_the_same_choice_and_too_few_give_none() -> None:
    found, costs = found_by(slow("c"))
    silent = replace(costs, meter=None)
    assert find_float_layers(chain(), SAMPLES, Recipe(), silent, lambda *_: None) == found
    few = Records(list(costs.known)[:2])
    unknown = find_float_layers(chain(), SAMPLES, Recipe(), Costs(few, HOST), lambda *_: None)
    assert isinstance(unknown, Unknown) and 0 < unknown.missing < unknown.kernels
    assert "edgec tune MODEL --target host --quantize int8" in str(unknown)


def test_no_time_to_measure_leaves_it_open() -> None:
    costs = Costs(Records(), HOST, Priced(slow("c")), seconds=0)
    assert isinstance(find_float_layers(chain(), SAMPLES, Recipe(), costs, lambda *_: None), Unknown)


# ---- costs on record ----------------------------------------------------------------------------------------


def _step(kernel: Any, cost: float, **changes: Any) -> Record:
    made = Record(signature(kernel), processor(HOST), tvm_pair(), STEP, {}, "time", cost, cost, machine="m")
    return replace(made, **changes)


def test_a_step_costs_what_the_best_plan_leaves_of_it() -> None:
    kernel = next(s.kernel for s in program_of(chain()).steps if isinstance(s.kernel, Conv))
    known = Records([_step(kernel, 200.0)])
    assert known.cost(kernel, HOST, ("time", "m")) == 200
    assert known.cost(kernel, HOST, ("time", "another")) is None
    assert known.ways(HOST) == [("time", "m")]
    known.add([_step(kernel, 30.0, plan="ConvPlan", untuned=60.0)])
    assert known.cost(kernel, HOST, ("time", "m")) == 100


def test_steps_of_two_machines_stand_side_by_side() -> None:
    kernel = next(s.kernel for s in program_of(chain()).steps if isinstance(s.kernel, Conv))
    known = Records([_step(kernel, 1.0), _step(kernel, 2.0, machine="n"), _step(kernel, 3.0, method="instructions")])
    assert len(known) == 3
    assert known.ways(HOST) == [("time", "m"), ("time", "n"), ("instructions", "m")]


def test_a_signature_tells_a_copy_from_a_transposition() -> None:
    kernels = []
    for order in ([0, 1, 2, 3], [0, 3, 2, 1]):
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=order),
            helper.make_node("Sin", ["t"], ["y"]),
        ]
        made = program_of(model(nodes, {"x": (1, 6, 6, 6)}, {"y": (1, 6, 6, 6)}))
        kernels += [step.kernel for step in made.steps if isinstance(step.kernel, Loops)]
    assert len({signature(kernel) for kernel in kernels}) == 2


def test_a_signature_leaves_out_what_is_filled_in() -> None:
    one = Fill(((0, (4, 7), (9, 1)),), 0.0, "int8")
    assert signature(one) == signature(replace(one, value=-128.0)) != signature(replace(one, dtype="float32"))


def test_steps_are_measured_here(tiny_artifact: Path) -> None:
    costs = HostMeter(HOST).steps(tiny_artifact)
    assert len(costs) == len(read_manifest(tiny_artifact)["steps"]) and all(cost >= 1 for cost in costs)


def test_steps_are_counted_under_the_emulator(emulator: str, tiny_board_artifact: Path) -> None:
    meter = QemuMeter(load_target(read_manifest(tiny_board_artifact)["target"]))
    costs = meter.steps(tiny_board_artifact)
    assert costs == meter.steps(tiny_board_artifact)
    assert len(costs) == len(read_manifest(tiny_board_artifact)["steps"])


# ---- what users see -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the chain, samples of it, and records by which its layer c is slower in integers."""
    folder = tmp_path_factory.mktemp("float-layers")
    graph = chain()
    ir.save(graph, folder / "chain.onnx")
    np.savez(folder / "calib.npz", x=np.concatenate([sample["x"] for sample in SAMPLES]))
    costs = Costs(Records(), HOST, Priced(slow("c")), folder / "slow.jsonl", seconds=600)
    find_float_layers(graph, SAMPLES, Recipe(), costs, lambda *_: None)
    return folder


def _compile(files: Path, output: Path, *more: object) -> dict[str, Any]:
    arguments = [files / "chain.onnx", "--quantize", "int8", "--calib", files / "calib.npz", *more]
    found: dict[str, Any] = results_of("compile", *arguments, "-o", output)
    return found


def test_records_decide_and_the_report_and_the_recipe_say_so(files: Path, tmp_path: Path) -> None:
    printed = _compile(files, tmp_path / "c.so", "--tune-db", files / "slow.jsonl")
    bits = {layer["name"]: layer["bits"] for layer in printed["quantisation"]["layers"]}
    assert bits == {"a": "int8", "b": "int8", "c": "float", "d": "int8", "e": "int8"}
    assert printed["quantisation"]["speed"]["islands"][0]["layers"] == ["c"]
    recipe = companions(tmp_path / "c.so")[0].read_text(encoding="utf-8")
    line = next(line for line in recipe.splitlines() if line.startswith('"c"'))
    assert line.startswith('"c" = "float"  # Conv; with integers here, a run takes ') and line.endswith(" µs")
    plain = _compile(files, tmp_path / "plain.so")
    assert plain["quantisation"]["speed"] is None
    assert {layer["bits"] for layer in plain["quantisation"]["layers"]} == {"int8"}


def test_a_line_is_printed_and_stands_on_the_page(files: Path, tmp_path: Path) -> None:
    arguments = ["--quantize", "int8", "--calib", files / "calib.npz", "--tune-db", files / "slow.jsonl"]
    page = tmp_path / "page.html"
    done = call("compile", files / "chain.onnx", *arguments, "-o", tmp_path / "c.so", "--report", page)
    assert "float because integers take longer on priced: c;" in " ".join(done.output.split())
    assert "Float because integers take longer on priced: c;" in page.read_text(encoding="utf-8")


def test_the_recipe_repeats_the_choice_without_the_records(files: Path, tmp_path: Path) -> None:
    _compile(files, tmp_path / "c.so", "--tune-db", files / "slow.jsonl")
    recipe = companions(tmp_path / "c.so")[0]
    _compile(files, tmp_path / "again.so", "--recipe", recipe)
    first, second = (companions(tmp_path / name)[2].read_bytes() for name in ("c.so", "again.so"))
    assert first == second
    wanted = tmp_path / "integers.toml"
    wanted.write_text(recipe.read_text(encoding="utf-8").replace('"c" = "float"', '"c" = "int8"'), encoding="utf-8")
    kept = _compile(files, tmp_path / "kept.so", "--recipe", wanted, "--tune-db", files / "slow.jsonl")
    assert {layer["bits"] for layer in kept["quantisation"]["layers"]} == {"int8"}


def test_tuning_measures_both_and_compiling_takes_it(files: Path, tmp_path: Path) -> None:
    tuned = ["--quantize", "int8", "--calib", files / "calib.npz", "--minutes", "0.1", "--tune-db", tmp_path / "db"]
    results_of("tune", files / "chain.onnx", *tuned)
    steps = [record for record in records.read(tmp_path / "db") if record.plan == STEP]
    assert len(steps) > 8 and {"int8" in record.kernel for record in steps} == {True, False}
    printed = _compile(files, tmp_path / "c.so", "--tune-db", tmp_path / "db")
    assert printed["quantisation"]["speed"]["integers"] > 0
    manifest = json.loads((tmp_path / "c.so.json").read_text(encoding="utf-8"))
    assert manifest["quantisation"]["speed"]["method"] == "time"


def test_records_of_other_kernels_say_what_is_missing(files: Path, tmp_path: Path) -> None:
    other = records.read(files / "slow.jsonl")
    records.append(tmp_path / "few.jsonl", list(other)[:2])
    printed = _compile(files, tmp_path / "c.so", "--tune-db", tmp_path / "few.jsonl")
    assert printed["quantisation"]["speed"]["missing"] > 0


def test_calibration_samples_need_a_quantisation(files: Path) -> None:
    assert "add one of them" in sentence_of("tune", files / "chain.onnx", "--calib", files / "calib.npz")
