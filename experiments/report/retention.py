"""Recall by task, by length of the context, and by where in it the evidence stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import matplotlib as mpl
from matplotlib.colors import to_hex

from experiments.report.charts import Chart, Curve, tokens
from experiments.report.run import Found, compared
from experiments.report.section import Cell, Fold, Grid, Section
from hfa.metrics.plot import percent, short
from hfa.metrics.recall import MEASURES, Measure, Recall, Share

_MEASURES: dict[Measure, tuple[str, str]] = {
    "exact": ("exact", "whole answers of which every token was the likeliest"),
    "storage": ("storage", "evidence that every memory still held"),
    "selection": ("selection", "evidence that was read when it was asked for"),
    "answer": ("right tokens", "tokens of answers that were the likeliest, given the right ones before them"),
    "match": ("match", "answers found in what the model wrote by itself"),
}
_FEW_CHARTS = 6  # that are shown at once


def retention(found: Found) -> Section | None:
    """All models beside each other; then recall against length, and heat-maps of every measure, folded where many."""
    recalls: dict[str, Recall] = {}
    for name, runs in compared(found.runs).items():
        if parts := [run.recall for run in runs if run.recall]:
            recalls[name] = _merged(parts)
    if not recalls:
        return None
    charts = list(_by_length(recalls))
    few = len(charts) <= _FEW_CHARTS
    folds = [] if few else [Fold(f"By length: a chart for each of {len(charts)} tasks", charts=charts)]
    if len(recalls) > 1:
        grids = [_overview(recalls)]
        for name, recall in recalls.items():
            folds.append(Fold(f"By length and depth: {name}", grids=[*_by_task(recall), *_by_depth(recall)]))
    else:
        ((name, recall),) = recalls.items()
        grids = [grid._replace(title=f"{name}: {grid.title}") for grid in _by_task(recall)]
        folds.append(Fold(f"By depth: {name}", grids=list(_by_depth(recall))))
    lead = (
        "Percent, by task and by length of the context in tokens, of the answers of all seeds together; bands, and the "
        "numbers below the percentages, are the 95% interval, with how many answers or tokens they are of: of these "
        "models' answers, whatever another training would have given."
    )
    return Section("retention", "Retention", lead, charts=charts if few else (), grids=grids, folds=folds)


def _overview(recalls: Mapping[str, Recall]) -> Grid:
    """Tasks against models, each task at the greatest length that most were asked it at; first what most were."""
    rows = []
    for task in sorted({task for recall in recalls.values() for task in recall.tasks()}):
        rows += [
            (f"{task}, {short(n)}", [_cell(recall.at(task, n).share("exact")) for recall in recalls.values()])
            for n in _lengths(task, recalls)
        ]
    rows.sort(key=lambda row: row[1].count(None))
    note = "whole answers, %, at the greatest length that most were asked at, and at another where some were not"
    return Grid("Exact answers by task and model", note, list(recalls), rows)


def _lengths(task: str, recalls: Mapping[str, Recall]) -> Iterator[int]:
    """As few lengths as have every model that was asked."""
    left = {name: lengths for name, recall in recalls.items() if (lengths := set(recall.lengths(task)))}
    while left:
        asked = [n for lengths in left.values() for n in lengths]
        most = max(asked, key=lambda n: (asked.count(n), n))
        yield most
        left = {name: lengths for name, lengths in left.items() if most not in lengths}


def _by_length(recalls: Mapping[str, Recall]) -> Iterator[Chart]:
    """A chart a task: exact answers against length, with Wilson's intervals."""
    for task in sorted({task for recall in recalls.values() for task in recall.tasks()}):
        curves = {}
        for name, recall in recalls.items():
            if shares := {n: recall.at(task, n).share("exact") for n in recall.lengths(task)}:
                low, high = ([100 * share.interval[end] for share in shares.values()] for end in (0, 1))
                curves[name] = Curve(list(shares), [100 * share.value for share in shares.values()], low, high)
        if max(len(curve.x) for curve in curves.values()) > 1:
            title = f"{task}: exact answers, by length"
            chart = Chart(title, curves, "tokens", "% of answers", log_x=True, limits=(-3, 103), ticks=tokens)
            yield from chart.best(most=True)


def _by_task(recall: Recall) -> Iterator[Grid]:
    """A heat-map for each measure that was taken."""
    lengths = sorted({length for task in recall.tasks() for length in recall.lengths(task)})
    for measure in MEASURES:
        rows = [(task, [_cell(recall.at(task, n).share(measure)) for n in lengths]) for task in recall.tasks()]
        if any(cell for _, cells in rows for cell in cells):
            yield Grid(*_MEASURES[measure], [short(n) for n in lengths], rows)


def _by_depth(recall: Recall) -> Iterator[Grid]:
    bins = recall.depth_bins
    for task in recall.tasks():
        lengths = recall.lengths(task)
        rows = [
            (
                f"{100 * i // bins} to {100 * (i + 1) // bins}%",
                [_cell(recall.at(task, n, i).share("exact")) for n in lengths],
            )
            for i in range(bins)
        ]
        yield Grid(f"{task}: exact, by depth of the evidence", "", [short(n) for n in lengths], rows)


def _merged(parts: Sequence[Recall]) -> Recall:
    total = Recall(parts[0].depth_bins)
    for recall in parts:
        total.merge(recall)
    return total


def _cell(share: Share) -> Cell | None:
    if not share.whole:
        return None
    low, high = (percent(end, 1) for end in share.interval)
    red, green, blue, _ = mpl.colormaps["cividis"](share.value)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    notes = (f"{low} to {high}", f"n={share.whole:,}")
    return Cell(percent(share.value, 1), notes, to_hex((red, green, blue)), dark)
