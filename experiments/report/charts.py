"""Curves as SVG, to stand in the page itself."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.complexity.report import short

# Okabe and Ito's colours, told apart with any colour vision, each with a marker of its own for print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8a8a00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Inches: on a phone as wide as the page, so that letters keep their size, and three beside each other on a desk
_WIDTH = 4.1
_HEIGHT = 2.7  # beside the legend
_ROW = 0.19  # of the legend


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


def draw(
    curves: Mapping[str, Curve],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    limits: tuple[float, float] | None = None,
    ticks: Callable[[float], str] | None = None,
    description: str,
) -> str:
    """A chart as an SVG element.

    Args:
        curves: by name; a single point is drawn as one.
        x: what the axis says.
        y: likewise.
        log_x: with base 2.
        log_y: with base 10.
        limits: of y; None fits the curves.
        ticks: how values of x are written.
        description: for those who cannot see it.
    """
    columns = 1 if max(map(len, curves), default=0) > 22 else 2
    size = _WIDTH, _HEIGHT + _ROW * -(-len(curves) // columns)
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": y + x}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for number, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            marker = MARKERS[number % len(MARKERS)] if len(curve.x) <= 24 else ""
            style = ("-", "--", ":")[number // len(COLOURS) % 3]
            label = name.replace("$", r"\$")  # no formula
            axes.plot(curve.x, curve.y, style, color=colour, marker=marker, markersize=5, linewidth=1.7, label=label)
            if curve.low:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            for steps in ((1, 2, 5), tuple(range(1, 10))):
                at = [m * 10.0**e for e in range(-4, 8) for m in steps if low <= m * 10.0**e <= high]
                if len(at) > 2:
                    break
            axes.set_yticks(at, [f"{value:,g}" for value in at])
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: (ticks or (lambda v: f"{v:,g}"))(value))
        if limits:
            axes.set_ylim(*limits)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
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
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def tokens(value: float) -> str:
    """A number of tokens on an axis."""
    return short(value) if value >= 1 and float(value).is_integer() else f"{value:g}"
