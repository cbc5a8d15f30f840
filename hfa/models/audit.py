"""What anchor layers read, on request: so that a wrong answer is traced to storage, selection or reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hfa.models.anchor import Anchor
from hfa.models.index import Tries
from hfa.models.memory import Memory
from hfa.ops.index.trace import Leaf, trace


class Read(NamedTuple):
    """What one anchor layer read in one call."""

    layer: int
    anchor: Anchor
    start: Tensor  # int64 [B], position of the first query asked for
    chosen: Tensor  # int32 [B, 1, T, R], positions retrieved for each query, by all heads; -1 where there are fewer
    near_from: Tensor  # int64 [B, T], first position of the window: it and all up to the query are read
    touched: Tensor  # int32 [B, T], tokens looked at to choose from
    query: Tensor  # [B, T, H, K], logit scale included
    asked: Tensor  # [B, T, F], what the index describes the queries by
    memory: Memory
    tries: Tries

    @torch.no_grad()
    def explain(self, row: int, query: int) -> Explanation:
        """The read of one query in full; of the last block only, and before the stream goes on.

        Args:
            row: of the batch.
            query: counted from the first one asked for.

        Raises:
            ValueError: more tokens have entered the index than the query found there.
        """
        position = int(self.start[row]) + query
        near = torch.arange(int(self.near_from[row, query]), position + 1)
        far = self.chosen[row, 0, query].long()
        positions = torch.cat([far[far >= 0], near])
        keys = self.memory.pages[0][row, positions]  # [S, G, K]
        heads = self.query[row, query].unflatten(0, (keys.shape[1], -1))  # [G, H/G, K]
        weights = torch.einsum("ghk,sgk->ghs", heads, keys).flatten(0, 1).softmax(-1)
        leaves: list[Leaf] = []
        if self.tries.tables.shape[1]:
            scores = self.anchor.index.scores(self.asked[row, query])
            tables, chunks, _ = (x[row] for x in self.tries)
            if int(self.tries.counts[row, 0]) > int(near[0]):
                raise ValueError(
                    "the index has gone on since: explain a query of the last block, before more tokens follow"
                )
            leaves = trace(scores, self.memory.pages[2][row], tables, chunks, self.anchor.search)
        stored = int(self.memory.length[row])
        return Explanation(self.layer, position, stored, int(near[0]), positions, weights, leaves)


class Explanation(NamedTuple):
    """How one query came to what it read."""

    layer: int
    position: int  # of the query
    stored: int  # tokens in the memory
    near_from: int  # the window begins here
    positions: Tensor  # int64 [S], what was read: the retrieved tokens, then the window
    weights: Tensor  # [H, S], of each in the softmax of each head
    leaves: list[Leaf]  # that the query came to; empty while all is in the window

    def weight(self, position: int) -> float:
        """What the head that reads it most gives to a token; 0 where it was not read."""
        return float(self.weights[:, self.positions == position].amax()) if self.selected(position) else 0.0

    def selected(self, position: int) -> bool:
        return bool((self.positions == position).any())

    def verdict(self, gold: int) -> str:
        """Where the evidence at position `gold` was lost, if it was."""
        if gold >= self.stored:
            return f"storage: the memory holds {self.stored:,} tokens, and the evidence is number {gold + 1:,}"
        if gold >= self.near_from:
            return f"read in the window, with weight {self.weight(gold):.3f}"
        if self.selected(gold):
            tries = sorted({leaf.trie for leaf in self.leaves if gold in leaf.positions})
            return f"retrieved by trie {', '.join(map(str, tries))}, read with weight {self.weight(gold):.3f}"
        if any(gold in leaf.positions for leaf in self.leaves):
            return "selection: looked at, but others were nearer"
        return "selection: in no leaf that the query came to"

    def to_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "position": self.position,
            "stored": self.stored,
            "near_from": self.near_from,
            "positions": self.positions.tolist(),
            "weights": [[round(weight, 5) for weight in head] for head in self.weights.tolist()],
            "leaves": [leaf._asdict() for leaf in self.leaves],
        }


class Trail:
    """The reads of all anchor layers since the last `clear`."""

    def __init__(self) -> None:
        self.reads: list[Read] = []

    def clear(self) -> None:
        self.reads = []


def can_audit(model: nn.Module) -> bool:
    """Whether it has anchor layers: what other layers read is not recorded."""
    return any(isinstance(part, Anchor) for part in model.modules())


@contextlib.contextmanager
def audit(model: nn.Module) -> Iterator[Trail]:
    """Record what the anchor layers of `model` read while the context lasts.

    with audit(model) as trail:
        model(tokens)
    trail.reads[-1].explain(row=0, query=tokens.shape[1] - 1).verdict(gold=17)
    """
    trail = Trail()
    anchors = [
        (layer, block.mixer)
        for layer, block in enumerate(getattr(model, "blocks", []))
        if isinstance(block.mixer, Anchor)
    ]
    for layer, anchor in anchors:
        anchor.on_read = lambda *read, layer=layer, anchor=anchor: trail.reads.append(Read(layer, anchor, *read))
    try:
        yield trail
    finally:
        for _, anchor in anchors:
            anchor.on_read = None
