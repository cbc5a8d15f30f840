"""The search of the index as one torch operator."""

from __future__ import annotations

import concurrent.futures
from typing import NamedTuple

import torch
from torch import Tensor

from hfa.ops.index.trie import CHUNK, retrieve_row

__all__ = ["CHUNK", "Search", "retrieve"]


class Search(NamedTuple):
    """How far a query looks.

    A query looks at no more than ``num_trees * beam * leaf_size`` tokens outside its window, however long the
    context, and retrieves the `num_retrieved` best of them.
    """

    window: int  # tokens that are read anyway, at least; a multiple of block_size
    block_size: int  # tokens that leave the window, and enter the index, together
    num_retrieved: int
    num_trees: int
    beam: int  # leaves looked at in each trie
    leaf_size: int  # tokens looked at in each leaf, the newest; a fuller one splits while it can
    regret_cap: float = 2.25  # what the least likely code of a group costs, in spreads of the group's scores


def retrieve(
    scores: Tensor,
    query: Tensor,
    keys: Tensor,
    codes: Tensor,
    tables: Tensor,
    chunks: Tensor,
    counts: Tensor,
    start: Tensor,
    search: Search,
) -> tuple[Tensor, Tensor]:
    """Insert what has left the window into the index, and retrieve for each query from what stood in it then.

        position   0 ...            limit ...         t        limit = floor(t / block_size) * block_size - window
                   `-- the index --'`-- the window --'

    Args:
        scores: [B, T, groups, 64], of every code for the queries of positions ``start .. start + T - 1``.
        query: [B, T, W], what the tokens found are ranked by: the largest ``query . key``.
        keys: [B, N, W], new tokens included.
        codes: uint8 [B, N, groups].
        tables: int32 [B, number, 64], chunks: int32 [B, number, CHUNK], counts: int64 [B, 4]: the index of each row,
            updated in place; zeros are an empty one. `chunks` needs ``num_trees * N + 1``.
        start: int64 [B], tokens of each row before the new ones.
        search: how far to look.

    Returns:
        positions int32 [B, T, num_retrieved], -1 where there are fewer; and tokens looked at, int32 [B, T].
    """
    return torch.ops.hfa.retrieve(scores, query, keys, codes, tables, chunks, counts, start, *search)  # type: ignore[no-any-return]


@torch.library.custom_op("hfa::retrieve", mutates_args=("tables", "chunks", "counts"), device_types="cpu")
def _retrieve(
    scores: Tensor,
    query: Tensor,
    keys: Tensor,
    codes: Tensor,
    tables: Tensor,
    chunks: Tensor,
    counts: Tensor,
    start: Tensor,
    window: int,
    block_size: int,
    num_retrieved: int,
    num_trees: int,
    beam: int,
    leaf_size: int,
    regret_cap: float,
) -> tuple[Tensor, Tensor]:
    batch, length = query.shape[:2]
    chosen = torch.empty(batch, length, num_retrieved, dtype=torch.int32)
    touched = torch.empty(batch, length, dtype=torch.int32)
    scores, query = scores.float().contiguous(), query.contiguous()
    starts = start.tolist()

    def row(b: int) -> None:
        retrieve_row(
            scores[b].numpy(),
            query[b].numpy(),
            keys[b].numpy(),
            codes[b].numpy(),
            tables[b].numpy(),
            chunks[b].numpy(),
            counts[b].numpy(),
            starts[b],
            window,
            block_size,
            num_trees,
            beam,
            leaf_size,
            regret_cap,
            chosen[b].numpy(),
            touched[b].numpy(),
        )

    threads = min(batch, torch.get_num_threads())
    if threads == 1:
        for b in range(batch):
            row(b)
    else:  # the kernel holds no lock
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(row, range(batch)))
    return chosen, touched


@_retrieve.register_fake
def _(scores, query, keys, codes, tables, chunks, counts, start, window, block_size, num_retrieved, *_):  # type: ignore[no-untyped-def]
    shape = query.shape[:2]
    return query.new_empty((*shape, num_retrieved), dtype=torch.int32), query.new_empty(shape, dtype=torch.int32)
