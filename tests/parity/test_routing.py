"""Routing for all tokens at once against routing token by token."""

from __future__ import annotations

import pytest
import torch

from hfa.ops.routing import ROUTERS, naive_route, route


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("budget", [1, 3, 7])
def test_vectorised_equals_naive(router: str, budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    scores = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64).requires_grad_()
    theta = torch.randn(2, 3, 5, 1, generator=generator, dtype=torch.float64).requires_grad_()
    got, expected = route(scores, router, theta, budget), naive_route(scores, router, theta, budget)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(got)
    for ours, theirs in zip(
        torch.autograd.grad((got * weight).sum(), (scores, theta), allow_unused=True),
        torch.autograd.grad((expected * weight).sum(), (scores, theta), allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("router", ["hard", "dynamic"])
def test_no_token_uses_more_than_its_budget(router: str) -> None:
    scores = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    active = (route(scores, router, torch.full((500, 1), 0.5), 16) > 0).sum(-1)
    assert active.max() <= 16
    assert active.min() >= 1


def test_dynamic_uses_fewer_channels_under_a_higher_threshold() -> None:
    scores = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    counts = [
        (route(scores, "dynamic", torch.full((500, 1), theta), 32) > 0).sum(-1).float().mean()
        for theta in (0.0, 1.0, 2.0)
    ]
    assert counts[0] > counts[1] > counts[2]
