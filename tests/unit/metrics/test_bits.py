from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hfa.metrics.bits import BitsPerByte, LossByPosition
from hfa.types import IGNORE

LENGTHS = np.array([1, 3, 0])


def batch(seq_len: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (2, seq_len), generator=draw)
    labels[torch.rand(2, seq_len, generator=draw) < 0.3] = IGNORE
    return torch.rand(2, seq_len, generator=draw), labels


def test_bits_over_bytes() -> None:
    bits = BitsPerByte()
    assert math.isnan(bits.value)
    nats = torch.tensor([[math.log(2), 3 * math.log(2), 99.0, math.log(4)]])
    bits.update(nats, torch.tensor([[0, 1, IGNORE, 2]]), LENGTHS)
    assert (bits.bytes, bits.tokens) == (4, 3), "a special id has bits and no bytes"
    assert bits.value == pytest.approx((1 + 3 + 2) / 4)


def test_uniform_guessing_of_bytes_is_eight_bits() -> None:
    bits = BitsPerByte()
    bits.update(torch.full((4, 64), math.log(256)), torch.full((4, 64), 7), np.ones(257, dtype=np.int64))
    assert bits.value == pytest.approx(8)


def test_what_is_not_scored_may_be_anything() -> None:
    bits = BitsPerByte()
    bits.update(torch.tensor([[math.nan, 1.0]]), torch.tensor([[IGNORE, 0]]), LENGTHS)
    assert bits.nats == 1


def test_bins_cover_every_position_once() -> None:
    loss, total = LossByPosition.doubling(100, 16), BitsPerByte()
    assert loss.edges == (0, 16, 32, 64, 100)
    assert LossByPosition.doubling(64, 16).edges == (0, 16, 32, 64)
    assert LossByPosition.doubling(8, 16).edges == (0, 8)
    nats, labels = batch(100, 0)
    loss.update(nats, labels, LENGTHS)
    total.update(nats, labels, LENGTHS)
    assert sum(bits.tokens for bits in loss.bins) == total.tokens
    assert sum(bits.nats for bits in loss.bins) == pytest.approx(total.nats)
    assert loss.bins[1].tokens == int((labels[:, 16:32] != IGNORE).sum())


@pytest.mark.parametrize("make", [BitsPerByte, lambda: LossByPosition.doubling(50, 8)])
def test_merging_is_adding_and_json_keeps_all(make: type[BitsPerByte]) -> None:
    one, two, both = make(), make(), make()
    for part, seed in ((one, 1), (two, 2)):
        part.update(*batch(50, seed), LENGTHS)
        both.update(*batch(50, seed), LENGTHS)
    one.merge(type(two).from_json(json.loads(json.dumps(two.to_json()))))
    assert one.to_json() == both.to_json()


def test_other_bins_do_not_merge() -> None:
    with pytest.raises(ValueError, match="do not merge"):
        LossByPosition([0, 5]).merge(LossByPosition([0, 6]))
