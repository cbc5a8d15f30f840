"""A recall task of few ids, which are others in every example."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig, generator
from hfa.data.tasks.noise import NoisyConfig
from hfa.errors import ConfigError
from hfa.types import Example, Source, Split, Tokenizer

_NAMES = 1  # drawn apart from what the task itself draws


@config
class RenamedConfig(SourceConfig):
    """See :class:`Renamed`.

    Args:
        source: the task; its `vocab_size` is how many ids an example has, its `seq_len` plays no part.
        vocab_size: ids that those are drawn from: keys are drawn from its lower half, all others from its upper half.
    """

    source: NoisyConfig
    vocab_size: PositiveInt

    def check(self) -> None:
        few = self.source
        if few.noise_to < few.vocab_size:
            raise ConfigError("source", few.name, "a task whose ids mean nothing by themselves: in it some always do")
        needed = 2 * max(few.first_value, few.vocab_size - few.first_value)
        if self.vocab_size < needed:
            raise ConfigError("vocab_size", self.vocab_size, f"at least {needed}, for the {few.vocab_size} of source")

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Renamed:
        source = dataclasses.replace(self.source, seq_len=self.seq_len)
        return Renamed(self, source.build(tokenizer, cache_dir))


class Renamed:
    """A task in a small vocabulary, whose ids stand for others of a large one, drawn anew for every example::

        of few   . 2 1 7 5 6 .         in this example 1 is 902, 2 is 17, 5 is 1311, ..
        renamed  . 17 902 1644 1311 1202 .

    In a short context each id so comes as often as it would in one many times longer: what only looks like the
    evidence, as it has the same token before it, is met in training as it is met there.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: RenamedConfig, source: Source) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings, self._source = settings, source

    def example(self, index: int, split: Split) -> Example:
        few, half = self._settings.source, self.vocab_size // 2
        rng = generator(self._settings.seed, split, index, _NAMES)
        keys = 1 + rng.choice(half - 1, few.num_keys, replace=False)
        others = half + rng.choice(self.vocab_size - half, few.vocab_size - few.first_value, replace=False)
        names = np.concatenate([[0], keys, others])
        example = self._source.example(index, split)
        labels = np.where(example.labels < 0, example.labels, names[example.labels.clip(0)])
        return example._replace(tokens=names[example.tokens], labels=labels)

    def num_examples(self, split: Split) -> int | None:
        return self._source.num_examples(split)

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Renamed:
        settings = dataclasses.replace(self._settings, seq_len=seq_len)
        return Renamed(settings, self._source.at_length(seq_len))
