"""Normalisations. The learnt one is torch's own `nn.RMSNorm`; these two have nothing to learn."""

from __future__ import annotations

from torch import Tensor


def rms_norm(x: Tensor) -> Tensor:
    """x divided by its root mean square over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def l2_norm(x: Tensor) -> Tensor:
    """x divided by its Euclidean norm over the last dimension."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
