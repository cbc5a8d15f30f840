"""The search of the index over memories in pages, each row with an index of its own size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfa.ops.index.retrieve import Search
from hfa.ops.index.trie import retrieve_row

Arrays = tuple[Tensor, Tensor, Tensor]  # tables, chunks and counts of an index, each [1, ...]


def retrieve_in_pages(
    scores: Tensor,
    query: Tensor,
    keys: Tensor,
    codes: Tensor,
    table: Tensor,
    indexes: Sequence[Arrays],
    start: Tensor,
    search: Search,
) -> tuple[Tensor, Tensor]:
    """What :func:`hfa.ops.index.retrieve` returns, of rows whose tokens stand in pages.

    Args:
        scores, query: as there.
        keys: [pages, page_size, W] and codes: uint8 [pages, page_size, groups], page_size a power of two.
        table: int64 [B, N], the pages of each row.
        indexes: of each row, with room for what enters; updated in place.
        start: int64 [B], tokens of each row before the new ones.
    """
    batch, length = scores.shape[:2]
    chosen = torch.empty(batch, length, search.num_retrieved, dtype=torch.int32)
    touched = torch.empty(batch, length, dtype=torch.int32)
    shift = keys.shape[1].bit_length() - 1
    by_token = keys.flatten(0, 1).numpy(), codes.flatten(0, 1).numpy()
    rows = (x.numpy() for x in (scores.float().contiguous(), query.contiguous(), table, chosen, touched))
    for row_scores, row_query, pages, row_chosen, row_touched, index, first in zip(
        *rows, indexes, start.tolist(), strict=True
    ):
        tables, chunks, counts = (x.numpy()[0] for x in index)
        retrieve_row(
            row_scores,
            row_query,
            *by_token,
            tables,
            chunks,
            counts,
            pages,
            shift,
            first,
            search.window,
            search.block_size,
            search.num_trees,
            search.beam,
            search.leaf_size,
            search.num_ranked,
            search.regret_cap,
            row_chosen,
            row_touched,
        )
    return chosen, touched
