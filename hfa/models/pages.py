"""The exact memory in pages, as the engine keeps it: rows of different lengths, and prefixes that rows share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hfa.ops.simd import suits


class PagedMemory(NamedTuple):
    """What :class:`hfa.models.memory.Memory` is, with the tokens of all rows in pages of one pool.

    Stands in the place of a memory in the state that a model is handed. The pages for what is appended are there
    already, and are written in place: whoever made the tables sees to it that no other row refers to those.
    """

    pools: tuple[Tensor, ...]  # each [pages, page_size, ...]
    table: Tensor  # int64 [B, N], the pages of each row; beyond its length anything
    length: Tensor  # int64 [B], tokens of this memory

    def append(self, *new: Tensor) -> PagedMemory:
        """The memory with T more tokens a row: [B, T, ...] for each pool."""
        where = self._places(self.length[:, None] + torch.arange(new[0].shape[1], device=self.table.device)).flatten()
        for pool, part in zip(self.pools, new, strict=True):
            pool.flatten(0, 1).index_copy_(0, where, part.flatten(0, 1).to(pool.dtype))
        return self._replace(length=self.length + new[0].shape[1])

    def reserved(self, count: int) -> PagedMemory:
        """Itself: there are pages already."""
        return self

    def read(self) -> tuple[Tensor, ...]:
        """Copies of the tokens up to the longest row, each [B, N, ...]; zeros beyond a row's own length."""
        position = torch.arange(int(self.length.max()), device=self.table.device).expand(len(self.table), -1)
        beyond = position >= self.length[:, None]
        where = self._places(torch.where(beyond, 0, position))
        return tuple(
            pool.flatten(0, 1)[where].masked_fill_(beyond.view(*beyond.shape, *(1,) * (pool.dim() - 2)), 0)
            for pool in self.pools
        )

    @property
    def capacity(self) -> int:
        """Tokens of the longest row."""
        return int(self.length.max())

    @property
    def has_kernels(self) -> bool:
        """Whether keys and values can be read where they stand."""
        return suits(*self.pools[:2])

    def _places(self, position: Tensor) -> Tensor:
        size = self.pools[0].shape[1]
        return self.table.gather(1, position // size) * size + position % size
