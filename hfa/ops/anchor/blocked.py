"""The read of the exact memory, a block of queries at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hfa.ops.attention import age, causal_attention

_SCORES = 1 << 24  # scores held at once, which bounds the working memory at any length


def anchor_read(q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, *, window: int, num_retrieved: int) -> Tensor:
    """What :func:`hfa.ops.anchor.naive_anchor_read` computes, for many queries at once.

    While the memory is no longer than ``window + num_retrieved`` everything is read, so that training at such
    lengths is plain causal attention; beyond, no softmax ever sees more tokens than that, and far noise cannot
    dilute what is read. `start` may be None when the new tokens are all there are.
    """
    if k.shape[2] <= window + num_retrieved:
        return causal_attention(q, k, v, start, scale=1.0)
    batch, heads, length, _ = q.shape
    groups = k.shape[1]
    if start is None:
        start = torch.zeros(batch, dtype=torch.long, device=q.device)
    block = max(1, _SCORES // (batch * heads * k.shape[2]))
    outputs = []
    for first in range(0, length, block):
        piece = q[:, :, first : first + block]
        width = piece.shape[2]
        grouped = piece.reshape(batch, groups, -1, piece.shape[-1])  # [B, G, H/G * block, K]
        scores = (grouped @ k.transpose(-1, -2)).unflatten(2, (-1, width))  # [B, G, H/G, block, N]
        ages = age(start + first, width, k.shape[2])[:, None, None]
        far = ages >= window
        cut = scores.masked_fill(~far, -torch.inf).topk(num_retrieved, sorted=False).values.amin(-1, keepdim=True)
        read = (ages >= 0) & (~far | (scores >= cut))
        weights = scores.masked_fill(~read, -torch.inf).softmax(-1)
        outputs.append((weights.flatten(2, 3) @ v).reshape(batch, heads, width, -1))
    return torch.cat(outputs, dim=2)
