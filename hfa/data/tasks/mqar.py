"""Multi-query associative recall: pairs are shown once and asked for later."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveFloat, PositiveInt, config
from hfa.data.source import generator
from hfa.data.tasks.noise import NoisyConfig, choices, draw_noise
from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE, Example, Source, Split, Tokenizer


@config
class MQARConfig(NoisyConfig):
    """See :class:`MQAR`.

    Args:
        num_pairs: key-value pairs in an example; of several numbers, each example draws one.
        num_queries: pairs that are asked for; None asks for all.
        layout: ``first`` shows all pairs at the start and asks at power-law gaps (zoology); ``spread`` scatters them
            over the whole context and asks at the end.
        noise: also ``zero``, and ``random``: any id, those of the pairs too (zoology).
        power_alpha: in ``first``, gap g is drawn with weight g^(power_alpha - 1): small ones are frequent.
    """

    num_pairs: PositiveInt | tuple[PositiveInt, ...]
    num_queries: PositiveInt | None
    layout: Literal["first", "spread"]
    noise: Literal["zero", "random", "same", "apart", "repeated"]
    power_alpha: PositiveFloat

    def check(self) -> None:
        pairs = max(self.pair_choices, default=0)
        if not pairs:
            raise ConfigError("num_pairs", self.num_pairs, "a number or several", "e.g. 8 or [4, 8, 16]")
        if self.num_queries is not None and self.num_queries > min(self.pair_choices):
            raise ConfigError("num_queries", self.num_queries, f"at most num_pairs={self.num_pairs}")
        self.check_keys(pairs)
        queries = self.num_queries or pairs
        needed = 2 * pairs + 2 * queries - (self.layout == "spread")
        if self.seq_len < needed:
            raise ConfigError("seq_len", self.seq_len, f"at least {needed} for {pairs} pairs and {queries} queries")

    @property
    def pair_choices(self) -> tuple[int, ...]:
        return choices(self.num_pairs)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> MQAR:
        return MQAR(self)


class MQAR:
    """Pairs first, then each key again; the value is the label at the second key (layout ``first``)::

        tokens   k1 v1 k2 v2  0  0 k2  0 k1  0
        labels    .  .  .  .  .  . v2  . v1  .
        gold      .  .  .  .  .  .  3  .  1  .

    or pairs anywhere, and questions with their answers at the end (layout ``spread``)::

        tokens    0  0 k1 v1 k2 v2  0 k2 v2 k1
        labels    .  .  .  .  .  .  . v2  . v1
        gold      .  .  .  .  .  .  .  5  .  3

    Source: Zoology, arXiv 2312.04927, section 3.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: MQARConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        pairs = int(rng.choice(settings.pair_choices))
        keys = 1 + rng.choice(settings.num_keys, pairs, replace=False)
        values = rng.choice(np.arange(settings.first_value, settings.noise_from), pairs, replace=False)
        place = self._first if settings.layout == "first" else self._spread
        shown, asked, queries = place(rng, pairs, settings.num_queries or pairs)

        tokens = self._noise(rng, keys)
        tokens[shown], tokens[shown + 1] = keys, values
        tokens[queries] = keys[asked]
        if settings.layout == "spread":
            tokens[queries[:-1] + 1] = values[asked[:-1]]
        labels, gold = np.full(self.seq_len, IGNORE), np.full(self.seq_len, NOWHERE)
        labels[queries], gold[queries] = values[asked], shown[asked] + 1
        return Example(tokens, labels, gold)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> MQAR:
        """The same task at another length.

        Raises:
            ConfigError: the pairs and queries do not fit in.
        """
        return MQAR(dataclasses.replace(self._settings, seq_len=seq_len))

    def _first(self, rng: np.random.Generator, pairs: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of the keys, which of them are asked for, and where."""
        space = (self.seq_len - 2 * pairs) // 2
        weight = (self._settings.power_alpha - 1) * np.log(np.arange(1, space + 1))
        drawn = np.argsort(-(weight + rng.gumbel(size=space)))[:queries]  # without replacement, by weight
        asked = np.arange(pairs) if queries == pairs else rng.choice(pairs, queries, replace=False)
        return 2 * np.arange(pairs), asked, 2 * pairs + 2 * drawn

    def _spread(self, rng: np.random.Generator, pairs: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = self.seq_len - (2 * queries - 1)
        shown = 2 * rng.choice(start // 2, pairs, replace=False)
        return shown, rng.choice(pairs, queries, replace=False), start + 2 * np.arange(queries)

    def _noise(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        match self._settings.noise:
            case "zero":
                return np.zeros(self.seq_len, dtype=np.int64)
            case "random":
                return rng.integers(1, self.vocab_size, self.seq_len)
            case _:
                return draw_noise(self._settings, rng, self.seq_len, keys)
