"""The fast reads of the exact memory against the one that goes query by query."""

from __future__ import annotations

import pytest
import torch

from hfa.ops.anchor import anchor_read, gathered_anchor_read, naive_anchor_read


def inputs(length: int, starts: list[int], window: int, block_size: int) -> tuple[torch.Tensor, ...]:
    """Two rows of 4 heads over 2 key-value heads; positions before the window are chosen at random, fewer at first."""
    generator = torch.Generator().manual_seed(length)
    stored, wanted = max(starts) + length, 3
    shapes = [(2, 4, length, 6), (2, stored, 2, 6), (2, stored, 2, 6)]
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    chosen = torch.full((2, length, wanted), -1, dtype=torch.int32)
    for b, start in enumerate(starts):
        for t in range(length):
            limit = max(0, (start + t) // block_size * block_size - window)
            some = torch.randperm(limit, generator=generator)[:wanted].int()
            chosen[b, t, : len(some)] = some
    return q, k, v, chosen, torch.tensor(starts)


@pytest.mark.parametrize("read", [anchor_read, gathered_anchor_read])
@pytest.mark.parametrize(
    ("length", "starts"),
    [(41, [0, 0]), (11, [29, 17]), (23, [17, 3]), (32, [16, 16]), (1, [39, 2]), (3, [0, 1])],
)
@pytest.mark.parametrize(("window", "block_size"), [(8, 4), (4, 4), (12, 2), (64, 32), (1, 1)])
def test_fast_equals_naive(read, length: int, starts: list[int], window: int, block_size: int) -> None:
    q, k, v, chosen, start = inputs(length, starts, window, block_size)
    got = read(q, k, v, chosen, start, window=window, block_size=block_size)
    expected = naive_anchor_read(q, k, v, chosen, start, window=window, block_size=block_size)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_features_need_not_lie_side_by_side() -> None:
    q, k, v, chosen, start = inputs(11, [29, 17], 8, 4)
    apart = [x.detach().mT.contiguous().mT.requires_grad_() for x in (k, v)]
    got = anchor_read(q, *apart, chosen, start, window=8, block_size=4)
    expected = anchor_read(q, k, v, chosen, start, window=8, block_size=4)
    torch.testing.assert_close(got, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (q, *kv)) for y, kv in ((got, apart), (expected, (k, v))))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_is_one_for_torch() -> None:
    q, k, v, chosen, start = inputs(11, [29, 17], 8, 4)
    torch.library.opcheck(torch.ops.hfa.anchor_read.default, (q, k, v, chosen, start, 8, 4))


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 50])
@pytest.mark.parametrize("starts", [[0, 0], [100, 31]])
def test_vectors_equal_naive(length: int, starts: list[int]) -> None:
    """Widths that fill vectors are read by a kernel of their own."""
    q, k, v, chosen, start = inputs(length, starts, 16, 8)
    q, k, v = (torch.cat([x, x, -x, x, x, x, x.flip(-2), x], -1).float() for x in (q, k, v))  # 48 wide
    q = q / 8  # logits as a softmax of 48 features has them
    got = anchor_read(q, k, v, chosen, start, window=16, block_size=8)
    torch.testing.assert_close(
        got, naive_anchor_read(q, k, v, chosen, start, window=16, block_size=8), atol=1e-5, rtol=1e-5
    )
    assert not got.isnan().any()
