from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hfa.metrics.recall import Count, Recall, find_answers, wilson

N = -1


def test_an_answer_is_a_run_whose_evidence_stands_in_a_row() -> None:
    gold = np.array([[N, N, 5, 6, 7, N, 2, 9, 10], [11, 12, N, N, N, N, N, N, 0]])
    assert list(find_answers(gold)) == [(0, 2, 5, 5), (0, 6, 7, 2), (0, 7, 9, 9), (1, 0, 2, 11), (1, 8, 9, 0)]
    assert list(find_answers(np.full((2, 3), N))) == []


def test_evidence_that_goes_on_in_the_next_row_is_another_answer() -> None:
    assert len(list(find_answers(np.array([[N, 3], [4, N]])))) == 2
    assert len(list(find_answers(np.array([[N, 3, N], [N, N, 4]])))) == 2


def test_an_answer_is_exact_when_every_token_is_right() -> None:
    recall = Recall(depth_bins=4)
    gold = torch.tensor([[N, 0, 1, N, N, 6, 7, N]])
    recall.update("needle", torch.tensor([[0, 1, 1, 0, 0, 1, 0, 1]]).bool(), gold)
    assert recall.at("needle", 8) == Count(answers=2, exact=1, tokens=4, right=3)
    assert recall.at("needle", 8, 0) == Count(1, 1, 2, 2)
    assert recall.at("needle", 8, 3) == Count(1, 0, 2, 1)
    assert recall.at("needle", 8, 1) == Count()
    assert recall.at("needle", 8).accuracy == 0.5
    assert recall.at("needle", 8).share("answer").value == 0.75


def test_counts_are_kept_by_task_and_length() -> None:
    recall = Recall(depth_bins=2)
    for task, length in (("b", 4), ("a", 16), ("a", 8)):
        gold = torch.full((3, length), N)
        gold[:, -1] = 0
        recall.update(task, torch.ones(3, length, dtype=torch.bool), gold)
    assert recall.tasks() == ["a", "b"]
    assert recall.lengths("a") == [8, 16]
    assert recall.at("a", 16).answers == 3
    assert math.isnan(recall.at("b", 16).accuracy)


def test_the_last_position_is_in_the_last_bin() -> None:
    recall = Recall(depth_bins=3)
    recall.update("t", torch.ones(1, 10, dtype=torch.bool), torch.tensor([[N] * 9 + [9]]))
    assert recall.at("t", 10, 2).answers == 1


def test_merging_is_adding_and_json_keeps_all() -> None:
    def counted(*seeds: int) -> Recall:
        recall = Recall(depth_bins=5)
        for seed in seeds:
            draw = np.random.default_rng(seed)
            gold = draw.integers(-1, 40, (4, 40))
            recall.update(f"task{seed % 2}", torch.from_numpy(draw.random((4, 40)) < 0.5), torch.from_numpy(gold))
        return recall

    one = counted(1, 2)
    one.merge(Recall.from_json(json.loads(json.dumps(counted(3, 4, 5).to_json()))))
    assert one.to_json() == counted(5, 4, 3, 2, 1).to_json()
    with pytest.raises(ValueError, match="do not merge"):
        one.merge(Recall(depth_bins=4))


def test_wilson() -> None:
    # 81 of 263, a textbook's example: 25.5% to 36.6%
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    assert wilson(20, 20).low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)
    assert wilson(20, 20).high == 1
    assert wilson(0, 20).low == 0
    assert wilson(0, 20).high == pytest.approx(1 - wilson(20, 20).low)


def clustered(draw: np.random.Generator, examples: int, size: int, rate: float, alike: float) -> Recall:
    """A task in which every example has an answer of `size` tokens, right with a rate of the example's own.

    Args:
        draw: of the numbers.
        examples: as many.
        size: tokens of an answer.
        rate: over all.
        alike: the correlation of two tokens of one example.
    """
    own = np.full(examples, rate)
    if alike:
        own = draw.beta(*((1 / alike - 1) * np.array([rate, 1 - rate])), examples)
    recall = Recall(depth_bins=1)
    gold = torch.full((examples, 2 * size), N)
    gold[:, size:] = torch.arange(size)
    recall.update("t", torch.from_numpy(draw.random((examples, 2 * size)) < own[:, None]), gold)
    return recall


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95, 0.99])
def test_the_interval_of_what_stands_and_falls_together_holds_the_rate(rate: float, alike: float) -> None:
    """95% of the intervals do, nearly or more; as independent trials far fewer would."""
    draw, rounds, size = np.random.default_rng(0), 400, 8
    held = naive = 0
    for _ in range(rounds):
        share = clustered(draw, 24, size, rate, alike).at("t", 2 * size).share("answer")
        held += share.interval.low <= rate <= share.interval.high
        low, high = wilson(share.part, share.whole)
        naive += low <= rate <= high
    assert held / rounds > 0.92
    assert alike == 0 or rate > 0.9 or naive / rounds < 0.8


def test_a_long_answer_is_one_trial() -> None:
    """36 tokens of a UUID are not 36 trials; and of one answer an example, exactness is Wilson's own."""
    count = clustered(np.random.default_rng(0), 20, 36, 0.9, 0.9).at("t", 72)
    assert count.share("answer").whole == 20 * 36
    assert count.share("answer").trials <= 20
    assert count.share("exact").interval == pytest.approx(wilson(count.exact, 20))


def test_answers_of_one_example_that_are_all_right_are_one_trial_over_all_depths() -> None:
    gold = torch.full((5, 8), N)
    gold[:, 4], gold[:, 6] = 0, 3  # two answers an example, at two depths
    recall = Recall(depth_bins=2)
    recall.update("t", torch.ones(5, 8, dtype=torch.bool), gold)
    assert recall.at("t", 8).interval == pytest.approx(wilson(5, 5))
    gold = torch.full((5, 8), N)
    gold[:, 4], gold[:, 6] = 0, 5
    correct = torch.ones(5, 8, dtype=torch.bool)
    correct[:2, 4:] = False
    apart = Recall(depth_bins=2)
    apart.update("t", correct, gold)
    assert apart.at("t", 8).share("exact").trials < 5
    again = Recall.from_json(json.loads(json.dumps(apart.to_json())))
    assert again.at("t", 8).share("exact") == apart.at("t", 8).share("exact")


def test_an_earlier_record_has_answers_for_trials() -> None:
    entry = {"task": "t", "length": 8, "answers": 3, "exact": 2, "tokens": 12, "right": 9}
    old = {"depth_bins": 1, "counts": [{**entry, "depth_bin": 0}, {**entry, "depth_bin": 0}]}
    count = Recall.from_json(old).at("t", 8)
    assert (count.answers, count.exact, count.examples) == (6, 4, 0)
    assert count.interval == pytest.approx(wilson(4, 6))
    assert count.share("answer").interval == pytest.approx(wilson(0.75 * 6, 6))
    both = Recall.from_json(old)
    both.merge(clustered(np.random.default_rng(0), 4, 4, 0.5, 0.0))
    assert (both.at("t", 8).answers, both.at("t", 8).examples) == (10, 0)


def test_every_rate_as_a_row() -> None:
    recall = Recall(2)
    gold = torch.tensor([[N, N, 0, 1], [N, N, N, 2]])
    correct = torch.tensor([[False, False, True, True], [False, False, False, False]])
    matched = torch.tensor([[False] * 4, [False, False, False, True]])
    recall.update("task", correct, gold, matched=matched)
    cells = {(cell.measure, cell.depth_from, cell.depth_to): cell for cell in recall.cells()}
    ends = ((0, 0.5), (0.5, 1), (0, 1))
    assert set(cells) == {(measure, *depth) for measure in ("exact", "answer", "match") for depth in ends}
    assert cells["exact", 0, 0.5][5:] == (1.0, *wilson(1, 1), 1, 1)
    assert (cells["answer", 0, 1].part, cells["answer", 0, 1].whole) == (2, 3)
    assert (cells["match", 0, 0.5].part, cells["match", 0.5, 1].part, cells["match", 0, 1].whole) == (0, 1, 2)
    assert list(Recall.from_json(recall.to_json()).cells()) == list(recall.cells())
