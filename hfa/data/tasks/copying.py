"""Selective copying: a few tokens stand between a great many blanks, and are to be said again in their order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig, generator
from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE, Example, Source, Split, Tokenizer

_BLANK, _NOW = 0, 1  # nothing, and the token after which copying begins


@config
class CopyingConfig(SourceConfig):
    """See :class:`Copying`.

    Args:
        vocab_size: ids the task uses, from 0; the first two are no content.
        num_tokens: to copy.
    """

    vocab_size: PositiveInt
    num_tokens: PositiveInt

    def check(self) -> None:
        if self.vocab_size < 4:
            raise ConfigError("vocab_size", self.vocab_size, "at least 4: a blank, a sign to begin, and two contents")
        if self.seq_len < 3 * self.num_tokens:
            raise ConfigError("seq_len", self.seq_len, f"at least {3 * self.num_tokens} for num_tokens to be copied")

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Copying:
        return Copying(self)


class Copying:
    """Tokens at random places, and after the sign to begin all of them in order::

        tokens   . a . . b . . . c . > a b
        labels                       a b c
        gold                         1 4 8

    Every token is an answer by itself, so no two stand side by side. What differs from the source: there the model
    copies without seeing what it has said, here it reads its own answers as in all else.

    Source: Mamba, arXiv 2312.00752, section 4.1.1.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: CopyingConfig) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, settings.vocab_size
        self._settings = settings

    def example(self, index: int, split: Split) -> Example:
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        count, start = settings.num_tokens, self.seq_len - settings.num_tokens
        places = np.sort(rng.choice(start - count + 1, count, replace=False)) + np.arange(count)  # a blank between two
        contents = rng.integers(_NOW + 1, settings.vocab_size, count)
        tokens = np.full(self.seq_len, _BLANK, dtype=np.int64)
        tokens[places], tokens[start], tokens[start + 1 :] = contents, _NOW, contents[:-1]
        labels, gold = np.full(self.seq_len, IGNORE), np.full(self.seq_len, NOWHERE)
        labels[start:], gold[start:] = contents, places
        return Example(tokens, labels, gold)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Copying:
        return Copying(dataclasses.replace(self._settings, seq_len=seq_len))
