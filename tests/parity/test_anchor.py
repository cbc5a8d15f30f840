"""The blocked read of the exact memory against the one that goes query by query."""

from __future__ import annotations

import pytest
import torch

from hfa.ops.anchor import anchor_read, blocked, naive_anchor_read


def inputs(rows: int, length: int, stored: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(stored)
    shapes = [(rows, 4, length, 6), (rows, 2, stored, 6), (rows, 2, stored, 5)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize(("window", "num_retrieved"), [(1, 1), (3, 2), (4, 30), (40, 1)])
@pytest.mark.parametrize("span", [1, 2, 32])
@pytest.mark.parametrize("scores", [1, 1 << 24])
def test_blocked_equals_naive(
    window: int, num_retrieved: int, scores: int, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "_SCORES", scores)
    monkeypatch.setattr(blocked, "_SPAN", span)
    q, k, v = inputs(2, 11, 23)
    start = torch.tensor([12, 7])  # the second row holds fewer tokens than the buffer is long
    got = anchor_read(q, k, v, start, window=window, num_retrieved=num_retrieved)
    expected = naive_anchor_read(q, k, v, start, window=window, num_retrieved=num_retrieved)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_retrieved", [2, 30])
def test_a_first_call_needs_no_start(num_retrieved: int) -> None:
    q, k, v = inputs(1, 23, 23)
    nothing_before = torch.zeros(1, dtype=torch.long)
    torch.testing.assert_close(
        anchor_read(q, k, v, None, window=3, num_retrieved=num_retrieved),
        naive_anchor_read(q, k, v, nothing_before, window=3, num_retrieved=num_retrieved),
        atol=1e-10,
        rtol=1e-10,
    )


def test_a_match_is_found_however_far_back() -> None:
    generator = torch.Generator().manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, 5000, 32, generator=generator), dim=-1)
    v = torch.nn.functional.one_hot(torch.arange(5000))[None, None].float()
    for gold in (0, 17, 2500, 4900):
        q = 40 * k[:, :, gold : gold + 1]
        read = anchor_read(q, k, v, torch.tensor([4999]), window=8, num_retrieved=4)
        assert read.argmax() == gold
        assert (read > 0).sum() <= 12
