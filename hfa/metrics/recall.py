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
_Z = 1.959964  # the normal distribution's 97.5% quantile
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # and Student's, by degrees of freedom
_SUPPOSED = 2  # errors, of examples that fail as a whole


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: float, trials: float) -> Interval:
    """The 95% confidence interval of a proportion, honest at 0%, at 100% and for few trials.

    Args:
        successes: among the trials.
        trials: independent ones; what is not is counted by :func:`effective_trials` first, and need not be whole.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not trials:
        return Interval(0.0, 1.0)
    rate, spread = successes / trials, _Z * _Z / trials
    centre = (rate + spread / 2) / (1 + spread)
    margin = _Z * math.sqrt(rate * (1 - rate) / trials + spread / trials / 4) / (1 + spread)
    return Interval(max(0.0, centre - margin), min(1.0, centre + margin))


class Squares(NamedTuple):
    """Sums over examples, each with its own `part` of its own `whole`."""

    part_part: int
    part_whole: int
    whole_whole: int


def effective_trials(part: int, whole: int, squares: Squares, examples: int) -> float:
    """How many independent trials the answers of some examples are worth, which stand and fall together in part.

    It is the trials over the design effect: how much larger the variance of the rate is between examples than it would
    be of independent trials, with Student's quantile for as many examples. How much answers have in common shows in
    those that are wrong, or in those that are right where these are fewer. Two more are supposed that took their whole
    example with them: a few errors are little to judge by, and without this the interval just below 100% was too
    narrow. Where all is right, nothing else is known, and an example counts as one trial.

    Args:
        part: trials that were right.
        whole: trials.
        squares: of both, by example.
        examples: that they are from.

    Source: Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data"; with Wilson's interval, Dean and Pagano 2015, "Evaluating confidence interval methods
    for binomial proportions in clustered surveys".
    """
    if squares.whole_whole == whole:  # one trial each
        return whole
    seldom, together = min(part, whole - part), squares.whole_whole / whole
    if not seldom or examples < 2:
        return examples
    rate = part / whole
    between = squares.part_part - 2 * rate * squares.part_whole + rate * rate * squares.whole_whole
    variance = between * examples / (examples - 1) / whole**2
    effect = variance * whole / (rate * (1 - rate)) * (student(examples - 1) / _Z) ** 2
    effect = (seldom * effect + _SUPPOSED * together) / (seldom + _SUPPOSED)
    return min(whole, whole / effect)


def student(freedom: int) -> float:
    """Student's 97.5% quantile, to two thousandths of it.

    Source: Abramowitz and Stegun, 26.7.5, from 10 degrees of freedom on.
    """
    series = (_Z**3 + _Z) / 4 / freedom + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96 / freedom**2
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _Z + series


class Share(NamedTuple):
    """How many of how many, and how many independent trials that is worth."""

    part: int
    whole: int
    trials: float

    @property
    def value(self) -> float:
        """NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval), "part": self.part, "whole": self.whole}

    @property
    def interval(self) -> Interval:
        """Where the true rate lies, with 95% confidence."""
        return wilson(self.value * self.trials if self.whole else 0, self.trials)


@dataclasses.dataclass
class Count:
    """Answers, and tokens of answers, with how many of each were right.

    Where the memory was audited, also the tokens of answers whose evidence was in it as it was written (`stored`), and
    those whose evidence was among the tokens that were read when it was asked for (`selected`). Where the model was
    left to write, also the answers it was asked for (`generated`), and those that were in what it wrote (`matched`).

    Answers of one example have its text in common, and tokens of one answer more than that. So it is kept from how many
    examples they are, and how the counts are spread over them; 0 examples is not known, as in earlier records.
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
    examples: int = dataclasses.field(default=0, compare=False)
    squares: Mapping[Measure, Squares] = dataclasses.field(default_factory=dict, compare=False)

    def __add__(self, other: Count) -> Count:
        total = Count(*(getattr(self, name) + getattr(other, name) for name in _SUMS))
        if all(count.examples or not count.answers for count in (self, other)):
            total.examples = self.examples + other.examples
            total.squares = {measure: self._squares(measure, other) for measure in {**self.squares, **other.squares}}
        return total

    def of_one_example(self) -> Count:
        """The same, known to be all from one example."""
        pairs = {measure: self._pair(measure) for measure in MEASURES}
        squares: dict[Measure, Squares] = {
            measure: Squares(part * part, part * whole, whole * whole)
            for measure, (part, whole) in pairs.items()
            if whole
        }
        return dataclasses.replace(self, examples=1, squares=squares)

    @property
    def accuracy(self) -> float:
        """Answers of which every token was right; NaN without answers."""
        return self.share("exact").value

    @property
    def interval(self) -> Interval:
        """Where the true accuracy lies, with 95% confidence."""
        return self.share("exact").interval

    def share(self, measure: Measure) -> Share:
        """One rate: ``exact`` and ``match`` are of whole answers, the others are of their tokens.

        Its trials are answers at most: a long answer is no more of them than a short one.
        """
        part, whole = self._pair(measure)
        trials: float = min(whole, self.answers)
        if self.examples and measure in self.squares:
            trials = min(trials, effective_trials(part, whole, self.squares[measure], self.examples))
        return Share(part, whole, trials)

    def _pair(self, measure: Measure) -> tuple[int, int]:
        match measure:
            case "exact":
                return self.exact, self.answers
            case "storage":
                return self.stored, self.audited
            case "selection":
                return self.selected, self.audited
            case "answer":
                return self.right, self.tokens
            case "match":
                return self.matched, self.generated

    def _squares(self, measure: Measure, other: Count) -> Squares:
        nothing = Squares(0, 0, 0)
        pairs = zip(self.squares.get(measure, nothing), other.squares.get(measure, nothing), strict=True)
        return Squares(*(mine + theirs for mine, theirs in pairs))

    def retention(self) -> dict[Measure, Share]:
        """The three rates that retention is reported as, of a memory that was not audited only the last; and ``match``
        where something was generated.
        """
        measures: tuple[Measure, ...] = ("storage", "selection", "answer") if self.audited else ("answer",)
        return {measure: self.share(measure) for measure in (*measures, *(("match",) if self.generated else ()))}


_SUMS = [field.name for field in dataclasses.fields(Count) if field.compare]


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
        self._counts: dict[tuple[str, int, int | None], Count] = {}  # None: at all depths

    def update(
        self, task: str, correct: Tensor, gold: Tensor, kept: Kept | None = None, matched: Tensor | None = None
    ) -> None:
        """Add a batch of one task, a whole example a row; its length is T.

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
        examples: dict[tuple[int, int | None], Count] = {}
        for row, start, stop, evidence in find_answers(gold.cpu().numpy()):
            tokens, hits = stop - start, int(right[row, start:stop].sum())
            count = Count(1, int(hits == tokens), tokens, hits)
            if stored is not None and selected is not None:
                count.audited = tokens
                count.stored, count.selected = int(stored[row, start:stop].sum()), int(selected[row, start:stop].sum())
            if matched is not None:
                count.generated, count.matched = 1, int(matched[row, start])
            for depth_bin in (evidence * self.depth_bins // length, None):
                examples[row, depth_bin] = examples.get((row, depth_bin), Count()) + count
        for (_, depth_bin), count in examples.items():
            self._add((task, length, depth_bin), count.of_one_example())

    def tasks(self) -> list[str]:
        return sorted({task for task, _, _ in self._counts})

    def lengths(self, task: str) -> list[int]:
        return sorted({length for name, length, _ in self._counts if name == task})

    def at(self, task: str, length: int, depth_bin: int | None = None) -> Count:
        """What was counted at one length, in one depth bin or in all."""
        return self._counts.get((task, length, depth_bin), Count())

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
        counts, totals = [], []
        for task in self.tasks():
            for length in self.lengths(task):
                for depth_bin in range(self.depth_bins):
                    if count := self._counts.get((task, length, depth_bin)):
                        counts.append(
                            {"task": task, "length": length, "depth_bin": depth_bin, **dataclasses.asdict(count)}
                        )
                totals.append({"task": task, "length": length, **dataclasses.asdict(self.at(task, length))})
        return {"depth_bins": self.depth_bins, "counts": counts, "totals": totals}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recall:
        """Read back what :meth:`to_json` gave, or gave before it had totals."""
        recall = cls(int(data["depth_bins"]))
        for entry in data["counts"]:
            key, count = (str(entry["task"]), int(entry["length"])), _count(entry)
            recall._add((*key, int(entry["depth_bin"])), count)
            if "totals" not in data:
                recall._add((*key, None), dataclasses.replace(count, examples=0))
        for entry in data.get("totals", []):
            recall._add((str(entry["task"]), int(entry["length"]), None), _count(entry))
        return recall

    def _add(self, key: tuple[str, int, int | None], count: Count) -> None:
        self._counts[key] = self._counts.get(key, Count()) + count


def _count(entry: Mapping[str, Any]) -> Count:
    sums = {name: int(entry.get(name, 0)) for name in _SUMS}
    squares = {measure: Squares(*numbers) for measure, numbers in entry.get("squares", {}).items()}
    return Count(**sums, examples=int(entry.get("examples", 0)), squares=squares)
