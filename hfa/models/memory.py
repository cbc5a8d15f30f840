"""The exact memory: keys and values of every token, append-only."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_ROOM = 256  # tokens to spare, at least, when a buffer grows


class Memory(NamedTuple):
    """Keys and values of the tokens so far, in buffers with room to spare.

    A memory is a value: appending returns a new one, and the old one still reads what it read. They share a
    buffer as long as only one of them has grown: `written` says how far the shared buffer is taken, and whoever
    appends from anywhere else (a fork) copies first.
    """

    keys: Tensor  # [B, capacity, G, K]
    values: Tensor  # [B, capacity, G, V]
    length: Tensor  # int64 [B], tokens of this memory
    written: Tensor  # int64 [B], tokens in the shared buffer

    @classmethod
    def empty(cls, batch_size: int, num_heads: int, head_dim: int, like: Tensor) -> Memory:
        """A memory of no tokens, with the dtype and device of `like`."""
        buffer = torch.zeros(batch_size, 0, num_heads, head_dim, dtype=like.dtype, device=like.device)
        zero = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        return cls(buffer, buffer, zero, zero.clone())

    def append(self, keys: Tensor, values: Tensor) -> Memory:
        """The memory with T more tokens a row: keys [B, T, G, K] and values [B, T, G, V]."""
        end = self.length + keys.shape[1]
        if not self.capacity:
            return Memory(keys, values, end, end.clone())
        needed = int(end.max())
        differentiable = torch.is_grad_enabled() and (keys.requires_grad or self.keys.requires_grad)
        if differentiable or self.capacity < needed or not torch.equal(self.written, self.length):
            room = max(needed, self.capacity) if differentiable else needed + max(needed // 8, _ROOM)
            return self._copied(room, keys, values, end)
        self._place(self.keys, keys)
        self._place(self.values, values)
        self.written.copy_(end)
        return self._replace(length=end)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys [B, G, N, K] and values [B, G, N, V] up to the longest row."""
        longest = int(self.length.max())
        return self.keys[:, :longest].transpose(1, 2), self.values[:, :longest].transpose(1, 2)

    def cut(self, length: Tensor) -> Memory:
        """The memory as it was after the first `length` [B] tokens."""
        return self._replace(length=length)

    @property
    def capacity(self) -> int:
        return self.keys.shape[1]

    def _copied(self, room: int, keys: Tensor, values: Tensor, end: Tensor) -> Memory:
        grown = []
        for old, new in ((self.keys, keys), (self.values, values)):
            buffer = F.pad(old[:, :room], (0, 0, 0, 0, 0, max(0, room - self.capacity)))
            buffer = buffer.clone() if buffer.data_ptr() == old.data_ptr() else buffer
            self._place(buffer, new)
            grown.append(buffer)
        return Memory(grown[0], grown[1], end, end.clone())

    def _place(self, buffer: Tensor, new: Tensor) -> None:
        first = int(self.length[0])
        if bool((self.length == first).all()):
            buffer[:, first : first + new.shape[1]] = new
            return
        rows = torch.arange(new.shape[0], device=new.device)[:, None]
        buffer[rows, self.length[:, None] + torch.arange(new.shape[1], device=new.device)] = new.to(buffer.dtype)
