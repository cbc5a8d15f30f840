"""Normalisations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hfa.ops import fused
from hfa.ops.simd import suits


class RMSNorm(nn.RMSNorm):
    """torch's own, in one pass on the CPU, and with a gate where one is given.

    Args:
        width: features normalised together, the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """``x / sqrt(mean(x^2) + eps) * weight``, times ``silu(gate)``: x [..., W], gate of as many elements."""
        if suits(x, self.weight) and (gate is None or suits(gate)):
            return fused.rms_norm(x, self.weight, 1e-6, gate)
        y = super().forward(x)
        return y if gate is None else y * F.silu(gate).view_as(y)


def rms_norm(x: Tensor) -> Tensor:
    """x divided by its root mean square over the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def l2_norm(x: Tensor) -> Tensor:
    """x divided by its Euclidean norm over the last dimension."""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
