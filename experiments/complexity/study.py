"""The protocol: cell by cell, all models in turn, repeated, within budgets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from experiments.complexity.measure import DECODE_TOKENS, LEAST_ROUNDS, Facts, Regime, Worker, WorkerError, entries

Row = dict[str, Any]  # what was measured of one model in one cell, as JSON has it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Args:
        models: names of :func:`entries`.
        lengths: of each regime.
        repeats: measurements of a model in a cell, at most.
        limit_s: a measurement (or a context to decode from) that would take longer is left out.
        cell_s: no further measurement of a model in a cell once the ones made took this long together. There are three
            all the same, of which an interval can be made, unless a single one takes that long.
        threads: of torch.
        seed: of weights, tokens and the bootstrap.
    """

    models: tuple[str, ...]
    lengths: dict[Regime, tuple[int, ...]]
    repeats: int
    limit_s: float
    cell_s: float
    threads: int
    seed: int

    def cells(self) -> Iterator[tuple[Regime, int]]:
        for regime, lengths in self.lengths.items():
            for length in lengths:
                yield regime, length


class Study:
    """Runs a plan.

    Args:
        plan: what is run.
        say: shows a line of progress.
        keep: is handed all rows after every cell, so that an interrupted run has what it measured.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None], keep: Callable[[list[Row]], None]) -> None:
        self.plan, self.say, self.keep = plan, say, keep
        self.rows: list[Row] = []
        self.facts: dict[str, Facts] = {}

    def run(self) -> list[Row]:
        """All rows, in the order of the plan."""
        for regime, length in self.plan.cells():
            self.rows += self._cell(regime, length)
            self.keep(self.rows)
        return self.rows

    def _cell(self, regime: Regime, length: int) -> list[Row]:
        """One row a model: prepare all of them, then let them take turns."""
        rows = {name: _row(name, regime, length) for name in self.plan.models}
        workers: dict[str, Worker] = {}
        try:
            for name, row in rows.items():
                if reason := self._reason_to_skip(name, regime, length):
                    row["skipped"] = reason
                    continue
                workers[name] = Worker(
                    name, regime, length, rounds=self.plan.repeats, threads=self.plan.threads, seed=self.plan.seed
                )
                self._ask(workers, row, "prepare")
            for _ in range(self.plan.repeats):
                for name in list(workers):
                    if not self._has_enough(rows[name]["seconds"]):
                        self._ask(workers, rows[name], "measure")
        finally:
            for worker in workers.values():
                worker.stop()
        for row in rows.values():
            self.say(_line(row))
        return list(rows.values())

    def _has_enough(self, seconds: list[float]) -> bool:
        few = len(seconds) < LEAST_ROUNDS and max(seconds, default=0.0) < self.plan.cell_s
        return not few and sum(seconds) >= self.plan.cell_s

    def _ask(self, workers: dict[str, Worker], row: Row, what: str) -> None:
        """Have the row's worker do it and put the answer into the row; a worker that fails leaves the round."""
        name = row["model"]
        timeout_s = 2 * self.plan.limit_s
        try:
            if what == "measure":
                answer = workers[name].ask("measure", timeout_s)
                for key, value in answer.items():
                    row.setdefault(key, []).append(value)
                return
            if name not in self.facts:
                self.facts[name] = workers[name].ask("describe", timeout_s)
            row |= workers[name].ask("prepare", timeout_s)
        except WorkerError as error:
            workers.pop(name).stop()
            row["skipped" if not row["seconds"] else "stopped"] = str(error)

    def _reason_to_skip(self, name: str, regime: Regime, length: int) -> str | None:
        for row in self.rows:
            if (row["model"], row["regime"]) == (name, regime) and row.get("skipped"):
                reason: str = row["skipped"]
                return reason if reason.startswith("as at ") else f"as at {row['length']:,}: {reason}"
        expected = self.expected_s(name, regime, length)
        if expected > self.plan.limit_s:
            return f"would take about {expected:.0f} s, over the limit of {self.plan.limit_s:.0f} s"
        return None

    def expected_s(self, name: str, regime: Regime, length: int) -> float:
        """Seconds of a measurement, judged by this run's shorter ones; 0 when nothing is known.

        The exponent is that of the two longest ones so far, or of the design's claim while there is only one.
        """
        known = sorted(
            (row["length"], _cost(row)) for row in self.rows if row["model"] == name and row["regime"] == regime
        )
        known = [(at, cost) for at, cost in known if cost > 0 and at < length]
        if not known:
            return 0.0
        (last, cost), exponent = known[-1], {"linear": 1.0, "quadratic": 2.0}[entries()[name].growth]
        if len(known) > 1:
            before, cost_before = known[-2]
            exponent = min(2.0, max(1.0, math.log(cost / cost_before) / math.log(last / before)))
        if entries()[name].growth == "quadratic":  # the linear part hides it at first
            exponent = max(exponent, 1.7)
        return float(cost * (length / last) ** exponent)


def _row(name: str, regime: Regime, length: int) -> Row:
    tokens = DECODE_TOKENS if regime == "decode" else length  # that one measurement covers
    return {"model": name, "regime": regime, "length": length, "tokens": tokens, "seconds": [], "cpu_seconds": []}


def _cost(row: Row) -> float:
    """What may not take too long in a cell: a measurement, or the context it needs."""
    return float(row.get("context_s", max(row["seconds"], default=0.0)))


def _line(row: Row) -> str:
    head = f"{row['regime']:8} {row['length']:>7,}  {row['model']:16}"
    if not row["seconds"]:
        return f"{head} left out: {row.get('skipped', 'no time')}"
    middle, count = statistics.median(row["seconds"]), len(row["seconds"])
    busy = sum(row["cpu_seconds"]) / sum(row["seconds"])
    return f"{head} {middle:9.3f} s  (median of {count}; the processor was ours {busy:.0%} of the time)"
