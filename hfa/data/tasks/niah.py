"""RULER's needle in a haystack: special magic numbers, hidden in text, in noise or among their like."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np

from hfa.config import NonNegativeInt, PositiveInt, config
from hfa.data.source import SourceConfig
from hfa.data.tasks.lines import Lines
from hfa.data.tasks.ruler import NOISE, Answer, Prompt, Ruler
from hfa.data.tasks.words import draw_pairs
from hfa.data.texts.base import TextConfig, TextSource
from hfa.errors import ConfigError
from hfa.types import Split, Tokenizer

Kind = Literal["words", "numbers", "uuids"]

_DEPTHS = np.round(np.linspace(0, 1, 40), 2)  # of needles in text; each is used once
_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "What is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is",
)
_SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n",
    "What are all the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text are",
)


@config
class NIAHConfig(SourceConfig):
    """See :class:`NIAH`; the names are those of RULER's arguments.

    Args:
        type_haystack: what stands around: ``essay`` (the text of `haystack`), ``noise`` (one line again and again) or
            ``needle`` (needles that nobody asks for).
        type_needle_k: what keys are.
        type_needle_v: what values are.
        num_needle_k: keys in an example; at least `num_needle_q` of them, whatever this says.
        num_needle_v: values of each key.
        num_needle_q: keys that are asked for.
        num_aliases: 0, as in RULER, asks for a key by itself; else there are so many keys, and each is asked for by
            its alias, another random word that no context shows beside it. Only training teaches which: it is no
            paraphrase in any language, and a model that was not trained on it is at chance.
        mapping_seed: which word is the alias of which key: the same in all splits, whatever `seed` is.
        haystack: the text of ``essay``; None for the others.
    """

    type_haystack: Literal["essay", "noise", "needle"]
    type_needle_k: Kind
    type_needle_v: Kind
    num_needle_k: PositiveInt
    num_needle_v: PositiveInt
    num_needle_q: PositiveInt
    num_aliases: NonNegativeInt
    mapping_seed: NonNegativeInt
    haystack: TextConfig | None

    def check(self) -> None:
        if self.type_haystack == "essay" and self.haystack is None:
            raise ConfigError("haystack", None, "a text, as type_haystack is essay", "or set type_haystack=noise")
        if self.num_keys * self.num_needle_v > len(_DEPTHS):
            expected = f"at most {len(_DEPTHS)} needles, not {self.num_keys} keys with as many values each"
            raise ConfigError("num_needle_v", self.num_needle_v, expected)
        if self.num_aliases and (self.type_needle_k != "words" or self.type_haystack == "needle"):
            raise ConfigError("num_aliases", self.num_aliases, "0, unless keys are words, in an essay or in noise")
        if 0 < self.num_aliases < self.num_keys:
            raise ConfigError("num_aliases", self.num_aliases, f"0, or at least the {self.num_keys} keys of an example")

    @property
    def num_keys(self) -> int:
        return max(self.num_needle_k, self.num_needle_q)

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> NIAH:
        essay = self.haystack.build(tokenizer, cache_dir) if self.haystack and self.type_haystack == "essay" else None
        return NIAH(self, tokenizer, essay)

    def documents(self) -> Iterator[str]:
        """The haystack's."""
        return self.haystack.documents() if self.haystack else iter(())


class NIAH(Ruler):
    """Needles between the lines of a haystack, and the question for some of them::

        A special magic number is hidden within the following text. .. afterwards.
        def f(x):
        One of the special magic numbers for quaint-lighthouse is: 5814027.
            return x
        What is the special magic number for quaint-lighthouse mentioned in the provided text? The special magic
        number for quaint-lighthouse mentioned in the provided text is 5814027

    The evidence of an answer is the value in its needle. Several answers are asked in the order of the question, those
    of one key in the order of their needles, with commas between.

    Source: RULER, arXiv 2404.06654, section 3.1.
    """

    def __init__(self, settings: NIAHConfig, tokenizer: Tokenizer, essay: TextSource | None) -> None:
        super().__init__(settings, tokenizer)
        self._settings, self._essay = settings, essay
        self.fingerprint = essay.fingerprint if essay else ""
        self._lines = Lines(tokenizer)
        mapped = draw_pairs(np.random.default_rng(settings.mapping_seed), 2 * settings.num_aliases)
        self._known, self._aliases = mapped[: settings.num_aliases], mapped[settings.num_aliases :]

    def prompt(self, rng: np.random.Generator, split: Split) -> Prompt:
        settings = self._settings
        keys, asked_by = self._keys(rng)
        needles = rng.permutation(np.repeat(np.arange(len(keys)), settings.num_needle_v))  # key of each, by depth
        values = self._draw(rng, settings.type_needle_v, len(needles))
        heads, answers, end = self._encoded([keys[i] for i in needles], values)
        lines = [np.concatenate([head, answer, end]) for head, answer in zip(heads, answers, strict=True)]

        questions = rng.choice(len(keys), settings.num_needle_q, replace=False)
        wanted = [int(i) for key in questions for i in np.flatnonzero(needles == key)]
        one = len(wanted) == 1
        words = {"kind": settings.type_needle_v.removesuffix("s") if one else settings.type_needle_v}
        words["query"] = _listed([asked_by[i] for i in questions])
        instruction, question = (self.encode(text.format(**words)) for text in (_ONE if one else _SEVERAL))
        joints = [self.encode("," if i else "") for i in range(len(wanted))]
        room = self.room(instruction, question, [*joints, *(answers[i] for i in wanted), *lines])

        hay, cuts = self._hay(rng, split, room, len(lines), keys)
        lengths = np.array([len(line) for line in lines])
        context = np.insert(hay, np.repeat(cuts, lengths), np.concatenate(lines))
        starts = cuts + np.cumsum(lengths) - lengths
        return Prompt(
            instruction,
            context,
            question,
            [
                Answer(joint, answers[i], int(starts[i]) + len(heads[i]))
                for joint, i in zip(joints, wanted, strict=True)
            ],
        )

    def _with(self, settings: SourceConfig) -> Self:
        assert isinstance(settings, NIAHConfig)
        return type(self)(settings, self._tokenizer, self._essay)

    def _keys(self, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        """The keys of an example, and what each is asked for by."""
        settings = self._settings
        if settings.num_aliases:
            chosen = rng.choice(settings.num_aliases, settings.num_keys, replace=False)
            return [self._known[i] for i in chosen], [self._aliases[i] for i in chosen]
        keys = self._draw(rng, settings.type_needle_k, settings.num_keys)
        return keys, keys

    def _draw(self, rng: np.random.Generator, kind: Kind, count: int) -> list[str]:
        match kind:
            case "words":
                return draw_pairs(rng, count)
            case "numbers":
                return [str(number) for number in (10**6 + rng.choice(9 * 10**6, count, replace=False)).tolist()]
            case "uuids":
                return [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(count)]

    def _encoded(self, keys: list[str], values: list[str]) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Needles: what stands before each value, the values, and what ends all of them."""
        head = f"One of the special magic {self._settings.type_needle_v} for {{}} is:"
        heads = self.encode_all([head.format(key) for key in keys])
        return heads, self.encode_all([f" {value}" for value in values]), self.encode(".\n")

    def _hay(
        self, rng: np.random.Generator, split: Split, room: int, count: int, keys: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whole lines of at most `room` tokens, and where between them `count` needles go, ascending."""
        match self._settings.type_haystack:
            case "essay":
                assert self._essay is not None
                stream = self._essay.unbroken(split)
                start = int(rng.integers(stream.num_tokens))
                start += int(self._lines.starts(stream.read(start, room))[:2][-1])  # a line's, if one starts there
                text = stream.read(start, room - len(self._line_end))
                text = np.append(text, self._line_end)
                depths = np.sort(rng.choice(_DEPTHS, count, replace=False))
                return text, self._lines.nearest(text, (depths * len(text)).astype(np.int64))
            case "noise":
                line = self.encode(NOISE)
                starts = np.arange(room // len(line)) * len(line)
                text = np.resize(line, len(starts) * len(line))
            case "needle":
                text, starts = self._distractors(rng, room, keys)
        if len(starts) < count:
            self.refuse()
        return text, np.sort(rng.choice(starts, count, replace=False))

    def _distractors(self, rng: np.random.Generator, room: int, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As many needles as fit that no question is about, and where each starts."""
        settings, lines, left = self._settings, list[np.ndarray](), room
        while left > 0:
            count = 8 + left // 64  # a needle is longer than that in bytes, and shorter in most other tokens
            others = [key for key in self._draw(rng, settings.type_needle_k, count) if key not in keys]
            heads, values, end = self._encoded(others, self._draw(rng, settings.type_needle_v, len(others)))
            for head, value in zip(heads, values, strict=True):
                lines.append(np.concatenate([head, value, end]))
                left -= len(lines[-1])
        lengths = np.cumsum([len(line) for line in lines])
        fitting = int(np.searchsorted(lengths, room, side="right"))
        text = np.concatenate([np.empty(0, dtype=np.int64), *lines[:fitting]])
        return text, lengths[:fitting] - [len(line) for line in lines[:fitting]]


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])}, and {words[-1]}" if len(words) > 1 else words[0]
