"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn each pair of features by an angle that grows with the position.

    Args:
        x: [B, H, T, K], K even.
        positions: int64 [B, T].
        base: the longest wavelength is about ``2 pi base`` tokens.

    Source: arXiv 2104.09864, section 3.4.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = (positions[..., None] * frequency)[:, None]  # [B, 1, T, K/2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
