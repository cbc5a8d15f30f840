"""What a run says, as tables for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from experiments.complexity.figures import Results, Slope
from experiments.complexity.measure import STATE_TOKENS, Regime
from experiments.complexity.requirement import LIMITS, TRANSFORMER_PEER, requirements
from hfa.metrics.plot import short

_MIB = 1 << 20


def tables(results: Results) -> Iterator[RenderableType]:
    """Everything that a run says, as tables for the terminal."""
    for regime in results.regimes():
        yield _speed_table(results, regime)
        if regime == "train":
            yield _speed_table(results, regime, body_only=True)
    yield _cost_table(results)
    for regime in results.regimes():
        yield _memory_table(results, regime)
    if any(_compared(facts) for facts in results.models.values()):
        for regime in results.regimes():
            yield _ratio_table(results, regime)
            if regime == "train":
                yield _ratio_table(results, regime, body_only=True)
    for model in LIMITS:
        if model in results.models:
            yield _requirement_table(results, model)


def skipped(results: Results) -> list[str]:
    """A line for everything that was left out, or stopped early, and why."""
    lines = []
    for row in results.rows:
        for verb, key in (("left out", "skipped"), ("stopped", "stopped")):
            if row.get(key):
                lines.append(f"{row['model']}, {row['regime']} at {row['length']:,}: {verb}: {row[key]}")
    return lines


def _speed_table(results: Results, regime: Regime, body_only: bool = False) -> Table:
    titles = {
        "prefill": "prefill: tokens/s",
        "train": "training, forward and backward: tokens/s",
        "decode": "decode: ms a token at this context",
    }
    title = "the same without head and loss: tokens/s" if body_only else titles[regime]
    table = Table(title=f"\n{title}; median \\[quartiles]", title_style="bold")
    table.add_column("model", no_wrap=True)
    lengths = results.lengths(regime)
    for length in lengths:
        table.add_column(short(length), justify="right")
    for name, facts in results.tried(regime).items():
        cells = [_speed(results, name, regime, length, body_only) for length in lengths]
        table.add_row(facts["title"], *cells, style="bold" if facts["ours"] else "")
    return table


def _speed(results: Results, name: str, regime: Regime, length: int, body_only: bool) -> str:
    rates = results.rates(name, regime, length, body_only=body_only)
    if not rates:
        return "-"
    digits = 1 if regime == "decode" else 0
    low, middle, high = np.quantile(rates, [0.25, 0.5, 0.75])
    return f"{middle:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


def _cost_table(results: Results) -> Table:
    table = Table(title="\ngrowth of time and state; slope \\[95% interval]", title_style="bold")
    table.add_column("model", no_wrap=True)
    for column in ("body", f"state of {STATE_TOKENS:,}", *(f"{regime} slope" for regime in results.regimes())):
        table.add_column(column, justify="right")
    for name, facts in results.models.items():
        state = facts.get(f"state_bytes_{STATE_TOKENS}")
        table.add_row(
            facts["title"],
            f"{facts.get('body_parameters', 0) / 1e6:.1f}M",
            "-" if state is None else f"{state / _MIB:,.1f} MiB",
            *(_escaped(results.slope(name, regime)) for regime in results.regimes()),
            style="bold" if facts["ours"] else "",
        )
    return table


def held(regime: Regime) -> str:
    """What a process holds before a round, which its peak of memory does not count."""
    return "the weights and the state" if regime == "decode" else "the weights"


def _memory_table(results: Results, regime: Regime) -> Table:
    """Peak memory by length, and what is allocated a token by the length at which it was counted."""
    lengths = results.lengths(regime)
    counted = sorted({length for name in results.models for length in results.allocated(name, regime)})
    table = Table(
        title=f"\n{regime}: peak MiB beyond {held(regime)}; KiB allocated a token, counted", title_style="bold"
    )
    table.add_column("model", no_wrap=True)
    peaks_of, bytes_of = [f"peak {short(n)}" for n in lengths], [f"a token, {short(n)}" for n in counted]
    for column in (*peaks_of, "peak's slope", *bytes_of, "bytes' slope"):
        table.add_column(column, justify="right")
    for name, facts in results.tried(regime).items():
        peaks = [results.peaks(name, regime, length) for length in lengths]
        sizes = results.allocated(name, regime)
        slope = results.allocated_slope(name, regime)
        table.add_row(
            facts["title"],
            *(f"{statistics.median(found) / _MIB:,.1f}" if found else "-" for found in peaks),
            _escaped(results.peak_slope(name, regime)),
            *(f"{sizes[length] / 1024:,.0f}" if length in sizes else "-" for length in counted),
            "-" if slope is None else f"{slope:.3f}",
            style="bold" if facts["ours"] else "",
        )
    return table


def _ratio_table(results: Results, regime: Regime, body_only: bool = False) -> Table:
    what = "time (less is better)" if regime == "decode" else "speed (more is better)"
    of = "the same without head and loss" if body_only else regime
    table = Table(title=f"\n{of}: ours over theirs, {what}", title_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("over")
    lengths = results.lengths(regime)
    for length in lengths:
        table.add_column(short(length), justify="right")
    for name, facts in results.tried(regime).items():
        if not _compared(facts):
            continue
        linear = [results.over_fastest_linear(name, regime, length, body_only=body_only) for length in lengths]
        best = ["-" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]})" for ratio in linear]
        table.add_row(facts["title"], "the fastest linear peer", *best)
        llama = [results.over(name, TRANSFORMER_PEER, regime, length, body_only=body_only) for length in lengths]
        table.add_row("", "Llama", *("-" if ratio is None else f"{ratio:.2f}" for ratio in llama))
    return table


def _escaped(slope: Slope | None) -> str:
    return str(slope or "-").replace("[", "\\[")


def _compared(facts: Mapping[str, Any]) -> bool:
    return bool(facts["ours"] and facts["same_body"])


def _requirement_table(results: Results, model: str) -> Table:
    table = Table(title=f"\nrequirements: {model}", title_style="bold")
    for column in ("requirement", "limit", "measured", "holds"):
        table.add_column(column, justify="left" if column == "requirement" else "right")
    verdicts = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "not measured"}
    for one in requirements(results, model):
        measured = one.detail if one.value is None else f"{one.value:.2f} {one.detail and f'({one.detail})'}".strip()
        limit = f"{'at least' if one.at_least else 'at most'} {one.limit:g}"
        table.add_row(one.text, limit, measured.replace("[", "\\["), verdicts[one.holds])
    return table
