"""The exact memory: what every token left behind, append-only."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_ROOM = 256  # tokens to spare, at least, when a buffer grows


class Memory(NamedTuple):
    """Pages of the tokens so far (keys and values, say), in buffers with room to spare.

    A memory is a value: appending returns a new one, and the old one still reads what it read. They share a
    buffer as long as only one of them has grown: `written` says how far the shared buffer is taken, and whoever
    appends from anywhere else (a fork) copies first.
    """

    pages: tuple[Tensor, ...]  # each [B, capacity, ...]
    length: Tensor  # int64 [B], tokens of this memory
    written: Tensor  # int64 [B], tokens in the shared buffers

    @classmethod
    def empty(cls, batch_size: int, *like: Tensor) -> Memory:
        """A memory of no tokens; each page has for every token what `like` has: its shape, dtype and device."""
        pages = tuple(x.new_zeros(batch_size, 0, *x.shape) for x in like)
        zero = torch.zeros(batch_size, dtype=torch.long, device=like[0].device)
        return cls(pages, zero, zero.clone())

    def append(self, *new: Tensor) -> Memory:
        """The memory with T more tokens a row: [B, T, ...] for each page."""
        end = self.length + new[0].shape[1]
        if not self.capacity:
            return Memory(new, end, end.clone())
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (*new, *self.pages))
        if differentiable:
            pages = self._copied(max(int(end.max()), self.capacity))
            after = Memory(pages, end, end.clone())
        else:
            after = self.extended(new[0].shape[1])
        for page, part in zip(after.pages, new, strict=True):
            self._place(page, part)
        return after

    def extended(self, count: int) -> Memory:
        """The memory with `count` more tokens a row, which whoever asks for them writes; without gradients."""
        memory, end = self.reserved(count), self.length + count
        memory.written.copy_(end)
        return memory._replace(length=end)

    def reserved(self, count: int) -> Memory:
        """The same tokens, in buffers with room for `count` more a row, so that none is copied; without gradients."""
        needed = int(self.length.max()) + count
        kept = any(x.requires_grad for x in self.pages)  # a graph needs these buffers as they are
        kept = kept or (self.written.is_inference() and not torch.is_inference_mode_enabled())
        if kept or self.capacity < needed or not torch.equal(self.written, self.length):
            return Memory(self._copied(needed + max(needed // 8, _ROOM)), self.length, self.length.clone())
        return self

    def read(self) -> tuple[Tensor, ...]:
        """The pages up to the longest row, each [B, N, ...]."""
        longest = int(self.length.max())
        return tuple(page[:, :longest] for page in self.pages)

    def cut(self, length: Tensor) -> Memory:
        """The memory as it was after the first `length` [B] tokens."""
        return self._replace(length=length)

    def shares(self, other: Memory) -> bool:
        """Whether both stand in the same buffers."""
        return self.written.data_ptr() == other.written.data_ptr()

    @property
    def capacity(self) -> int:
        return self.pages[0].shape[1]

    def _copied(self, room: int) -> tuple[Tensor, ...]:
        """Buffers of their own, with room for that many tokens."""
        grown = []
        for old in self.pages:
            spare = (0, 0) * (old.dim() - 2)
            buffer = F.pad(old[:, :room], (*spare, 0, max(0, room - self.capacity)))
            grown.append(buffer.clone() if buffer.data_ptr() == old.data_ptr() else buffer)
        return tuple(grown)

    def _place(self, buffer: Tensor, new: Tensor) -> None:
        first = int(self.length[0])
        if bool((self.length == first).all()):
            buffer[:, first : first + new.shape[1]] = new
            return
        rows = torch.arange(new.shape[0], device=new.device)[:, None]
        buffer[rows, self.length[:, None] + torch.arange(new.shape[1], device=new.device)] = new.to(buffer.dtype)
