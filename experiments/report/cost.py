"""What a token costs at each length, of experiments.complexity."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.complexity.figures import Results
from experiments.report.charts import Chart, Curve, tokens
from experiments.report.run import Found
from experiments.report.section import Section, Table
from hfa.metrics.plot import short

_UNITS = {"prefill": "tokens/s", "train": "tokens/s", "decode": "ms a token"}


def costs(found: Found) -> Section | None:
    """Speed and memory against length; slopes with their bootstrap interval."""
    charts, tables = [], []
    for path, data in found.costs.items():
        results = Results(data)
        made = results.provenance
        processor = made.get("machine", {}).get("processor", "")
        note = f"{path}: {processor}, {str(made.get('commit'))[:9]}, {made['date'][:10]}"
        for regime in results.regimes():
            titles = {"prefill": "Prefill", "train": "Training, forward and backward", "decode": "Decode, by context"}
            title = f"{titles[regime]}: {_UNITS[regime]}"
            said = f"Median; the band is from quartile to quartile. {note}"
            charts.append(_chart(title, _speeds(results, regime), _UNITS[regime], said))
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
            tables.append(Table(title, columns, rows, note))
        for regime, name in (("prefill", "prefill"), ("train", "training")):
            peaks = _memory(results, regime)
            allocated = {
                str(facts["title"]): Curve(list(sizes), [size / 1024 for size in sizes.values()])
                for model, facts in results.models.items()
                if len(sizes := results.allocated(model, regime)) > 1
            }
            for what, unit, curves in (
                ("Peak memory, MiB beyond the weights", "MiB", peaks),
                ("Allocated a token, KiB, counted", "KiB a token", allocated),
            ):
                if curves:
                    charts.append(_chart(f"{what}: {name}", curves, unit, note))
    lead = (
        "A slope of one is linear growth; its 95% interval is a bootstrap over the rounds of measuring. Bands of speed "
        "are the quartiles of those rounds: how much they scatter, and no interval of the median."
    )
    return Section("costs", "Cost by length", lead, tables=tables, charts=charts) if charts else None


def _chart(title: str, curves: Mapping[str, Curve], y: str, note: str) -> Chart:
    return Chart(title, curves, "tokens", y, log_x=True, log_y=True, ticks=tokens, note=note)


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


def _rate(value: float | None, regime: str) -> str:
    return "" if value is None else f"{value:,.1f}" if regime == "decode" else f"{value:,.0f}"
