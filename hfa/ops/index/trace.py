"""The way of one query through the index, told for people."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from hfa.ops.index.retrieve import Search
from hfa.ops.index.trie import CHUNK, GROUP, NUMBER, descend, measure_regret, passed_over


class Leaf(NamedTuple):
    """A leaf that a query reached."""

    trie: int
    path: list[tuple[int, int]]  # (group, code) from the root down
    regret: float  # summed over the path: 0 where every code is the query's first choice
    size: int  # tokens in it
    positions: list[int]  # those looked at, newest first


def trace(scores: Tensor, codes: Tensor, tables: Tensor, chunks: Tensor, search: Search) -> list[Leaf]:
    """The leaves that :func:`hfa.ops.index.retrieve` looks into for a query, nearest first in each trie.

    Args:
        scores: [groups, codes], of the query.
        codes: uint8 [N, groups]; tables int32 [number, codes], chunks int32 [number, CHUNK]: the index of the row.
    """
    groups, beam = codes.shape[1], search.beam
    regret, table, chunk = np.empty(scores.shape, np.float32), tables.numpy(), chunks.numpy()
    measure_regret(scores.float().contiguous().numpy(), regret, search.regret_cap)
    nodes, below = np.empty(beam, np.int32), np.empty(beam, np.int32)
    costs, below_costs = np.empty(beam, np.float32), np.empty(beam, np.float32)
    found = []
    for trie in range(search.num_trees):
        turn = trie * groups // search.num_trees
        for entry in nodes[: descend(regret, table, trie, turn, nodes, costs, below, below_costs)].tolist():
            tokens = _tokens(chunk, -entry)
            path: list[tuple[int, int]] = []
            group, node = turn, trie
            while node >= 0:
                code = int(codes[tokens[0], group])
                path.append((group, code))
                node = int(table[node & NUMBER, code])
                group = node >> GROUP
            cost = sum(float(regret[group, code]) for group, code in path)
            first = passed_over(trie, len(tokens), search.leaf_size)
            found.append(Leaf(trie, path, cost, len(tokens), tokens[first : first + search.leaf_size]))
    return found


def _tokens(chunks: np.ndarray, leaf: int) -> list[int]:
    """The positions in a leaf, newest first."""
    tokens: list[int] = []
    while leaf:
        count = (int(chunks[leaf, 1]) - 1) % (CHUNK - 2) + 1
        tokens += chunks[leaf, 2 : 2 + count][::-1].tolist()
        leaf = int(chunks[leaf, 0])
    return tokens
