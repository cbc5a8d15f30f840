"""Figures: recall by length and depth, and loss by position, for one model or several side by side."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hfa.metrics.bits import LossByPosition
from hfa.metrics.recall import MEASURES, Measure, Recall, Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Seven of Okabe and Ito's colours, told apart with any colour vision, and four more; each with a marker for print
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C564B",
    "#7F7F7F",
    "#999933",
    "#5E3C99",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
_WIDTH = 10.0  # inches: at 100 pixels an inch, text of 8 points is readable
_DPI = 150


def plot_recall(
    recalls: Mapping[str, Recall],
    path: Path,
    title: str = "Exact recall, % of answers",
    measure: Measure = "exact",
) -> Path:
    """A heat-map of accuracy for each task and model: depth against length.

    A cell says its accuracy in percent and the number of answers. The last row is over all depths, with the 95%
    interval. Where nothing was asked, a cell is grey.

    Args:
        recalls: by the model's name.
        path: where the PNG goes.
        title: stands above.
        measure: ``exact`` answers, or one of the rates of :meth:`~hfa.metrics.recall.Count.retention`, by tokens.

    Returns:
        `path`.
    """
    panels = [(task, model) for task in sorted({t for r in recalls.values() for t in r.tasks()}) for model in recalls]
    columns = 1 if len(panels) == 1 else 2
    rows = max(1, math.ceil(len(panels) / columns))
    depth_bins = max((recall.depth_bins for recall in recalls.values()), default=1)
    figure = _figure(rows * (1.3 + 0.42 * (depth_bins + 1)) + 0.5, title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (task, model) in zip(grid.flat, panels, strict=False):
        lengths = sorted({length for recall in recalls.values() for length in recall.lengths(task)})
        _heat_map(axes, recalls[model], task, lengths, measure)
        axes.set_title(f"{model} on {task}", fontsize=11)
    return _save(figure, path)


def plot_overview(recalls: Mapping[str, Recall], path: Path, title: str = "Retention by task and length, %") -> Path:
    """A heat-map of every measure there is, task against length, a row of them for each model.

    Args:
        recalls: by the model's name.
        path: where the PNG goes.
        title: stands above.

    Returns:
        `path`.
    """
    tasks = sorted({task for recall in recalls.values() for task in recall.tasks()})
    lengths = sorted({length for recall in recalls.values() for task in tasks for length in recall.lengths(task)})
    totals = {name: [[recall.at(t, n) for n in lengths] for t in tasks] for name, recall in recalls.items()}
    counts = [count for rows in totals.values() for row in rows for count in row]
    measures = [measure for measure in MEASURES if any(count.share(measure).whole for count in counts)]
    figure = _figure(len(recalls) * (1.1 + 0.34 * len(tasks)) + 0.6, title)
    grid = figure.subplots(len(recalls), len(measures), sharey=True, squeeze=False)
    for row, (name, totals_of) in zip(grid, totals.items(), strict=True):
        for axes, measure in zip(row, measures, strict=True):
            shares = [[count.share(measure) for count in line] for line in totals_of]
            _cells(axes, shares)
            axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
            axes.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=8)
        if len(recalls) > 1:
            row[0].set_ylabel(textwrap.fill(name, 18), rotation=0, ha="right", va="center", fontsize=9)
    for axes, measure in zip(grid[0], measures, strict=True):
        axes.set_title(measure, fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("length of the context (tokens)", fontsize=8)
    return _save(figure, path)


def plot_loss(losses: Mapping[str, LossByPosition], path: Path, title: str = "Loss by position") -> Path:
    """A curve for each model: bits per byte against the position in the context, on a logarithmic axis.

    Args:
        losses: by the model's name.
        path: where the PNG goes.
        title: stands above.

    Returns:
        `path`.
    """
    figure = _figure(5.2, title)
    axes = figure.subplots()
    for (name, loss), colour, marker in zip(
        losses.items(), itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False
    ):
        axes.plot(*zip(*loss.points(), strict=True), color=colour, marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.set_xlabel("position in the context (tokens)")
    axes.set_ylabel("bits per byte (less is better)")
    axes.grid(alpha=0.3)
    if losses:
        axes.legend(frameon=False)
    return _save(figure, path)


def _heat_map(axes: Axes, recall: Recall, task: str, lengths: Sequence[int], measure: Measure) -> None:
    bins: list[int | None] = [*range(recall.depth_bins), None]
    shares = [[recall.at(task, length, depth_bin).share(measure) for length in lengths] for depth_bin in bins]
    _cells(axes, shares, with_interval=len(bins) - 1)
    axes.axhline(recall.depth_bins - 0.5, color="white", linewidth=4)
    edges = [round(100 * i / recall.depth_bins) for i in range(recall.depth_bins + 1)]
    names = [f"{start} to {stop}%" for start, stop in itertools.pairwise(edges)]
    axes.set_yticks(range(len(bins)), [*names, "all"], fontsize=8)
    axes.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=8)
    axes.set_ylabel("depth of the evidence", fontsize=9)
    axes.set_xlabel("length of the context (tokens)", fontsize=9)


def _cells(axes: Axes, shares: Sequence[Sequence[Share]], with_interval: int = -1) -> None:
    """Percentages as colours and numbers; below each how many there were, or in one row the interval."""
    values = np.array([[100 * share.value for share in row] for row in shares])
    axes.set_facecolor("0.9")
    axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if not share.whole:
                continue
            detail = " to ".join(map(percent, share.interval)) if y == with_interval else f"n={share.whole}"
            colour = "black" if share.value > 0.55 else "white"
            axes.text(x, y - 0.14, percent(share.value), ha="center", va="center", color=colour, fontsize=9)
            axes.text(x, y + 0.26, detail, ha="center", va="center", color=colour, fontsize=6.5)


def percent(rate: float, decimals: int = 0) -> str:
    """Percent, which never says 100 or 0 when it is not exactly that; there it has a decimal at least."""
    if (exact := round(rate, 9)) in (0, 1):
        return f"{100 * exact:.0f}"
    shown = f"{100 * rate:.{decimals}f}"
    if float(shown) not in (0, 100):
        return shown
    decimals = max(decimals, 1)
    least = 10**-decimals
    return f"{min(max(100 * rate, least), 100 - least):.{decimals}f}"


def short(tokens: float) -> str:
    """131072 as 128K; what is not a whole number of K as it is."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= unit and tokens % unit == 0:
            return f"{tokens // unit:.0f}{name}"
    return f"{tokens:,.0f}" if tokens == int(tokens) else f"{tokens:g}"


def _figure(height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path
