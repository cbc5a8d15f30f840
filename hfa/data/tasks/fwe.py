"""RULER's frequent words: which three coded words appear most often, where frequencies follow Zipf's law."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Annotated, Self

import annotated_types
import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig
from hfa.data.tasks.ruler import Answer, Prompt, Ruler, flat
from hfa.errors import ConfigError
from hfa.types import Split, Tokenizer

_INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words."
)
_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text? Answer: According to the coded text above, the three most frequently "
    "appeared words are:"
)
_ASKED = 3
_WORDS_PER_LENGTH = 50  # one word of the vocabulary for as many tokens
_LEAST_WORDS = 8
_LETTERS = np.array(list(string.ascii_lowercase))


@config
class FrequentWordsConfig(SourceConfig):
    """See :class:`FrequentWords`; the names are those of RULER's arguments.

    Args:
        alpha: the word of rank k comes in proportion to k^-alpha.
        coded_wordlen: letters of a word.
    """

    alpha: Annotated[float, annotated_types.Gt(1)]
    coded_wordlen: Annotated[PositiveInt, annotated_types.Le(13)]

    def check(self) -> None:
        if self.num_words > len(_LETTERS) ** self.coded_wordlen:
            expected = f"more, for {self.num_words} different words in seq_len={self.seq_len} tokens"
            raise ConfigError("coded_wordlen", self.coded_wordlen, expected)

    @property
    def num_words(self) -> int:
        """Words of the vocabulary, the dots among them."""
        return max(_LEAST_WORDS, self.seq_len // _WORDS_PER_LENGTH)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> FrequentWords:
        return FrequentWords(self, tokenizer)


class FrequentWords(Ruler):
    """Words of random letters, the most frequent of them dots, and the question for the next three::

        Read the following coded text .. Find the three most frequently appeared coded words. ... qkzjwx ... ... mbvtra
        Question: .. What are the three most frequently appeared words in the above coded text? Answer: According to
        the coded text above, the three most frequently appeared words are: qkzjwx, mbvtra, ..

    In the labels the most frequent comes first. The evidence of a word is where it stands last, though any place would
    do.

    Source: RULER, arXiv 2404.06654, section 3.3.
    """

    def __init__(self, settings: FrequentWordsConfig, tokenizer: Tokenizer) -> None:
        super().__init__(settings, tokenizer)
        self._settings = settings
        ranks = np.arange(1, 1_000_001, dtype=np.float64)
        rest = len(ranks) ** (1 - settings.alpha) / (settings.alpha - 1)  # of the series, by its integral
        shares = ranks**-settings.alpha
        self._shares = (shares / (shares.sum() + rest))[: settings.num_words]

    def prompt(self, rng: np.random.Generator, split: Split) -> Prompt:
        words = self.encode_all([" ...", *self._words(rng, len(self._shares) - 1)])
        instruction, question = self.encode(_INSTRUCTION), self.encode(_QUESTION)
        comma = self.encode(",")
        joints = [comma[:0], *[comma] * (_ASKED - 1)]
        room = self.room(instruction, question, [*joints, *words[1 : 1 + _ASKED]])
        times = self._times(np.array([len(word) for word in words]), room)
        if times[_ASKED] <= times[_ASKED + 1]:
            self.refuse()
        drawn = rng.permutation(np.repeat(np.arange(len(words)), times))
        tokens, starts = flat(words, drawn)
        last = [int(starts[np.flatnonzero(drawn == rank)[-1]]) for rank in range(1, 1 + _ASKED)]
        found = zip(joints, words[1 : 1 + _ASKED], last, strict=True)
        return Prompt(instruction, tokens, question, [Answer(*each) for each in found])

    def _with(self, settings: SourceConfig) -> Self:
        assert isinstance(settings, FrequentWordsConfig)
        return type(self)(settings, self._tokenizer)

    def _words(self, rng: np.random.Generator, count: int) -> list[str]:
        codes = rng.choice(len(_LETTERS) ** self._settings.coded_wordlen, count, replace=False)
        places = len(_LETTERS) ** np.arange(self._settings.coded_wordlen)
        return [" " + "".join(row) for row in _LETTERS[codes[:, None] // places % len(_LETTERS)]]

    def _times(self, lengths: np.ndarray, room: int) -> np.ndarray:
        """How often each word comes, int64: as often as their tokens fit into `room`."""
        low, high = 0, room
        while low < high:  # words in all
            middle = (low + high + 1) // 2
            fits = int(((middle * self._shares).astype(np.int64) * lengths).sum()) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        times: np.ndarray = (low * self._shares).astype(np.int64)
        return times
