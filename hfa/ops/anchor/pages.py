"""Reading memories that stand in pages: decoding many rows of different lengths in one kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hfa.ops.anchor.far import NEGLIGIBLE, join, join_vectors
from hfa.ops.anchor.read import _read_windows
from hfa.ops.index.trie import place
from hfa.ops.simd import REORDERED, WIDTH, load, splat, store, suits, total

Array = np.ndarray[Any, Any]


def read_pages(q: Tensor, k: Tensor, v: Tensor, table: Tensor, start: Tensor) -> Tensor:
    """Attend from one token a row to all tokens up to it.

    In float32 on the CPU, with K in whole vectors.

    Args:
        q: [B, H, 1, K], logit scale included, of positions `start` [B].
        k: [pages, page_size, G, K] and v: like it, the tokens at `start` included; page_size a power of two.
        table: int64 [B, N], the pages of each row.

    Returns:
        [B, H, 1, K].
    """
    _, heads, _, width = q.shape
    q, out = q.contiguous(), q.new_empty(q.shape)
    addresses = (x.data_ptr() for x in (q, k, v, out))
    _read_rows(*addresses, table.numpy(), start.numpy(), heads, k.shape[2], width, k.shape[1].bit_length() - 1)
    return out


def read_piece(
    q: Tensor, k: Tensor, v: Tensor, pages: Tensor, start: int, chosen: Tensor, window: int, block_size: int
) -> Tensor:
    """What :func:`hfa.ops.anchor.anchor_read` computes of many tokens of one row, on the CPU.

    Args:
        q: [1, H, T, K], of positions ``start .. start + T - 1``.
        k, v: [pages, page_size, G, K].
        pages: int64 [N], of the row.
        chosen: int32 [1, T, R].
    """
    size, length = k.shape[1], q.shape[2]
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    base = max(0, start // block_size * block_size - window)
    near = torch.arange(base, start + length)
    near = pages[near // size] * size + near % size
    q = q.contiguous()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    _read_windows(q[0], keys[near], values[near], start - base, window, block_size, out[0], lse[0])
    far = chosen[0].long()
    far = torch.where(far < 0, -1, pages[far.clamp(min=0) // size] * size + far % size)
    if suits(q, keys, values):
        addresses = (x.data_ptr() for x in (q, keys, values, out))
        join_vectors(*addresses, far.numpy(), lse[0].numpy(), keys.shape[1], q.shape[3])
    else:
        join(*(x.numpy() for x in (q[0], keys, values, far, out[0], lse[0])))
    return out


@njit(cache=True, nogil=True, fastmath=REORDERED, error_model="numpy")
def _read_rows(
    q: int, k: int, v: int, out: int, table: Array, last: Array, heads: int, groups: int, width: int, shift: int
) -> None:
    together, row, room = heads // groups, groups * width, np.max(last) + 1
    places, weights = np.empty(room, np.int64), np.empty((together, room), np.float32)
    kept, top = np.empty(together, np.float32), np.empty(together, np.float32)
    for b in range(len(table)):
        count = last[b] + 1
        for position in range(count):
            places[position] = place(table[b], shift, position) * row
        for group in range(groups):
            query = (b * heads + group * together) * width
            top[:] = -np.inf
            for i in range(count):
                key = places[i] + group * width
                for h in range(together):
                    product = load(q, query + h * width) * load(k, key)
                    for x in range(WIDTH, width, WIDTH):
                        product = product + load(q, query + h * width + x) * load(k, key + x)
                    logit = total(product)
                    weights[h, i] = logit
                    top[h] = max(top[h], logit)
            for h in range(together):
                whole = np.float32(0)
                for i in range(count):
                    gap = weights[h, i] - top[h]
                    weights[h, i] = np.float32(0) if gap <= NEGLIGIBLE else np.float32(math.exp(gap))  # NaN stays
                    whole += weights[h, i]
                kept[h] = np.float32(1) / whole
            for x in range(0, width, WIDTH):
                for h in range(together):
                    read = splat(np.float32(0))
                    for i in range(count):
                        read = read + splat(weights[h, i]) * load(v, places[i] + group * width + x)
                    store(out, query + h * width + x, read * splat(kept[h]))
