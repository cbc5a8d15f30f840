"""The short convolution that lets a token see its last few neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfa.nn.norm import l2_norm
from hfa.ops.fused import causal_conv
from hfa.ops.simd import WIDTH, suits


class ShortConv(nn.Module):
    """Causal depthwise convolution over time: ``y_t = sum_j weight_j * x_{t-j}``.

    Args:
        channels: C.
        width: taps; ``weight[0]`` multiplies the present token.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(width, channels).uniform_(-0.5, 0.5))

    def peak(self, taps: tuple[float, ...]) -> None:
        """Initialise around the given taps: what was drawn shrinks to a fifth, and `taps` is added."""
        with torch.no_grad():
            self.weight.mul_(0.2)
            self.weight[: len(taps)] += torch.tensor(taps)[: self.width, None]

    def init_state(self, batch_size: int) -> Tensor:
        """The tail before the first token: zeros [B, width - 1, C]."""
        shape = (batch_size, self.width - 1, self.weight.shape[1])
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)

    def forward(
        self, x: Tensor, tail: Tensor, *, silu: bool = False, unit_heads: int = 0, head_dim: int = WIDTH
    ) -> tuple[Tensor, Tensor]:
        """[B, T, C] and the tail before it, to [B, T, C] and the tail after it.

        Args:
            silu: whether SiLU follows the sum.
            unit_heads: how many heads, from the first channel on, are then brought to unit norm.
            head_dim: channels of a head.
        """
        kept, tail = tail.dtype, tail.to(x.dtype)  # autocast has others from one call to the next
        after = torch.cat([tail, x[:, 1 - self.width :]], dim=1)[:, 1 - self.width :] if self.width > 1 else tail
        if suits(x, tail, self.weight) and head_dim % WIDTH == 0:
            y = causal_conv(x, tail, self.weight, silu=silu, unit_heads=unit_heads, head_dim=head_dim)
            return y, after.to(kept)
        padded = torch.cat([tail, x], dim=1)
        length, last = x.shape[1], self.width - 1
        y = padded[:, last:] * self.weight[0]
        for j in range(1, self.width):
            y = torch.addcmul(y, padded[:, last - j : last - j + length], self.weight[j])
        y = F.silu(y) if silu else y
        if unit_heads:
            unit, rest = y.split([unit_heads * head_dim, y.shape[-1] - unit_heads * head_dim], dim=-1)
            y = torch.cat([l2_norm(unit.unflatten(-1, (-1, head_dim))).flatten(-2), rest], dim=-1)
        return y, after.to(kept)
