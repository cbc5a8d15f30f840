"""The table and the figure of a study, from its results alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.language.ledger import Record
from experiments.language.study import Study, score
from experiments.language.variant import Variant
from hfa.metrics.bits import LossByPosition
from hfa.metrics.plot import COLOURS, MARKERS, plot_overview
from hfa.metrics.recall import Recall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("-", "--", ":")  # once all colours are taken, with hollow markers


def table(study: Study) -> str:
    """A row a variant: size, learning rate, and what was measured with its spread over the seeds."""
    evaluations = [run for run in study.ledger.read("evaluation") if run["variant"] in study.variants]
    lengths = sorted({one["length"] for run in evaluations for one in run["bits_per_byte"]})
    asked = sorted({one["length"] for run in evaluations for one in run["recall"]})
    heads = ["model", "parameters", "tokens", "learning rate", "seeds", "validation"]
    heads += [f"test, {length:,}" for length in lengths]
    heads += [f"recall, {length:,}" for length in asked] + ["tokens/s"]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, variant in study.variants.items():
        runs, measured = at_best(study, name)
        if not runs or (variant.edits and not measured):
            continue
        by_length = [bits(measured, length) for length in lengths]
        cells = [
            variant.title,
            f"{runs[0]['parameters']:,}",
            f"{runs[0]['tokens']:,}",
            f"{runs[0]['lr']:g}",
            seeds(variant, runs, measured),
            "" if variant.edits else spread([score(run) for run in runs]),
            *map(spread, by_length),
            *(recall(measured, length) for length in asked),
            f"{statistics.mean(run['metrics']['tokens_per_s'] for run in runs):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    tested: dict[str, set[str]] = {}
    for run in evaluations:
        title = study.variants[run["variant"]].title
        tested.setdefault(run.get("documents", "not kept"), set()).add(title)
    if len(tested) > 1:  # the rows are not on equal terms
        groups = "; ".join(f"{documents}: {', '.join(sorted(titles))}" for documents, titles in tested.items())
        lines += ["", f"Tested on different documents (fingerprints): {groups}."]
    return "\n".join(lines) + "\n"


def seeds(variant: Variant, runs: Sequence[Record], measured: Sequence[Record]) -> str:
    """How many trainings a row is of, and how many tests where those are not as many."""
    counts = ([] if variant.edits else [len(runs)]) + ([len(measured)] if measured else [])
    return " / ".join(dict.fromkeys(map(str, counts)))


def written(study: Study) -> str:
    """What each variant wrote after its last validation, at its best learning rate, with its first seed."""
    parts = [f"# {study.name}: sample texts\n"]
    for name, variant in study.variants.items():
        runs, _ = at_best(study, name)
        texts = runs[0].get("samples") if runs and not variant.edits else None
        if texts:
            parts.append(f"## {variant.title}\n\nlearning rate {runs[0]['lr']:g}, seed {runs[0]['seed']}\n")
            parts.append(f"~~~~\n{texts}\n~~~~\n")
    return "\n".join(parts)


def draw(study: Study, path: Path) -> Path:
    """Panels: bits per byte against the learning rate, where there are several; by seed; against the position."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    names = [name for name in study.variants if at_best(study, name)[0]]
    rates = sorted({run["lr"] for run in study.ledger.read("training") if run["variant"] in study.variants})
    *sweeps, seeds, position = figure.subplots(1, 3 if len(rates) > 1 else 2)
    for number, name in enumerate(names):
        style = _style(number)
        if sweeps and not study.variants[name].trained_as:
            _draw_sweep(*sweeps, study, name, style)
        _draw_seeds(seeds, study, name, number, style)
        _draw_position(position, study, name, style)
    for sweep in sweeps:
        sweep.set_xscale("log", base=2)
        sweep.set_xticks(rates, [f"{1000 * rate:g}" for rate in rates])
        label = "validation, bits per byte (less is better)"
        sweep.set(xlabel="learning rate, thousandths", ylabel=label, title="Learning rate")
    seeds.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    seeds.set(ylabel="test, bits per byte, at the training's length", title="Seeds, and their mean")
    position.set_xscale("log", base=2)
    position.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}K" if value >= 1024 else f"{value:g}")
    position.set(xlabel="position in the context (tokens)", ylabel="test, bits per byte", title="Loss by position")
    lowest = [line.get_ydata()[0] for line in position.lines]
    if lowest:  # where one of them breaks down, the others stay legible
        position.set_ylim(top=min(position.get_ylim()[1], 1.3 * max(lowest)))
    for length in {run["config"]["data"]["seq_len"] for name in names for run in at_best(study, name)[0]}:
        position.axvline(length, color="0.6", linestyle=":")
        position.annotate(" trained on", (length, position.get_ylim()[0]), color="0.4", fontsize=8, va="bottom")
    for axes in (*sweeps, seeds, position):
        axes.grid(alpha=0.3)
    if position.lines:
        handles, labels = position.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def draw_recall(study: Study, path: Path) -> Path | None:
    """A heat-map of each measure of recall by task and length, of each variant, over its seeds; None without recall."""
    recalls = {one.title: recall_of(at_best(study, name)[1]) for name, one in study.variants.items()}
    recalls = {title: recall for title, recall in recalls.items() if recall.tasks()}
    return plot_overview(recalls, path) if recalls else None


def recall_of(evaluations: Sequence[Record]) -> Recall:
    """Recall of all evaluations together."""
    total: Recall | None = None
    for run in evaluations:
        measured = Recall.from_json(run["recall_by_depth"])
        if total is None:
            total = measured
        else:
            total.merge(measured)
    return total or Recall(depth_bins=1)


def _style(number: int) -> dict[str, Any]:
    """How the lines of a variant look; no two of the first 33 alike."""
    again, place = divmod(number, len(COLOURS))
    filled = {"markerfacecolor": "none"} if again else {}
    return {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": _LINES[again % len(_LINES)], **filled}


def at_best(study: Study, name: str) -> tuple[list[Record], list[Record]]:
    """The trainings of a variant at its best learning rate, by seed, and their evaluations."""
    trained = study.trained(name)
    size = study.ledger.size(trained)
    try:
        lr = study.best(name, size)["lr"]
    except LookupError:
        return [], []

    def by_seed(records: Sequence[Record]) -> list[Record]:
        fitting = {run["seed"]: run for run in records if run["lr"] == lr}
        return [fitting[seed] for seed in sorted(fitting)]

    return by_seed(study.ledger.made(trained, size)), by_seed(study.ledger.made(name, size, "evaluation"))


def bits(evaluations: Sequence[Record], length: int) -> list[float]:
    """Bits per byte of every evaluation at a context length."""
    found = [one["bits_per_byte"] for run in evaluations for one in run["bits_per_byte"] if one["length"] == length]
    return [math.nan if value is None else value for value in found]


def recall(evaluations: Sequence[Record], length: int) -> str:
    """Exact answers at a context length: the mean over tasks and seeds, and the task at which it is lowest."""
    by_task: dict[str, list[float]] = {}
    for run in evaluations:
        for one in run["recall"]:
            if one["length"] == length:
                by_task.setdefault(one["task"], []).append(one["accuracy"])
    means = {task: statistics.mean(values) for task, values in by_task.items()}
    if not means:
        return ""
    lowest = min(means, key=means.__getitem__)
    return f"{statistics.mean(means.values()):.1%} ({lowest} {means[lowest]:.1%})"


def finite(values: Sequence[float]) -> list[float]:
    """Those of runs that did not diverge."""
    return [value for value in values if math.isfinite(value)]


def spread(values: Sequence[float]) -> str:
    """The mean, and the standard deviation over seeds where there are several."""
    there = finite(values)
    if not there:
        return "diverged" if values else ""
    mean = f"{statistics.mean(there):.4f}"
    shown = f"{mean} ± {statistics.stdev(there):.4f}" if len(there) > 1 else mean
    lost = len(values) - len(there)
    return f"{shown}, {lost} diverged" if lost else shown


def _draw_sweep(axes: Axes, study: Study, name: str, style: dict[str, Any]) -> None:
    made = study.ledger.made(name, study.ledger.size(name))
    runs = {run["lr"]: score(run) for run in made if run["seed"] == made[0]["seed"]}
    axes.plot(sorted(runs), [runs[lr] for lr in sorted(runs)], label=name, **style)


def _draw_seeds(axes: Axes, study: Study, name: str, place: int, style: dict[str, Any]) -> None:
    evaluations = at_best(study, name)[1]
    if not evaluations:
        return
    values = finite(bits(evaluations, min(one["length"] for one in evaluations[0]["bits_per_byte"])))
    if not values:
        return
    axes.plot([place] * len(values), values, alpha=0.6, **{**style, "linestyle": ""})
    mean = statistics.mean(values)
    axes.plot([place - 0.25, place + 0.25], [mean, mean], color=style["color"])


def _draw_position(axes: Axes, study: Study, name: str, style: dict[str, Any]) -> None:
    evaluations = at_best(study, name)[1]
    merged: LossByPosition | None = None
    for run in evaluations:
        for one in run["loss_by_position"].values():
            loss = LossByPosition.from_json(one)
            if merged is None:
                merged = loss
            else:
                merged.merge(loss)
    if merged is None:
        return
    axes.plot(*zip(*merged.points(), strict=True), label=study.variants[name].title, **style)
