"""The parts of the page, each made from what was collected; a part with nothing to say is left out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex

from experiments.complexity.report import short
from experiments.report.charts import Curve, draw, tokens
from experiments.report.compare import ablations, bits_at, comparison
from experiments.report.cost import costs
from experiments.report.run import Found, Points, Run, by_study, compared, flat
from experiments.report.section import Cell, Chart, Grid, Section, Table
from hfa.metrics.bits import LossByPosition
from hfa.metrics.recall import MEASURES, Measure, Recall, Share

_MEANING: dict[Measure, str] = {
    "exact": "whole answers of which every token was the likeliest",
    "storage": "evidence that every memory still held",
    "selection": "evidence that was read when it was asked for",
    "answer": "tokens of answers that were the likeliest",
    "match": "answers found in what the model wrote by itself",
}
_SEEDS = "Bands are one standard deviation over seeds."
_MOST_CURVES = 14  # that a chart keeps apart


def sections(found: Found) -> list[Section]:
    """All parts that have something to say."""
    parts = (comparison, ablations, learning, retention, language, costs, writing, differences, origin)
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
                name: _over_seeds([run.curves[key] for run in runs if run.curves.get(key)])
                for name, runs in variants.items()
            }
            charts += _chart(f"{title}{of}", curves, x="optimizer step", y=title)
        asked = {
            name: {key: points for key, points in run.curves.items() if "/recall/" in key}
            for name, (run, *_) in variants.items()
        }
        asked = {name: curves for name, curves in asked.items() if curves}
        if len(asked) == 1:
            ((name, by_task),) = asked.items()
            curves = {key.rpartition("/")[2]: _over_seeds([points]) for key, points in by_task.items()}
            charts += _recall_chart(f"Validation, exact answers by task, {name}", curves)
        else:
            curves = {
                name: _over_seeds(list(by_task.values()))._replace(low=(), high=()) for name, by_task in asked.items()
            }
            charts += _recall_chart("Validation, exact answers, mean of tasks", curves)
        charts += _sweep_chart(study, [run for run in found.runs if run.study == study])
    lead = _SEEDS if any(len(runs) > 1 for runs in compared(found.runs).values()) else ""
    return Section("learning", "Learning curves", lead, charts=charts) if charts else None


def retention(found: Found) -> Section | None:
    """Recall against length, and heat-maps of every measure: task against length, and of each task depth against it."""
    recalls: dict[str, Recall] = {}
    for name, runs in compared(found.runs).items():
        if parts := [run.recall for run in runs if run.recall]:
            recalls[name] = _merged(parts)
    recalls |= {f"{path}, {' and '.join(by)}": _merged(list(by.values())) for path, by in found.retention.items()}
    grids, details = [], []
    for name, recall in recalls.items():
        lengths = sorted({length for task in recall.tasks() for length in recall.lengths(task)})
        for measure in MEASURES:
            rows = [(t, [_cell(recall.at(t, n).share(measure)) for n in lengths]) for t in recall.tasks()]
            if any(cell for _, cells in rows for cell in cells):
                grids.append(Grid(f"{name}: {measure}", _MEANING[measure], [short(n) for n in lengths], rows))
        details.append((name, list(_by_depth(recall))))
    lead = (
        "Percent, by task and by length of the context in tokens, of the answers of all seeds together; bands, and the "
        "numbers below the percentages, are the 95% interval, with how many answers or tokens they are of: of these "
        "models' answers, whatever another training would have given."
    )
    charts = _by_length(recalls)
    return Section("retention", "Retention", lead, charts=charts, grids=grids, details=details) if grids else None


def language(found: Found) -> Section | None:
    """Bits per byte by length and by position."""
    charts = []
    for study, variants in by_study(found.runs).items():
        of = f": {study}" if study else ""
        by_length = {
            name: _over_seeds([_bits_by_length(run) for run in runs if run.bits]) for name, runs in variants.items()
        }
        title = f"Bits per byte of test text, by length of the context{of}"
        charts += _chart(title, by_length, x="tokens", y="bits per byte", log_x=True, ticks=tokens)
        positions = {}
        for name, runs in variants.items():
            texts = list(dict.fromkeys(text for run in runs for text in run.loss))
            for text in texts:
                points = [_bits_by_position(run.loss[text]) for run in runs if text in run.loss]
                positions[name if len(texts) == 1 else f"{name}, {text}"] = _over_seeds(points)
        title = f"Bits per byte, by position in the context{of}"
        charts += _chart(title, positions, x="position", y="bits per byte", log_x=True, ticks=tokens)
    lead = _SEEDS if any(len(runs) > 1 for runs in compared(found.runs).values()) else ""
    return Section("language", "Language", lead, charts=charts) if charts else None


def writing(found: Found) -> Section | None:
    """What models wrote, of a variant with its first seed."""
    firsts = [next((run for run in runs if run.samples), None) for runs in compared(found.runs).values()]
    texts = [(run.title, run.samples) for run in firsts if run]
    return Section("samples", "Sample texts", "Of the last validation.", texts=texts) if texts else None


def differences(found: Found) -> Section | None:
    """Values of the configuration in which runs differ."""
    configs = {name: flat(runs[0].config) for name, runs in compared(found.runs).items() if runs[0].config}
    if len(configs) < 2:
        return None
    keys = sorted({key for config in configs.values() for key in config})
    absent = object()
    differing = [key for key in keys if len({repr(config.get(key, absent)) for config in configs.values()}) > 1]
    ignored = ("hydra", "name", "output_dir", "checkpoint", "seed")
    differing = [key for key in differing if key not in ignored and not key.endswith(".seed")]
    rows = [[key, *(_value(config.get(key)) for config in configs.values())] for key in differing]
    table = Table("", ["key", *configs], rows)
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
                run.title,
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


def _over_seeds(runs: Sequence[Points]) -> Curve:
    """The mean at each x that all have, and one standard deviation around it where there are several."""
    by_run = [dict(points) for points in runs]
    xs = sorted(set.intersection(*(set(points) for points in by_run))) if by_run else []
    means = [statistics.mean(points[x] for points in by_run) for x in xs]
    if len(by_run) < 2:
        return Curve(xs, means)
    spreads = [statistics.stdev(points[x] for points in by_run) for x in xs]
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    return Curve(xs, means, low, high)


def _chart(title: str, curves: Mapping[str, Curve], *, most: bool = False, **how: Any) -> list[Chart]:
    """A chart of the curves that have points, or of the best of them at their end, where they are too many.

    Args:
        title: what it shows.
        curves: by name.
        most: whether more is better.
        how: see :func:`draw`.
    """
    there = {name: curve for name, curve in curves.items() if len(curve.x)}
    ranked = sorted(there, key=lambda name: there[name].y[-1], reverse=most)[:_MOST_CURVES]
    kept = {name: curve for name, curve in there.items() if name in ranked}
    note = f"The best {len(kept)} of {len(there)}." if len(kept) < len(there) else ""
    return [Chart(title, draw(kept, description=title, **how), note)] if kept else []


def _recall_chart(title: str, curves: Mapping[str, Curve]) -> list[Chart]:
    percent = {name: curve._replace(y=[100 * value for value in curve.y]) for name, curve in curves.items()}
    return _chart(title, percent, most=True, x="optimizer step", y="% of answers", limits=(-3, 103))


def _sweep_chart(study: str, runs: Sequence[Run]) -> list[Chart]:
    """Bits per byte by learning rate, of a study's variants that were trained with several."""
    if not study:
        return []
    curves = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        rates: dict[float, list[float]] = {}
        for run in runs:
            bits = run.metrics.get("val/bits_per_byte")
            if run.variant == variant and bits is not None:
                rates.setdefault(1000 * run.config["optimizer"]["lr"], []).append(bits)
        if len(rates) > 1:
            curves[variant] = Curve(sorted(rates), [statistics.mean(rates[lr]) for lr in sorted(rates)])
    title = f"Validation by learning rate: {study}"
    return _chart(title, curves, x="learning rate, thousandths", y="bits per byte", log_x=True)


def _by_length(recalls: Mapping[str, Recall]) -> list[Chart]:
    """A chart a task: exact answers against length, with Wilson's intervals."""
    charts = []
    for task in sorted({task for recall in recalls.values() for task in recall.tasks()}):
        curves = {}
        for name, recall in recalls.items():
            shares = {n: recall.at(task, n).share("exact") for n in recall.lengths(task)}
            if shares:
                low, high = ([100 * share.interval[end] for share in shares.values()] for end in (0, 1))
                curves[name] = Curve(list(shares), [100 * share.value for share in shares.values()], low, high)
        if max(len(curve.x) for curve in curves.values()) > 1:
            how: dict[str, Any] = {"log_x": True, "limits": (-3, 103), "ticks": tokens}
            charts += _chart(
                f"{task}: exact answers, by length", curves, most=True, x="tokens", y="% of answers", **how
            )
    return charts


def _merged(parts: Sequence[Recall]) -> Recall:
    total = Recall(parts[0].depth_bins)
    for recall in parts:
        total.merge(recall)
    return total


def _bits_by_length(run: Run) -> Points:
    return [(length, bits) for length in sorted({n for _, n in run.bits}) if (bits := bits_at(run, length)) is not None]


def _bits_by_position(loss: LossByPosition) -> Points:
    filled = zip(loss.edges, loss.edges[1:], loss.bins, strict=False)
    return [((start + stop - 1) / 2 + 1, bits.value) for start, stop, bits in filled if bits.bytes]


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


def _value(value: Any) -> str:
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def amounts(found: Found) -> Mapping[str, int]:
    """How much of what there is."""
    return {
        "runs": len(found.runs),
        "measurements of cost": len(found.costs),
        "retention studies": len(found.retention),
    }
