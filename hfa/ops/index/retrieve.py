"""The search of the index as one torch operator."""

from __future__ import annotations

import concurrent.futures
from typing import NamedTuple

import torch
from torch import Tensor

from hfa.ops.index.trie import CHUNK, SPARE_TABLES, TOKENS_PER_TABLE, WHOLE, retrieve_row

__all__ = ["CHUNK", "Search", "retrieve", "room"]


class Search(NamedTuple):
    """How far a query looks.

    A query looks at no more than ``num_trees * beam * leaf_size`` tokens outside its window, however long the
    context. The `num_ranked` nearest by code are ranked by their keys, and the best of them retrieved.
    """

    window: int  # tokens that are read anyway, at least; a multiple of block_size
    block_size: int  # tokens that leave the window, and enter the index, together
    num_retrieved: int
    num_trees: int
    beam: int  # leaves looked at in each trie
    leaf_size: int  # tokens looked at in each leaf; a fuller one splits while it can, else each trie looks at others
    num_ranked: int  # tokens ranked by their keys, those nearest by code
    regret_cap: float = 2.25  # what the least likely code of a group costs, in spreads of the group's scores


def room(num_tokens: int, num_trees: int) -> tuple[int, int]:
    """The tables and chunks that `num_tokens` may take, whatever their codes."""
    return num_trees + SPARE_TABLES + num_tokens // TOKENS_PER_TABLE, num_trees * num_tokens + 1


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
        query: [B, T, W], what those nearest by code are ranked by: the largest ``query . key``.
        keys: [B, N, W] and codes: uint8 [B, N, groups], new tokens included.
        tables: int32 [B, number, 64], chunks: int32 [B, number, CHUNK], counts: int64 [B, 4]: the index of each row,
            updated in place; zeros are an empty one. :func:`room` says how many tables and chunks it takes.
        start: int64 [B], tokens of each row before the new ones.
        search: how far to look.

    Returns:
        positions int32 [B, T, num_retrieved], -1 where there are fewer; and tokens looked at, int32 [B, T].
    """
    search_all = torch.ops.hfa.retrieve if torch.compiler.is_compiling() else _search
    found: tuple[Tensor, Tensor] = search_all(scores, query, keys, codes, tables, chunks, counts, start, *search)
    return found


def _search(
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
    num_ranked: int,
    regret_cap: float,
) -> tuple[Tensor, Tensor]:
    batch, length = scores.shape[:2]
    chosen = torch.empty(batch, length, num_retrieved, dtype=torch.int32)
    touched = torch.empty(batch, length, dtype=torch.int32)
    scores, query = scores.detach().float().contiguous(), query.detach().contiguous()
    keys = keys.detach()  # here: the threads of the pool have a grad mode of their own
    if query.dtype not in (torch.float32, torch.float64):
        query, keys = query.float(), keys.float()
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
            *WHOLE,
            starts[b],
            window,
            block_size,
            num_trees,
            beam,
            leaf_size,
            num_ranked,
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


_retrieve = torch.library.custom_op(
    "hfa::retrieve", _search, mutates_args=("tables", "chunks", "counts"), device_types="cpu"
)


@_retrieve.register_fake
def _(scores, query, keys, codes, tables, chunks, counts, start, window, block_size, num_retrieved, *_):  # type: ignore[no-untyped-def]
    shape = scores.shape[:2]
    return scores.new_empty((*shape, num_retrieved), dtype=torch.int32), scores.new_empty(shape, dtype=torch.int32)
