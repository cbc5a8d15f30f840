"""Records scattered over noise and asked for at the end: what several recall tasks are made of."""

from __future__ import annotations

import numpy as np

from hfa.errors import ConfigError
from hfa.types import IGNORE, NOWHERE, Example


def check_room(seq_len: int, num_records: int, record_len: int, num_questions: int, question_len: int) -> None:
    """Raise ConfigError unless records and questions, answers included, fit into `seq_len` tokens."""
    needed = num_records * record_len + num_questions * question_len - 1  # the last answer's end is only a label
    if seq_len < needed:
        expected = f"at least {needed} for {num_records} records and {num_questions} questions"
        raise ConfigError("seq_len", seq_len, expected)


def scatter(
    rng: np.random.Generator,
    noise: np.ndarray,
    records: np.ndarray,
    questions: np.ndarray,
    evidence: np.ndarray,
    answer_len: int,
) -> Example:
    """Put the records anywhere, each place as likely as any other, and the questions with their answers at the end::

        records    a b x y , c d z w          answer_len = 2
        questions  c d z w , a b x y          evidence = 1, 0
        tokens    . a b x y . . c d z w . c d z w a b x
        labels    . . . . . . . . . . . . . z w . . x y
        gold      . . . . . . . . . . . . . 9 10 . . 3 4

    Args:
        rng: draws the places.
        noise: what stands elsewhere, int64 [T].
        records: int64 [R, S]; a record ends with its answer.
        questions: int64 [Q, W], as they are asked, each with its answer at the end.
        evidence: which record answers each question, int64 [Q].
        answer_len: tokens of an answer.
    """
    count, size = records.shape
    start = len(noise) - questions.size + 1
    free = start - count * (size - 1)  # places are drawn as if a record were one token long
    places = rng.choice(free, count, replace=False)
    places += (size - 1) * np.argsort(np.argsort(places))

    stream = np.append(noise, 0)
    stream[places[:, None] + np.arange(size)] = records
    stream[start:] = questions.ravel()
    ends = start + questions.shape[1] * (1 + np.arange(len(questions)))
    answers = (ends - answer_len)[:, None] + np.arange(answer_len)  # in `stream`: [Q, A]
    labels, gold = np.full(len(noise), IGNORE), np.full(len(noise), NOWHERE)
    labels[answers - 1] = stream[answers]
    gold[answers - 1] = (places[evidence] + size - answer_len)[:, None] + np.arange(answer_len)
    return Example(stream[:-1], labels, gold)
