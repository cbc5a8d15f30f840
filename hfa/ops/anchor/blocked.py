"""The read of the exact memory, a block of queries at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hfa.ops.attention import causal_attention

_SCORES = 1 << 20  # scores held at once: few enough to stay in cache and to reuse the allocator's memory
_SPAN = 32  # keys under one maximum when the best are looked for


def anchor_read(q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, *, window: int, num_retrieved: int) -> Tensor:
    """What :func:`hfa.ops.anchor.naive_anchor_read` computes, for many queries at once.

    While the memory is no longer than ``window + num_retrieved`` everything is read, so that training at such
    lengths is plain causal attention; beyond, no softmax ever sees more tokens than that, and far noise cannot
    dilute what is read. `start` may be None when the new tokens are all there are.
    """
    if k.shape[2] <= window + num_retrieved:
        return causal_attention(q, k, v, start, scale=1.0)
    batch, heads, length, _ = q.shape
    if start is None:
        start = torch.zeros(batch, dtype=torch.long, device=q.device)
    block = max(1, min(_SCORES // (batch * heads * k.shape[2]), window))
    pieces = [
        _read_block(q[:, :, first : first + block], k, v, start + first, window, num_retrieved)
        for first in range(0, length, block)
    ]
    return torch.cat(pieces, dim=2)


def _read_block(q: Tensor, k: Tensor, v: Tensor, start: Tensor, window: int, num_retrieved: int) -> Tensor:
    """Read for the queries of positions ``start .. start + T - 1``: q [B, H, T, K] to [B, H, T, V]."""
    length, groups = q.shape[2], k.shape[1]
    q = q.unflatten(1, (groups, -1))  # [B, G, H/G, T, K]
    position = start[:, None] + torch.arange(length, device=q.device)  # [B, T]

    near = start[:, None] - window + 1 + torch.arange(window + length - 1, device=q.device)  # [B, W], some below 0
    age = position[..., None] - near[:, None]  # [B, T, W]
    hidden = (near[:, None] < 0) | (age < 0) | (age >= window)
    near_keys, near_values = (_rows(x, near[:, None].clamp(min=0).expand(-1, groups, -1)) for x in (k, v))
    scores = q @ near_keys[:, :, None].transpose(-1, -2)  # [B, G, H/G, T, W]
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)

    num_far = max(0, int(start.max()) + length - window)  # keys that are far from at least one query
    all_far = max(0, int(start.min()) + 1 - window)  # keys that are far from every query
    far_scores = q @ k[:, :, None, :num_far].transpose(-1, -2)  # [B, G, H/G, T, F]
    too_near = position[..., None] - torch.arange(all_far, num_far, device=q.device) < window  # [B, T, F - all_far]
    far_scores[..., all_far:].masked_fill_(too_near[:, None, None], -torch.inf)
    best, chosen = _largest(far_scores, num_retrieved)
    far_values = _rows(v, chosen.flatten(2)).unflatten(2, chosen.shape[2:])  # [B, G, H/G, T, R, V]

    weights = torch.cat([scores, best], dim=-1).softmax(-1)  # the one softmax
    near_weights, far_weights = weights.split([near.shape[1], best.shape[-1]], dim=-1)
    read = near_weights @ near_values[:, :, None] + (far_weights[..., None, :] @ far_values).squeeze(-2)
    return read.flatten(1, 2)


def _rows(x: Tensor, where: Tensor) -> Tensor:
    """The rows `where` [B, G, M] of x [B, G, N, X]: [B, G, M, X]."""
    return x.gather(2, where[..., None].expand(-1, -1, -1, x.shape[-1]))


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of [..., F] and where they stand.

    They lie in the `count` spans with the largest maxima, so only those are looked into.
    """
    if scores.shape[-1] <= count * _SPAN:
        best = scores.topk(min(count, scores.shape[-1]), sorted=False)
        return best.values, best.indices
    spans = F.pad(scores, (0, -scores.shape[-1] % _SPAN), value=-torch.inf).unflatten(-1, (_SPAN, -1))
    chosen = spans.amax(-2).topk(count, sorted=False).indices  # [..., count]; a span is every F/_SPAN-th key
    inside = spans.gather(-1, chosen[..., None, :].expand(*spans.shape[:-1], count)).flatten(-2)
    best = inside.topk(count, sorted=False)
    where = chosen.gather(-1, best.indices % count) + best.indices // count * spans.shape[-1]
    return best.values, where.clamp(max=scores.shape[-1] - 1)
