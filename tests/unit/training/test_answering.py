"""Answers that a model writes by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hfa.data.loader import Item, collate
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.training.answering import find_free, find_matches, write
from hfa.types import IGNORE, NOWHERE, Batch, Example

BYTE = ByteTokenizer()


class Parrot(nn.Module):
    """Says a given text, one byte a step, whatever it reads; its state is how much it has said."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.says = [*text.encode(), BYTE.end_of_text]
        self.weight = nn.Parameter(torch.zeros(1))

    def hidden(self, tokens: torch.Tensor, state: Any, last: int) -> tuple[torch.Tensor, Any]:
        return torch.zeros(len(tokens), last, 1), (torch.zeros(1, dtype=torch.long),)

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return self._logits(0)

    def step(self, token: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        said = int(state[0]) + 1
        return self._logits(said), (torch.full((1,), said),)

    def _logits(self, said: int) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.says[min(said, len(self.says) - 1)]]), 300).float()


def batch(context: str, question: str, answers: list[str]) -> Batch:
    """Answers stand in the context, and behind the question with commas."""
    stream = np.array(BYTE.encode(context + question + ",".join(answers)))
    tokens, at = stream[:-1], len(context + question) - 1
    labels, gold = np.full(len(tokens), IGNORE), np.full(len(tokens), NOWHERE)
    labels[at:] = stream[at + 1 :]
    for answer in answers:
        gold[at : at + len(answer)] = context.index(answer) + np.arange(len(answer))
        at += len(answer) + 1
    return collate([Item(Example(tokens, labels, gold), 0)])


@pytest.mark.parametrize(
    ("says", "found"),
    [("Red,blue", [True, True]), ("BLUE, then red", [True, True]), ("red, red", [True, False]), ("", [False] * 2)],
)
def test_answers_count_in_any_order_and_case(says: str, found: list[bool]) -> None:
    asked = batch("a red and a blue one. ", "which? ", ["red", "blue"])
    position = find_free(asked)
    assert position == 28
    model: Any = Parrot(says)
    matched = find_matches(model, BYTE, asked, (torch.zeros(1),), position)
    starts = [28, 32]
    assert [bool(matched[0, at]) for at in starts] == found


def test_no_more_than_twice_what_is_expected() -> None:
    asked = batch("a red one. ", "which? ", ["red"])
    model: Any = Parrot("that is red")  # nine letters, and six are allowed
    assert not find_matches(model, BYTE, asked, (torch.zeros(1),), find_free(asked) or 0).any()
    assert write(model, BYTE, torch.zeros(1, 1, dtype=torch.long), None, 6) == "that i"


def test_questions_between_answers_cannot_be_written_through() -> None:
    asked = batch("a red and a blue one. ", "which? ", ["red", "blue"])
    labels = asked.labels.clone()
    labels[0, 31] = IGNORE
    assert find_free(asked._replace(labels=labels)) is None
    assert find_free(asked._replace(labels=asked.tokens)) is None, "text, every token of it"
