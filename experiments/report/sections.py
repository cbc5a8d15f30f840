"""The parts of the page, each made from what was collected; a part with nothing to say is left out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from experiments.complexity.report import Results, short
from experiments.report.charts import Curve, draw, tokens
from experiments.report.collect import Found, Points, Run, flat
from hfa.metrics.recall import MEASURES, Measure, Recall, Share

_MEANING: dict[Measure, str] = {
    "exact": "whole answers of which every token was the likeliest",
    "storage": "evidence that every memory still held",
    "selection": "evidence that was read when it was asked for",
    "answer": "tokens of answers that were the likeliest",
    "match": "answers found in what the model wrote by itself",
}
_MOST_CURVES = 14
_UNITS = {"prefill": "tokens/s", "train": "tokens/s", "decode": "ms a token"}


class Cell(NamedTuple):
    """A cell of a heat-map."""

    text: str
    note: str  # the interval, and of how many
    colour: str
    dark: bool  # whether the colour is


class Grid(NamedTuple):
    """A heat-map."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]


class Table(NamedTuple):
    """A plain table; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class Chart(NamedTuple):
    title: str
    svg: str
    note: str = ""


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    lead: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    details: Sequence[tuple[str, Sequence[Grid]]] = ()
    texts: Sequence[tuple[str, str]] = ()


def sections(found: Found) -> list[Section]:
    """All parts that have something to say."""
    parts = (comparison, learning, retention, language, costs, writing, differences, origin)
    return [section for part in parts if (section := part(found))]


def comparison(found: Found) -> Section | None:
    """A row a run, or a variant over its seeds."""
    if not found.runs:
        return None
    measures = {
        "parameters": lambda run: run.metrics.get("parameters"),
        "tokens": lambda run: run.metrics.get("tokens"),
        "validation, bits per byte": lambda run: run.metrics.get("val/bits_per_byte"),
        "recall, mean of tasks": _mean_recall,
        "tokens/s": lambda run: run.metrics.get("tokens_per_s"),
    }
    lengths = sorted({length for run in found.runs for _, length in run.bits})
    for length in lengths:
        measures[f"test at {length:,}"] = lambda run, length=length: _bits_at(run, length)
    rows = []
    for name, runs in _groups(found.runs).items():
        values = [[value for run in runs if (value := read(run)) is not None] for read in measures.values()]
        cells = [_spread(title, each) for title, each in zip(measures, values, strict=True)]
        rows.append([name, runs[0].model, str(len(runs)), *cells])
    shown = [i for i in range(len(measures)) if any(row[3 + i] for row in rows)]
    columns = ["run", "model", "runs", *(list(measures)[i] for i in shown)]
    table = Table("", columns, [[*row[:3], *(row[3 + i] for i in shown)] for row in rows])
    lead = "The newest value of each run; where runs differ in their seed alone, their mean and standard deviation."
    return Section("comparison", "Comparison", lead, tables=[table])


def learning(found: Found) -> Section | None:
    """Loss over the steps."""
    charts = []
    for key, title in (
        ("val/bits_per_byte", "Validation, bits per byte"),
        ("train/bits_per_byte", "Training, bits per byte"),
        ("val/loss", "Validation loss, nats"),
    ):
        curves = {run.name: Curve(*zip(*run.curves[key], strict=True)) for run in found.runs if run.curves.get(key)}
        if curves:
            kept = dict(list(curves.items())[:_MOST_CURVES])
            note = f"{len(kept)} of {len(curves)} runs." if len(kept) < len(curves) else ""
            charts.append(Chart(title, draw(kept, x="optimizer step", y=title, description=title), note))
    asked = {run.name: {key: points for key, points in run.curves.items() if "/recall/" in key} for run in found.runs}
    asked = {name: curves for name, curves in asked.items() if curves}
    if len(asked) == 1:
        ((name, by_task),) = asked.items()
        curves = {key.rpartition("/")[2]: Curve(*zip(*points, strict=True)) for key, points in by_task.items()}
        charts.append(_recall_chart(f"Validation, exact answers by task, {name}", curves))
    elif asked:
        curves = {name: _mean_curve(list(by_task.values())) for name, by_task in asked.items()}
        charts.append(_recall_chart("Validation, exact answers, mean of tasks", curves))
    return Section("learning", "Learning curves", "", charts=charts) if charts else None


def retention(found: Found) -> Section | None:
    """Heat-maps of every measure, task against length; and of each task, depth against length."""
    recalls = {run.name: run.recall for run in found.runs if run.recall}
    recalls |= {f"{path}, {seed}": recall for path, by in found.retention.items() for seed, recall in by.items()}
    grids, details = [], []
    for name, recall in recalls.items():
        lengths = sorted({length for task in recall.tasks() for length in recall.lengths(task)})
        for measure in MEASURES:
            rows = [(t, [_cell(recall.at(t, n).share(measure)) for n in lengths]) for t in recall.tasks()]
            if any(cell for _, cells in rows for cell in cells):
                grids.append(Grid(f"{name}: {measure}", _MEANING[measure], [short(n) for n in lengths], rows))
        details.append((name, list(_by_depth(recall))))
    lead = "Percent, by task and by length of the context in tokens; below it the 95% interval and of how many."
    return Section("retention", "Retention", lead, grids=grids, details=details) if grids else None


def language(found: Found) -> Section | None:
    """Bits per byte by length and by position."""
    charts = []
    by_length = {
        name: sorted({length for run in runs for _, length in run.bits}) for name, runs in _groups(found.runs).items()
    }
    groups = _groups(found.runs)
    curves = {}
    for name, lengths in by_length.items():
        values = {n: [bits for run in groups[name] if (bits := _bits_at(run, n)) is not None] for n in lengths}
        if values:
            means = [statistics.mean(values[n]) for n in lengths]
            several = all(len(values[n]) > 1 for n in lengths)
            spreads = [statistics.stdev(values[n]) for n in lengths] if several else []
            ends = [(m - s, m + s) for m, s in zip(means, spreads, strict=True)] if several else []
            curves[name] = Curve(lengths, means, [low for low, _ in ends], [high for _, high in ends])
    if curves:
        title = "Bits per byte of test text, by length of the context"
        svg = draw(curves, x="tokens", y="bits per byte", log_x=True, ticks=tokens, description=title)
        banded = any(curve.low for curve in curves.values())
        charts.append(Chart(title, svg, "Bands are one standard deviation over seeds." if banded else ""))
    positions = {}
    for run in found.runs:
        for text, loss in run.loss.items():
            filled = [
                (a, b, bits) for a, b, bits in zip(loss.edges, loss.edges[1:], loss.bins, strict=False) if bits.bytes
            ]
            name = run.name if len(run.loss) == 1 else f"{run.name}, {text}"
            positions[name] = Curve([(a + b - 1) / 2 + 1 for a, b, _ in filled], [bits.value for *_, bits in filled])
    if positions:
        title = "Bits per byte, by position in the context"
        kept = dict(list(positions.items())[:_MOST_CURVES])
        charts.append(
            Chart(title, draw(kept, x="position", y="bits per byte", log_x=True, ticks=tokens, description=title))
        )
    return Section("language", "Language", "", charts=charts) if charts else None


def costs(found: Found) -> Section | None:
    """Speed and memory against length, with quartiles; slopes with their bootstrap interval."""
    charts, tables = [], []
    for path, data in found.costs.items():
        results = Results(data)
        made = results.provenance
        processor = made.get("machine", {}).get("processor", "")
        note = f"{path}: {processor}, {str(made.get('commit'))[:9]}, {made['date'][:10]}"
        for regime in results.regimes():
            titles = {"prefill": "Prefill", "train": "Training, forward and backward", "decode": "Decode, by context"}
            curves = _speeds(results, regime)
            svg = draw(
                curves, x="tokens", y=_UNITS[regime], log_x=True, log_y=True, ticks=tokens, description=titles[regime]
            )
            charts.append(Chart(f"{titles[regime]}: {_UNITS[regime]}", svg, f"Median, and quartiles as a band. {note}"))
            lengths = results.lengths(regime)
            rows = [
                [
                    str(facts["title"]),
                    *(_rate(results.median(name, regime, n), regime) for n in lengths),
                    *([str(results.slope(name, regime) or "")] if regime != "decode" else []),
                ]
                for name, facts in results.models.items()
            ]
            columns = ["model", *(short(n) for n in lengths), *(["slope of time [95%]"] if regime != "decode" else [])]
            tables.append(Table(f"{titles[regime]}, {_UNITS[regime]}", columns, rows, note))
        for regime, title in (("prefill", "prefill"), ("train", "training")):
            peaks = _memory(results, regime)
            allocated = {
                str(facts["title"]): Curve(list(sizes), [size / 1024 for size in sizes.values()])
                for name, facts in results.models.items()
                if len(sizes := results.allocated(name, regime)) > 1
            }
            for what, unit, curves in (
                ("Peak memory, MiB beyond the weights", "MiB", peaks),
                ("Allocated a token, KiB, counted", "KiB a token", allocated),
            ):
                if curves:
                    said = f"{what}: {title}"
                    svg = draw(curves, x="tokens", y=unit, log_x=True, log_y=True, ticks=tokens, description=said)
                    charts.append(Chart(said, svg, note))
    lead = "A slope of one is linear growth; its interval is a bootstrap over the rounds of measuring."
    return Section("costs", "Cost by length", lead, tables=tables, charts=charts) if charts else None


def writing(found: Found) -> Section | None:
    """What models wrote."""
    texts = [(run.name, run.samples) for run in found.runs if run.samples][:8]
    return Section("samples", "Sample texts", "Of the last validation.", texts=texts) if texts else None


def differences(found: Found) -> Section | None:
    """Values of the configuration in which runs differ."""
    groups = {name: flat(runs[0].config) for name, runs in _groups(found.runs).items() if runs[0].config}
    if len(groups) < 2:
        return None
    keys = sorted({key for config in groups.values() for key in config})
    absent = object()
    differing = [key for key in keys if len({repr(config.get(key, absent)) for config in groups.values()}) > 1]
    ignored = ("hydra", "name", "output_dir", "checkpoint", "seed")
    differing = [key for key in differing if key not in ignored and not key.endswith(".seed")]
    rows = [[key, *(_value(config.get(key)) for config in groups.values())] for key in differing]
    table = Table("", ["key", *groups], rows)
    lead = f"{len(differing)} of {len(keys)} values differ; seeds and names are left out. An empty cell: no such value."
    return Section("configuration", "Configuration, where it differs", lead, tables=[table]) if rows else None


def origin(found: Found) -> Section | None:
    """Where each figure comes from."""
    rows = []
    for run in found.runs:
        made = run.made
        commit = f"{str(made.get('commit', ''))[:9]}{' (changed)' if made.get('dirty') else ''}"
        machine = str(made.get("cpu") or made.get("device") or "")
        rows.append(
            [
                run.name,
                str(made.get("command", "")),
                commit,
                _value(made.get("seed")),
                machine,
                str(made.get("date", ""))[:16],
            ]
        )
    for path, data in found.costs.items():
        made = data["provenance"]
        machine = made.get("machine", {}).get("processor", "")
        rows.append([path, made["command"], str(made.get("commit"))[:9], str(made["seed"]), machine, made["date"][:16]])
    rows += [[path, "", "", ", ".join(by), "", ""] for path, by in found.retention.items()]
    table = Table("", ["run", "command", "commit", "seed", "machine", "date"], rows)
    return Section("origin", "Where it comes from", "", tables=[table]) if rows else None


def _recall_chart(title: str, curves: Mapping[str, Curve]) -> Chart:
    kept = dict(list(curves.items())[:_MOST_CURVES])
    percent = {name: curve._replace(y=[100 * value for value in curve.y]) for name, curve in kept.items()}
    return Chart(title, draw(percent, x="optimizer step", y="% of answers", limits=(-3, 103), description=title))


def _mean_curve(curves: Sequence[Points]) -> Curve:
    by_step: dict[float, list[float]] = {}
    for points in curves:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    return Curve(sorted(by_step), [statistics.mean(by_step[step]) for step in sorted(by_step)])


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group or run.name, []).append(run)
    return groups


def _speeds(results: Results, regime: Any) -> dict[str, Curve]:
    curves = {}
    for name, facts in results.models.items():
        rates = {n: found for n in results.lengths(regime) if (found := results.rates(name, regime, n))}
        if rates:
            low, middle, high = np.array([np.quantile(found, [0.25, 0.5, 0.75]) for found in rates.values()]).T
            curves[str(facts["title"])] = Curve(list(rates), middle.tolist(), low.tolist(), high.tolist())
    return curves


def _memory(results: Results, regime: Any) -> dict[str, Curve]:
    curves = {}
    for name, facts in results.models.items():
        peaks = {n: results.peaks(name, regime, n) for n in results.lengths(regime)}
        measured = {n: statistics.median(found) / 2**20 for n, found in peaks.items() if found}
        if measured:
            curves[str(facts["title"])] = Curve(list(measured), list(measured.values()))
    return curves


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


def _cell(share: Share) -> Cell | None:
    if not share.whole:
        return None
    low, high = (100 * end for end in share.interval)
    red, green, blue, _ = mpl.colormaps["cividis"](share.value)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    text = f"{100 * share.value:.0f}" if share.value in (0, 1) else f"{min(max(100 * share.value, 0.1), 99.9):.1f}"
    return Cell(text, f"{low:.0f} to {high:.0f}, n={share.whole:,}", to_hex((red, green, blue)), dark)


def _mean_recall(run: Run) -> float | None:
    if run.recall is None:
        values = [value for key, value in run.metrics.items() if key.startswith("val/recall/")]
        return statistics.mean(values) if values else None
    counts = [run.recall.at(task, length) for task in run.recall.tasks() for length in run.recall.lengths(task)]
    return statistics.mean(count.accuracy for count in counts)


def _bits_at(run: Run, length: int) -> float | None:
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


def _rate(value: float | None, regime: str) -> str:
    return "" if value is None else f"{value:,.1f}" if regime == "decode" else f"{value:,.0f}"


def _value(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def titled(found: Found) -> Mapping[str, int]:
    """How much of what there is."""
    return {
        "runs": len(found.runs),
        "measurements of cost": len(found.costs),
        "retention studies": len(found.retention),
    }
