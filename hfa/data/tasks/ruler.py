"""What the tasks of RULER share: an instruction, a context, a question, and the answers in a list.

Their names, their wording and their settings are those of the published benchmark. What differs:

- Eleven tasks of its thirteen: `qa_1` and `qa_2` need SQuAD and HotpotQA. An average over these eleven is not the
  published one.
- `evaluate.num_examples` examples of a task at a length, 64 unless told otherwise; 500 there.
- A length is filled exactly, in the tokens of the tokenizer at hand, with the answers that are expected and not with
  a fixed number of tokens for them; what is left over are line ends before the instruction. With bytes, a context of
  a length holds about a quarter of what one of BPE's tokens holds.
- What a model may generate is twice as long as what is expected; 128 tokens there for needles, 30 for `vt`, 120 for
  `cwe` and 50 for `fwe`. See :mod:`hfa.training.answering`.
- The text that essays are taken from is any text source, Python's own standard library unless told otherwise, and
  needles stand between its lines, as they stand between sentences there. Each example has another part of the text,
  from the start of a line on; there all of them have its beginning.
- The example that `vt` and `cwe` show first is left out where it takes more than a quarter of the length, after that
  of `vt` has been made as short as it can be; there it is always shown. The form of an example tells.
- Words of `cwe` come as often as there, 30 and 3 times from 4,096 tokens on and 6 times and once below; where too few
  of them fit, as in bytes, 6 times and once or 3 times and once. The form tells.
- Answers that may come in any order have one in the labels (that of their appearance), which is what training
  teaches; what a model generates is scored in any order, by RULER's rule.
- Words of `cwe` are those of wonderwords, as there. An example with room for more of them than there are has pairs
  of words instead (quaint-lighthouse), and the form tells; there it has words of a list that this package lacks.
- All is drawn anew for each example; there the order of a list, of needles and of coded words is that of one seed, and
  so are the places in the example that `vt` shows.

Source: RULER, arXiv 2404.06654, and the code of NVIDIA/RULER (Apache 2.0).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, NoReturn, Self

import numpy as np

from hfa.data.source import SourceConfig, generator
from hfa.errors import DataError
from hfa.types import IGNORE, NOWHERE, Example, Source, Split, Tokenizer

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
SHOT_SHARE = 4  # an example with its answers is shown first if it takes no more than this part of the length
SHOWN = {True: "an example shown first", False: "no example shown"}


class Answer(NamedTuple):
    """One of the answers that are expected.

    Attributes:
        joint: what stands before it, since the one before or since the question; labelled, but nobody's evidence.
        tokens: the answer.
        evidence: where in the context its first token stands; the others follow it there.
    """

    joint: np.ndarray
    tokens: np.ndarray
    evidence: int


class Prompt(NamedTuple):
    """An example before it is laid out::

    tokens    \\n \\n | instruction | context .. 4 7 1 .. | question | 4 7
    labels                                                      4 7 1
    gold                                                        ^ ^ ^ where 4 7 1 stands in the context
    """

    instruction: np.ndarray
    context: np.ndarray
    question: np.ndarray  # with the beginning of the answer
    answers: Sequence[Answer]
    form: str = ""  # as an Example has it


class Ruler(ABC):
    """Base of the tasks: a subclass fills the room that it is given.

    Args:
        settings: its config.
        tokenizer: of the text.
    """

    kind: Literal["text", "recall"] = "recall"
    fingerprint = ""

    def __init__(self, settings: SourceConfig, tokenizer: Tokenizer) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, tokenizer.vocab_size
        self._base, self._tokenizer = settings, tokenizer
        self._line_end = self.encode("\n")

    @abstractmethod
    def prompt(self, rng: np.random.Generator, split: Split) -> Prompt:
        """An example of at most `seq_len` + 1 tokens, the last answer included."""

    def example(self, index: int, split: Split) -> Example:
        """Example `index` of the split.

        Raises:
            DataError: the shortest context there can be does not fit into `seq_len`.
        """
        return self._laid_out(self.prompt(generator(self._base.seed, split, index), split))

    def num_examples(self, split: Split) -> None:
        return None

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> Self:
        return self._with(dataclasses.replace(self._base, seq_len=seq_len))

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a piece of text, int64; pieces are tokenized one by one, so that equal ones are equal."""
        return self._tokenizer.encode_batch([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of many pieces."""
        return self._tokenizer.encode_batch(texts)

    def room(self, instruction: np.ndarray, question: np.ndarray, answers: Iterable[np.ndarray]) -> int:
        """Tokens that are left for the context.

        Args:
            instruction: as in :class:`Prompt`.
            question: likewise.
            answers: everything that will stand behind it.

        Raises:
            DataError: none are.
        """
        room = self.seq_len + 1 - len(instruction) - len(question) - sum(map(len, answers))
        if room <= 0:
            self.refuse(1 - room)
        return room

    def refuse(self, missing: int | None = None) -> NoReturn:
        """Raise the DataError about a length that is too short, by `missing` tokens if that is known."""
        shortest = "more" if missing is None else self.seq_len + missing
        raise DataError(
            f"{self.name}: seq_len is {self.seq_len}, and its shortest example takes {shortest} tokens "
            f"of the {self._tokenizer.name} tokenizer; raise seq_len, or leave this task out."
        )

    @abstractmethod
    def _with(self, settings: SourceConfig) -> Self:
        """The same task with other settings."""

    def _laid_out(self, prompt: Prompt) -> Example:
        tail = [piece for answer in prompt.answers for piece in (answer.joint, answer.tokens)]
        pieces = [prompt.instruction, prompt.context, prompt.question, *tail]
        spare = self.seq_len + 1 - sum(map(len, pieces))
        if spare < 0:
            self.refuse(-spare)
        stream = np.concatenate([np.resize(self._line_end, spare), *pieces])
        context = spare + len(prompt.instruction)
        at = context + len(prompt.context) + len(prompt.question)
        labels, gold = np.full(self.seq_len, IGNORE), np.full(self.seq_len, NOWHERE)
        labels[at - 1 :] = stream[at:]
        for answer in prompt.answers:
            at += len(answer.joint)
            gold[at - 1 : at - 1 + len(answer.tokens)] = context + answer.evidence + np.arange(len(answer.tokens))
            at += len(answer.tokens)
        return Example(stream[:-1], labels, gold, form=prompt.form)


def flat(pieces: Sequence[np.ndarray], order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pieces laid end to end in an order that may repeat them, and where each of them starts.

        pieces  a b, c      order  1 0 1      tokens  c a b c      starts  0 1 3

    Args:
        pieces: int64 each, none empty.
        order: int64 [N], which piece comes when.
    """
    table = np.concatenate([*pieces, np.empty(0, dtype=np.int64)])
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    offsets, taken = np.cumsum(lengths) - lengths, lengths[order]
    starts = np.cumsum(taken) - taken
    within = np.arange(int(taken.sum())) - np.repeat(starts, taken)
    return table[np.repeat(offsets[order], taken) + within], starts
