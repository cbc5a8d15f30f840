"""Retrieval without an index: the keys of every stored token are looked at. The torch path of other devices."""

from __future__ import annotations

import torch
from torch import Tensor

from hfa.ops.index.retrieve import Search

_PRODUCTS = 1 << 20  # held at once: few enough to stay in cache


def retrieve_exactly(query: Tensor, keys: Tensor, start: Tensor, search: Search) -> tuple[Tensor, Tensor]:
    """The tokens beyond the window with the largest ``query . key``: what :func:`hfa.ops.index.retrieve` looks for.

    Args:
        query: [B, T, W], of positions ``start .. start + T - 1``; keys: [B, N, W].
        search: of which window, block_size and num_retrieved play a part.

    Returns:
        positions int32 [B, T, num_retrieved], -1 where there are fewer; and tokens looked at, int32 [B, T].
    """
    batch, length = query.shape[:2]
    position = start[:, None] + torch.arange(length, device=query.device)
    limit = (position // search.block_size * search.block_size - search.window).clamp(min=0)  # [B, T]
    where, pieces = torch.arange(keys.shape[1], device=query.device), []
    count = min(search.num_retrieved, len(where))
    for piece in torch.arange(length, device=query.device).split(max(1, _PRODUCTS // max(1, batch * len(where)))):
        near = where >= limit[:, piece, None]  # [B, t, N]
        best = (query[:, piece] @ keys.transpose(-1, -2)).masked_fill(near, -torch.inf).topk(count)
        pieces.append(best.indices.masked_fill(best.values == -torch.inf, -1))
    chosen = torch.full((batch, length, search.num_retrieved), -1, dtype=torch.int32, device=query.device)
    chosen[..., :count] = torch.cat(pieces, 1)
    return chosen, limit.int()
