"""RULER's common words: which ten words of a numbered list appear most often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig
from hfa.data.tasks.ruler import SHOT_SHARE, SHOWN, Answer, Prompt, Ruler, flat
from hfa.data.tasks.words import all_words, draw_pairs
from hfa.errors import ConfigError
from hfa.types import Split, Tokenizer

_INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_QUESTION = (
    "\nQuestion: What are the {count} most common words in the above list? "
    "Answer: The top {count} words that appear most often in the list are:"
)
_LONG = 4096  # tokens from which words come as often as the settings say
_SHORT = ((6, 1), (3, 1))  # how often they come in shorter contexts: RULER's, and less where that does not fit
_SHOTS = {True: (40, 10, 3), False: (20, 3, 1)}  # of the example shown before: words, and how often they come


@config
class CommonWordsConfig(SourceConfig):
    """See :class:`CommonWords`; the names are those of RULER's arguments.

    Args:
        num_cw: common words.
        freq_cw: how often each of them appears; from 4,096 tokens on, and as far as there is room for it.
        freq_ucw: how often each of the others appears, likewise.
    """

    num_cw: PositiveInt
    freq_cw: PositiveInt
    freq_ucw: PositiveInt

    def check(self) -> None:
        if self.freq_cw <= self.freq_ucw:
            raise ConfigError("freq_cw", self.freq_cw, f"more than freq_ucw={self.freq_ucw}")
        shot = _SHOTS[self.seq_len >= _LONG][0]
        if self.num_cw > shot:
            raise ConfigError("num_cw", self.num_cw, f"at most {shot}, the words of the example that is shown before")

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> CommonWords:
        return CommonWords(self, tokenizer)


class _List(NamedTuple):
    """A numbered list."""

    tokens: np.ndarray
    common: list[np.ndarray]  # in the order of their first appearance
    last: list[int]  # where each stands for the last time


class CommonWords(Ruler):
    """A numbered list of words, of which some come often, and the question for those::

        Below is a numbered list of words. .. Memorize the ones that appear most often.
        1. tulip 2. crow 3. tulip 4. anvil ..
        Question: What are the 10 most common words in the above list? Answer: The top 10 words that appear most often
        in the list are: 1. tulip 2. anvil ..

    The evidence of a word is where it stands last, though any place would do: what the memory is said to have selected
    is less than what helps it.

    Source: RULER, arXiv 2404.06654, section 3.3.
    """

    def __init__(self, settings: CommonWordsConfig, tokenizer: Tokenizer) -> None:
        super().__init__(settings, tokenizer)
        self._settings = settings
        self._kept_numbers: list[np.ndarray] = []

    def prompt(self, rng: np.random.Generator, split: Split) -> Prompt:
        question = self.encode(_QUESTION.format(count=self._settings.num_cw))
        joints = self._numbers(self._settings.num_cw + 1)[1:]  # all with a space before them
        joints = [self.encode(" 1."), *joints][: self._settings.num_cw]
        plain = self.encode(_INSTRUCTION)
        shot = self._shot(rng, question, joints)
        shown = len(shot) * SHOT_SHARE <= self.seq_len
        instruction = np.concatenate([shot, plain]) if shown else plain
        words = self._words(rng)
        room = self.room(instruction, question, joints)
        usual = (self._settings.freq_cw, self._settings.freq_ucw)
        for often, seldom in ([usual] if self.seq_len >= _LONG else []) + list(_SHORT):
            count = self._fitting(words, room, often, seldom)
            if count >= 2 * self._settings.num_cw:
                break
        else:
            self.refuse()
        enough = count < len(all_words())
        words = words[:count] if enough else self._pairs(rng, room, often, seldom)
        listed = self._list(rng, words, often, seldom)
        found = zip(joints, listed.common, listed.last, strict=True)
        form = f"{'words' if enough else 'pairs of words'} {often} and {seldom} times, {SHOWN[shown]}"
        return Prompt(instruction, listed.tokens, question, [Answer(*each) for each in found], form)

    def _with(self, settings: SourceConfig) -> Self:
        assert isinstance(settings, CommonWordsConfig)
        return type(self)(settings, self._tokenizer)

    def _shot(self, rng: np.random.Generator, question: np.ndarray, joints: Sequence[np.ndarray]) -> np.ndarray:
        """A short list with its answers."""
        count, often, seldom = _SHOTS[self.seq_len >= _LONG]
        words = self.encode_all([f" {all_words()[i]}" for i in rng.choice(len(all_words()), count, replace=False)])
        shown = self._list(rng, words, often, seldom)
        said = [piece for pair in zip(joints, shown.common, strict=True) for piece in pair]
        return np.concatenate([self.encode(_INSTRUCTION), shown.tokens, question, *said, self.encode("\n")])

    def _words(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Words, all different: more than fit, or all there are."""
        known = all_words()
        most = self.seq_len // 3  # an entry takes three tokens at least: number, point and word
        chosen = rng.choice(len(known), min(len(known), most), replace=False)
        return self.encode_all([f" {known[i]}" for i in chosen])

    def _pairs(self, rng: np.random.Generator, room: int, often: int, seldom: int) -> list[np.ndarray]:
        """As many pairs of words as fit, all different."""
        drawn = fitting = len(all_words())
        while fitting == drawn:
            drawn *= 2
            pairs = self.encode_all([f" {pair}" for pair in draw_pairs(rng, drawn)])
            fitting = self._fitting(pairs, room, often, seldom)
        return pairs[:fitting]

    def _fitting(self, words: Sequence[np.ndarray], room: int, often: int, seldom: int) -> int:
        """How many of the words fit in, the common ones and their answers first."""
        common = self._settings.num_cw
        times = np.full(len(words), seldom)
        times[:common] = often + 1  # once more as an answer
        entries = np.cumsum(times) - np.minimum(np.arange(1, len(words) + 1), common)
        lengths = np.cumsum(times * np.array([len(word) for word in words]))
        entries = entries[lengths <= room]
        numbers = np.cumsum([0, *(len(number) for number in self._numbers(int(entries[-1]) if len(entries) else 0))])
        return int(np.count_nonzero(lengths[: len(entries)] + numbers[entries] <= room))

    def _list(self, rng: np.random.Generator, words: Sequence[np.ndarray], often: int, seldom: int) -> _List:
        """The first words `often`, the others `seldom`, in random order behind their numbers."""
        common = self._settings.num_cw
        times = np.full(len(words), seldom)
        times[:common] = often
        drawn = rng.permutation(np.repeat(np.arange(len(words)), times))
        numbers = self._numbers(len(drawn))
        order = np.empty(2 * len(drawn), dtype=np.int64)
        order[::2], order[1::2] = np.arange(len(drawn)), len(drawn) + drawn
        tokens, starts = flat([*numbers, *words], order)
        first = np.array([int(np.argmax(drawn == word)) for word in range(common)])
        last = np.array([len(drawn) - 1 - int(np.argmax(drawn[::-1] == word)) for word in range(common)])
        by_appearance = np.argsort(first)
        places = starts[1::2][last[by_appearance]]
        return _List(tokens, [words[i] for i in by_appearance], places.tolist())

    def _numbers(self, count: int) -> list[np.ndarray]:
        """The numbers from 1 to `count`; all but the first with a space before them."""
        there = len(self._kept_numbers)
        if there < count:
            more = self.encode_all([f"{' ' if i else ''}{i + 1}." for i in range(there, count)])
            self._kept_numbers = self._kept_numbers + more
        return self._kept_numbers[:count]
