"""The short convolution that lets a token see its last few neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

    def peak(self, taps: tuple[float, ...], noise: float = 0.2) -> None:
        """Initialise around the given taps: what was drawn shrinks by `noise`, and `taps` is added."""
        with torch.no_grad():
            self.weight.mul_(noise)
            self.weight[: len(taps)] += torch.tensor(taps)[: self.width, None]

    def init_state(self, batch_size: int) -> Tensor:
        """The tail before the first token: zeros [B, width - 1, C]."""
        shape = (batch_size, self.width - 1, self.weight.shape[1])
        return torch.zeros(shape, dtype=self.weight.dtype, device=self.weight.device)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] and the tail before it, to [B, T, C] and the tail after it."""
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        length, last = x.shape[1], self.width - 1
        y = padded[:, last:] * self.weight[0]
        for j in range(1, self.width):
            y = torch.addcmul(y, padded[:, last - j : last - j + length], self.weight[j])
        return y, padded[:, length:]
