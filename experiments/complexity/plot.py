"""The picture of a run, drawn from its JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from experiments.complexity.figures import Results
from experiments.complexity.measure import Regime
from experiments.complexity.report import held
from hfa.metrics.plot import COLOURS, MARKERS, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TITLES = {"prefill": "prefill", "train": "training: forward, loss, backward", "decode": "decode"}


def plot(results: Results, path: Path) -> Path:
    """Speed and peak memory against the length, a row for each regime of the run.

    Medians, with bars between the quartiles.

    Args:
        results: of a run.
        path: where the PNG goes.

    Returns:
        `path`.
    """
    regimes = results.regimes() or ["prefill"]
    figure = Figure(figsize=(12, 5 * len(regimes)), dpi=130, layout="constrained")
    grid = figure.subplots(len(regimes), 2, squeeze=False)
    for (speed, memory), regime in zip(grid, regimes, strict=True):
        _speed(speed, results, regime)
        _memory(memory, results, regime)
    figure.suptitle(_title(results), fontsize=12)
    handles: dict[str, Artist] = {}
    for axes in grid.flat:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _speed(axes: Axes, results: Results, regime: Regime) -> None:
    unit = "ms a token (less is better)" if regime == "decode" else "tokens/s"
    _lines(axes, results, regime, lambda name, length: results.rates(name, regime, length))
    _label(axes, _TITLES[regime], unit, regime)


def _memory(axes: Axes, results: Results, regime: Regime) -> None:
    _lines(axes, results, regime, lambda name, n: [peak / (1 << 20) for peak in results.peaks(name, regime, n)])
    _label(axes, f"{_TITLES[regime].split(':')[0]}: peak memory beyond {held(regime)}", "MiB (less is better)", regime)


def _lines(axes: Axes, results: Results, regime: Regime, values: Callable[[str, int], list[float]]) -> None:
    lengths = results.lengths(regime)
    for i, (name, facts) in enumerate(results.models.items()):
        measured = {length: found for length in lengths if (found := values(name, length))}
        if not measured:
            continue
        low, middle, high = np.array([np.quantile(found, [0.25, 0.5, 0.75]) for found in measured.values()]).T
        axes.errorbar(
            list(measured),
            middle,
            yerr=[middle - low, high - middle],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            linewidth=2.2 if facts["ours"] else 1.2,
            linestyle="-" if facts["ours"] else "--",
            markersize=6,
            capsize=2,
            label=facts["title"],
        )


def _label(axes: Axes, title: str, unit: str, regime: Regime) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_ylabel(unit)
    axes.set_xlabel("tokens of context" if regime == "decode" else "tokens")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({float(v) for line in axes.lines for v in np.asarray(line.get_xdata()).tolist()})
    if lengths:
        axes.set_xticks(lengths, [short(v) for v in lengths])
        axes.minorticks_off()
        _round_ticks(axes)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.grid(alpha=0.3)


def _round_ticks(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 times the powers of ten that the values span, or at more where that gives one alone."""
    low, high = axes.get_ylim()
    for steps in ((1, 2, 5), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [m * 10.0**e for e in range(-4, 7) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) >= 2:
            axes.set_yticks(ticks, [f"{tick:,g}" for tick in ticks])
            return


def _title(results: Results) -> str:
    made = results.provenance
    commit = f"{(made['commit'] or 'no commit')[:9]}{', changed' if made['dirty'] else ''}"
    machine = f"{made['machine']['processor']}, {made['threads']} thread(s)"
    return f"What a model costs: {machine}, {made['date'][:10]}, {commit}"
