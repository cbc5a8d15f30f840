"""The table and the figure of the study, from its results alone."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

from experiments.language.ledger import Ledger, Record
from experiments.state.subjects import SUBJECTS
from hfa.metrics.plot import COLOURS, MARKERS

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
    """Accuracy by setting, from few pairs to many; of the hardest one by size, where there are several sizes."""
    from matplotlib.figure import Figure

    compared = [name for name, subject in SUBJECTS.items() if not subject.part]
    styles = dict(zip(compared, zip(COLOURS, MARKERS, strict=True), strict=False))
    groups = {key: records for key, records in at_best(ledger).items() if key[0] in styles}
    sizes = sorted({floats for _, floats in groups if floats})
    settings = sorted({key for records in groups.values() for one in records for key in one["accuracy"]}, key=_hardness)
    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(2, 1)) if len(sizes) > 1 else [figure.subplots()]
    for (name, floats), records in groups.items():
        colour, marker = styles[name]
        if floats in (0, *sizes[-1:]):
            keys = [key for key in settings if all(key in one["accuracy"] for one in records)]
            means = [100 * statistics.mean(one["accuracy"][key] for one in records) for key in keys]
            places = [settings.index(key) for key in keys]
            axes[0].plot(places, means, color=colour, marker=marker, label=SUBJECTS[name].title)
    axes[0].set_xticks(range(len(settings)), settings, rotation=40)
    axes[0].set(ylabel="right answers, %", xlabel="length/pairs, with what stands between if not zeros")
    axes[0].set_title(f"Recall with {max(sizes, default=0):,} floats a layer, and where the state grows")
    axes[0].legend(frameon=False, fontsize=8)
    for name, (colour, marker) in styles.items() if len(sizes) > 1 else ():
        points = sorted((floats, records) for (one, floats), records in groups.items() if one == name and floats)
        values = [100 * statistics.mean(one["accuracy"][_HARDEST] for one in records) for _, records in points]
        axes[1].plot([floats for floats, _ in points], values, color=colour, marker=marker)
        axes[1].set_xscale("log", base=2)
        axes[1].set(xlabel="floats a layer", ylabel="right answers, %", title=f"{_HARDEST}, by the size of the state")
    for one in axes:
        one.set_ylim(0, 102)
        one.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _hardness(setting: str) -> tuple[bool, int, int]:
    """Noise last, then by pairs, then by length."""
    size, *noise = setting.split()
    length, pairs = map(int, size.split("/"))
    return bool(noise), pairs, length


def at_best(ledger: Ledger) -> dict[tuple[str, int], list[Record]]:
    """The newest trials of each model and state, at the learning rate of most seeds, by seed.

    All are of equally many steps, those that most trials there took.
    """
    trials = list(ledger.read("training"))
    steps = Counter(one.get("steps") for one in trials).most_common(1)
    groups: dict[tuple[str, int], dict[float, dict[int, Record]]] = {}
    for one in trials:
        if one.get("steps") == steps[0][0]:
            groups.setdefault((one["variant"], one["floats"]), {}).setdefault(one["lr"], {})[one["seed"]] = one
    chosen = {}
    order = list(SUBJECTS)
    for key, rates in sorted(groups.items(), key=lambda group: (order.index(group[0][0]), group[0][1])):
        fitting = max(rates.values(), key=lambda by_seed: (len(by_seed), trained(by_seed[min(by_seed)])))
        chosen[key] = [fitting[seed] for seed in sorted(fitting)]
    return chosen


def trained(record: Record) -> tuple[float, float]:
    """Accuracy over the settings of the training, summed, and where that is alike the loss, the less the better.

    On validation examples; the earliest trials have none, and are judged by those of the test.
    """
    right = float(
        sum(
            record.get("validation", record["accuracy"])[key] for key in ("64/4", "128/8", "256/16", "256/32", _HARDEST)
        )
    )
    return right, -float(record.get("loss", 0.0))


def percent(values: list[float]) -> str:
    """The mean, and the lowest where they differ."""
    if not values:
        return ""
    mean, lowest = f"{100 * statistics.mean(values):.1f}", f"{100 * min(values):.1f}"
    return mean if mean == lowest else f"{mean} (lowest {lowest})"
