"""Curves as SVG, to stand in the page itself."""

from __future__ import annotations

import html
import io
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from hfa.metrics.plot import COLOURS, MARKERS, short

MOST_CURVES = 14  # that a chart keeps apart
# Inches: on a phone as wide as the page, so that letters keep their size, and three beside each other on a desk
_WIDTH = 4.1
_HEIGHT = 2.7  # beside the legend
_ROW = 0.19  # of the legend
_LETTERS = 42  # of a row of the legend
_HALF = 18  # of one of two columns


class Curve(NamedTuple):
    """One line.

    Attributes:
        x: ascending.
        y: as many.
        low: lower ends of the intervals; empty for none.
        high: upper ends.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


class Chart(NamedTuple):
    """Lines in one frame.

    Attributes:
        title: what it shows.
        curves: by name; a single point is drawn as one.
        x: what the axis says.
        y: likewise.
        log_x: with base 2.
        log_y: with base 10.
        limits: of y; None fits the curves.
        ticks: how values of x are written.
        note: below it.
    """

    title: str
    curves: Mapping[str, Curve]
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    limits: tuple[float, float] | None = None
    ticks: Callable[[float], str] = "{:,g}".format
    note: str = ""

    def best(self, *, most: bool = False) -> list[Chart]:
        """The chart of the curves that have points, or where they are too many of the best at their end; if any.

        Args:
            most: whether more is better.
        """
        there = {name: curve for name, curve in self.curves.items() if len(curve.x)}
        ranked = sorted(there, key=lambda name: there[name].y[-1], reverse=most)[:MOST_CURVES]
        kept = {name: curve for name, curve in there.items() if name in ranked}
        note = f"The best {len(kept)} of {len(there)}." if len(kept) < len(there) else self.note
        return [self._replace(curves=kept, note=note)] if kept else []


def over_seeds(runs: Iterable[Iterable[tuple[float, float]]]) -> Curve:
    """The mean at each x that all have, and one standard deviation around it where there are several."""
    by_run = [dict(points) for points in runs]
    xs = sorted(set.intersection(*(set(points) for points in by_run))) if by_run else []
    means = [statistics.mean(points[x] for points in by_run) for x in xs]
    if len(by_run) < 2:
        return Curve(xs, means)
    spreads = [statistics.stdev(points[x] for points in by_run) for x in xs]
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    return Curve(xs, means, low, high)


def colours(charts: Sequence[Chart]) -> dict[str, str]:
    """One colour for each name in any of the charts, whatever its study and its capitals; what stands in one chart
    shares none, as long as there are enough.
    """
    together = [{_model(name) for name in chart.curves} for chart in charts]
    chosen: dict[str, str] = {}
    for name in (_model(name) for chart in charts for name in chart.curves):
        if name not in chosen:
            used = list(chosen.values())
            beside = {chosen[other] for names in together if name in names for other in names if other in chosen}
            chosen[name] = min(COLOURS, key=lambda colour: (colour in beside, used.count(colour)))
    return chosen


def draw(chart: Chart, colours: Mapping[str, str]) -> str:
    """A chart as an SVG element.

    Args:
        chart: what it shows.
        colours: see :func:`colours`; of two curves of one colour the second is dashed.
    """
    labels = [textwrap.fill(name, _LETTERS) for name in chart.curves]
    columns = 1 if max(map(len, labels), default=0) > _HALF else 2
    rows = sum(label.count("\n") + 1 for label in labels)
    salt = chart.y + chart.x
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT + _ROW * -(-rows // columns)), layout="constrained")
        axes = figure.subplots()
        seen = Counter[str]()
        for (name, curve), label in zip(chart.curves.items(), labels, strict=True):
            colour = colours[_model(name)]
            again, seen[colour] = seen[colour], seen[colour] + 1
            marker = MARKERS[(COLOURS.index(colour) + again) % len(MARKERS)] if len(curve.x) <= 24 else ""
            style = ("-", "--", ":")[again % 3]
            label = label.replace("$", r"\$")  # no formula
            axes.plot(curve.x, curve.y, style, color=colour, marker=marker, markersize=5, linewidth=1.7, label=label)
            if len(curve.low) == 1:
                ends = [[curve.y[0] - curve.low[0]], [curve.high[0] - curve.y[0]]]
                axes.errorbar(curve.x, curve.y, ends, color=colour, fmt="none", capsize=3, linewidth=1.2)
            elif curve.low:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        if chart.log_x:
            axes.set_xscale("log", base=2)
        if chart.log_y:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            for steps in ((1, 2, 5), tuple(range(1, 10))):
                at = [m * 10.0**e for e in range(-4, 8) for m in steps if low <= m * 10.0**e <= high]
                if len(at) > 2:
                    break
            axes.set_yticks(at, [f"{value:,g}" for value in at])
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: chart.ticks(value))
        if chart.limits:
            axes.set_ylim(*chart.limits)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(chart.title)}"', 1)


def tokens(value: float) -> str:
    """A number of tokens on an axis."""
    return short(value) if value >= 1 and float(value).is_integer() else f"{value:g}"


def _model(name: str) -> str:
    return name.rpartition("/")[2].casefold()
