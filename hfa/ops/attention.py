"""Exact softmax attention over a memory whose rows may be filled to different lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, start: Tensor | None, *, scale: float) -> Tensor:
    """Attend from T new tokens to every token up to and including themselves.

    Args:
        q: [B, H, T, K], queries of positions ``start .. start + T - 1``.
        k: [B, G, N, K] and v: [B, G, N, V], the memory, new tokens included; G divides H.
        start: int64 [B], tokens of each row before the new ones; None when the new ones are all there are.
        scale: factor of the logits.

    Returns:
        [B, H, T, V].
    """
    grouped, k, v = q.shape[1] != k.shape[1], k.to(q.dtype), v.to(q.dtype)  # which autocast may have remembered in half
    if start is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = age(start, q.shape[2], k.shape[2]) >= 0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], scale=scale, enable_gqa=grouped)


def age(start: Tensor, num_queries: int, num_keys: int) -> Tensor:
    """How many tokens before each query each key stands, int64 [B, T, N]; negative for keys of the future."""
    queries = start[:, None] + torch.arange(num_queries, device=start.device)  # [B, T]
    return queries[..., None] - torch.arange(num_keys, device=start.device)
