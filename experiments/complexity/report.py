"""What a run says: medians with their spread, slopes with their interval, ratios, and the issue's requirements."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from experiments.complexity.measure import LEAST_ROUNDS, STATE_TOKENS, Regime
from experiments.complexity.subjects import ALL_FEATURES
from hfa.metrics.plot import short

TRANSFORMER_PEER = "llama"
SLOPE_FROM = {"prefill": 4096, "train": 4096, "decode": 1}  # tokens; below it what every call costs hides the growth
_DRAWS = 2000
_MIB = 1 << 20


class Results:
    """A run, as its JSON has it.

    Args:
        data: ``rows``, ``models`` and ``provenance``.
        clock: ``wall``, or ``cpu`` for the seconds in which the processor was ours: the same on a quiet machine and,
            with one thread, nearer to the truth on a busy one.
    """

    def __init__(self, data: Mapping[str, Any], clock: Literal["wall", "cpu"] = "wall") -> None:
        self.clock = clock
        self.models: dict[str, dict[str, Any]] = dict(data["models"])
        self.provenance: dict[str, Any] = dict(data["provenance"])
        self.rows: list[dict[str, Any]] = list(data["rows"])
        self._by_cell = {(row["model"], row["regime"], row["length"]): row for row in self.rows}

    def row(self, model: str, regime: Regime, length: int) -> dict[str, Any]:
        """The row of one cell, empty if there is none."""
        return self._by_cell.get((model, regime, length), {})

    def seconds(self, model: str, regime: Regime, length: int) -> list[float]:
        """The measurements of one cell, oldest first."""
        key = {"wall": "seconds", "cpu": "cpu_seconds"}[self.clock]
        return list(self.row(model, regime, length).get(key, []))

    def rates(self, model: str, regime: Regime, length: int, *, body_only: bool = False) -> list[float]:
        """Tokens a second, or for decoding milliseconds a token, of every measurement.

        Args:
            model: its name.
            regime: what was measured.
            length: tokens.
            body_only: leave out what head and loss took.
        """
        row, seconds = self.row(model, regime, length), self.seconds(model, regime, length)
        if body_only:
            shares = zip(row.get("head_seconds", []), row.get("seconds", []), strict=True)
            seconds = [s * (1 - head_s / all_s) for s, (head_s, all_s) in zip(seconds, shares, strict=True)]
        count = row.get("tokens", 0)
        return [1000 * s / count if regime == "decode" else count / s for s in seconds]

    def median(self, model: str, regime: Regime, length: int, *, body_only: bool = False) -> float | None:
        """The median of :meth:`rates`; None where nothing was measured."""
        rates = self.rates(model, regime, length, body_only=body_only)
        return statistics.median(rates) if rates else None

    def lengths(self, regime: Regime) -> list[int]:
        """The lengths at which anything of `regime` was tried."""
        return sorted({row["length"] for row in self.rows if row["regime"] == regime})

    def regimes(self) -> list[Regime]:
        """The regimes that were tried, in their usual order."""
        there = {row["regime"] for row in self.rows}
        every: tuple[Regime, ...] = ("prefill", "train", "decode")
        return [regime for regime in every if regime in there]

    def tried(self, regime: Regime) -> dict[str, dict[str, Any]]:
        """The models of which anything of `regime` was tried."""
        there = {row["model"] for row in self.rows if row["regime"] == regime}
        return {name: facts for name, facts in self.models.items() if name in there}

    def peaks(self, model: str, regime: Regime, length: int) -> list[float]:
        """Peak memory of every measurement of one cell, in bytes; earlier records have the largest only."""
        found = self.row(model, regime, length).get("peak_bytes", [])
        return list(found) if isinstance(found, list) else [found]

    def slope(self, model: str, regime: Regime) -> Slope | None:
        """The slope of log time over log length, in decoding of a token's over log context, from `SLOPE_FROM` tokens.

        None with fewer than two lengths.
        """
        return self._slope(regime, lambda length: self.seconds(model, regime, length))

    def peak_slope(self, model: str, regime: Regime) -> Slope | None:
        """The same of peak memory."""
        return self._slope(regime, lambda length: self.peaks(model, regime, length))

    def _slope(self, regime: Regime, measured: Callable[[int], list[float]]) -> Slope | None:
        cells = {n: measured(n) for n in self.lengths(regime) if n >= SLOPE_FROM[regime]}
        usable = {n: values for n, values in cells.items() if values and min(values) > 0}
        return fit_slope(usable, seed=self.provenance["seed"])

    def allocated(self, model: str, regime: Regime) -> dict[int, float]:
        """Bytes allocated a token, by the length at which they were counted; in decoding by the context."""
        rows = [self.row(model, regime, length) for length in self.lengths(regime)]
        key = "length" if regime == "decode" else "counted_length"
        found = {row[key]: row["allocated_bytes_per_token"] for row in rows if "counted_length" in row}
        return dict(sorted(found.items()))

    def allocated_slope(self, model: str, regime: Regime) -> float | None:
        """The slope of log bytes over log length, in decoding of a token's over log context; counted, so exact.

        None with fewer than two lengths.
        """
        sizes = self.allocated(model, regime)
        whole = {n: [size if regime == "decode" else n * size] for n, size in sizes.items() if size}
        slope = fit_slope(whole, seed=0)
        return None if slope is None else slope.value

    def linear_peers(self) -> list[str]:
        return [name for name, facts in self.models.items() if not facts["ours"] and facts["growth"] == "linear"]

    def over_fastest_linear(
        self, model: str, regime: Regime, length: int, *, body_only: bool = False
    ) -> tuple[float, str] | None:
        """The model's figure over that of the fastest linear peer (of speed, or of decoding's time), and its name."""

        def figure(name: str) -> float | None:
            return self.median(name, regime, length, body_only=body_only)

        mine = figure(model)
        peers = {name: value for name in self.linear_peers() if (value := figure(name))}
        if mine is None or not peers:
            return None
        best = min(peers, key=peers.__getitem__) if regime == "decode" else max(peers, key=peers.__getitem__)
        return mine / peers[best], best

    def over(self, model: str, other: str, regime: Regime, length: int, *, body_only: bool = False) -> float | None:
        """The model's figure over that of another one."""
        mine, theirs = (self.median(name, regime, length, body_only=body_only) for name in (model, other))
        return None if mine is None or theirs is None else mine / theirs


@dataclass(frozen=True)
class Slope:
    """A slope with its 95% bootstrap interval, None where a cell was measured less than three times."""

    value: float
    interval: tuple[float, float] | None
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.3f}, measured too seldom"
        return f"{self.value:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"


def fit_slope(cells: Mapping[int, Sequence[float]], seed: int) -> Slope | None:
    """The slope of the log of medians over log length, by least squares.

    The interval is the middle 95% of the slopes of 2,000 draws, each of which takes as many measurements of every
    length as there are, with replacement. A length that was measured once would be the same in all of them, and the
    interval too narrow: there is none then.

    Args:
        cells: length to its measurements, none empty.
        seed: of the draws.

    Returns:
        The slope; None with fewer than two lengths.
    """
    if len(cells) < 2:
        return None
    lengths = sorted(cells)
    x = np.log(lengths)
    x = x - x.mean()

    def slope(medians: list[float]) -> float:
        return float((x * np.log(medians)).sum() / (x * x).sum())

    value = slope([statistics.median(cells[n]) for n in lengths])
    if any(len(cells[n]) < LEAST_ROUNDS for n in lengths):
        return Slope(value, None, tuple(lengths))
    generator = np.random.default_rng(seed)
    draws = [
        slope([float(np.median(generator.choice(cells[n], len(cells[n])))) for n in lengths]) for _ in range(_DRAWS)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Slope(value, (float(low), float(high)), tuple(lengths))


@dataclass(frozen=True)
class Requirement:
    """What is required of a model, and what this run says to it; `value` is None where it says nothing."""

    text: str
    value: float | None
    limit: float
    at_least: bool
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is required of a model.

    Args:
        slope: of time over length, the upper end of its interval at most.
        state_mib: of 100,000 tokens, at most.
        over_linear: least speed over the fastest linear peer's, by regime and length.
        over_llama: least speed over Llama's; both in training without head and loss, which are the same for all.
    """

    slope: float
    state_mib: float
    over_linear: Mapping[tuple[Regime, int], float]
    over_llama: Mapping[tuple[Regime, int], float] = field(default_factory=dict)


LIMITS = {
    "hfa": Limits(
        slope=1.05,
        state_mib=256,
        over_linear={("prefill", 4096): 1.0, ("prefill", 16384): 1.0, ("prefill", 65536): 1.0},
        over_llama={
            ("prefill", 16384): 1.5, ("prefill", 65536): 6.0,
            ("train", 1024): 1.0, ("train", 4096): 1.5, ("train", 16384): 2.5,
        },
    ),
    "simplemind": Limits(
        slope=1.03,
        state_mib=4,
        over_linear={("prefill", 4096): 1.1, ("prefill", 16384): 1.3, ("train", 4096): 1.1, ("train", 16384): 1.5},
    ),
}  # fmt: skip
_DECODE, _DECODE_GROWTH = 0.6, 1.1  # time over the fastest linear peer's, and at 100,000 tokens over 1K, at most


def requirements(results: Results, model: str = "hfa") -> Iterator[Requirement]:
    """What is required of one of our models: slopes, speed beside peers, and the size of its state."""
    limits, called = LIMITS[model], {"prefill": "prefill", "train": "training"}
    for name in (model, f"{model}-tiny"):
        if name in results.models:
            yield _slope_requirement(results, name, "prefill", limits.slope)
    yield _slope_requirement(results, model, "train", limits.slope)
    state = results.models.get(model, {}).get(f"state_bytes_{STATE_TOKENS}")
    mib = None if state is None else state / _MIB
    yield Requirement(f"state of {STATE_TOKENS:,} tokens, MiB", mib, limits.state_mib, False)
    for name in (model, model + ALL_FEATURES):
        what = "" if name == model else ", all features"
        for (regime, length), least in limits.over_linear.items() if name in results.models else ():
            if name == model or regime == "prefill":
                ratio = results.over_fastest_linear(name, regime, length, body_only=regime == "train")
                text = f"{called[regime]} {short(length)}{what}, over the fastest linear peer"
                yield Requirement(text, *_value(ratio, least, True))
    for (regime, length), least in limits.over_llama.items():
        over = results.over(model, TRANSFORMER_PEER, regime, length, body_only=regime == "train")
        yield Requirement(f"{called[regime]} {short(length)}, over Llama", over, least, True)
    for length in results.lengths("decode"):
        ratio = results.over_fastest_linear(model, "decode", length)
        text = f"decode at {short(length)}, time over the fastest linear peer's"
        yield Requirement(text, *_value(ratio, _DECODE, False))
    near, far = results.median(model, "decode", 1024), results.median(model, "decode", _far(results))
    grown = None if near is None or far is None else far / near
    yield Requirement("decode at 100,000 tokens over 1K, time", grown, _DECODE_GROWTH, False)


def _far(results: Results) -> int:
    """The context of decoding that is compared with a short one; 100K is as good as 100,000."""
    return min((length for length in results.lengths("decode") if length >= 100_000), default=100_000)


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


def _ratio_table(results: Results, regime: Regime) -> Table:
    what = "time (less is better)" if regime == "decode" else "speed (more is better)"
    table = Table(title=f"\n{regime}: ours over theirs, {what}", title_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("over")
    lengths = results.lengths(regime)
    for length in lengths:
        table.add_column(short(length), justify="right")
    for name, facts in results.tried(regime).items():
        if not _compared(facts):
            continue
        linear = [results.over_fastest_linear(name, regime, length) for length in lengths]
        best = ["-" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]})" for ratio in linear]
        table.add_row(facts["title"], "the fastest linear peer", *best)
        llama = [results.over(name, TRANSFORMER_PEER, regime, length) for length in lengths]
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


def _slope_requirement(results: Results, model: str, regime: Regime, most: float) -> Requirement:
    slope = results.slope(model, regime)
    high = slope.interval[1] if slope and slope.interval else None
    return Requirement(f"{regime}: slope of {model}, upper end", high, most, False, str(slope or ""))


def _value(ratio: tuple[float, str] | None, limit: float, at_least: bool) -> tuple[float | None, float, bool, str]:
    return (None, limit, at_least, "") if ratio is None else (ratio[0], limit, at_least, ratio[1])
