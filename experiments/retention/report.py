"""Table and figures, from the ledger alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.retention.ledger import Ledger
from hfa.metrics.plot import percent, plot_recall, short
from hfa.metrics.recall import Measure, Recall

MEASURES: tuple[Measure, ...] = ("storage", "selection", "exact")
_DPI = 150


def table(ledger: Ledger) -> str:
    """A row a task, a column a length: exact answers of all seeds, the worst seed, selection, and how many answers."""
    recall, seeds = ledger.recall(), ledger.seeds()
    by_seed = [ledger.recall(seed) for seed in seeds]
    lengths = sorted({length for task in recall.tasks() for length in recall.lengths(task)})
    heads = ["task", *(short(length) for length in lengths)]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * len(lengths)]
    for task in recall.tasks():
        cells = [_cell(recall, by_seed, task, length) for length in lengths]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(ledger: Ledger, folder: Path) -> list[Path]:
    """A heat-map of each measure by task and length, and exact answers by length and depth for each task."""
    recall = ledger.recall()
    seeds = ", ".join(map(str, ledger.seeds()))
    title = f"Retention, % of tokens (storage, selection) and of answers (exact), seeds {seeds}"
    overview = _overview(recall, folder / "retention.png", title)
    depth = plot_recall({"hfa": recall}, folder / "answers_by_depth.png", "Exact answers, %")
    return [overview, depth]


def _overview(recall: Recall, path: Path, title: str) -> Path:
    tasks = recall.tasks()
    lengths = sorted({length for task in tasks for length in recall.lengths(task)})
    figure = Figure(figsize=(15, 1.6 + 0.36 * len(tasks)), dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    for axes, measure in zip(figure.subplots(1, len(MEASURES), sharey=True), MEASURES, strict=True):
        shares = [[recall.at(task, length).share(measure) for length in lengths] for task in tasks]
        values = np.array([[100 * share.value for share in row] for row in shares]).reshape(len(tasks), -1)
        axes.set_facecolor("0.9")
        axes.imshow(values, cmap="cividis", vmin=50, vmax=100, aspect="auto")
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                if share.whole:
                    text = f"{percent(share.value, 2)}\nn={share.whole}"
                    colour = "black" if share.value > 0.75 else "white"
                    axes.text(x, y, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_title(measure)
        axes.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=8)
        axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
        axes.set_xlabel("length of the context (tokens)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _cell(recall: Recall, by_seed: list[Recall], task: str, length: int) -> str:
    """``99.97 (99.91; 99.98) 6,000``: exact answers, of the worst seed; selected; how many answers."""
    count = recall.at(task, length)
    if not count.tokens:
        return ""
    worst = min(counted.accuracy for one in by_seed if (counted := one.at(task, length)).tokens)
    selected = f"; {percent(count.share('selection').value, 2)}" if count.audited else ""
    return f"{percent(count.accuracy, 2)} ({percent(worst, 2)}{selected}) {count.answers:,}"
