"""Routing for all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor

ROUTERS = ("dynamic", "soft", "hard")
MARGIN = 0.05  # `dynamic` keeps at least the channels this close to the best one
EPS = 1e-6
FASTEST_DECAY = 1.2  # nats a token: chunk_size * this must stay under 80, where exp overflows float32


def route(scores: Tensor, router: str, theta: Tensor, budget: int, signed: bool) -> Tensor:
    """What :func:`hfa.ops.routing.naive_route` computes, vectorised; `budget` is at most C - 1.

    Only the token's own scores enter: nothing here sees another token.
    """
    size = scores.abs() if signed else scores
    if router == "soft":
        above = size.relu()
    else:
        ranked = size.topk(budget + 1, dim=-1).values
        cut = ranked[..., -1:]
        if router == "dynamic":
            cut = torch.maximum(torch.minimum(theta, ranked[..., :1] - MARGIN), cut)
        above = (size - cut).relu()
    if signed:
        above = above * scores.sign()
    return above * (above.square().sum(-1, keepdim=True) + EPS).rsqrt()
