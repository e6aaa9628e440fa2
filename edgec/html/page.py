"""Renders a story as one HTML file that loads nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from jinja2 import Environment

    from edgec.html.answers import Answer
    from edgec.html.figures import Figures
    from edgec.html.story import Story

MOST_HISTOGRAMS = 160
"""Two for a layer; of larger models those that clip most are drawn."""


def check_page(path: Path, what: str = "--report", extra: str = "report") -> None:
    """Refuse a page that could not be written, before any work is done for it.

    Raises:
        EdgecError: a package of the ``extra`` that ``what`` needs is missing, or the file cannot be written.
    """
    from edgec.artifact import check_writable

    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise EdgecError(f"{what} needs {' and '.join(missing)}; run: pip install 'edgec[{extra}]'")
    check_writable(path)


def write_page(path: Path, story: Story) -> None:
    """Write ``story`` to ``path``, whole or not at all."""
    from edgec.artifact import write_atomically

    write_atomically({path: render(story).encode()})


def environment() -> Environment:
    """The templates of this folder, with the filters that they use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("edgec.html", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"count": _count, "fixed": _fixed, "bytes": _bytes, "change": _change, "share": _share}
    return found


def render(story: Story) -> str:
    """The page's HTML."""
    from edgec.html.figures import Figures

    figures, facts = Figures(), story.facts
    guard, passes = (facts.get("quantisation") or {}).get("guard"), _pipeline(facts)
    return environment().get_template("page.html.j2").render(
        story=story,
        facts=facts,
        passes=passes,
        errors={each.name: each for each in story.errors.layers} if story.errors else {},
        scored=any(each.get("score") is not None for each in passes),
        scored_by_labels=story.labelled,
        guard=guard,
        quantisation=facts.get("quantisation"),
        command=command(),
        digests=_digests(story),
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        memory=figures.memory(facts) if facts.get("memory") else "",
        roofline=figures.roofline(story.layers, story.roofs) if story.roofs else "",
        variants=figures.variants(story.variants, guard["measure"]) if guard else "",
        histograms=list(_histograms(story, figures)),
        left_out=max(0, len(story.histograms) - MOST_HISTOGRAMS),
        answers=[_shown(answer, figures) for answer in story.answers],
        latency=next((each.ms for each in story.variants if each.name == "this artifact"), None),
    )


def _pipeline(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each pass did, and between those for floats and those for integers what the quantisation did."""
    from edgec.passes.pipeline import FLOAT

    passes, quantisation = list(facts["passes"]), facts.get("quantisation")
    if not quantisation:
        return passes
    floats = {each.name for each in FLOAT}
    last = {each["name"]: place for place, each in enumerate(passes)}
    place = next((i for i, each in enumerate(passes) if each["name"] not in floats), 1 + max(last.values(), default=-1))
    bits = [layer["bits"] for layer in quantisation["layers"]]
    before = passes[place - 1]["after"] if place else passes[0]["before"]
    row = {
        "name": "quantise", "matched": len(bits) - bits.count("float"), "refusals": ["float"] * bits.count("float"),
        "before": before, "after": passes[place]["before"] if place < len(passes) else before, "difference": None,
        "score": quantisation["guard"]["score"] if quantisation["guard"] else None,
    }  # fmt: skip
    return [*passes[:place], row, *passes[place:]]


def command() -> str:
    """The command that is running, to type again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _digests(story: Story) -> list[tuple[str, str]]:
    """SHA-256 of the model's file, where it has one, and of the artifact."""
    model, artifact = story.facts["model"]["sha256"], story.artifact
    found = [("model", model)] if model else []
    if artifact.is_file():
        found.append((artifact.name, hashlib.sha256(artifact.read_bytes()).hexdigest()))
    return found


@dataclass(frozen=True)
class _Drawn:
    """The histograms of one layer as SVG."""

    layer: str
    op: str
    tensors: tuple[tuple[Any, str], ...]


def _histograms(story: Story, figures: Figures) -> Iterator[_Drawn]:
    """By layer, in the order of the model; the layers that clip most, if there are too many."""
    ranked = sorted(story.histograms, key=lambda each: (-each.clipped, -each.outlier))[:MOST_HISTOGRAMS]
    chosen = {id(each) for each in ranked}
    layers: dict[str, list[Any]] = {}
    for each in story.histograms:
        if id(each) in chosen:
            layers.setdefault(each.layer, []).append(each)
    for name, group in layers.items():
        yield _Drawn(name, group[0].op, tuple((each, figures.histogram(each)) for each in group))


def _shown(answer: Answer, figures: Figures) -> dict[str, Any]:
    """An answer with its pictures: the input, and both outputs where they are no rows of classes."""
    from edgec.html.pictures import picture

    outputs = None if answer.top else [picture(answer.wanted), picture(answer.found)]
    scores = [score.value for pair in answer.top for score in pair]
    plain = not answer.top and (outputs is None or outputs[0] is None)
    return {
        "answer": answer,
        "input": picture(answer.input),
        "line": "" if picture(answer.input) else figures.lines(answer.input, answer.input),
        "outputs": outputs if outputs and outputs[0] else None,
        "plot": figures.lines(answer.wanted, answer.found) if plain else "",
        "low": min([0.0, *scores]),
        "high": max(scores, default=1.0),
    }


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _fixed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    """Percent; what is not nothing does not look like it."""
    if value is None:
        return "–"
    return "< 0.01 %" if 0 < value < 5e-5 else f"{100 * value:.2f} %" if value else "0 %"


def _bytes(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 10_000:
        return f"{value:,.0f} B"
    return f"{value / 1e3:,.0f} kB" if value < 1e7 else f"{value / 1e6:,.1f} MB"


def _change(pair: Sequence[int]) -> str:
    before, after = pair
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
