"""Aliases: what is stored under a key is asked for by another token, which only learning can connect with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import Fraction, NonNegativeInt, PositiveInt, config
from hfa.data.source import generator
from hfa.data.tasks.noise import NoisyConfig, choices, draw_noise
from hfa.data.tasks.records import check_room, scatter
from hfa.errors import ConfigError
from hfa.types import Example, Source, Split, Tokenizer


@config
class AliasConfig(NoisyConfig):
    """See :class:`Alias`.

    Args:
        num_aliases: keys that have one; the aliases are the topmost ids of the vocabulary, and nothing else is.
        mapping_seed: which key each alias means: a fact about the task, the same in all splits whatever `seed` is.
        num_pairs: keys with their values in an example, all of them asked for; of several numbers, each draws one.
        inverse_share: of the examples, how many store pairs under the alias and ask by the key.
    """

    noise: Literal["same", "apart", "repeated"]
    num_aliases: PositiveInt
    mapping_seed: NonNegativeInt
    num_pairs: PositiveInt | tuple[PositiveInt, ...]
    inverse_share: Fraction

    def check(self) -> None:
        if not choices(self.num_pairs) or max(choices(self.num_pairs)) > self.num_aliases:
            expected = f"a number or several, at most num_aliases={self.num_aliases}"
            raise ConfigError("num_pairs", self.num_pairs, expected)
        self.check_keys(self.num_aliases)
        if self.num_known < self.num_aliases:
            expected = f"room for {self.num_aliases} keys beside noise_vocab_size={self.noise_vocab_size}"
            raise ConfigError("vocab_size", self.vocab_size, expected)
        most = max(choices(self.num_pairs))
        check_room(self.seq_len, most, 2, most, 2)

    @property
    def first_alias(self) -> int:
        return self.vocab_size - self.num_aliases

    @property
    def noise_to(self) -> int:
        return self.first_alias

    @property
    def num_known(self) -> int:
        """Keys that may have an alias: those that are keys whatever the noise is, so that it changes no mapping."""
        return (self.first_alias - self.noise_vocab_size) // 2 - 1

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Alias:
        return Alias(self)


class Alias:
    """Pairs anywhere in the noise; at the end, the alias of each key is asked::

        tokens    . k1 v1 . . k2 v2 . . a2 v2 a1        the alias of k1 is a1, always
        labels                          v2    v1
        gold                             6     2

    No question stands anywhere before the questions: an index of exact repeats finds nothing. In a share of the
    examples, ``inverse_share``, it is the other way round: the aliases stand in the context, and the keys are asked.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: AliasConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings
        mapping = np.random.default_rng(settings.mapping_seed)
        self._keys = 1 + mapping.choice(settings.num_known, settings.num_aliases, replace=False)

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        pairs = int(rng.choice(choices(settings.num_pairs)))
        facts = rng.choice(settings.num_aliases, pairs, replace=False)
        stored, asked_by = self._keys[facts], settings.first_alias + facts
        noise = draw_noise(settings, rng, self.seq_len, stored)
        if rng.random() < settings.inverse_share:
            stored, asked_by = asked_by, stored
        values = rng.choice(np.arange(settings.first_value, settings.noise_from), pairs, replace=False)
        asked = rng.permutation(pairs)
        questions = np.column_stack([asked_by, values])[asked]
        return scatter(rng, noise, np.column_stack([stored, values]), questions, asked, answer_len=1)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Alias:
        return Alias(dataclasses.replace(self._settings, seq_len=seq_len))
