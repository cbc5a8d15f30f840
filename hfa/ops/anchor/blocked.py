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
    rows = []
    for row in range(q.shape[0]):  # one at a time: more queries of one row then fit in cache beside each other
        before = 0 if start is None else int(start[row])
        rows.append(_read_row(q[row], k[row], v[row], before, window, num_retrieved))
    return torch.stack(rows)


def _read_row(q: Tensor, k: Tensor, v: Tensor, start: int, window: int, num_retrieved: int) -> Tensor:
    """Read for all queries of one row: q [H, T, K], k and v [G, N, K or V] to [H, T, V]."""
    block = max(1, min(_SCORES // (q.shape[0] * k.shape[1]), window))
    return torch.cat(
        [
            _read_block(q[:, first : first + block], k, v, start + first, window, num_retrieved)
            for first in range(0, q.shape[1], block)
        ],
        dim=1,
    )


def _read_block(q: Tensor, k: Tensor, v: Tensor, start: int, window: int, num_retrieved: int) -> Tensor:
    """Read for the queries of positions ``start .. start + T - 1`` of one row: q [H, T, K] to [H, T, V]."""
    length, groups = q.shape[1], k.shape[0]
    q = q.unflatten(0, (groups, -1))  # [G, H/G, T, K]
    position = torch.arange(start, start + length, device=q.device)[:, None]  # [T, 1]
    first_near, num_far = max(0, start + 1 - window), max(0, start + length - window)

    near = torch.arange(first_near, start + length, device=q.device)  # in the window of at least one query: [W]
    near_keys, near_values = k[:, None, first_near : start + length], v[:, None, first_near : start + length]
    hidden = (near > position) | (near <= position - window)  # [T, W]
    near_scores = (q @ near_keys.transpose(-1, -2)).masked_fill(hidden, -torch.inf)  # [G, H/G, T, W]
    if num_far == 0:
        return (near_scores.softmax(-1) @ near_values).flatten(0, 1)

    num_far = min(k.shape[1], num_far + -num_far % _SPAN)  # whole spans; what that adds is masked as too near
    far_scores = q @ k[:, None, :num_far].transpose(-1, -2)  # before the window of at least one query: [G, H/G, T, F]
    too_near = torch.arange(first_near, num_far, device=q.device) > position - window
    far_scores[..., first_near:].masked_fill_(too_near, -torch.inf)
    best, chosen = _largest(far_scores, num_retrieved)  # [G, H/G, T, R]
    far_values = torch.stack([group[where] for group, where in zip(v, chosen, strict=True)])  # [G, H/G, T, R, V]

    weights = torch.cat([near_scores, best], dim=-1).softmax(-1)  # the one softmax
    near_weights, far_weights = weights.split([near.shape[0], best.shape[-1]], dim=-1)
    read: Tensor = near_weights @ near_values + (far_weights[..., None, :] @ far_values).squeeze(-2)
    return read.flatten(0, 1)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of [..., F] and where they stand.

    They lie in the `count` spans with the largest maxima, so only those are looked into.
    """
    if scores.shape[-1] <= count * _SPAN:
        best = scores.topk(min(count, scores.shape[-1]), sorted=False)
        return best.values, best.indices
    missing = -scores.shape[-1] % _SPAN
    spans = F.pad(scores, (0, missing), value=-torch.inf) if missing else scores
    spans = spans.unflatten(-1, (_SPAN, -1))
    chosen = spans.amax(-2).topk(count, sorted=False).indices  # [..., count]; a span is every F/_SPAN-th key
    inside = spans.gather(-1, chosen[..., None, :].expand(*spans.shape[:-1], count)).flatten(-2)
    best = inside.topk(count, sorted=False)
    where = chosen.gather(-1, best.indices % count) + best.indices // count * spans.shape[-1]
    return best.values, where.clamp(max=scores.shape[-1] - 1)
