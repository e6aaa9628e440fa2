"""``edgec explore``: points, ledger, front, and compiling from it."""

from __future__ import annotations

import json
from pathlib import Path

import html5lib
import pytest

from edgec.errors import EdgecError
from edgec.exploration import search as exploration
from edgec.exploration.front import Front, Point, Result, load_front
from tests.test_cli import call, results_of, sentence_of


def result(name: str, score: float | None, cost: float | None, nbytes: int) -> Result:
    return Result(name, Point(0.0, "none"), score, nbytes, 1, cost)


@pytest.fixture
def front() -> Front:
    results = (
        result("exact", 99.0, 4.0, 400),
        result("quick", 98.5, 1.0, 300),
        result("small", 98.0, 2.0, 100),
        result("beaten", 98.4, 1.5, 300),
        result("equal", 99.0, 4.0, 400),
        result("bad", 60.0, 0.5, 50),
        result("failed", None, None, 0),
    )
    return Front("m.onnx", "0", "host", "ms", "top-1 accuracy, %", None, None, {}, results)


def test_front_is_what_nothing_beats(front: Front) -> None:
    assert [each.key for each in front.best] == ["bad", "quick", "small", "exact", "equal"]


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("fastest-within:1", "quick"),
        ("fastest-within:0.4", "exact"),
        ("fastest-within 1.0", "quick"),
        ("fastest-within:100", "bad"),
        ("smallest-within:1", "small"),
        ("most-accurate", "exact"),
    ],
)
def test_pick(front: Front, choice: str, key: str) -> None:
    assert front.pick(choice).key == key


@pytest.mark.parametrize("choice", ["fastest", "fastest-within:-1", "fastest-within:x", "most-accurate:1", ""])
def test_pick_that_is_none(front: Front, choice: str) -> None:
    with pytest.raises(EdgecError, match="--pick takes"):
        front.pick(choice)


def test_front_survives_a_file(front: Front, tmp_path: Path) -> None:
    front.save(tmp_path / "front.json")
    assert load_front(tmp_path) == load_front(tmp_path / "front.json") == front


@pytest.fixture(scope="module")
def explored(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], Path]:
    """The arguments of an exploration of two points, and its folder."""
    folder = tmp_path_factory.mktemp("explore") / "front"
    calib, labelled = (sample_model.with_name(f"digits_{name}.npz") for name in ("calib", "eval"))
    arguments = ["explore", sample_model, "--eval", labelled, "--calib", calib, "--prune", "0,0.3", "--bits", "none"]
    found = results_of(*arguments, "-o", folder)
    assert [each["point"]["prune"] for each in found["results"]] == [0.0, 0.3]
    assert all(each["score"] > 90 and each["cost"] > 0 for each in found["results"])
    return arguments, folder


def test_page_has_a_row_for_each_point(explored: tuple[list[object], Path]) -> None:
    text = (explored[1] / "front.html").read_text(encoding="utf-8")
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)
    rows = tree.findall(".//tbody/tr")
    assert len(rows) == 2 and tree.find(".//{http://www.w3.org/2000/svg}svg") is not None
    assert "http" not in text.replace("http://www.w3.org", "")


def test_nothing_is_evaluated_twice(explored: tuple[list[object], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the ledger is taken from there; a line cut short is evaluated again."""
    arguments, folder = explored
    before = (folder / "ledger.jsonl").read_text(encoding="utf-8")

    def no_client(workers: int, scheduler: str | None) -> object:
        raise AssertionError("nothing is left to evaluate")

    monkeypatch.setattr(exploration, "_client", no_client)
    again = results_of(*arguments, "-o", folder)
    assert len(again["results"]) == 2 and (folder / "ledger.jsonl").read_text(encoding="utf-8") == before
    (folder / "ledger.jsonl").write_text(before[:-30], encoding="utf-8")
    ledger = exploration._Ledger(folder / "ledger.jsonl")
    assert len(ledger.results) == 1
    ledger.add(exploration.result_of(json.loads(before.splitlines()[1])))
    assert len(exploration._Ledger(folder / "ledger.jsonl").results) == 2


def test_compile_from_the_front(explored: tuple[list[object], Path], sample_model: Path, tmp_path: Path) -> None:
    _, folder = explored
    made = results_of(
        "compile", sample_model, "--from-front", folder, "--pick", "fastest-within:50", "-o", tmp_path / "m.so"
    )
    chosen = load_front(folder).pick("fastest-within:50")
    assert made["artifact_bytes"] == pytest.approx(chosen.bytes, abs=64)
    assert sum(step["macs"] for step in made["steps"]) == chosen.macs


def test_mistakes_are_sentences(
    explored: tuple[list[object], Path], sample_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    labelled = sample_model.with_name("digits_eval.npz")
    base = ["explore", sample_model, "--eval", labelled, "-o", tmp_path / "front"]
    assert "learns from samples" in sentence_of(*base)
    assert "--bits takes none" in sentence_of(*base, "--bits", "int9")
    assert "shares from 0 to 0.9" in sentence_of(*base, "--bits", "none", "--prune", "1.5")
    assert "a time such as" in sentence_of(*base, "--bits", "none", "--budget", "soon")
    assert "folder of images" in sentence_of(*base, "--bits", "none", "--resolution", "96")
    assert "takes a processor" in sentence_of(*base, "--bits", "none", "--target", "arty-a7")
    assert "is another file" in sentence_of("compile", tiny_model, "--from-front", explored[1])
    assert "leave out target" in sentence_of("compile", sample_model, "--from-front", explored[1], "--prune", "0.2")
    assert "cannot be read" in sentence_of("compile", sample_model, "--from-front", tmp_path / "none")


def test_remote_scheduler(explored: tuple[list[object], Path], tmp_path: Path) -> None:
    """Its workers evaluate what the workers of this machine would, each point once, and go on for another client."""
    from distributed import LocalCluster

    arguments, local = explored
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        remote = [*arguments, "-o", tmp_path / "front", "--scheduler", cluster.scheduler_address]
        first = results_of(*remote)
        written = (tmp_path / "front" / "ledger.jsonl").read_text(encoding="utf-8")
        more = results_of(*remote, "--prune", "0,0.2,0.3")
    assert sorted(each["key"] for each in first["results"]) == sorted(each.key for each in load_front(local).results)
    own = {each.key: (each.score, each.macs) for each in load_front(local).results}
    assert {each["key"]: (each["score"], each["macs"]) for each in first["results"]} == own
    lines = (tmp_path / "front" / "ledger.jsonl").read_text(encoding="utf-8")
    assert lines.startswith(written) and len(written.splitlines()) == 2 and len(lines.splitlines()) == 3
    assert [each["point"]["prune"] for each in more["results"]] == [0.0, 0.2, 0.3]


def test_cost_on_a_board_is_counted_in_instructions(sample_model: Path, tmp_path: Path, emulator: str) -> None:
    labelled = sample_model.with_name("digits_eval.npz")
    arguments = ["explore", sample_model, "--eval", labelled, "--prune", "0,0.4", "--bits", "none", "--target", "rpi4"]
    found = results_of(*arguments, "-o", tmp_path / "front")
    whole, pruned = (each["cost"] for each in found["results"])
    assert found["unit"] == "M instructions" and 0 < pruned < whole
    assert results_of(*arguments, "-o", tmp_path / "front")["results"] == found["results"]  # it is exact


def test_budget_that_is_spent_begins_nothing(sample_model: Path, tmp_path: Path) -> None:
    labelled = sample_model.with_name("digits_eval.npz")
    arguments = ["explore", sample_model, "--eval", labelled, "--bits", "none", "--budget", "0s", "-o", tmp_path / "f"]
    assert call(*arguments).exit_code == 0
    assert load_front(tmp_path / "f").results == ()


def test_recipe_is_scaled(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('layout = "NCHW"\nresize = 256\ncrop = 224\nscale = 0.5\n')
    scaled = tmp_path / "scaled.toml"
    scaled.write_text(exploration.scaled_recipe(recipe, 112))
    from edgec.data.images import load_recipe

    assert load_recipe(scaled).resize == 128 and load_recipe(scaled).crop == (112, 112)
