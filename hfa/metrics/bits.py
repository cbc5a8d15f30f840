"""How well text is predicted, in bits per byte: comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hfa.types import IGNORE


class BitsPerByte:
    """The labels' information over the bytes they stand for: ``sum(nats) / ln 2 / sum(bytes)``."""

    def __init__(self) -> None:
        self.nats, self.bytes, self.tokens = 0.0, 0, 0

    def update(self, nats: torch.Tensor, labels: torch.Tensor, byte_lengths: np.ndarray) -> None:
        """Add a batch.

        Args:
            nats: cross-entropy of each label, float [B, T]; what stands at ignored labels is not read.
            labels: int64 [B, T].
            byte_lengths: bytes of each id, int64 [vocab_size], from `Tokenizer.byte_lengths`.
        """
        scored = (labels != IGNORE).cpu().numpy()
        self.nats += float(nats.detach().double().cpu().numpy()[scored].sum())
        self.bytes += int(byte_lengths[labels.cpu().numpy()[scored]].sum())
        self.tokens += int(scored.sum())

    @property
    def value(self) -> float:
        """Bits per byte; NaN before the first byte."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def merge(self, other: BitsPerByte) -> None:
        """Add what another process counted."""
        self.nats += other.nats
        self.bytes += other.bytes
        self.tokens += other.tokens

    def to_json(self) -> dict[str, Any]:
        return {"nats": self.nats, "bytes": self.bytes, "tokens": self.tokens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitsPerByte:
        """Read back what :meth:`to_json` gave."""
        bits = cls()
        nats = data["nats"]  # null in a file that has no NaN
        bits.nats = math.nan if nats is None else float(nats)
        bits.bytes, bits.tokens = int(data["bytes"]), int(data["tokens"])
        return bits


class LossByPosition:
    """Bits per byte in each of several ranges of positions: does more context help?

    Args:
        edges: bin i holds positions from ``edges[i]`` to ``edges[i + 1]``, without the end; ascending, from 0.
    """

    def __init__(self, edges: Sequence[int]) -> None:
        self.edges = tuple(int(edge) for edge in edges)
        self.bins = [BitsPerByte() for _ in self.edges[1:]]

    @classmethod
    def doubling(cls, seq_len: int, first: int) -> LossByPosition:
        """Bins that end at `first`, twice that, and so on up to `seq_len`."""
        doubled = [first << i for i in range(seq_len.bit_length()) if first << i < seq_len]
        return cls([0, *doubled, seq_len])

    def update(self, nats: torch.Tensor, labels: torch.Tensor, byte_lengths: np.ndarray) -> None:
        """Add a batch whose first position is position 0; arguments as in :meth:`BitsPerByte.update`."""
        for start, stop, bits in zip(self.edges, self.edges[1:], self.bins, strict=False):
            bits.update(nats[:, start:stop], labels[:, start:stop], byte_lengths)

    def merge(self, other: LossByPosition) -> None:
        """Add what another process counted in the same bins."""
        if self.edges != other.edges:
            raise ValueError(f"bins {self.edges} and {other.edges} do not merge")
        for mine, theirs in zip(self.bins, other.bins, strict=True):
            mine.merge(theirs)

    def points(self) -> list[tuple[float, float]]:
        """The middle of each bin that something was counted in, in tokens from 1, and its bits per byte."""
        bins = zip(self.edges, self.edges[1:], self.bins, strict=False)
        return [((start + stop - 1) / 2 + 1, bits.value) for start, stop, bits in bins if bits.bytes]

    def to_json(self) -> dict[str, Any]:
        return {"edges": list(self.edges), "bins": [bits.to_json() for bits in self.bins]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LossByPosition:
        """Read back what :meth:`to_json` gave."""
        loss = cls(data["edges"])
        loss.bins = [BitsPerByte.from_json(bits) for bits in data["bins"]]
        return loss
