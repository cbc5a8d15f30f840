"""Runs beside each other: a row each, and what a study's variants differ by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from experiments.report.run import Found, Run, by_study, compared
from experiments.report.section import Section, Table
from hfa.metrics.recall import student

Reader = Callable[[Run], float | None]


def comparison(found: Found) -> Section | None:
    """A row a run, or a variant over its seeds."""
    if not found.runs:
        return None
    measures = _measures(found.runs)
    rows = []
    for name, runs in compared(found.runs).items():
        values = [[value for run in runs if (value := read(run)) is not None] for read in measures.values()]
        cells = [_spread(title, each) for title, each in zip(measures, values, strict=True)]
        rows.append([name, runs[0].model, _learning_rate(runs[0]), str(len(runs)), *cells])
    shown = [i for i in range(len(measures)) if any(row[4 + i] for row in rows)]
    columns = ["run", "model", "learning rate", "runs", *(list(measures)[i] for i in shown)]
    table = Table("", columns, [[*row[:4], *(row[4 + i] for i in shown)] for row in rows])
    lead = (
        "The newest value of each run, of validation and test in bits per byte; where runs differ in their seed alone, "
        "their mean and standard deviation."
    )
    if len(swept := [run for run in found.runs if not run.chosen]):
        lead += (
            f" Of each variant its best learning rate; {len(swept)} runs at others are in the learning rates' chart."
        )
    return Section("comparison", "Comparison", lead, tables=[table])


def ablations(found: Found) -> Section | None:
    """What each variant of a study differs by from the study's first one."""
    tables = []
    for study, variants in by_study(found.runs).items():
        if not study or len(variants) < 2:
            continue
        base, measures = next(iter(variants)), _measures([run for runs in variants.values() for run in runs])
        columns = {
            title: [_difference(title, read, runs, variants[base]) for runs in variants.values()]
            for title, read in measures.items()
            if title.startswith(("validation", "test", "recall"))
        }
        columns = {title: cells for title, cells in columns.items() if any(cells)}
        rows = [list(row) for row in zip(variants, *columns.values(), strict=True)]
        tables.append(Table(f"{study}: difference to {base}", ["variant", *columns], rows))
    lead = (
        "Validation and test are in bits per byte: less is better. Differences are taken seed by seed, where both were "
        "run with it; in brackets is the 95% interval of their mean over seeds (Student's t): one seed has none."
    )
    return Section("ablations", "Differences within a study", lead, tables=tables) if tables else None


def _measures(runs: Sequence[Run]) -> dict[str, Reader]:
    """What runs are compared by."""
    measures: dict[str, Reader] = {
        "parameters": lambda run: run.metrics.get("parameters"),
        "tokens": lambda run: run.metrics.get("tokens"),
        "validation": lambda run: run.metrics.get("val/bits_per_byte"),
        "recall, mean of tasks": _mean_recall,
    }
    for length in sorted({length for run in runs for _, length in run.bits}):
        measures[f"test at {length:,}"] = lambda run, length=length: bits_at(run, length)  # type: ignore[misc]
    measures["tokens/s"] = lambda run: run.metrics.get("tokens_per_s")
    return measures


def _difference(title: str, read: Reader, runs: Sequence[Run], base: Sequence[Run]) -> str:
    """The mean over the seeds that both were run with, and its interval; of the base itself its own value."""
    mine, theirs = (
        {run.made.get("seed"): value for run in of if (value := read(run)) is not None} for of in (runs, base)
    )
    if runs is base:
        return _spread(title, list(mine.values()))
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not differences:
        return ""
    form = "{:+.1%}" if "recall" in title else "{:+.3f}"
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return form.format(mean)
    margin = student(len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{form.format(mean)} [{form.format(mean - margin)}, {form.format(mean + margin)}]"


def _learning_rate(run: Run) -> str:
    optimizer = run.config.get("optimizer") or {}
    return f"{optimizer['lr']:g}" if "lr" in optimizer else ""


def _mean_recall(run: Run) -> float | None:
    if run.recall is None:
        values = [value for key, value in run.metrics.items() if key.startswith("val/recall/")]
        return statistics.mean(values) if values else None
    counts = [run.recall.at(task, length) for task in run.recall.tasks() for length in run.recall.lengths(task)]
    return statistics.mean(count.accuracy for count in counts)


def bits_at(run: Run, length: int) -> float | None:
    """Bits per byte at a length of the context, the mean over texts."""
    values = [bits for (_, n), bits in run.bits.items() if n == length]
    return statistics.mean(values) if values else None


def _spread(title: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    if title in ("parameters", "tokens", "tokens/s"):
        return f"{statistics.mean(values):,.0f}"
    form = "{:.1%}" if "recall" in title else "{:.3f}"
    middle = form.format(statistics.mean(values))
    return f"{middle} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else middle
