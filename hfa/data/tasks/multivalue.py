"""Several values under one key: all of them are asked for, in any order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import generator
from hfa.data.tasks.noise import NoisyConfig, choices, draw_noise
from hfa.data.tasks.records import check_room, scatter
from hfa.errors import ConfigError
from hfa.types import NOWHERE, Example, Source, Split, Tokenizer


@config
class MultiValueConfig(NoisyConfig):
    """See :class:`MultiValue`.

    Args:
        num_keys_shown: keys in an example, all of them asked for.
        num_values: of each key, at places of their own; of several numbers, each example draws one.
    """

    noise: Literal["same", "apart", "repeated"]
    num_keys_shown: PositiveInt
    num_values: PositiveInt | tuple[PositiveInt, ...]

    def check(self) -> None:
        if not choices(self.num_values):
            raise ConfigError("num_values", self.num_values, "a number or several", "e.g. 4 or [2, 4, 8]")
        most = self.num_keys_shown * max(choices(self.num_values))
        self.check_keys(most)  # as many values
        check_room(self.seq_len, most, 2, most, 2)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> MultiValue:
        return MultiValue(self)


class MultiValue:
    """Each key stands at several places with another value each, and is asked for as often at the end::

        tokens    . k1 v1 . k2 v2 . k1 v3 . k2 v4 . k2 v4 k2 v2 k1 v1 k1
        labels                                      v4    v2    v1    v3
        gold                                        11     5     2     8
        group                                        1     1     0     0

    Labels of one group may be said in any order: v2 would have been right where v4 is the label, since no question
    before has had it for an answer.

    Source: multi-value retrieval of RULER, arXiv 2404.06654, section 3.1.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: MultiValueConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        shown, each = settings.num_keys_shown, int(rng.choice(choices(settings.num_values)))
        keys = 1 + rng.choice(settings.num_keys, shown, replace=False)
        values = rng.choice(np.arange(settings.first_value, settings.noise_from), shown * each, replace=False)
        records = np.column_stack([np.repeat(keys, each), values])
        asked = rng.permuted(np.arange(shown * each).reshape(shown, each)[rng.permutation(shown)], axis=1).ravel()
        noise = draw_noise(settings, rng, self.seq_len, keys)
        example = scatter(rng, noise, records, records[asked], asked, answer_len=1)
        group = np.full(self.seq_len, NOWHERE)
        group[example.gold != NOWHERE] = asked // each
        return example._replace(group=group)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> MultiValue:
        return MultiValue(dataclasses.replace(self._settings, seq_len=seq_len))
