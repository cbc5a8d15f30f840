from __future__ import annotations

import torch
import torch.nn.functional as F

from hfa.metrics.group import is_right, right_nats

N = -1


def test_any_label_of_a_group_is_right_until_it_was_said() -> None:
    labels = torch.tensor([[7, 8, 9, 7], [7, 8, 9, 7]])
    group = torch.tensor([[0, 0, 1, N], [0, 0, 0, N]])
    row, column = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 2, 3, 0, 2, 3])
    predicted = torch.tensor([8, 9, 7, 9, 7, 9, 7, 8])
    #  a later one, another group's, one that was said, itself, itself; two later, one that was said, wrong
    assert is_right(predicted, row, column, labels, group).int().tolist() == [1, 0, 0, 1, 1, 1, 0, 0]


def test_without_groups_only_the_label_is_right() -> None:
    labels = torch.tensor([[1, 2], [3, 4]])
    row, column = torch.tensor([0, 1]), torch.tensor([1, 0])
    right = is_right(torch.tensor([2, 4]), row, column, labels, torch.full_like(labels, N))
    assert right.tolist() == [True, False]


def test_what_is_right_together_is_as_likely_as_its_parts_together() -> None:
    labels = torch.tensor([[2, 0, 3], [2, 0, 3]])
    group = torch.tensor([[5, 5, 5], [N, N, N]])
    row, column = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    expected = -torch.stack([p[0, [2, 0, 3]].sum(), p[1, [0, 3]].sum(), p[2, 3], p[3, 2]]).log()
    torch.testing.assert_close(right_nats(logits, row, column, labels, group), expected)


def test_without_groups_it_is_the_cross_entropy() -> None:
    labels = torch.tensor([[2, 0], [1, 3]])
    row, column = torch.tensor([0, 1]), torch.tensor([1, 0])
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nats = right_nats(logits, row, column, labels, torch.full_like(labels, N))
    torch.testing.assert_close(nats, F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none"))
