from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hfa.metrics.recall import Count, Recall
from hfa.metrics.retention import Kept, Witness

N = -1


class Read(NamedTuple):
    start: Tensor
    chosen: Tensor
    near_from: Tensor


def test_evidence_is_selected_in_the_window_or_when_it_is_retrieved() -> None:
    gold = torch.tensor([[N, N, N, 1, 0, 4], [N, N, N, 2, N, 0]])
    chosen = torch.full((2, 2, 3, 2), N)
    chosen[0, 1, 0, 1] = 1  # row 0, the second head, position 3
    chosen[1, 0, 1, 0] = 0  # row 1, position 4, where nothing is asked
    near_from = torch.tensor([[2, 3, 4], [2, 3, 4]])
    kept = Kept.nothing(gold)
    kept.add_selected([Read(torch.tensor([3, 3]), chosen, near_from)])
    assert kept.selected.int().tolist() == [[0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0]]


def test_one_layer_that_reads_it_is_enough_and_rows_may_start_apart() -> None:
    gold = torch.tensor([[N, 0, 0, N], [N, N, 0, 1]])
    chosen = torch.tensor([0, N]).view(2, 1, 1, 1)
    far = torch.tensor([[2], [2]])
    layers = [Read(torch.tensor(starts), chosen, far) for starts in ([1, 2], [2, 3])]
    kept = Kept.nothing(gold)
    kept.add_selected(layers)
    assert kept.selected.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


class Memory(NamedTuple):
    pages: tuple[Tensor, ...]
    length: Tensor


def memory(length: int) -> Memory:
    draw = torch.Generator().manual_seed(0)
    pages = torch.randn(2, 6, 1, 3, generator=draw), torch.randint(0, 9, (2, 6, 2), generator=draw).byte()
    return Memory(pages, torch.tensor([length, length]))


@pytest.mark.parametrize("damage", ["none", "key", "code", "forgotten"])
def test_evidence_is_stored_while_every_memory_holds_it_as_it_was_written(damage: str) -> None:
    gold = torch.tensor([[N, N, N, N, 0, 1], [N, N, N, N, 0, 4]])
    kept, witness = Kept.nothing(gold), Witness(gold)
    layers = [memory(4), memory(4)]
    witness.note(layers, slice(0, 4))
    layers = [layer._replace(length=torch.tensor([6, 6])) for layer in layers]
    if damage == "key":
        layers[1].pages[0][0, 1] += 0.01
    if damage == "code":
        layers[0].pages[1][1, 0, 1] ^= 1
    if damage == "forgotten":
        layers[1] = layers[1]._replace(length=torch.tensor([6, 4]))
    witness.note(layers, slice(4, 6))
    witness.check(kept, layers, slice(4, 6))
    expected = {"none": [[1, 1], [1, 1]], "key": [[1, 0], [1, 1]], "code": [[1, 1], [0, 1]]}
    assert kept.stored[:, 4:].int().tolist() == expected.get(damage, [[1, 1], [1, 0]])
    assert not kept.stored[:, :4].any()


def test_a_model_without_a_memory_stores_nothing() -> None:
    gold = torch.tensor([[N, 0]])
    kept, witness = Kept.nothing(gold), Witness(gold)
    witness.note([], slice(0, 2))
    witness.check(kept, [], slice(0, 2))
    assert not kept.stored.any()


def test_recall_counts_what_was_kept_and_what_was_not_audited_has_no_rate() -> None:
    gold = torch.tensor([[N, N, 0, 1, N, N, N, 6]])
    correct, yes = torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    selected = yes.clone()
    selected[0, 3] = False
    recall = Recall(depth_bins=2)
    recall.update("audited", correct, gold, Kept(gold, yes, selected))
    recall.update("plain", correct, gold)
    rates = recall.at("audited", 8).retention()
    assert {name: (share.part, share.whole) for name, share in rates.items()} == {
        "storage": (3, 3),
        "selection": (2, 3),
        "answer": (3, 3),
    }
    assert recall.at("audited", 8, 1) == Count(1, 1, 1, 1, audited=1, stored=1, selected=1)
    assert list(recall.at("plain", 8).retention()) == ["answer"]
    assert Recall.from_json(recall.to_json()).to_json() == recall.to_json()
