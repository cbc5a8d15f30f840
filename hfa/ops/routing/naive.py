"""Routing, token by token: the reference of the vectorised form."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_route(scores: Tensor, router: str, theta: Tensor, budget: int) -> Tensor:
    """Channel weights of every token: what rises above the token's threshold, as a unit vector.

        scores  -0.3  1.2  0.4  2.0        budget = 2
        soft     .    1.2  0.4  2.0        above 0
        hard     .    0.8   .   1.6        above the (budget + 1)-th best, 0.4
        dynamic  .    0.2   .   1.0        above theta = 1.0, learnt from the token; at most `budget`, at least one

    Args:
        scores: [..., C].
        router: ``soft``, ``hard`` or ``dynamic``.
        theta: [..., 1], the token's own threshold (`dynamic` only).
        budget: most channels a token may use (`hard` and `dynamic`).

    Returns:
        [..., C], non-negative, of norm 1 (or 0 where nothing rises above the threshold).
    """
    flat, thetas = scores.reshape(-1, scores.shape[-1]), theta.reshape(-1)
    rows = []
    for row, own in zip(flat, thetas, strict=True):
        ranked = row.sort(descending=True).values
        limit = ranked[budget]
        if router == "soft":
            cut = row.new_zeros(())
        elif router == "hard":
            cut = limit
        else:
            cut = torch.maximum(torch.minimum(own, ranked[0] - 0.05), limit)
        above = (row - cut).clamp(min=0)
        rows.append(above / (above.square().sum() + 1e-6).sqrt())
    return torch.stack(rows).view_as(scores)
