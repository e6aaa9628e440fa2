"""The page's figures, drawn by matplotlib as SVG whose colours and font are the page's own."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from edgec.data.samples import Array
    from edgec.exploration.front import Result
    from edgec.html.histograms import Histogram
    from edgec.html.story import Layer, Variant
    from edgec.tuning.roofline import Roofs

INK, MUTED, LINE, FLOAT, INT, BAD, PANEL = (f"#00000{digit}" for digit in range(1, 8))
SERIES = tuple(f"#00001{digit}" for digit in range(6))
"""Stand-ins for the colours: the page puts its own in their place, so that they follow light and dark."""

_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", FLOAT: "--float", INT: "--int", BAD: "--bad", PANEL: "--panel",
    **{colour: f"--series{index}" for index, colour in enumerate(SERIES)},
}  # fmt: skip

_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "edgec", "font.family": "sans-serif", "font.size": 9.5,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": LINE, "grid.linewidth": 0.6, "legend.frameon": False,
    "legend.labelcolor": INK, "axes.unicode_minus": True,
}  # fmt: skip

_LABELLED = 0.07
"""A buffer's name is written on it where it takes at least this share of the drawing's width."""


class Figures:
    """Draws figures; no two have an ``id`` in common."""

    def __init__(self) -> None:
        self._count = 0

    def memory(self, facts: Mapping[str, Any]) -> str:
        """The arena: steps to the right, offsets upwards, a rectangle for each buffer while it is alive."""
        steps, size = len(facts["steps"]), facts["arena_bytes"]
        titles: dict[str, str] = {}

        def draw(axes: Axes) -> None:
            from matplotlib.patches import Rectangle

            for index, each in enumerate(facts["memory"]):
                width, name = each["last"] - each["first"] + 1, str(each["buffer"])
                place, kilobytes = (each["first"], each["offset"] / 1e3), each["bytes"] / 1e3
                box = Rectangle(place, width, kilobytes, facecolor=SERIES[index % 6], edgecolor=PANEL, lw=0.8)
                box.set_gid(f"buffer{index}")
                titles[f"buffer{index}"] = (
                    f"{name}: {each['bytes']:,} bytes at {each['offset']:,}, steps {each['first']} to {each['last']}"
                )
                axes.add_patch(box)
                if width > _LABELLED * steps and each["bytes"] > 0.06 * size:
                    letters = max(4, int(width / steps * 120))
                    text = name if len(name) <= letters else name[: letters - 1] + "…"
                    axes.text(
                        place[0] + width / 2, place[1] + kilobytes / 2, text, ha="center", va="center", size=8,
                        color=PANEL, clip_on=True,
                    )  # fmt: skip
            axes.set(xlim=(0, steps), ylim=(0, size / 1e3 * 1.04), xlabel="step of the program", ylabel="kB")
            axes.axhline(facts["arena_lower_bound"] / 1e3, color=BAD, lw=1, ls=(0, (4, 3)))

        return self._svg(draw, (10.4, 4.0), "The memory plan: buffers over time", titles)

    def roofline(self, layers: Sequence[Layer], roofs: Roofs) -> str:
        """Layers by MACs per byte and G MAC/s, below the roofs of the machine."""
        shown = [layer for layer in layers if layer.rate]
        titles: dict[str, str] = {}

        def draw(axes: Axes) -> None:
            intensities = [layer.intensity for layer in shown]
            low, high = min(intensities) / 2, max(intensities) * 2
            xs = np.geomspace(low, high, 64)
            rates = roofs.rates[0][1], roofs.rates[-1][1]
            for dtype, colour, label in (("float32", FLOAT, "float32"), ("uint8", INT, "int8")):
                if dtype in roofs.peaks:
                    for rate, style in zip(rates, ("-", (0, (4, 3))), strict=True):
                        axes.plot(xs, np.minimum(roofs.peaks[dtype], xs * rate), color=colour, lw=1.3, ls=style)
                    axes.text(
                        high, roofs.peaks[dtype] * 1.12, f"{label}: {roofs.peaks[dtype]:.0f} G MAC/s", ha="right",
                        size=9, color=colour,
                    )  # fmt: skip
            for index, layer in enumerate(shown):
                colour = FLOAT if layer.bits == "float" else INT
                area = 18 + 400 * (layer.share or 0)
                dot = axes.scatter([layer.intensity], [layer.rate or 0], s=area, color=colour, alpha=0.65, lw=0)
                dot.set_gid(f"dot{index}")
                titles[f"dot{index}"] = f"{layer.name}: {layer.rate:.1f} G MAC/s, {layer.microseconds:.1f} µs"
            axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="MACs per byte", ylabel="G MAC/s")
            axes.set_ylim(min(layer.rate or 1.0 for layer in shown) / 2, max([1, *roofs.peaks.values()]) * 1.8)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
            axes.grid(True)

        return self._svg(draw, (10.4, 4.2), "Roofline: speed of the layers", titles) if shown else ""

    def variants(self, variants: Sequence[Variant], measure: str) -> str:
        """Score against latency of the versions that have both."""
        shown = [each for each in variants if each.score is not None and each.ms is not None]

        def draw(axes: Axes) -> None:
            for each in shown:
                colour = {"float": FLOAT, "this artifact": INT}.get(each.name, MUTED)
                area = 45 if colour == MUTED else 90
                axes.scatter([each.ms or 0], [each.score or 0], s=area, color=colour, lw=0, zorder=3)
                right = (each.ms or 0) > 0.6 * max(v.ms or 0 for v in shown)
                axes.annotate(
                    f"{each.name}  {each.score:.2f}", (each.ms or 0, each.score or 0), xytext=(-9 if right else 9, 7),
                    textcoords="offset points", ha="right" if right else "left", size=9, color=INK,
                )  # fmt: skip
            low, high = min(v.score or 0 for v in shown), max(v.score or 0 for v in shown)
            room = max(high - low, 0.5) * 0.35
            axes.set(xlim=(0, max(v.ms or 0 for v in shown) * 1.12), ylim=(low - room, high + room * 1.3))
            axes.set(xlabel="ms per inference, one thread", ylabel=measure)
            axes.grid(True)

        return self._svg(draw, (10.4, 3.2), "Score against latency", {}) if len(shown) > 1 else ""

    def front(self, results: Sequence[Result], best: Sequence[Result], unit: str, measure: str) -> str:
        """Score against cost, the artifact's size as the area; the front is joined by a line."""

        def draw(axes: Axes) -> None:
            most = max(result.bytes or 1 for result in results)
            for result in results:
                colour = INT if result in best else MUTED
                area = 30 + 350 * (result.bytes or 0) / most
                axes.scatter([result.cost or 0], [result.score or 0], s=area, color=colour, alpha=0.6, lw=0, zorder=3)
            for result in best:
                axes.annotate(
                    str(result.point), (result.cost or 0, result.score or 0), xytext=(8, -13),
                    textcoords="offset points", size=9, color=INK,
                )  # fmt: skip
            steps = sorted((result.cost or 0, result.score or 0) for result in best)
            axes.plot(*zip(*steps, strict=True), color=INT, lw=1.2, drawstyle="steps-post")
            axes.set_xlim(0, max(result.cost or 0 for result in results) * 1.25)
            axes.set(xlabel=f"{unit} per inference, one thread", ylabel=measure)
            axes.margins(y=0.15)
            axes.grid(True)

        return self._svg(draw, (10.4, 4.2), "Pareto front: score against cost", {}) if results else ""

    def histogram(self, histogram: Histogram) -> str:
        """One tensor's values, the range of its grid, and what lies outside of it."""

        def draw(axes: Axes) -> None:
            edges, counts = histogram.edges, histogram.counts
            middle = (edges[:-1] + edges[1:]) / 2
            step = float(edges[1] - edges[0])
            inside = (middle >= histogram.low - step) & (middle <= histogram.high + step)
            for chosen, colour in ((inside, INT), (~inside, BAD)):
                if chosen.any():
                    axes.fill_between(middle, np.where(chosen, counts, np.nan), 0.6, step="mid", color=colour, lw=0)
            left, right = min(edges[0], histogram.low), max(edges[-1], histogram.high)
            for bound in (histogram.low, histogram.high):
                axes.axvline(bound, color=BAD if histogram.clipped > 0 else MUTED, lw=1)
            room = (right - left) * 0.03 or 1.0
            axes.set(yscale="log", xlim=(left - room, right + room), ylim=(0.6, max(counts.max() * 2, 2)))
            axes.tick_params(axis="y", which="both", left=False, labelleft=False)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="x", labelsize=8, length=2)
            axes.locator_params(axis="x", nbins=4)

        return self._svg(draw, (2.2, 0.95), f"Histogram of {histogram.name}", {}, pad=0.02)

    def lines(self, wanted: Array, found: Array) -> str:
        """Two rows of numbers, the model's and the artifact's."""

        def draw(axes: Axes) -> None:
            axes.plot(wanted.ravel(), color=FLOAT, lw=1.2)
            axes.plot(found.ravel(), color=INT, lw=1.0, ls=(0, (3, 2)))
            axes.tick_params(labelsize=8, length=2)

        return self._svg(draw, (3.4, 1.5), "Both outputs", {})

    def _svg(
        self, draw: Callable[[Axes], None], size: tuple[float, float], title: str, titles: Mapping[str, str],
        pad: float = 0.08,
    ) -> str:  # fmt: skip
        """The figure as an ``<svg>`` element that scales with its place and has ``title`` as its name."""
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasSVG(figure)
            figure.get_layout_engine().set(w_pad=pad, h_pad=pad)  # type: ignore[union-attr,call-arg]
            draw(figure.add_subplot())
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(
                ("Creator", "Date", "Format", "Type")))  # fmt: skip
        self._count += 1
        return _inline(stream.getvalue(), f"f{self._count}", title, titles)


def _inline(svg: str, prefix: str, title: str, titles: Mapping[str, str]) -> str:
    """matplotlib's file as an element of the page: theme colours, the page's font, no ``id`` that others have."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg role="img" viewBox="0 0 {width} {height}"><title>{escape(title)}</title>',
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    for gid, text in titles.items():
        svg = svg.replace(f'<g id="{gid}">', f"<g><title>{escape(text)}</title>")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
