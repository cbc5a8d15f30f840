"""Routing for all tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor

ROUTERS = ("dynamic", "soft", "hard")
_MARGIN = 0.05  # `dynamic` keeps at least the channels this close to the best one


def route(scores: Tensor, router: str, theta: Tensor, budget: int) -> Tensor:
    """What :func:`hfa.ops.routing.naive_route` computes, vectorised; `budget` is at most C - 1.

    Only the token's own scores enter: nothing here sees another token.
    """
    if router == "soft":
        above = scores.relu()
    else:
        ranked = scores.topk(budget + 1, dim=-1).values
        cut = ranked[..., -1:]
        if router == "dynamic":
            cut = torch.maximum(torch.minimum(theta, ranked[..., :1] - _MARGIN), cut)
        above = (scores - cut).relu()
    return above * (above.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
