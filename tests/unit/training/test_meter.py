"""Means of a window."""

from __future__ import annotations

import math

import pytest
import torch

from hfa.training.meter import Meter, Scored
from hfa.types import Batch

KINDS = {"book": "text", "task": "recall"}
BYTES = torch.tensor([1, 2, 3, 0])


def batch(source: list[int]) -> Batch:
    rows = torch.zeros(len(source), 3, dtype=torch.long)
    return Batch(rows, rows, rows, torch.tensor(source), rows)


def scored(nats: list[float], correct: list[bool], label: list[int], recalled: list[bool], row: list[int]) -> Scored:
    column = torch.zeros(len(nats), dtype=torch.long)
    return Scored(
        torch.tensor(nats),
        torch.tensor(correct),
        torch.tensor(label),
        torch.tensor(recalled),
        torch.tensor(row),
        column,
    )


WINDOW = scored(
    nats=[1.0, 2.0, 3.0, 5.0],
    correct=[True, False, True, False],
    label=[1, 3, 0, 2],
    recalled=[False, False, True, True],
    row=[0, 0, 1, 1],
)


def meter() -> Meter:
    return Meter(KINDS, BYTES, torch.device("cpu"))


def test_every_mean() -> None:
    found = meter()
    found.add(batch([0, 1]), WINDOW, WINDOW.weights(2, "tokens"))
    means = found.read()
    assert means["loss"] == pytest.approx(11 / 4)
    assert means["bits_per_byte"] == pytest.approx((1.0 + 2.0) / math.log(2) / 2)  # the second label has no bytes
    assert means["token_recall/task"] == 0.5
    assert "token_recall/book" not in means


def test_a_short_answer_weighs_as_much_as_a_text_by_examples() -> None:
    one = scored([4.0, 1.0, 1.0, 1.0], [False] * 4, [0] * 4, [False] * 4, [0, 1, 1, 1])
    torch.testing.assert_close(one.weights(2, "examples"), torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]))
    by_example, by_token = meter(), meter()
    by_example.add(batch([1, 0]), one, one.weights(2, "examples"))
    by_token.add(batch([1, 0]), one, one.weights(2, "tokens"))
    assert by_example.read()["loss"] == pytest.approx((4.0 + 1.0) / 2)
    assert by_token.read()["loss"] == pytest.approx(7 / 4)


def test_label_that_is_not_recalled_is_no_recall() -> None:
    part = scored([1.0, 1.0], [True, False], [0, 0], [False, True], [0, 0])
    found = meter()
    found.add(batch([1]), part, part.weights(1, "tokens"))
    assert found.read()["token_recall/task"] == 0.0


def test_sums_of_two_processes_are_the_sums_of_one() -> None:
    first, second, both = meter(), meter(), meter()
    for each in (first, both):
        each.add(batch([0, 1]), WINDOW, WINDOW.weights(2, "tokens"), torch.tensor(3.0))
    for each in (second, both):
        each.add(batch([1, 0]), WINDOW, WINDOW.weights(2, "tokens"), torch.tensor(1.0))
    assert both.read(first.sums + second.sums) == both.read()
    assert both.read()["auxiliary_loss"] == 2.0


def test_an_empty_window_says_nothing() -> None:
    found = meter()
    found.add(batch([0, 1]), WINDOW, WINDOW.weights(2, "tokens"))
    found.reset()
    assert found.read() == {}
