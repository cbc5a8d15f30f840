"""Needles in a haystack: lines with a random identifier and its value, somewhere in a long text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.source import SourceConfig, generator
from hfa.data.tasks.lines import Lines
from hfa.data.tasks.noise import choices
from hfa.data.texts.base import TextConfig, TextSource
from hfa.errors import ConfigError, DataError
from hfa.types import IGNORE, NOWHERE, Example, Source, Split, Tokenizer

_LINE = 32  # mean characters of a line of noise


@config
class NeedleConfig(SourceConfig):
    """See :class:`Needle`.

    Args:
        template: the needle's line, with ``{key}`` before ``{value}``; the question is its part before the value.
        key_alphabet, key_len: letters and length of a key.
        value_alphabet, value_len: letters and length of a value.
        num_needles: needles in an example; of several numbers, each example draws one.
        num_questions: needles that are asked for, one after the other.
        label_all: also score everything else as language.
        haystack: the text around; None for lines of random letters out of both alphabets.
    """

    template: str
    key_alphabet: str
    key_len: PositiveInt
    value_alphabet: str
    value_len: PositiveInt
    num_needles: PositiveInt | tuple[PositiveInt, ...]
    num_questions: PositiveInt
    label_all: bool
    haystack: TextConfig | None

    def check(self) -> None:
        before, key, rest = self.template.partition("{key}")
        if not key or rest.count("{value}") != 1 or "{value}" in before or "{key}" in rest:
            raise ConfigError("template", self.template, "{key} once and then {value} once, e.g. '{key} = {value}'")
        for field, alphabet in (("key_alphabet", self.key_alphabet), ("value_alphabet", self.value_alphabet)):
            if not alphabet or "\n" in alphabet:
                raise ConfigError(field, alphabet, "at least one letter and no line end")
        if not self.needle_choices:
            raise ConfigError("num_needles", self.num_needles, "a number or several", "e.g. 1 or [1, 4, 8]")
        if self.num_questions > min(self.needle_choices):
            raise ConfigError("num_questions", self.num_questions, f"at most num_needles={self.num_needles}")
        keys = len(set(self.key_alphabet)) ** self.key_len
        if keys < 2 * max(self.needle_choices):  # keys are drawn until they differ
            expected = f"enough letters for {2 * max(self.needle_choices)} keys, not {keys}"
            raise ConfigError("key_len", self.key_len, expected)

    @property
    def needle_choices(self) -> tuple[int, ...]:
        return choices(self.num_needles)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Needle:
        haystack = self.haystack.build(tokenizer, cache_dir) if self.haystack else None
        return Needle(self, tokenizer, haystack)

    def documents(self) -> Iterator[str]:
        """The haystack's."""
        return self.haystack.documents() if self.haystack else iter(())


class Needle:
    """Needles between the lines of a text, uniformly deep, and at the end the question for one or more of them::

        tokens    .. def f(x):\\n# secret K7QX9B = 48213906\\n    return .. \\n# secret K7QX9B = 4821390
        labels                                                                              48213906
        gold                                       ^^^^^^^^ the positions of these, one for each label

    Each part of a needle is tokenized on its own, so that question and needle are the same tokens. Further
    questions stand before the last one, with their answers.
    """

    kind: Literal["text", "recall"] = "recall"

    def __init__(self, settings: NeedleConfig, tokenizer: Tokenizer, haystack: TextSource | None) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, tokenizer.vocab_size
        self._settings, self._tokenizer, self._haystack = settings, tokenizer, haystack
        self.fingerprint = haystack.fingerprint if haystack else ""
        self._question, _, end = settings.template.partition("{value}")
        self._end = self._encode(end)
        self._lines = Lines(tokenizer)

    def example(self, index: int, split: Split) -> Example:
        """Example `index` of the split.

        Raises:
            DataError: the needles and questions do not fit into `seq_len`, or the haystack's split is empty.
        """
        settings, rng = self._settings, generator(self._settings.seed, split, index)
        needles = self._needles(rng, int(rng.choice(settings.needle_choices)))
        lines = [np.concatenate([question, value, self._end]) for question, value in needles]
        asked = rng.choice(len(needles), settings.num_questions, replace=False)
        tail = [self._end] + [lines[i] for i in asked]
        tail_len = sum(map(len, tail)) - len(self._end)  # the last answer ends the stream
        room = self.seq_len + 1 - tail_len - sum(map(len, lines))
        if room < 0:
            raise DataError(
                f"{self.name}: seq_len is {self.seq_len}, and {len(lines)} needles with {len(asked)} questions take "
                f"{self.seq_len - room}; raise seq_len or lower num_needles."
            )
        hay = self._hay(rng, split, room)
        cuts = self._cuts(rng, hay, len(lines))
        lengths = np.array([len(line) for line in lines])
        context = np.insert(hay, np.repeat(cuts, lengths), np.concatenate(lines))
        stream = np.concatenate([context, *tail])[: self.seq_len + 1]

        labels = stream[1:].copy() if settings.label_all else np.full(self.seq_len, IGNORE)
        gold = np.full(self.seq_len, NOWHERE)
        needle_starts = cuts + np.cumsum(lengths) - lengths
        at = len(context) + len(self._end)
        for i in asked:
            question, value = needles[i]
            answer = slice(at + len(question) - 1, at + len(question) - 1 + len(value))
            labels[answer] = value
            gold[answer] = needle_starts[i] + len(question) + np.arange(len(value))
            at += len(lines[i])
        return Example(stream[:-1], labels, gold)

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Needle:
        return Needle(dataclasses.replace(self._settings, seq_len=seq_len), self._tokenizer, self._haystack)

    def _needles(self, rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tokens of each needle's question and of its value; no key comes twice."""
        settings = self._settings
        keys: set[str] = set()
        needles = []
        while len(keys) < count:
            key = _word(rng, settings.key_alphabet, settings.key_len)
            if key not in keys:
                keys.add(key)
                value = _word(rng, settings.value_alphabet, settings.value_len)
                needles.append((self._encode(self._question.replace("{key}", key)), self._encode(value)))
        return needles

    def _hay(self, rng: np.random.Generator, split: Split, count: int) -> np.ndarray:
        if self._haystack is not None:
            stream = self._haystack.unbroken(split)
            return stream.read(int(rng.integers(stream.num_tokens)), count)
        letters = np.array(list(self._settings.key_alphabet + self._settings.value_alphabet + " "))
        found = np.empty(0, dtype=np.int64)
        while len(found) < count:  # a token holds one letter or more
            drawn = rng.choice(letters, count)
            drawn[rng.random(count) < 1 / _LINE] = "\n"
            found = np.append(found, self._encode("".join(drawn)))
        return found[:count]

    def _cuts(self, rng: np.random.Generator, hay: np.ndarray, count: int) -> np.ndarray:
        """Where in `hay` the needles go: uniform positions, each moved to the nearest start of a line; ascending."""
        return self._lines.nearest(hay, np.sort(rng.integers(len(hay) + 1, size=count)))

    def _encode(self, text: str) -> np.ndarray:
        return np.array(self._tokenizer.encode(text), dtype=np.int64)


def _word(rng: np.random.Generator, alphabet: str, length: int) -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=length))
