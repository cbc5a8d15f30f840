"""The read of the exact memory, query by query: the reference of the blocked form."""

from __future__ import annotations

import torch
from torch import Tensor


def naive_anchor_read(q: Tensor, k: Tensor, v: Tensor, start: Tensor, *, window: int, num_retrieved: int) -> Tensor:
    """For each query, read the last `window` tokens and the `num_retrieved` best-matching ones before them.

        position   0 1 2 3 4 5 6 7 8 9        window = 3, num_retrieved = 2, query at 9
        read         x       x   w w w        x: retrieved, by highest q . k     w: window
                     `-------+---+-+-'        all five share one softmax

    Args:
        q: [B, H, T, K], queries of positions ``start .. start + T - 1``, logit scale included.
        k: [B, G, N, K] and v: [B, G, N, V], the memory, new tokens included; G divides H.
        start: int64 [B], tokens of each row before the new ones.
        window: tokens always read, the present one included.
        num_retrieved: tokens read beyond the window.

    Returns:
        [B, H, T, V].
    """
    batch, heads, length, _ = q.shape
    group = heads // k.shape[1]
    rows = []
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h // group], v[b, h // group]
            for t in range(length):
                position = int(start[b]) + t
                logits = keys[: position + 1] @ q[b, h, t]
                near = list(range(max(0, position + 1 - window), position + 1))
                far = logits[: near[0]].argsort(descending=True)[:num_retrieved].tolist()
                read = sorted(far) + near
                rows.append(logits[read].softmax(0) @ values[read])
    return torch.stack(rows).view(batch, heads, length, v.shape[-1])
