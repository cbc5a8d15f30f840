"""The read of the exact memory with torch alone: for devices and transforms that the CPU operator does not serve."""

from __future__ import annotations

import torch
from torch import Tensor


def gathered_anchor_read(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, *, window: int, block_size: int
) -> Tensor:
    """What :func:`hfa.ops.anchor.naive_anchor_read` computes, for a block of queries at a time."""
    batch, _, length, _ = q.shape
    groups = k.shape[2]
    q = q.unflatten(1, (groups, -1))  # [B, G, H/G, T, K]
    position = start[:, None] + torch.arange(length, device=q.device)  # [B, T]
    first = (position // block_size * block_size - window).clamp(min=0)
    rows = torch.arange(batch, device=q.device)[:, None, None]
    reach = torch.arange(window + block_size, device=q.device)
    pieces = []
    for piece in torch.arange(length, device=q.device).split(block_size):
        near = first[:, piece, None] + reach  # [B, t, window + block_size]
        hidden = near > position[:, piece, None]
        far = chosen[:, piece].long()
        where = torch.cat([near.clamp(max=k.shape[1] - 1), far.clamp(min=0)], -1)  # [B, t, S]
        unread = torch.cat([hidden, far < 0], -1)[:, None, None]
        keys, values = k[rows, where], v[rows, where]  # [B, t, S, G, K]
        logits = torch.einsum("bghtk,btsgk->bghts", q[:, :, :, piece], keys).masked_fill(unread, -torch.inf)
        pieces.append(torch.einsum("bghts,btsgv->bghtv", logits.softmax(-1), values))
    return torch.cat(pieces, 3).flatten(1, 2)
