"""What a run says, in figures: medians with their spread, slopes with their interval, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from experiments.complexity.measure import LEAST_ROUNDS, Regime

SLOPE_FROM = {"prefill": 4096, "train": 4096, "decode": 1}  # tokens; below it what every call costs hides the growth
_DRAWS = 2000


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
