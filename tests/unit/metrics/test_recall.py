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
    assert recall.at("needle", 8).token_accuracy == 0.75


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
    assert cells["answer", 0, 1][5:] == (2 / 3, *wilson(2, 3), 2, 3)
    assert (cells["match", 0, 0.5].part, cells["match", 0.5, 1].part, cells["match", 0, 1].whole) == (0, 1, 2)
    assert list(Recall.from_json(recall.to_json()).cells()) == list(recall.cells())
