"""Normalisations."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hfa.ops import fused
from hfa.ops.fused.norm import EPS
from hfa.ops.simd import suits


class RMSNorm(nn.RMSNorm):
    """torch's own, in one pass on the CPU, and with a gate where one is given.

    Args:
        width: features normalised together, the last dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """:func:`rms_norm` with the module's weight."""
        return rms_norm(x, self.weight, gate)


def rms_norm(x: Tensor, weight: Tensor, gate: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight``, times ``silu(gate)``.

    Args:
        x: [..., W].
        weight: [W].
        gate: of as many elements as x.
    """
    if suits(x, weight) and (gate is None or suits(gate)):
        return fused.rms_norm(x, weight, EPS, gate)
    y = F.rms_norm(x, weight.shape, weight, EPS)
    return y if gate is None else y * F.silu(gate).view_as(y)


def l2_norm(x: Tensor) -> Tensor:
    """x divided by its Euclidean norm over the last dimension."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()
