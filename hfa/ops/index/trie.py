"""Numba kernels of the index: tries over the codes of all tokens, in flat arrays.

A trie is a tree of *tables*, one entry per value of a code: 0 for nothing, a table one level down (its number, and
in the bits from `GROUP` on which code it goes by), or minus the number of a *leaf*. A leaf is a chain of chunks,
newest first, each ``[next, tokens in the chain so far, up to 6 positions]``. A leaf of `leaf_size` tokens splits by
the next code that tells them apart, so that thousands of tokens that share some codes cost no tables that part nothing;
but of the first `TOGETHER` groups, which describe the last token, none is skipped: a leaf of one token again and again
would be split by its contexts, and another token that shares a code with it could only be found by its context, too.
One whose codes are all the same goes on growing, and so does one that would take more than its share of tables, until
there are more: nothing is evicted.

Positions are those of the stream. Where a token's codes and keys stand is looked up in `pages`: position p is row
``pages[p >> shift] << shift | p % (1 << shift)`` of the arrays, which `WHOLE` makes p itself.

`counts` is ``[tokens inserted, tables in use, chunks in use, first free chunk]``; the first `num_trees` tables are the
roots, and zeros everywhere are an empty index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from hfa.ops.simd import prefetch

CHUNK = 8  # numbers in a chunk of a leaf
SPARE_TABLES, TOKENS_PER_TABLE = 64, 8  # tables that the first tokens may take, and how many each later one adds
_HELD = CHUNK - 2  # positions among them
TOGETHER = 4  # groups that describe one thing: the last token
GROUP = 26  # bits of a table's number
NUMBER = (1 << GROUP) - 1
_INSERTED, _TABLES, _CHUNKS, _FREE = range(4)
_FAR = np.float32(1e30)
_AHEAD = 8  # keys on their way from memory while one is looked at

Array = np.ndarray[Any, Any]
WHOLE = np.zeros(1, np.int64), 40  # pages and shift of arrays in the order of positions


@njit(nogil=True, inline="always")
def place(pages: Array, shift: int, position: int) -> Any:
    """Where a token's entries stand."""
    return (pages[position >> shift] << shift) + (position & ((1 << shift) - 1))


@njit(nogil=True, cache=True)
def insert(
    codes: Array, tables: Array, chunks: Array, counts: Array,
    pages: Array, shift: int, stop: int, num_trees: int, leaf_size: int,
) -> None:  # fmt: skip
    """Insert the tokens up to position `stop`: codes uint8 [N, groups].

    What comes of it depends on the tokens alone, not on the steps in which they come.
    """
    groups = codes.shape[1]
    for token in range(counts[_INSERTED], stop):
        here = place(pages, shift, token)
        for tree in range(num_trees):
            turn = tree * groups // num_trees  # every trie takes the groups in an order of its own
            table, group = tree, turn
            while True:
                code = codes[here, group]
                entry = tables[table, code]
                if entry > 0:
                    table, group = entry & NUMBER, entry >> GROUP
                    continue
                by = -1
                full = entry < 0 and chunks[-entry, 1] >= leaf_size
                if full and counts[_TABLES] < SPARE_TABLES + token // TOKENS_PER_TABLE:
                    by = _tells_apart(codes, chunks, pages, shift, -entry, here, (group + 1) % groups, leaf_size)
                if by < 0:
                    tables[table, code] = -_append(chunks, counts, -entry, token)
                    break
                moved = _take_apart(chunks, counts, -entry)
                lower = num_trees + counts[_TABLES]
                counts[_TABLES] += 1
                tables[lower] = 0
                tables[table, code] = lower | by << GROUP
                for held in moved[::-1]:  # oldest first, as they came
                    below = codes[place(pages, shift, held), by]
                    tables[lower, below] = -_append(chunks, counts, -tables[lower, below], held)
                table, group = lower, by
    counts[_INSERTED] = max(counts[_INSERTED], stop)


@njit(nogil=True, cache=True)
def _tells_apart(
    codes: Array, chunks: Array, pages: Array, shift: int, leaf: int, here: int, first: int, leaf_size: int
) -> int:
    """The first group, from `first` on, in which few of a leaf's newest tokens and of that at row `here` are the same.

    If there is none, the one in which the fewest are; -1 where they have all codes in common. Among the groups of the
    last token it is `first` itself.
    """
    groups, size = codes.shape[1], chunks[leaf, 1]
    newest = place(pages, shift, chunks[leaf, 2 + (size - 1) % _HELD])
    if size >= 2 * leaf_size and np.all(codes[newest] == codes[here]):
        return -1
    if 0 < first < TOGETHER:
        return first
    rows, held = np.empty(leaf_size + 1, np.int64), 1
    rows[0] = here
    while leaf and held <= leaf_size:
        for i in range((chunks[leaf, 1] - 1) % _HELD, -1, -1):
            if held <= leaf_size:
                rows[held] = place(pages, shift, chunks[leaf, 2 + i])
                held += 1
        leaf = chunks[leaf, 0]
    best, least = -1, held
    for turned in range(groups):
        group = (first + turned) % groups
        alike = np.zeros(256, np.int16)
        most = 0
        for i in range(held):
            alike[codes[rows[i], group]] += 1
            most = max(most, alike[codes[rows[i], group]])
        if most < least:
            best, least = group, most
        if 2 * least <= held:
            break
    return best


@njit(nogil=True, cache=True)
def _append(chunks: Array, counts: Array, leaf: int, token: int) -> int:
    """Put a token into a leaf (0 for none yet); the number of the leaf's first chunk from now on."""
    size = chunks[leaf, 1] if leaf else 0
    filled = size % _HELD
    if filled == 0:
        if counts[_FREE]:
            fresh = counts[_FREE]
            counts[_FREE] = chunks[fresh, 0]
        else:
            counts[_CHUNKS] += 1
            fresh = counts[_CHUNKS]
        chunks[fresh, 0] = leaf
        leaf = fresh
    chunks[leaf, 2 + filled] = token
    chunks[leaf, 1] = size + 1
    return leaf


@njit(nogil=True, cache=True)
def _take_apart(chunks: Array, counts: Array, leaf: int) -> Array:
    """Free a leaf's chunks; its tokens, newest first."""
    tokens, held = np.empty(chunks[leaf, 1], np.int32), 0
    while leaf:
        for i in range((chunks[leaf, 1] - 1) % _HELD, -1, -1):
            tokens[held] = chunks[leaf, 2 + i]
            held += 1
        following = chunks[leaf, 0]
        chunks[leaf, 0] = counts[_FREE]
        counts[_FREE] = leaf
        leaf = following
    return tokens


@njit(nogil=True, cache=True, error_model="numpy")
def measure_regret(scores: Array, regret: Array, cap: float) -> None:
    """How far each code of [groups, codes] scores below its group's best, in units of the group's spread."""
    width = scores.shape[1]
    for group in range(scores.shape[0]):
        best, squares = scores[group, 0], np.float32(0)
        for code in range(width):
            best = max(best, scores[group, code])
            squares += scores[group, code] * scores[group, code]
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + np.float32(1e-12))
        for code in range(width):
            regret[group, code] = min((best - scores[group, code]) * scale, np.float32(cap))


@njit(nogil=True, cache=True, fastmath=True)
def descend(
    regret: Array, tables: Array, tree: int, turn: int, nodes: Array, costs: Array, below: Array, below_costs: Array
) -> int:
    """Go down one trie with a beam: the leaves with the least regret summed over their path.

    Args:
        regret: float32 [groups, codes].
        nodes, costs, below, below_costs: scratch [beam]; on return, `nodes` holds the leaves, negative, best first.

    Returns:
        how many leaves there are.
    """
    beam = nodes.shape[0]
    nodes[0], costs[0] = tree | turn << GROUP, np.float32(0)
    alive = 1
    while True:
        kept, worst, descended = 0, _FAR, False
        for place in range(alive):
            node, cost = nodes[place], costs[place]
            if cost >= worst:
                break  # the beam is sorted
            if node < 0:
                kept, worst = _keep(below, below_costs, kept, beam, node, cost)
                continue
            descended = True
            table, group = node & NUMBER, node >> GROUP
            for code in range(tables.shape[1]):
                total = cost + regret[group, code]
                if total < worst and tables[table, code] != 0:
                    kept, worst = _keep(below, below_costs, kept, beam, tables[table, code], total)
        for place in range(kept):  # slices of arrays would compile how numba formats that their lengths differ
            nodes[place], costs[place] = below[place], below_costs[place]
        alive = kept
        if not descended:
            return alive


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _keep(nodes: Array, costs: Array, kept: int, beam: int, node: int, cost: float) -> tuple[int, Any]:
    """Insert a node into a sorted beam; how many it holds, and the cost that a further one must beat."""
    place = kept if kept < beam else beam - 1
    kept = min(kept + 1, beam)
    while place > 0 and costs[place - 1] > cost:
        nodes[place], costs[place] = nodes[place - 1], costs[place - 1]
        place -= 1
    nodes[place], costs[place] = node, cost
    return kept, costs[beam - 1] if kept == beam else _FAR


@njit(nogil=True, cache=True, fastmath=True)
def retrieve_row(
    scores: Array,
    query: Array,
    keys: Array,
    codes: Array,
    tables: Array,
    chunks: Array,
    counts: Array,
    pages: Array,
    shift: int,
    start: int,
    window: int,
    block: int,
    num_trees: int,
    beam: int,
    leaf_size: int,
    num_ranked: int,
    regret_cap: float,
    chosen: Array,
    touched: Array,
) -> None:
    """Retrieve for the queries of one row, inserting the tokens that leave the window on the way.

    Args:
        scores: float32 [T, groups, codes], of the queries at ``start .. start + T - 1``.
        query: [T, W], what the keys [N, W] of those nearest by code are ranked by, largest product first.
        codes: uint8 [N, groups]; pages and shift: where the tokens stand in keys and codes.
        tables, chunks and counts: the index, updated in place.
        chosen: int32 [T, R], gets positions, -1 where there are fewer.
        touched: int32 [T], gets the number of candidates looked at.
    """
    groups, wanted = codes.shape[1], chosen.shape[1]
    regret = np.empty(scores.shape[1:], np.float32)
    nodes, below = np.empty(beam, np.int32), np.empty(beam, np.int32)
    costs, below_costs = np.empty(beam, np.float32), np.empty(beam, np.float32)
    room = 2
    while room < 2 * num_trees * beam * leaf_size:
        room *= 2
    seen, candidates = np.empty(room, np.int32), np.empty(room, np.int32)  # a hash set of the positions looked at
    key_bytes = keys.shape[1] * keys.itemsize
    distances, nearest = np.empty(num_ranked, np.float32), np.empty(num_ranked, np.int32)
    opposed, best = np.empty(wanted, query.dtype), np.empty(wanted, np.int32)
    for t in range(scores.shape[0]):
        limit = (start + t) // block * block - window
        chosen[t] = -1
        touched[t] = 0
        if limit <= 0:
            continue
        insert(codes, tables, chunks, counts, pages, shift, limit, num_trees, leaf_size)
        measure_regret(scores[t], regret, regret_cap)
        seen[:] = -1
        looked = 0
        for tree in range(num_trees):
            leaves = descend(regret, tables, tree, tree * groups // num_trees, nodes, costs, below, below_costs)
            for leaf in range(leaves):
                _fetch(chunks, -nodes[leaf])
            for leaf in range(leaves):
                chunk, left = -nodes[leaf], leaf_size
                passed = passed_over(tree, chunks[chunk, 1], leaf_size)
                while chunk and left:
                    _fetch(chunks, chunks[chunk, 0])
                    filled = (chunks[chunk, 1] - 1) % _HELD + 1
                    for i in range(filled - 1 - passed, -1, -1):
                        if left == 0:
                            break
                        left -= 1
                        position = chunks[chunk, 2 + i]
                        slot = (position * 40503) & (room - 1)
                        while seen[slot] >= 0 and seen[slot] != position:
                            slot = (slot + 1) & (room - 1)
                        if seen[slot] == position:
                            continue
                        seen[slot] = position
                        candidates[looked] = position
                        prefetch(codes.ctypes.data + np.intp(place(pages, shift, position)) * groups, 0)
                        looked += 1
                    passed = max(0, passed - filled)
                    chunk = chunks[chunk, 0]
        listed, held = 0, 0
        for i in range(looked):
            distance = _distance(regret, codes[place(pages, shift, candidates[i])])
            listed = _keep_least(distances, nearest, listed, distance, candidates[i])
        for i in range(listed + _AHEAD):
            if i < listed:
                row = np.intp(place(pages, shift, nearest[i])) * key_bytes
                for x in range(0, key_bytes, 64):
                    prefetch(keys.ctypes.data + row + x, 0)
            if i < _AHEAD:
                continue
            product = _product(query[t], keys[place(pages, shift, nearest[i - _AHEAD])])
            held = _keep_least(opposed, best, held, -product, nearest[i - _AHEAD])
        for i in range(held):
            chosen[t, i] = best[i]
        touched[t] = looked


@njit(nogil=True, inline="always")
def _fetch(chunks: Array, chunk: int) -> None:
    """Start to bring a chunk into the cache."""
    prefetch(chunks.ctypes.data + np.intp(chunk) * CHUNK * chunks.itemsize, 0)


@njit(nogil=True, cache=True, inline="always")
def passed_over(tree: int, size: int, leaf_size: int) -> int:
    """How many of a leaf's newest tokens a trie leaves to those before it.

    A leaf that outgrew `leaf_size` holds what no code tells apart, the same tokens in every trie.
    """
    return max(0, min(tree * leaf_size, size - leaf_size))


@njit(nogil=True, cache=True, fastmath=True)
def _product(one: Array, other: Array) -> Any:
    product = one[0] * other[0]
    for x in range(1, len(one)):
        product += one[x] * other[x]
    return product


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _distance(regret: Array, codes: Array) -> Any:
    """The regret of a token's codes, summed over the groups in four sums that do not wait for each other."""
    one = two = three = four = np.float32(0)
    whole = len(codes) // 4 * 4
    for group in range(0, whole, 4):
        one += regret[group, codes[group]]
        two += regret[group + 1, codes[group + 1]]
        three += regret[group + 2, codes[group + 2]]
        four += regret[group + 3, codes[group + 3]]
    for group in range(whole, len(codes)):
        one += regret[group, codes[group]]
    return (one + two) + (three + four)


@njit(nogil=True, cache=True, fastmath=True, inline="always")
def _keep_least(values: Array, where: Array, held: int, value: Any, position: int) -> int:
    """Put a value into a heap of the least, with the greatest of them on top; how many it holds."""
    if held < values.shape[0]:
        place = held
        while place > 0 and values[(place - 1) // 2] < value:
            values[place], where[place] = values[(place - 1) // 2], where[(place - 1) // 2]
            place = (place - 1) // 2
        values[place], where[place] = value, position
        return held + 1
    if value >= values[0]:
        return held
    place = 0
    while True:
        child = 2 * place + 1
        if child >= held:
            break
        if child + 1 < held and values[child + 1] > values[child]:
            child += 1
        if values[child] <= value:
            break
        values[place], where[place] = values[child], where[child]
        place = child
    values[place], where[place] = value, position
    return held
