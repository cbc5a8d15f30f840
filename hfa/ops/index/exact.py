"""Retrieval without an index: every stored token is looked at. Quadratic, and the torch path of other devices."""

from __future__ import annotations

import torch
from torch import Tensor

from hfa.ops.index.retrieve import Search

_SCORES = 1 << 20  # scores held at once: few enough to stay in cache


def retrieve_exactly(query: Tensor, keys: Tensor, start: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """The tokens beyond the window with the largest ``query . key``: what :func:`hfa.ops.index.retrieve` looks for.

    Args:
        query: [B, T, W], of positions ``start .. start + T - 1``; keys: [B, N, W].
        search: of which only window, block_size and num_retrieved play a part.

    Returns:
        positions int32 [B, T, num_retrieved], -1 where there are fewer; and tokens looked at, int32 [B, T].
    """
    length, stored = query.shape[1], keys.shape[1]
    position = start[:, None] + torch.arange(length, device=query.device)
    limit = (position // search.block_size * search.block_size - search.window).clamp(min=0)  # [B, T]
    where = torch.arange(stored, device=query.device)
    count = min(search.num_retrieved, stored)
    pieces = []
    for piece in torch.arange(length).split(max(1, _SCORES // max(1, query.shape[0] * stored))):
        near = where >= limit[:, piece, None]  # [B, t, N]
        products = (query[:, piece] @ keys.transpose(-1, -2)).masked_fill(near, -torch.inf)
        best = products.topk(count, sorted=True)
        pieces.append(best.indices.masked_fill(best.values == -torch.inf, -1))
    chosen = torch.full((*query.shape[:2], search.num_retrieved), -1, dtype=torch.int32, device=query.device)
    chosen[..., :count] = torch.cat(pieces, 1)
    return chosen, limit.int()
