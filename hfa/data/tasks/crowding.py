"""Crowding: a great many tokens of the noise are the last token of every key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import annotated_types
import numpy as np

from hfa.config import Fraction, PositiveInt, config
from hfa.data.source import generator
from hfa.data.tasks.noise import NoisyConfig, choices, draw_noise
from hfa.data.tasks.records import check_room, scatter
from hfa.errors import ConfigError
from hfa.types import Example, Source, Split, Tokenizer


@config
class CrowdingConfig(NoisyConfig):
    """See :class:`Crowding`.

    Args:
        num_pairs: keys with their values in an example, all of them asked for; of several numbers, each draws one.
        key_len: tokens of a key, the shared last one included.
        crowd_share: of the noise, how much is that token: 0.05 makes 6,500 of 128K.
    """

    noise: Literal["same", "apart", "repeated"]
    num_pairs: PositiveInt | tuple[PositiveInt, ...]
    key_len: Annotated[int, annotated_types.Ge(2)]
    crowd_share: Fraction

    def check(self) -> None:
        most = max(choices(self.num_pairs), default=0)
        if not most:
            raise ConfigError("num_pairs", self.num_pairs, "a number or several", "e.g. 8 or [4, 8, 16]")
        self.check_keys(most * (self.key_len - 1) + 1)
        check_room(self.seq_len, most, self.key_len + 1, most, self.key_len + 1)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Crowding:
        return Crowding(self)


class Crowding:
    """Keys of several tokens that end alike; only the tokens before the last tell which value is asked for::

        tokens    . c . k1 c v1 c . . k2 c v2 . c . k2 c v2 k1 c
        labels                                         v2      v1
        gold                                           11       5

    ``c`` is another in every example. The tokens before it stand in one key only, and nowhere in the noise.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: CrowdingConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        pairs = int(rng.choice(choices(settings.num_pairs)))
        ids = 1 + rng.choice(settings.num_keys, pairs * (settings.key_len - 1) + 1, replace=False)
        crowd, prefixes = ids[0], ids[1:].reshape(pairs, -1)
        values = rng.choice(np.arange(settings.first_value, settings.noise_from), pairs, replace=False)
        records = np.column_stack([prefixes, np.full(pairs, crowd), values])
        asked = rng.permutation(pairs)
        noise = draw_noise(settings, rng, self.seq_len, ids)
        noise[rng.random(self.seq_len) < settings.crowd_share] = crowd
        return scatter(rng, noise, records, records[asked], asked, answer_len=1)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Crowding:
        return Crowding(dataclasses.replace(self._settings, seq_len=seq_len))
