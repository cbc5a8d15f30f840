"""How channels are used: how often, for how long, and how evenly."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Usage:
    """What the tokens of a layer did with its channels, summed over all that were seen.

    Args:
        heads: H.
        channels: C, of a head.
    """

    def __init__(self, heads: int, channels: int) -> None:
        self.heads, self.channels = heads, channels
        self.sums = torch.zeros(heads * (3 * channels + 4) + 1, dtype=torch.float64)  # as processes add them up

    def update(self, reading: Tensor, writing: Tensor, log_decay: Tensor) -> None:
        """Add tokens, as `hfa.ops.routing.routes` has them: [B, T, H, C] each."""
        kinds = reading, writing
        used = [(x != 0).flatten(0, 1).sum(0) for x in kinds]  # [H, C]
        forgotten = -log_decay.flatten(0, 1).sum(0)
        active = [x.sum(-1) for x in used]
        entropies = [entropy(x).flatten(0, 1).sum(0) for x in kinds]
        tokens = torch.tensor([reading.shape[0] * reading.shape[1]])
        parts = (*used, forgotten, *active, *entropies, tokens.to(reading.device))
        self.sums += torch.cat([x.flatten().double() for x in parts]).cpu()

    @property
    def tokens(self) -> int:
        """How many were seen."""
        return int(self.sums[-1])

    @property
    def reads(self) -> Tensor:
        """The share of tokens that read a channel, [H, C]."""
        return self._mean(0)

    @property
    def writes(self) -> Tensor:
        """The share of tokens that write to a channel, [H, C]."""
        return self._mean(1)

    @property
    def effective_length(self) -> Tensor:
        """Tokens until decay alone has left 1/e of what a channel holds, [H, C]; infinite where nothing decays."""
        return 1 / self._mean(2)

    @property
    def active(self) -> Tensor:
        """Channels that a token reads and writes to on average, [2, H]."""
        return self._by_head(0)

    @property
    def entropy(self) -> Tensor:
        """Of the routing of reads and of writes in bits, the mean over tokens, [2, H]."""
        return self._by_head(2)

    @property
    def dead(self) -> int:
        """Channels that no token wrote to, or none read."""
        return int(((self.reads == 0) | (self.writes == 0)).sum())

    def _mean(self, place: int) -> Tensor:
        size = self.heads * self.channels
        return self.sums[place * size : (place + 1) * size].view(self.heads, self.channels) / self.sums[-1]

    def _by_head(self, place: int) -> Tensor:
        start = self.heads * (3 * self.channels + place)
        return self.sums[start : start + 2 * self.heads].view(2, self.heads) / self.sums[-1]


def entropy(weights: Tensor) -> Tensor:
    """Bits of the squared weights, which sum to 1 (or 0): [..., C] to [...]."""
    bits: Tensor = torch.special.entr(weights.square()).sum(-1) / math.log(2)
    return bits
