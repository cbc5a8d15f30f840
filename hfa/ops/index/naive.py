"""The index as dictionaries, one query at a time: the reference of the kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hfa.ops.index.retrieve import Search

Trie = dict[int, Any]  # code to a Trie, or to a leaf: the positions in it, oldest first


def naive_retrieve(
    scores: Tensor, query: Tensor, keys: Tensor, codes: Tensor, start: int, search: Search
) -> list[list[int]]:
    """What :func:`hfa.ops.index.retrieve` retrieves for one row, best first.

    Args:
        scores: [T, groups, codes]; query: [T, W]; keys: [N, W]; codes: uint8 [N, groups].
    """
    groups = codes.shape[1]
    orders = [
        [(depth + tree * groups // search.num_trees) % groups for depth in range(groups)]
        for tree in range(search.num_trees)
    ]
    tries: list[Trie] = [{} for _ in orders]
    inserted, found = 0, []
    for t in range(len(scores)):
        limit = (start + t) // search.block_size * search.block_size - search.window
        while inserted < limit:
            for trie, order in zip(tries, orders, strict=True):
                _insert(trie, order, 0, codes, inserted, search.leaf_size)
            inserted += 1
        regret = measure_regret(scores[t], search.regret_cap)
        distances: dict[int, float] = {}
        for trie, order in zip(tries, orders, strict=True):
            for leaf in _descend(trie, order, regret, search.beam):
                for position in leaf[-search.leaf_size :]:
                    distances[position] = float(regret[range(groups), codes[position].long()].sum())
        shortlist = sorted(distances, key=distances.__getitem__)[: search.num_ranked]
        ranked = sorted(shortlist, key=lambda position: -float(query[t] @ keys[position]))
        found.append(ranked[: search.num_retrieved])
    return found


def _insert(trie: Trie, order: list[int], depth: int, codes: Tensor, position: int, leaf_size: int) -> None:
    code = int(codes[position, order[depth]])
    below = trie.get(code)
    if isinstance(below, list) and len(below) >= leaf_size and depth + 1 < len(order):
        split: Trie = {}
        for held in below:
            split.setdefault(int(codes[held, order[depth + 1]]), []).append(held)
        trie[code] = below = split
    if isinstance(below, dict):
        _insert(below, order, depth + 1, codes, position, leaf_size)
    else:
        trie.setdefault(code, []).append(position)


def _descend(trie: Trie, order: list[int], regret: Tensor, beam: int) -> list[list[int]]:
    nodes: list[tuple[float, Any]] = [(0.0, trie)]
    for group in order:
        below = []
        for cost, node in nodes:
            if isinstance(node, list):
                below.append((cost, node))
            else:
                below += [(cost + float(regret[group, code]), child) for code, child in node.items()]
        nodes = sorted(below, key=lambda entry: entry[0])[:beam]
    return [node for _, node in nodes if isinstance(node, list)]


def measure_regret(scores: Tensor, cap: float) -> Tensor:
    """How far each code [..., groups, codes] scores below its group's best, in units of the group's spread."""
    scores = scores.float()
    spread = scores.square().mean(-1, keepdim=True).add(1e-12).rsqrt()
    return ((scores.amax(-1, keepdim=True) - scores) * spread).clamp(max=cap)
