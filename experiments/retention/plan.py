"""Which cells are measured, and with how many examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from experiments.language.variant import composed
from hfa.data.mixture import MixtureConfig
from hfa.types import NOWHERE, Source, Tokenizer

if TYPE_CHECKING:
    from hfa.training.settings import TrainSettings

EXPERIMENT = "retention"
LENGTHS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17)
MILLION = 1 << 20
MILLION_TASKS = ("passkey_same", "passkey_apart", "passkey_repeated")
PRACTICE = ("mqar_many", "passkey_often")  # are trained on, and not measured: no context is as crowded as theirs
_LOOKED_AT = 32  # examples that the number of queries in an example is the mean of


@dataclass(frozen=True)
class Cell:
    """A task at a length, measured on as many examples as have that many queries (tokens of answers)."""

    task: str
    length: int
    examples: int

    @property
    def tokens(self) -> int:
        return self.length * self.examples


def sources(settings: TrainSettings, tokenizer: Tokenizer) -> dict[str, Source]:
    """The recall tasks by name, each a mixture of itself alone, so that it is reported by that name."""
    data = settings.data
    assert isinstance(data, MixtureConfig)
    made = {
        name: replace(data, sources={name: source}, weights={name: 1}).build(tokenizer, settings.cache)
        for name, source in data.sources.items()
        if name not in PRACTICE
    }
    return {name: source for name, source in made.items() if source.kind == "recall"}


def cells(tasks: dict[str, Source], lengths: Sequence[int], *, quick: bool) -> Iterator[Cell]:
    """All cells, the short ones first; a million tokens only where :data:`MILLION_TASKS` says so."""
    for length in sorted(lengths):
        for name, source in tasks.items():
            if length < MILLION or name in MILLION_TASKS:
                per_example = mean_queries(source.at_length(min(length, min(LENGTHS))))
                yield Cell(name, length, math.ceil(wanted_queries(length, quick=quick) / per_example))


def wanted_queries(length: int, *, quick: bool) -> int:
    """Queries of a cell."""
    if quick:
        return 64
    if length >= MILLION:
        return 100
    return 2000 if length <= 1 << 14 else 400


def mean_queries(source: Source) -> float:
    """Queries in an example; they do not depend on its length."""
    examples = (source.example(index, "test") for index in range(_LOOKED_AT))
    return float(np.mean([np.count_nonzero(example.gold != NOWHERE) for example in examples]))


def settings_of(*overrides: str) -> TrainSettings:
    """The experiment's settings."""
    from hfa.training.settings import TrainSettings, read_settings  # and Lightning with them

    return read_settings(composed(EXPERIMENT, overrides), TrainSettings)
