"""The table and the figure of the study, from its results alone."""

from __future__ import annotations

import statistics
from pathlib import Path

from experiments.language.ledger import Ledger, Record
from experiments.state.subjects import SUBJECTS

# Okabe and Ito's colours, told apart with any colour vision, each with a marker of its own for print
_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#CC79A7", "#000000", "#009E73")
_MARKERS = ("o", "v", "s", "D", "P", "^", "*")
_HARDEST = "256/64"  # of those trained on


def table(ledger: Ledger) -> str:
    """A row a model and state: accuracy in every setting, the mean over seeds at the best learning rate."""
    groups = at_best(ledger)
    columns = list(dict.fromkeys(key for records in groups.values() for one in records for key in one["accuracy"]))
    heads = ["model", "floats a layer", "learning rate", "seeds", "CPU s", *columns]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for (name, floats), records in groups.items():
        cells = [
            SUBJECTS[name].title,
            f"{floats:,}" if floats else "grows",
            f"{records[0]['lr']:g}",
            str(len(records)),
            f"{statistics.mean(one['cpu_seconds'] for one in records):.0f}",
            *(percent([one["accuracy"][key] for one in records if key in one["accuracy"]]) for key in columns),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(ledger: Ledger, path: Path) -> Path:
    """Accuracy by setting, and, of the hardest that was trained on, by floats of the state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    by_setting, by_floats = figure.subplots(1, 2, width_ratios=(2, 1))
    groups = at_best(ledger)
    compared = [name for name, subject in SUBJECTS.items() if not subject.part]
    styles = dict(zip(compared, zip(_COLOURS, _MARKERS, strict=False), strict=False))
    groups = {key: records for key, records in groups.items() if key[0] in styles}
    most = max((floats for _, floats in groups), default=0)
    for (name, floats), records in groups.items():
        if floats not in (0, most):
            continue
        keys = [key for key in records[0]["accuracy"] if all(key in one["accuracy"] for one in records)]
        means = [100 * statistics.mean(one["accuracy"][key] for one in records) for key in keys]
        colour, marker = styles[name]
        by_setting.plot(keys, means, color=colour, marker=marker, label=SUBJECTS[name].title)
    by_setting.tick_params(axis="x", rotation=40)
    by_setting.set(ylabel="right answers, %", title=f"By length/pairs, at {most:,} floats a layer")
    for name, (colour, marker) in styles.items():
        points = sorted((floats, records) for (one, floats), records in groups.items() if one == name and floats)
        values = [100 * statistics.mean(one["accuracy"][_HARDEST] for one in records) for _, records in points]
        by_floats.plot([floats for floats, _ in points], values, color=colour, marker=marker)
    by_floats.set_xscale("log", base=2)
    by_floats.set(xlabel="floats a layer", ylabel="right answers, %", title=f"{_HARDEST}, by the size of the state")
    for axes in (by_setting, by_floats):
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    by_setting.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def at_best(ledger: Ledger) -> dict[tuple[str, int], list[Record]]:
    """The newest trials of each model and state, at the learning rate of most seeds, by seed."""
    groups: dict[tuple[str, int], dict[float, dict[int, Record]]] = {}
    for one in ledger.read("training"):
        groups.setdefault((one["variant"], one["floats"]), {}).setdefault(one["lr"], {})[one["seed"]] = one
    chosen = {}
    for key, rates in groups.items():
        first = min(next(iter(rates.values())))  # the seed that all rates were tried with
        fitting = max(rates.values(), key=lambda by_seed: (len(by_seed), trained(by_seed[first])))
        chosen[key] = [fitting[seed] for seed in sorted(fitting)]
    return chosen


def trained(record: Record) -> float:
    """Accuracy over the settings of the training, summed."""
    return float(sum(record["accuracy"][key] for key in ("64/4", "128/8", "256/16", "256/32", _HARDEST)))


def percent(values: list[float]) -> str:
    """The mean, and the lowest where they differ."""
    if not values:
        return ""
    mean, lowest = f"{100 * statistics.mean(values):.1f}", f"{100 * min(values):.1f}"
    return mean if mean == lowest else f"{mean} (lowest {lowest})"
