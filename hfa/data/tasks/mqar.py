"""Multi-query associative recall: pairs are shown once and asked for later."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveFloat, PositiveInt, config
from hfa.data.source import SourceConfig, generator
from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE, Example, Source, Split, Tokenizer


@config
class MQARConfig(SourceConfig):
    """See :class:`MQAR`.

    Args:
        vocab_size: ids the task uses, from 0: keys from the lower half, values from the upper, 0 for nothing.
        num_pairs: key-value pairs in an example; of several numbers, each example draws one.
        num_queries: pairs that are asked for; None asks for all.
        layout: ``first`` shows all pairs at the start and asks at power-law gaps (zoology); ``spread`` scatters them
            over the whole context and asks at the end.
        noise: what stands between: ``zero``; ``random``: any id, those of the pairs too (zoology); ``same``: other
            keys and any values; ``apart``: ids that only noise uses; ``repeated``: one phrase of ``same``, again and
            again.
        noise_vocab_size: ids that ``apart`` takes from the top of the vocabulary.
        phrase_len: tokens of the phrase of ``repeated``.
        power_alpha: in ``first``, gap g is drawn with weight g^(power_alpha - 1): small ones are frequent.
    """

    vocab_size: PositiveInt
    num_pairs: PositiveInt | tuple[PositiveInt, ...]
    num_queries: PositiveInt | None
    layout: Literal["first", "spread"]
    noise: Literal["zero", "random", "same", "apart", "repeated"]
    noise_vocab_size: PositiveInt
    phrase_len: PositiveInt
    power_alpha: PositiveFloat

    def check(self) -> None:
        pairs = max(self.pair_choices, default=0)
        if not pairs:
            raise ConfigError("num_pairs", self.num_pairs, "a number or several", "e.g. 8 or [4, 8, 16]")
        if self.num_queries is not None and self.num_queries > min(self.pair_choices):
            raise ConfigError("num_queries", self.num_queries, f"at most num_pairs={self.num_pairs}")
        if self.num_keys <= pairs:
            expected = f"room for more than {pairs} keys in its lower half, where {self.num_keys} are"
            raise ConfigError("vocab_size", self.vocab_size, expected)
        queries = self.num_queries or pairs
        needed = 2 * pairs + 2 * queries - (self.layout == "spread")
        if self.seq_len < needed:
            raise ConfigError("seq_len", self.seq_len, f"at least {needed} for {pairs} pairs and {queries} queries")

    @property
    def pair_choices(self) -> tuple[int, ...]:
        return self.num_pairs if isinstance(self.num_pairs, tuple) else (self.num_pairs,)

    @property
    def first_value(self) -> int:
        """Keys are 1 to this, values from this to `noise_from`, both without the end."""
        return self.noise_from // 2

    @property
    def noise_from(self) -> int:
        return self.vocab_size - (self.noise_vocab_size if self.noise == "apart" else 0)

    @property
    def num_keys(self) -> int:
        return self.first_value - 1

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
        return 2 * np.arange(pairs), np.arange(queries), 2 * pairs + 2 * drawn

    def _spread(self, rng: np.random.Generator, pairs: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = self.seq_len - (2 * queries - 1)
        shown = 2 * rng.choice(start // 2, pairs, replace=False)
        return shown, rng.choice(pairs, queries, replace=False), start + 2 * np.arange(queries)

    def _noise(self, rng: np.random.Generator, keys: np.ndarray) -> np.ndarray:
        settings = self._settings
        match settings.noise:
            case "zero":
                return np.zeros(self.seq_len, dtype=np.int64)
            case "random":
                return rng.integers(1, settings.vocab_size, self.seq_len)
            case "same":
                return self._other(rng, keys, self.seq_len)
            case "apart":
                return rng.integers(settings.noise_from, settings.vocab_size, self.seq_len)
            case "repeated":
                return np.resize(self._other(rng, keys, settings.phrase_len), self.seq_len)

    def _other(self, rng: np.random.Generator, keys: np.ndarray, count: int) -> np.ndarray:
        """Keys that are not in the example, and any values, in equal parts."""
        settings = self._settings
        others = np.setdiff1d(np.arange(1, settings.first_value), keys)
        values = rng.integers(settings.first_value, settings.noise_from, count)
        return np.where(rng.random(count) < 0.5, rng.choice(others, count), values)
