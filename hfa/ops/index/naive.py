"""The index as dictionaries, one query at a time: the reference of the kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfa.ops.index.retrieve import Search
from hfa.ops.index.trie import TOGETHER


class Trie(dict[int, Any]):
    """Code to a Trie, or to a leaf: the positions in it, oldest first."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group  # whose codes


def naive_retrieve(
    scores: Tensor, query: Tensor, keys: Tensor, codes: Tensor, start: int, search: Search
) -> list[list[int]]:
    """What :func:`hfa.ops.index.retrieve` retrieves for one row, best first, as long as tables do not run out.

    Args:
        scores: [T, groups, codes]; query: [T, W]; keys: [N, W]; codes: uint8 [N, groups].
    """
    groups = codes.shape[1]
    tries = [Trie(tree * groups // search.num_trees) for tree in range(search.num_trees)]
    inserted, found = 0, []
    for t in range(len(scores)):
        limit = (start + t) // search.block_size * search.block_size - search.window
        while inserted < limit:
            for trie in tries:
                _insert(trie, codes, inserted, search.leaf_size)
            inserted += 1
        regret = measure_regret(scores[t], search.regret_cap)
        distances: dict[int, float] = {}
        for number, trie in enumerate(tries):
            for leaf in _descend(trie, regret, search.beam):
                passed = max(0, min(number * search.leaf_size, len(leaf) - search.leaf_size))
                for position in leaf[: len(leaf) - passed][-search.leaf_size :]:
                    distances[position] = float(regret[range(groups), codes[position].long()].sum())
        shortlist = sorted(distances, key=distances.__getitem__)[: search.num_ranked]
        ranked = sorted(shortlist, key=lambda position: -float(query[t] @ keys[position]))
        found.append(ranked[: search.num_retrieved])
    return found


def _insert(trie: Trie, codes: Tensor, position: int, leaf_size: int) -> None:
    code = int(codes[position, trie.group])
    below = trie.get(code)
    if isinstance(below, list) and len(below) >= leaf_size:
        crowded = len(below) >= 2 * leaf_size
        group = _tells_apart(codes, [*below[-leaf_size:], position], trie.group, crowded)
        if group is not None:
            split = Trie(group)
            for held in below:
                split.setdefault(int(codes[held, group]), []).append(held)
            trie[code] = below = split
    if isinstance(below, Trie):
        _insert(below, codes, position, leaf_size)
    else:
        trie.setdefault(code, []).append(position)


def _tells_apart(codes: Tensor, positions: list[int], group: int, crowded: bool) -> int | None:
    """The next group in which at most half of the tokens are the same, or else the one in which the fewest are."""
    *_, newest, token = positions
    if crowded and codes[newest].equal(codes[token]):
        return None  # as is likely, and the kernel looks no further
    if 0 < group + 1 < TOGETHER:
        return group + 1
    best, least = None, len(positions)
    for turned in range(1, codes.shape[1] + 1):
        following = (group + turned) % codes.shape[1]
        most = int(codes[positions, following].long().bincount().max())
        if most < least:
            best, least = following, most
        if 2 * least <= len(positions):
            break
    return best


def _descend(trie: Trie, regret: Tensor, beam: int) -> list[list[int]]:
    nodes: list[tuple[float, Any]] = [(0.0, trie)]
    while any(isinstance(node, Trie) for _, node in nodes):
        below = []
        for cost, node in nodes:
            if isinstance(node, list):
                below.append((cost, node))
            else:
                below += [(cost + float(regret[node.group, code]), child) for code, child in node.items()]
        nodes = sorted(below, key=lambda entry: entry[0])[:beam]
    return [node for _, node in nodes]


def measure_regret(scores: Tensor, cap: float) -> Tensor:
    """How far each code [..., groups, codes] scores below its group's best, in units of the group's spread."""
    scores = scores.float()
    spread = scores.square().mean(-1, keepdim=True).add(1e-12).rsqrt()
    return ((scores.amax(-1, keepdim=True) - scores) * spread).clamp(max=cap)


def naive_log_agreement(queries: Tensor, keys: Tensor, *, floor: float) -> Tensor:
    """Log of how likely a query and a key have the same code, summed over the groups, [S, M].

    Args:
        queries: [S, groups, codes], how likely each code is, and keys: [M, groups, codes].
        floor: added to each group's chance.
    """
    return (torch.einsum("sgc,mgc->gsm", queries, keys) + floor).log().sum(0)
