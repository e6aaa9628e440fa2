"""The page of ``--report``: whole, self-contained, every table filled, and readable in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import html5lib
import numpy as np
import pytest

from edgec.html import page as html_page
from tests.test_cli import call, sentence_of

QUICK = 'rounding = "nearest"\nrefine = false\n'


class Read:
    """A page, parsed as a browser does, and the JSON that its compilation printed."""

    def __init__(self, path: Path, printed: Any) -> None:
        self.path, self.printed = path, printed
        self.text = path.read_text(encoding="utf-8")
        self.tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(self.text)

    def section(self, name: str) -> ElementTree.Element:
        found = self.tree.find(f".//section[@id='{name}']")
        assert found is not None, name
        return found

    def rows(self, name: str) -> list[list[str]]:
        """The cells of the body of the first table in a section."""
        table = self.section(name).find(".//table")
        assert table is not None
        return [["".join(cell.itertext()).strip() for cell in row] for row in table.findall("tbody/tr")]


def write_page(tmp: Path, model: Path, *more: object) -> Read:
    page, artifact = tmp / "page.html", tmp / "model.so"
    result = call("compile", model, "-o", artifact, "--report", page, "--json", *more)
    assert result.exit_code == 0, result.output
    return Read(page, json.loads(result.stdout))


@pytest.fixture(scope="module")
def quantised(sample_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Read:
    folder = tmp_path_factory.mktemp("page")
    (folder / "quick.toml").write_text(QUICK)
    calib, labelled = (sample_model.with_name(f"digits_{name}.npz") for name in ("calib", "eval"))
    return write_page(
        folder, sample_model, "--quantize", "int8", "--calib", calib, "--eval", labelled, "--max-drop", 1,
        "--recipe", folder / "quick.toml",
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium to open the page in; .ci/install-tools installs it")
    return found


def test_every_pass_and_layer_has_its_row(quantised: Read) -> None:
    passes = quantised.rows("pipeline")
    names = [row[0] for row in passes]
    place = names.index("quantise")
    assert names[:place] + names[place + 1 :] == [each["name"] for each in quantised.printed["passes"]]
    assert names.index("fuse-heads") < place < names.index("fuse-integers")
    guard = quantised.printed["quantisation"]["guard"]
    scores = [float(row[-1]) for row in passes[: place + 1]]
    assert scores == [pytest.approx(guard["float_score"], abs=0.3)] * place + [pytest.approx(guard["score"], abs=0.01)]
    assert all(re.fullmatch(r"\d\.\de[+-]\d\d", row[-2]) for row in passes[:10])
    layers = quantised.rows("layers")
    names = dict.fromkeys(nodes[0] for nodes in quantised.printed["nodes"])
    assert [row[1] for row in layers] == list(names)
    macs = sum(1e3 * float(row[10].replace(",", "")) for row in layers)
    assert macs == pytest.approx(sum(step["macs"] for step in quantised.printed["steps"]), rel=1e-2)
    assert sum(float(row[9].partition(" ")[0]) for row in layers) == pytest.approx(100, abs=1)
    products = [row for row in layers if row[2] in ("conv", "dwconv")]
    assert len(products) == 9
    assert all(row[3] == "int8" and float(row[4]) > 10 and float(row[5]) > 10 for row in products)


def test_variants_memory_histograms_and_samples_are_there(quantised: Read) -> None:
    variants = quantised.rows("variants")
    assert [variants[0][0], variants[-1][0]] == ["float", "this artifact"]
    assert all(float(row[2]) > 0 for row in variants)
    assert len(quantised.rows("memory")) == len(quantised.printed["memory"])
    buffers = quantised.section("memory").findall(".//{http://www.w3.org/2000/svg}g/{http://www.w3.org/2000/svg}title")
    assert len(buffers) == len(quantised.printed["memory"])
    figures = quantised.section("histograms").findall(".//figure")
    integers = [each for each in quantised.printed["quantisation"]["layers"] if each["bits"] != "float"]
    assert len(figures) >= len(integers) and all(len(figure) == 2 for figure in figures)
    samples = quantised.section("samples")
    assert len(samples.findall(".//img")) == 6
    assert len([each for each in samples.iter("div") if each.get("class") == "score"]) == 6 * 6


def test_origin_names_command_versions_and_digests(quantised: Read) -> None:
    text = "".join(quantised.section("origin").itertext())
    assert quantised.printed["model"]["sha256"] in text
    for name, version in quantised.printed["versions"].items():
        assert f"{name} {version}" in text


def test_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/edgec", "compile", "my model.onnx", "--report", "a.html"])
    assert html_page.command() == "edgec compile 'my model.onnx' --report a.html"


def test_page_loads_nothing(quantised: Read) -> None:
    elements = list(quantised.tree.iter())
    references = [e.get(name) for e in elements for name in ("src", "href", "srcset", "data", "poster") if e.get(name)]
    assert references and all(str(each).startswith(("#", "data:")) for each in references)
    assert all(each.startswith(("#", '"#')) for each in re.findall(r"url\(([^)]*)", quantised.text))
    assert "@import" not in quantised.text and not {e.tag for e in elements} & {"link", "iframe", "object"}
    assert not re.search(r"(?<!xmlns=\")https?://", quantised.text)


def test_ids_are_unique_and_links_lead_somewhere(quantised: Read) -> None:
    ids = [element.get("id") for element in quantised.tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    used = {each.get("href")[1:] for each in quantised.tree.iter() if (each.get("href") or "").startswith("#")}
    assert used <= set(ids)


def test_float_model_without_samples(tiny_model: Path, tmp_path: Path) -> None:
    page = write_page(tmp_path, tiny_model)
    assert len(page.rows("layers")) == len({nodes[0] for nodes in page.printed["nodes"]})
    assert "No samples were given" in page.text
    assert page.tree.find(".//section[@id='histograms']") is None


def test_float_model_with_labels(sample_model: Path, tmp_path: Path) -> None:
    """The accuracy after each pass, and histograms of the model as it was given."""
    page = write_page(tmp_path, sample_model, "--eval", sample_model.with_name("digits_eval.npz"))
    assert all(float(row[-1]) > 95 and row[-2] != "–" for row in page.rows("pipeline"))
    figures = page.section("histograms").findall(".//figure")
    assert len(figures) == 2 * 15 and "clipped</span>" not in page.text
    assert "answers differ" not in page.text and len(page.section("samples").findall(".//img")) == 6


def test_gpu_shows_layers_memory_and_answers(sample_model: Path, tmp_path: Path) -> None:
    labelled = sample_model.with_name("digits_eval.npz")
    page = write_page(tmp_path, sample_model, "--target", "opencl", "--eval", labelled)
    assert "measured on the device, by edgec bench" in page.text
    macs = sum(1e3 * float(row[4].replace(",", "")) for row in page.rows("layers"))
    assert macs == pytest.approx(sum(step["macs"] for step in page.printed["steps"]), rel=1e-2)
    assert len(page.rows("memory")) == len(page.printed["memory"])
    assert len(page.section("samples").findall(".//img")) == 6


def test_fpga_shows_the_design_and_what_quantisation_costs(tiny_model: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(0).standard_normal((20, 3, 7, 5), np.float32))
    page = write_page(tmp_path, tiny_model, "--target", "pynq-z2", "--quantize", "int8", "--calib", samples)
    resources, layers = page.section("layers").findall(".//table")
    assert [row[0].text for row in resources.findall("tbody/tr")] == list(page.printed["resources"])
    names = ["".join(row[0].itertext()) for row in layers.findall("tbody/tr")]
    assert names == [layer["node"] for layer in page.printed["layers"]]
    assert [head.text for head in layers.findall("thead/tr/th")][2:4] == ["alone dB", "up to here dB"]
    assert "frames a second, estimated" in page.text and page.section("histograms") is not None
    assert "answers are those of its integer model" in page.text


def test_board_has_no_times(tiny_model: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, x=np.random.default_rng(0).standard_normal((20, 3, 7, 5), np.float32))
    page = write_page(tmp_path, tiny_model, "--target", "rpi4", "--quantize", "int8", "--calib", samples)
    assert "No times: the artifact is for rpi4" in page.text
    heads = [head.text for head in page.section("layers").findall(".//th")]
    assert "µs" not in heads and "alone dB" in heads
    assert page.tree.find(".//section[@id='variants']") is None
    assert "answers are those of its integer model" in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from tests.programs import model

    node = helper.make_node("Relu", ["<b>&x"], ["y"], name="<script>alert(1)</script>")
    path = tmp_path / "m.onnx"
    onnx.save(model([node], {"<b>&x": (1, 3)}, {"y": (1, 3)}, {}), path)
    page = write_page(tmp_path, path)
    assert "<script>alert" not in page.text and "&lt;script&gt;alert(1)" in page.text


def test_diff_writes_it_too(quantised: Read, sample_model: Path, tmp_path: Path) -> None:
    page, calib = tmp_path / "diff.html", sample_model.with_name("digits_calib.npz")
    result = call("diff", sample_model, quantised.path.with_name("model.so"), "--calib", calib, "--report", page)
    assert result.exit_code == 0, result.output
    found = Read(page, quantised.printed)
    assert [row[1] for row in found.rows("layers")] == [row[1] for row in quantised.rows("layers")]
    assert len(found.section("samples").findall(".//img")) == 6


def test_what_is_missing_is_named_before_any_work(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compile", sample_model, "-o", tmp_path / "m.so", "--report"]
    assert "does not exist" in sentence_of(*arguments, tmp_path / "none" / "page.html")
    monkeypatch.setattr(html_page.importlib.util, "find_spec", lambda name: None)
    sentence = sentence_of(*arguments, tmp_path / "page.html")
    assert sentence == "--report needs jinja2 and matplotlib; run: pip install 'edgec[report]'"
    assert not list(tmp_path.iterdir())


def browse(chromium: str, page: Path, *options: str) -> str:
    """What headless Chromium answers."""
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options, str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_tables_sort_in_a_browser(quantised: Read, chromium: str, tmp_path: Path) -> None:
    script = "<script>document.querySelectorAll('#layers th')[10].querySelector('button').click()</script>"
    page = tmp_path / "page.html"
    page.write_text(quantised.text.replace("</body>", script + "</body>"))
    page.with_name("sorted.html").write_text(browse(chromium, page, "--dump-dom"))
    found = Read(page.with_name("sorted.html"), None).rows("layers")
    macs = [float(row[10].replace(",", "")) for row in found]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) > 3


def test_page_fits_a_phone(quantised: Read, chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    script = "<script>document.title = document.documentElement.scrollWidth</script>"
    page.write_text(quantised.text.replace("</body>", script + "</body>"))
    # the narrowest window that Chromium opens is wider than a phone
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{page.name}" width="390" height="800" onload="document.title = '
        'this.contentDocument.documentElement.scrollWidth"></iframe>'
    )
    dumped = browse(chromium, frame, "--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom")
    assert "<title>390</title>" in dumped


@pytest.mark.parametrize("dark", [False, True])
def test_page_follows_light_and_dark(quantised: Read, chromium: str, tmp_path: Path, dark: bool) -> None:
    from PIL import Image

    picture = tmp_path / "page.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(chromium, quantised.path, *theme, "--window-size=1200,1600", f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1600, 1200) and pixels.std() > 5
    assert (np.median(pixels) < 60) if dark else (np.median(pixels) > 200)
