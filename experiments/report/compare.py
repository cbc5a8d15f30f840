"""Runs beside each other: a row each, and what a study's variants differ by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from experiments.report.run import Found, Run, by_study, compared
from experiments.report.section import Section, Table
from hfa.metrics.plot import short
from hfa.metrics.recall import student

_BITS, _SHARE, _COUNT = "{:.3f}", "{:.1%}", "{:,.0f}"
_NAMED = 2  # tasks in the head of a column


class Measure(NamedTuple):
    """A column.

    Attributes:
        title: its head.
        read: the value of a run; None where it has none.
        form: of the value.
    """

    title: str
    read: Callable[[Run], float | None]
    form: str


def comparison(found: Found) -> Section | None:
    """A row a run, or a variant over its seeds; results first, as a phone shows no more."""
    if not found.runs:
        return None
    groups = compared(found.runs)
    each = list(groups.values())
    columns = {one.title: [_spread(one, runs) for runs in each] for one in _results(each)}
    columns["model"] = [runs[0].model for runs in each]
    columns |= {one.title: [_spread(one, runs) for runs in each] for one in _costs()}
    rates = [runs[0].learning_rate for runs in each]
    columns["learning rate"] = ["" if rate is None else f"{rate:g}" for rate in rates]
    if max(map(len, each)) > 1:
        columns["runs"] = [str(len(runs)) for runs in each]
    lead = (
        "The newest value of each run; of runs that differ in their seed alone, the mean and standard deviation. "
        "Validation and test are in bits per byte, where less is better, validation on each run's own data. Recall is "
        "the share of answers that are right as a whole, the mean over the tasks and lengths in the head of its "
        "column, which all that have a value there were asked."
    )
    if len(swept := [run for run in found.runs if not run.chosen]):
        lead += (
            f" Of each variant its best learning rate; {len(swept)} runs at others are in the learning rates' chart."
        )
    return Section("comparison", "Comparison", lead, tables=[_table("", "run", groups, columns)])


def ablations(found: Found) -> Section | None:
    """What each variant of a study differs by from the study's first one."""
    tables = []
    for study, variants in by_study(found.runs).items():
        if not study or len(variants) < 2:
            continue
        base = next(iter(variants))
        columns = {
            one.title: [_difference(one, runs, variants[base]) for runs in variants.values()]
            for one in _results(list(variants.values()))
        }
        tables.append(_table(f"{study}: difference to {base}", "variant", variants, columns))
    lead = (
        "Validation and test are in bits per byte: less is better. Differences are taken seed by seed, where both were "
        "run with it; in brackets is the 95% interval of their mean over seeds (Student's t): one seed has none."
    )
    return Section("differences", "Differences within a study", lead, tables=tables) if tables else None


def few(tasks: Collection[str]) -> str:
    """Their names, or how many there are."""
    return ", ".join(sorted(tasks)) if len(tasks) <= _NAMED else f"{len(tasks)} tasks"


def _table(title: str, head: str, names: Iterable[str], columns: Mapping[str, list[str]]) -> Table:
    """Without columns that are empty."""
    kept = {title: cells for title, cells in columns.items() if any(cells)}
    return Table(title, [head, *kept], [list(row) for row in zip(names, *kept.values(), strict=True)])


def _results(groups: Collection[Sequence[Run]]) -> Iterator[Measure]:
    """What runs are compared by, each on one and the same data."""
    yield Measure("validation", partial(_metric, "val/bits_per_byte"), _BITS)
    tested = sorted({key for runs in groups for run in runs for key in run.bits}, key=lambda key: (key[1], key[0]))
    for text, length in tested:
        on = f" on {text}" if len({name for name, _ in tested}) > 1 else ""
        yield Measure(f"test{on} at {length:,}", partial(_tested, (text, length)), _BITS)
    for tasks in _shared([_validated(run) for run in runs] for runs in groups):
        yield Measure(f"validation recall: {few(tasks)}", partial(_mean, tasks, _validated), _SHARE)
    for cells in _shared([_asked(run) for run in runs] for runs in groups):
        lengths = sorted({length for _, length in cells})
        to = f" to {short(lengths[-1])}" if len(lengths) > 1 else ""
        title = f"test recall: {few({task for task, _ in cells})} at {short(lengths[0])}{to}"
        yield Measure(title, partial(_mean, cells, _asked), _SHARE)


def _costs() -> Iterator[Measure]:
    for title, key in (("parameters", "parameters"), ("tokens", "tokens"), ("tokens/s", "tokens_per_s")):
        yield Measure(title, partial(_metric, key), _COUNT)


def _metric(key: str, run: Run) -> float | None:
    return run.metrics.get(key)


def _tested(key: tuple[str, int], run: Run) -> float | None:
    return run.bits.get(key)


def _mean(of: Collection[Any], read: Callable[[Run], Mapping[Any, float]], run: Run) -> float | None:
    """The mean over what was asked, if all of it was."""
    values = read(run)
    return statistics.mean(values[one] for one in of) if values.keys() >= set(of) else None


def _validated(run: Run) -> dict[Any, float]:
    """The share of right answers in validation, by task."""
    start = "val/recall/"
    return {key.removeprefix(start): value for key, value in run.metrics.items() if key.startswith(start)}


def _asked(run: Run) -> dict[Any, float]:
    """The share of right answers in the test, by task and length."""
    recall = run.recall
    if recall is None:
        return {}
    return {(task, n): recall.at(task, n).accuracy for task in recall.tasks() for n in recall.lengths(task)}


def _shared(groups: Iterable[Sequence[Mapping[Any, float]]]) -> list[frozenset[Any]]:
    """What all runs of a group were asked; without what only one group was, where there are several."""
    asked = [frozenset.intersection(*(frozenset(one) for one in group if one)) for group in groups if any(group)]
    return [one for one in dict.fromkeys(asked) if one and (len(asked) == 1 or sum(one <= of for of in asked) > 1)]


def _values(measure: Measure, runs: Sequence[Run]) -> list[float]:
    return [value for run in runs if (value := measure.read(run)) is not None]


def _spread(measure: Measure, runs: Sequence[Run]) -> str:
    """The mean, and the standard deviation of several results."""
    values = _values(measure, runs)
    if not values:
        return ""
    middle = measure.form.format(statistics.mean(values))
    one = len(values) == 1 or measure.form == _COUNT
    return middle if one else f"{middle} ± {measure.form.format(statistics.stdev(values))}"


def _difference(measure: Measure, runs: Sequence[Run], base: Sequence[Run]) -> str:
    """The mean over the seeds that both were run with, and its interval; of the base itself its own value."""
    if runs is base:
        return _spread(measure, runs)
    mine, theirs = ({run.seed: value for run in of for value in _values(measure, [run])} for of in (runs, base))
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not differences:
        return ""
    form = measure.form.replace(":", ":+")
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return form.format(mean)
    margin = student(len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{form.format(mean)} [{form.format(mean - margin)}, {form.format(mean + margin)}]"
