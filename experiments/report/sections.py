"""The parts of the page, each made from what was collected; a part with nothing to say is left out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.report.charts import Chart, Curve, over_seeds, tokens
from experiments.report.compare import ablations, comparison, few
from experiments.report.configuration import configuration, said
from experiments.report.cost import costs
from experiments.report.retention import retention
from experiments.report.run import Found, Made, Points, Run, by_study, compared, made
from experiments.report.section import Fold, Section, Table
from experiments.report.state import state


def sections(found: Found) -> list[Section]:
    """All parts that have something to say."""
    parts = (comparison, ablations, learning, retention, state, language, costs, writing, configuration, origin)
    return [section for part in parts if (section := part(found))]


def learning(found: Found) -> Section | None:
    """Loss over the steps."""
    charts = []
    for study, variants in by_study(found.runs).items():
        of = f": {study}" if study else ""
        for key, title in (
            ("val/bits_per_byte", "Validation, bits per byte"),
            ("train/bits_per_byte", "Training, bits per byte"),
            ("val/loss", "Validation loss, nats"),
        ):
            curves = {
                name: over_seeds(run.curves[key] for run in runs if run.curves.get(key))
                for name, runs in variants.items()
            }
            charts += Chart(f"{title}{of}", curves, "optimizer step", title).best()
        charts += _recall_charts({name: runs[0] for name, runs in variants.items()}, of)
        charts += _sweep_chart(study, [run for run in found.runs if run.study == study])
    return Section("learning", "Learning curves", _seeds(charts), charts=charts) if charts else None


def language(found: Found) -> Section | None:
    """Bits per byte by length and by position."""
    charts = []
    for study, variants in by_study(found.runs).items():
        of = f": {study}" if study else ""
        by_length = {
            name: over_seeds(_bits_by_length(run) for run in runs if run.bits) for name, runs in variants.items()
        }
        title = f"Bits per byte of test text, by length of the context{of}"
        charts += Chart(title, by_length, "tokens", "bits per byte", log_x=True, ticks=tokens).best()
        positions = {}
        for name, runs in variants.items():
            texts = list(dict.fromkeys(text for run in runs for text in run.loss))
            for text in texts:
                points = [run.loss[text].points() for run in runs if text in run.loss]
                positions[name if len(texts) == 1 else f"{name}, {text}"] = over_seeds(points)
        title = f"Bits per byte, by position in the context{of}"
        charts += Chart(title, positions, "position", "bits per byte", log_x=True, ticks=tokens).best()
    return Section("language", "Language", _seeds(charts), charts=charts) if charts else None


def writing(found: Found) -> Section | None:
    """What models wrote, of a variant with its first seed."""
    firsts = [next((run for run in runs if run.samples), None) for runs in compared(found.runs).values()]
    folds = [Fold(run.title, text=run.samples) for run in firsts if run]
    if not folds:
        return None
    folds[0] = folds[0]._replace(open=True)
    return Section("samples", "Sample texts", "Of the last validation.", folds=folds)


def origin(found: Found) -> Section | None:
    """Where each figure comes from."""
    rows = []
    for run in found.runs:
        rows += _origins(run.title, run.path, run.made)
    for path, groups in found.states.items():
        rows += _origins("state", path, [made(one) for records in groups.values() for one in records])
    for path, data in found.costs.items():
        there = data["provenance"]
        rows += _origins("complexity", path, [made(there | {"cpu": there.get("machine", {}).get("processor")})])
    table = Table("", ["run", "command", "commit", "seed", "machine", "date", "folder"], rows)
    return Section("origin", "Where it comes from", "", tables=[table]) if rows else None


def _origins(name: str, path: str, makings: Sequence[Made]) -> list[list[str]]:
    """A row for each command and commit, with all seeds and the newest date."""
    groups: dict[tuple[str, ...], list[Made]] = {}
    for one in makings:
        commit = f"{str(one.get('commit', ''))[:9]}{' (changed)' if one.get('dirty') else ''}"
        machine = str(one.get("cpu") or one.get("device") or "")
        groups.setdefault((str(one.get("command", "")), commit, machine), []).append(one)
    rows = []
    for (command, commit, machine), of in groups.items():
        seeds = said(sorted({one["seed"] for one in of if "seed" in one}))
        date = max(str(one.get("date", ""))[:16].replace("T", " ") for one in of)
        rows.append([name, command, commit, seeds, machine, date, path])
    return rows


def _seeds(charts: Sequence[Chart]) -> str:
    bands = any(len(curve.low) for chart in charts for curve in chart.curves.values())
    return "Bands are one standard deviation over seeds." if bands else ""


def _recall_charts(runs: Mapping[str, Run], of: str) -> list[Chart]:
    """A chart for each set of tasks: their mean, of one run alone each of them."""
    by_tasks: dict[frozenset[str], dict[str, dict[str, Points]]] = {}
    for name, run in runs.items():
        if asked := {key.rpartition("/")[2]: points for key, points in run.curves.items() if "/recall/" in key}:
            by_tasks.setdefault(frozenset(asked), {})[name] = asked
    charts = []
    for tasks, asked_runs in by_tasks.items():
        if len(asked_runs) == 1:
            ((name, asked),) = asked_runs.items()
            title = f"Validation, exact answers by task: {name}"
            curves = {task: over_seeds([points]) for task, points in asked.items()}
        else:
            title = f"Validation, exact answers, mean of {few(tasks)}{of}"
            curves = {name: over_seeds(asked.values())._replace(low=(), high=()) for name, asked in asked_runs.items()}
        percent = {name: curve._replace(y=[100 * value for value in curve.y]) for name, curve in curves.items()}
        charts += Chart(title, percent, "optimizer step", "% of answers", limits=(-3, 103)).best(most=True)
    return charts


def _sweep_chart(study: str, runs: Sequence[Run]) -> list[Chart]:
    """Bits per byte by learning rate, of a study's variants that were trained with several; of the seed that all rates
    were tried with, which is the first.
    """
    if not study:
        return []
    curves = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        of_variant = [run for run in runs if run.variant == variant]
        rates: dict[float, float] = {}
        for run in of_variant:
            bits = run.metrics.get("val/bits_per_byte")
            if run.seed == of_variant[0].seed and bits is not None and run.learning_rate is not None:
                rates[1000 * run.learning_rate] = bits
        if len(rates) > 1:
            curves[f"{study}/{variant}"] = Curve(sorted(rates), [rates[lr] for lr in sorted(rates)])
    title = f"Validation by learning rate: {study}"
    return Chart(title, curves, "learning rate, thousandths", "bits per byte", log_x=True).best()


def _bits_by_length(run: Run) -> Points:
    """The mean over texts."""
    lengths = sorted({length for _, length in run.bits})
    return [(n, statistics.mean(bits for (_, length), bits in run.bits.items() if length == n)) for n in lengths]


def amounts(found: Found) -> str:
    """How much of what there is."""
    counts = (
        (len(found.runs), "run", "runs"),
        (len(found.costs), "measurement of cost", "measurements of cost"),
        (len(found.states), "study of the state", "studies of the state"),
    )
    return ", ".join(f"{number} {one if number == 1 else more}" for number, one, more in counts if number)
