"""Exact recall, counted by task, by length of the context, and by how deep in it the evidence stands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from hfa.metrics.retention import Kept
from hfa.types import NOWHERE

Measure = Literal["exact", "storage", "selection", "answer", "match"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = 1.959964) -> Interval:
    """Confidence interval of a proportion, honest at 0%, at 100% and for few trials; 95% unless told.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not trials:
        return Interval(0.0, 1.0)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    margin = z * math.sqrt(rate * (1 - rate) / trials + spread / trials / 4) / (1 + spread)
    return Interval(max(0.0, centre - margin), min(1.0, centre + margin))


class Share(NamedTuple):
    """How many of how many."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval), "part": self.part, "whole": self.whole}

    @property
    def interval(self) -> Interval:
        """Where the true rate lies, with 95% confidence."""
        return wilson(self.part, self.whole)


@dataclasses.dataclass
class Count:
    """Answers, and tokens of answers, with how many of each were right.

    Where the memory was audited, also the tokens of answers whose evidence was addressable in it (`stored`), and
    those whose evidence was among the tokens that were read when it was asked for (`selected`). Where the model was
    left to write, also the answers it was asked for (`generated`), and those that were in what it wrote (`matched`).
    """

    answers: int = 0
    exact: int = 0
    tokens: int = 0
    right: int = 0
    audited: int = 0
    stored: int = 0
    selected: int = 0
    generated: int = 0
    matched: int = 0

    def __add__(self, other: Count) -> Count:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Count(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def accuracy(self) -> float:
        """Answers of which every token was right; NaN without answers."""
        return Share(self.exact, self.answers).value

    @property
    def token_accuracy(self) -> float:
        return Share(self.right, self.tokens).value

    @property
    def interval(self) -> Interval:
        """Where the true accuracy lies, with 95% confidence."""
        return wilson(self.exact, self.answers)

    def share(self, measure: Measure) -> Share:
        """One rate: ``exact`` and ``match`` are of whole answers, the others are of their tokens."""
        match measure:
            case "exact":
                return Share(self.exact, self.answers)
            case "storage":
                return Share(self.stored, self.audited)
            case "selection":
                return Share(self.selected, self.audited)
            case "answer":
                return Share(self.right, self.tokens)
            case "match":
                return Share(self.matched, self.generated)

    def retention(self) -> dict[Measure, Share]:
        """The three rates that retention is reported as, of a memory that was not audited only the last; and ``match``
        where something was generated.
        """
        measures: tuple[Measure, ...] = ("storage", "selection", "answer") if self.audited else ("answer",)
        return {measure: self.share(measure) for measure in (*measures, *(("match",) if self.generated else ()))}


class Answer(NamedTuple):
    """One answer: a run of positions whose evidence stands in a row."""

    row: int
    start: int
    stop: int
    gold: int  # position of its first token's evidence


def find_answers(gold: np.ndarray) -> Iterator[Answer]:
    """The answers of a batch, from where their evidence is::

        gold   .  .  5  6  7  .  2  9 10      three answers: 5 6 7, then 2, then 9 10

    Args:
        gold: int64 [B, T].
    """
    rows, columns = np.nonzero(gold != NOWHERE)
    if not len(rows):
        return
    evidence = gold[rows, columns]
    goes_on = (np.diff(rows) == 0) & (np.diff(columns) == 1) & (np.diff(evidence) == 1)
    starts = np.append(0, np.flatnonzero(~goes_on) + 1)
    stops = np.append(starts[1:], len(rows))
    for first, last in zip(starts.tolist(), (stops - 1).tolist(), strict=True):
        yield Answer(int(rows[first]), int(columns[first]), int(columns[last]) + 1, int(evidence[first]))


class Cell(NamedTuple):
    """One rate, as a row of a table."""

    task: str
    length: int
    depth_from: float  # 0 to 1 is over all depths
    depth_to: float
    measure: str
    value: float
    low: float  # of the 95% interval
    high: float
    part: int
    whole: int


class Recall:
    """Counts of answers by (task, length, depth).

    Depth is where the evidence stands, from 0 at the start of the context to 1 at its end.

    Args:
        depth_bins: into how many equal parts depth is divided.
    """

    def __init__(self, depth_bins: int) -> None:
        self.depth_bins = depth_bins
        self._counts: dict[tuple[str, int, int], Count] = {}

    def update(
        self, task: str, correct: Tensor, gold: Tensor, kept: Kept | None = None, matched: Tensor | None = None
    ) -> None:
        """Add a batch of one task; its length is T.

        Args:
            task: what reports call it.
            correct: whether the likeliest token was the label, bool [B, T]; read only where there is evidence.
            gold: position of each label's evidence, int64 [B, T].
            kept: what became of the evidence in the memory, if that was audited.
            matched: whether the answer was in what the model wrote, bool [B, T], read at its first token; None where
                it was not left to write.
        """
        right, length = correct.cpu().numpy(), gold.shape[1]
        stored, selected = (None, None) if kept is None else (part.numpy() for part in (kept.stored, kept.selected))
        for row, start, stop, evidence in find_answers(gold.cpu().numpy()):
            tokens, hits = stop - start, int(right[row, start:stop].sum())
            count = Count(1, int(hits == tokens), tokens, hits)
            if stored is not None and selected is not None:
                count.audited = tokens
                count.stored, count.selected = int(stored[row, start:stop].sum()), int(selected[row, start:stop].sum())
            if matched is not None:
                count.generated, count.matched = 1, int(matched[row, start])
            self._add((task, length, evidence * self.depth_bins // length), count)

    def tasks(self) -> list[str]:
        return sorted({task for task, _, _ in self._counts})

    def lengths(self, task: str) -> list[int]:
        return sorted({length for name, length, _ in self._counts if name == task})

    def at(self, task: str, length: int, depth_bin: int | None = None) -> Count:
        """What was counted at one length, in one depth bin or in all."""
        found = (
            count
            for (name, of_length, of_bin), count in self._counts.items()
            if (name, of_length) == (task, length) and depth_bin in (None, of_bin)
        )
        return sum(found, Count())

    def cells(self) -> Iterator[Cell]:
        """Every rate by task, length and depth, and over all depths."""
        for task in self.tasks():
            for length in self.lengths(task):
                for depth_bin in (*range(self.depth_bins), None):
                    count = self.at(task, length, depth_bin)
                    ends = (0, 1) if depth_bin is None else (depth_bin, depth_bin + 1)
                    start, stop = (end / (self.depth_bins if depth_bin is not None else 1) for end in ends)
                    for measure, share in {"exact": count.share("exact"), **count.retention()}.items():
                        if share.whole:
                            found = (share.value, *share.interval, share.part, share.whole)
                            yield Cell(task, length, start, stop, measure, *found)

    def merge(self, other: Recall) -> None:
        """Add what another process counted."""
        if self.depth_bins != other.depth_bins:
            raise ValueError(f"{self.depth_bins} and {other.depth_bins} depth bins do not merge")
        for key, count in other._counts.items():
            self._add(key, count)

    def to_json(self) -> dict[str, Any]:
        counts = [
            {"task": task, "length": length, "depth_bin": depth_bin, **dataclasses.asdict(count)}
            for (task, length, depth_bin), count in sorted(self._counts.items())
        ]
        return {"depth_bins": self.depth_bins, "counts": counts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recall:
        """Read back what :meth:`to_json` gave."""
        recall = cls(int(data["depth_bins"]))
        for entry in data["counts"]:
            count = Count(**{field.name: int(entry.get(field.name, 0)) for field in dataclasses.fields(Count)})
            recall._add((str(entry["task"]), int(entry["length"]), int(entry["depth_bin"])), count)
        return recall

    def _add(self, key: tuple[str, int, int], count: Count) -> None:
        self._counts[key] = self._counts.get(key, Count()) + count
