"""The read of the exact memory, query by query: the reference of the fast form."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_anchor_read(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, start: Tensor, *, window: int, block_size: int
) -> Tensor:
    """For each query, read its window and the tokens chosen for it, in one softmax.

        position   0 1 2 3 4 5 6 7 8 9        block_size = 2, window = 2, query at 9
        read         x       x w w w w        x: chosen; w: window, from floor(9 / 2) * 2 - 2 = 6
                     `-------+-+-+-+-'        all six share one softmax

    Args:
        q: [B, H, T, K], queries of positions ``start .. start + T - 1``, logit scale included.
        k: [B, N, G, K] and v: [B, N, G, V], the memory, new tokens included; G divides H.
        chosen: int32 [B, T, R], positions before the window, -1 for none; those of all heads.
        start: int64 [B], tokens of each row before the new ones.
        window: tokens always read, up to ``block_size - 1`` more with them; a multiple of `block_size`.

    Returns:
        [B, H, T, V].
    """
    batch, heads, length, _ = q.shape
    group = heads // k.shape[2]
    rows = []
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, :, h // group], v[b, :, h // group]
            for t in range(length):
                position = int(start[b]) + t
                first = max(0, position // block_size * block_size - window)
                read = [i for i in chosen[b, t].tolist() if i >= 0] + list(range(first, position + 1))
                rows.append((keys[read] @ q[b, h, t]).softmax(0) @ values[read])
    return torch.stack(rows).view(batch, heads, length, v.shape[-1])
