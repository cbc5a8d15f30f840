"""Labels that may come in any order: what is right, and how likely something right was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfa.types import NOWHERE


class Open(NamedTuple):
    """What could still be said at those of N positions whose label is of a group."""

    at: Tensor  # int64 [g], which of the N
    labels: Tensor  # int64 [G], all grouped labels of the batch
    allowed: Tensor  # bool [g, G], of the position's group, and not said before it


def find_open(row: Tensor, column: Tensor, labels: Tensor, group: Tensor) -> Open:
    """Which labels are open at some positions of a batch.

    Args:
        row: where in the batch each stands, int64 [N].
        column: and at which position, int64 [N].
        labels: int64 [B, T].
        group: int64 [B, T]; see :class:`~hfa.types.Example`.
    """
    mine = group[row, column]
    at = (mine != NOWHERE).nonzero()[:, 0]
    rows, columns = (group != NOWHERE).nonzero(as_tuple=True)
    same = (row[at, None] == rows) & (mine[at, None] == group[rows, columns])
    return Open(at, labels[rows, columns], same & (column[at, None] <= columns))


def is_right(predicted: Tensor, row: Tensor, column: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """Whether predictions [N] hit the label, or another of its group that is open; arguments as :func:`find_open`'s."""
    right = predicted == labels[row, column]
    there = find_open(row, column, labels, group)
    right[there.at] = ((predicted[there.at, None] == there.labels) & there.allowed).any(1)
    return right


def right_nats(logits: Tensor, row: Tensor, column: Tensor, labels: Tensor, group: Tensor) -> Tensor:
    """Minus the log of the probability of something right, float [N].

    Args:
        logits: [N, vocabulary].
        row, column, labels, group: as :func:`find_open`'s.
    """
    nats = torch.nn.functional.cross_entropy(logits, labels[row, column], reduction="none")
    there = find_open(row, column, labels, group)
    if not len(there.at):
        return nats
    each = logits[there.at].log_softmax(-1)[:, there.labels]  # [g, G]
    return nats.index_put((there.at,), -each.masked_fill(~there.allowed, -torch.inf).logsumexp(-1))
