"""A few tokens of an anchor layer in one kernel: between the matrices there is too little work to pay for a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from torch import Tensor

from hfa.ops.anchor.far import EMPTY, join_vectors
from hfa.ops.fused.conv import convolve_rows
from hfa.ops.fused.linear import decodes, product, products, projections
from hfa.ops.index.retrieve import Search
from hfa.ops.index.trie import CHUNK, WHOLE, place, retrieve_row
from hfa.ops.simd import WIDTH, first, load, one, splat, store

Array = np.ndarray[Any, Any]

(
    _KEYS, _VALUES, _CODES, _TABLES, _CHUNKS, _COUNTS, _PAGES, _START, _SHIFT, _ROOM, _NUM_TABLES, _NUM_CHUNKS,
    _NUM_PAGES,
) = range(13)  # fmt: skip
_WHOLE = torch.zeros(1, dtype=torch.long, device="cpu")  # whatever device may be the default when this is imported


class AnchorWeights(NamedTuple):
    """Of an anchor layer, all contiguous. W: the width of its memory."""

    query: Tensor  # [D, D]
    key: Tensor  # [W, D]
    value: Tensor  # [W, D]
    out: Tensor  # [D, D]
    query_conv: Tensor  # [J, D]
    key_conv: Tensor  # [J, W]
    token_book: Tensor  # [W, a quarter of the codes' values]
    before_book: Tensor  # [W, as many]
    memory_book: Tensor  # [W, half of them]
    log_scale: Tensor  # [H]


class Row(NamedTuple):
    """The memory and the index of one row, all contiguous, updated in place. N: tokens that there is room for.

    The memory stands in the order of positions, or in pages that other rows may have theirs among.
    """

    keys: Tensor  # [N, W]
    values: Tensor  # [N, W]
    codes: Tensor  # uint8 [N, groups]
    tables: Tensor  # int32 [.., 64]; of no tables while all is in the window
    chunks: Tensor  # int32 [.., CHUNK]
    counts: Tensor  # int64 [4]
    start: int  # position of the first new token
    pages: Tensor = _WHOLE  # int64 [..], numbers of the pages in their order, of those of the new tokens at least
    shift: int = WHOLE[1]  # a page has 2 to that many tokens


def anchor_step(
    x: Tensor,
    tails: Sequence[Tensor],
    rows: Sequence[Row],
    lengths: Sequence[int],
    weights: AnchorWeights,
    search: Search,
    logn_length: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What :class:`hfa.models.anchor.Anchor` computes for a few tokens a row, without gradients, float32 on the CPU.

    Rows need not stand in one buffer, so that streams of any length are decoded together.

    Args:
        x: [N, D], the tokens of all rows, row after row.
        tails: before the convolutions of query and key, each [B, its taps - 1, channels].
        rows: B of them.
        lengths: new tokens of each row, at least 1; N together.
        search: how far to look.
        logn_length: tokens of context from which the logit scale grows as their logarithm.

    Returns:
        y [N, D], and the tails after the tokens.
    """
    x, count = x.contiguous(), len(x)
    heads, width = len(weights.log_scale), x.shape[-1]
    memory_width, matrices = len(weights.key), weights[:3]
    few = decodes(x, *matrices, weights.out)
    projected = projections(x, matrices, few)
    tails = tuple(tail.contiguous() for tail in tails)
    after = tuple(torch.empty_like(tail) for tail in tails)
    read = x.new_empty(count, width)
    y = torch.empty_like(x)
    groups, values = rows[0].codes.shape[-1], weights.token_book.shape[1]
    table = np.repeat(np.array([_addresses(row) for row in rows], np.int64), lengths, axis=0)  # a line for each token
    table[:, _START] += np.concatenate([np.arange(length) for length in lengths])
    scratch = x.new_empty(count * (width + memory_width) + 2 * memory_width + 8 * values)
    tensors = (x, *weights, *projected, *tails, *after, read, y, scratch)
    _step(
        tuple(tensor.data_ptr() for tensor in tensors), table, np.array(lengths, np.int64), few,
        heads, width, memory_width, len(weights.query_conv), groups, 4 * values // groups, 1 / math.log(logn_length),
        *search,
    )  # fmt: skip
    if not few:
        y = product(read, weights.out)
    return y, after


def _addresses(row: Row) -> tuple[int, ...]:
    pointers = (part.data_ptr() for part in (*row[:6], row.pages))
    return (*pointers, row.start, row.shift, len(row.keys), len(row.tables), len(row.chunks), len(row.pages))


@intrinsic
def _at(typing_context: Any, address: Any) -> Any:
    """An address as a pointer, for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.intp), generate


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    tensors: tuple[int, ...], rows: Array, lengths: Array, project: bool,
    heads: int, width: int, memory_width: int, taps: int, groups: int, codes: int, growth: float, window: int,
    block: int, num_retrieved: int, num_trees: int, beam: int, leaf_size: int, num_ranked: int, cap: float,
) -> None:  # fmt: skip
    (
        x, query_w, key_w, value_w, out_w, query_conv, key_conv, token_book, before_book, memory_book, log_scale,
        query_x, key_x, value, query_tail, key_tail, query_after, key_after, read, y, scratch,
    ) = tensors  # fmt: skip
    count, head_dim = len(rows), width // heads
    kv_heads = memory_width // head_dim
    if project:
        products(x, query_w, query_x, count, width, width)
        products(x, key_w, key_x, count, memory_width, width)
        products(x, value_w, value, count, memory_width, width)
    query = scratch  # after the convolution, as the others
    key = query + 4 * count * width
    ranking = key + 4 * count * memory_width
    asking = ranking + 4 * memory_width
    convolve_rows(query_x, query_tail, query_conv, query, query_after, lengths, width, taps, False, heads, head_dim)
    convolve_rows(key_x, key_tail, key_conv, key, key_after, lengths, memory_width, taps, False, kv_heads, head_dim)
    half = groups // 2 * codes
    scores = asking + 4 * memory_width
    asked = carray(_at(scores), (1, groups, codes), np.float32)
    described = carray(_at(scores + 8 * half), (groups, codes), np.float32)
    chosen, places = np.empty((1, num_retrieved), np.int32), np.empty((1, num_retrieved + window + block), np.int64)
    touched, norms = np.empty(1, np.int32), np.empty((heads, 1), np.float32)
    row, at = 0, -1  # of the token
    for n in range(count):
        at += 1
        if at == lengths[row]:
            row, at = row + 1, 0
        start, room = rows[n, _START], rows[n, _ROOM]
        q, k, v = query + 4 * n * width, key + 4 * n * memory_width, value + 4 * n * memory_width
        keys, values = rows[n, _KEYS], rows[n, _VALUES]
        stored = carray(_at(rows[n, _CODES]), (room, groups), np.uint8)
        pages, bits = carray(_at(rows[n, _PAGES]), (rows[n, _NUM_PAGES],), np.int64), rows[n, _SHIFT]
        here = place(pages, bits, start)
        for c in range(0, memory_width, WIDTH):
            store(keys, here * memory_width + c, load(k, c))
            store(values, here * memory_width + c, load(v, c))
        grown = max(1.0, math.log(start + 1) * growth)
        for h in range(heads):
            scale = splat(math.exp(first(one(log_scale, h))) * grown)
            for c in range(0, head_dim, WIDTH):
                store(q, h * head_dim + c, load(q, h * head_dim + c) * scale)
        for back, book in ((0, token_book), (1, before_book)):
            last = _earlier(query_x, query_tail, n, row, at, min(back, max(0, taps - 2)), width, taps)
            before = _earlier(key_x, key_tail, n, row, at, min(back + 1, taps - 1), memory_width, taps)
            _together(last, asking, heads, kv_heads, head_dim)
            asked_by, described_by = scores + 2 * back * half, scores + (8 + 2 * back) * half
            _score(asking, before, book, asked_by, described_by, memory_width, half // 2)
        _together(q, ranking, heads, kv_heads, head_dim)
        _score(ranking, k, memory_book, scores + 4 * half, scores + 12 * half, memory_width, half)
        for group in range(groups):
            stored[here, group] = np.argmax(described[group])
        found, near = 0, max(0, start // block * block - window)
        if near and num_retrieved and rows[n, _NUM_TABLES]:
            tables = carray(_at(rows[n, _TABLES]), (rows[n, _NUM_TABLES], codes), np.int32)
            chunks = carray(_at(rows[n, _CHUNKS]), (rows[n, _NUM_CHUNKS], CHUNK), np.int32)
            counts = carray(_at(rows[n, _COUNTS]), (4,), np.int64)
            retrieve_row(
                asked, carray(_at(ranking), (1, memory_width), np.float32),
                carray(_at(keys), (room, memory_width), np.float32), stored, tables, chunks, counts, pages,
                bits, start, window, block, num_trees, beam, leaf_size, num_ranked, cap, chosen, touched,
            )  # fmt: skip
            while found < num_retrieved and chosen[0, found] >= 0:
                places[0, found] = place(pages, bits, chosen[0, found])
                found += 1
        for position in range(near, start + 1):
            places[0, found] = place(pages, bits, position)
            found += 1
        y_n = read + 4 * n * width
        for c in range(0, width, WIDTH):
            store(y_n, c, splat(0.0))
        norms[:] = np.float32(EMPTY)
        join_vectors(q, keys, values, y_n, places[:, :found], norms, kv_heads, head_dim)
    if project:
        products(read, out_w, y, count, width, width)


@njit(nogil=True, inline="always")
def _earlier(x: int, tail: int, n: int, row: int, at: int, back: int, width: int, taps: int) -> int:
    """The projection of the token that many before the n-th, which is the `at`-th of its row."""
    if back <= at:
        return x + 4 * (n - back) * width
    return tail + 4 * ((row + 1) * (taps - 1) + at - back) * width


@njit(nogil=True, error_model="numpy")
def _together(x: int, y: int, heads: int, kv_heads: int, head_dim: int) -> None:
    """Add up what the heads of each key-value head ask for."""
    for c in range(0, kv_heads * head_dim, WIDTH):
        store(y, c, splat(0.0))
    for h in range(heads):
        group = h // (heads // kv_heads) * head_dim
        for c in range(0, head_dim, WIDTH):
            store(y, group + c, load(y, group + c) + load(x, h * head_dim + c))


@njit(nogil=True, error_model="numpy")
def _score(one_x: int, other_x: int, book: int, one_y: int, other_y: int, width: int, columns: int) -> None:
    """``y = x @ book`` for two vectors [width]; book [width, columns], columns in pairs of whole vectors."""
    for c in range(0, columns, 2 * WIDTH):
        s0, s1, t0, t1 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for i in range(width):
            b0, b1 = load(book, i * columns + c), load(book, i * columns + c + WIDTH)
            x, z = one(one_x, i), one(other_x, i)
            s0, s1, t0, t1 = s0 + x * b0, s1 + x * b1, t0 + z * b0, t1 + z * b1
        store(one_y, c, s0)
        store(one_y, c + WIDTH, s1)
        store(other_y, c, t0)
        store(other_y, c + WIDTH, t1)
