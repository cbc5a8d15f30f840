"""Retrieval without tries: the codes of every stored token are looked at. The torch path of other devices."""

from __future__ import annotations

import torch
from torch import Tensor

from hfa.ops.index.retrieve import Search

_DISTANCES = 1 << 20  # held at once: few enough to stay in cache


def retrieve_exactly(scores: Tensor, codes: Tensor, start: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """The tokens beyond the window whose codes are nearest: what :func:`hfa.ops.index.retrieve` looks for.

    Args:
        scores: [B, T, groups, 64], of every code for the queries of positions ``start .. start + T - 1``.
        codes: uint8 [B, N, groups].
        search: of which `num_trees`, `beam` and `leaf_size` play no part.

    Returns:
        positions int32 [B, T, num_retrieved], -1 where there are fewer; and tokens looked at, int32 [B, T].
    """
    batch, length = scores.shape[:2]
    position = start[:, None] + torch.arange(length, device=scores.device)
    limit = (position // search.block_size * search.block_size - search.window).clamp(min=0)  # [B, T]
    regret, where = measure_regret(scores, search.regret_cap), torch.arange(codes.shape[1], device=scores.device)
    count, pieces = min(search.num_retrieved, codes.shape[1]), []
    for piece in torch.arange(length, device=scores.device).split(max(1, _DISTANCES // max(1, batch * len(where)))):
        distance = torch.zeros(batch, len(piece), len(where), device=scores.device)
        for group in range(codes.shape[2]):
            chosen = codes[:, None, :, group].long().expand(-1, len(piece), -1)
            distance += regret[:, piece, group].gather(-1, chosen)
        distance.masked_fill_(where >= limit[:, piece, None], torch.inf)
        nearest = distance.topk(count, largest=False)
        pieces.append(nearest.indices.masked_fill(nearest.values == torch.inf, -1))
    found = torch.full((batch, length, search.num_retrieved), -1, dtype=torch.int32, device=scores.device)
    found[..., :count] = torch.cat(pieces, 1)
    return found, limit.int()


def measure_regret(scores: Tensor, cap: float) -> Tensor:
    """How far each code [..., groups, codes] scores below its group's best, in units of the group's spread."""
    scores = scores.float()
    spread = scores.square().mean(-1, keepdim=True).add(1e-12).rsqrt()
    return ((scores.amax(-1, keepdim=True) - scores) * spread).clamp(max=cap)
