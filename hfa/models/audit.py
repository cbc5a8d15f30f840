"""What anchor layers read, on request: so that a wrong answer is traced to storage, selection or reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn


class Read(NamedTuple):
    """What one anchor layer read in one call."""

    layer: int
    start: Tensor  # int64 [B], position of the first new token
    chosen: Tensor  # int32 [B, 1, T, R], positions retrieved for each query, by all heads; -1 where there are fewer
    near_from: Tensor  # int64 [B, T], first position of the window: it and all up to the query are read
    touched: Tensor  # int32 [B, T], tokens looked at to choose from


class Trail:
    """The reads of all anchor layers since the last `clear`."""

    def __init__(self) -> None:
        self.reads: list[Read] = []

    def clear(self) -> None:
        self.reads = []


@contextlib.contextmanager
def audit(model: nn.Module) -> Iterator[Trail]:
    """Record what the anchor layers of `model` read while the context lasts."""
    trail = Trail()
    blocks = getattr(model, "blocks", [])
    anchors = [(layer, block.mixer) for layer, block in enumerate(blocks) if hasattr(block.mixer, "on_read")]
    for layer, anchor in anchors:
        anchor.on_read = lambda *read, layer=layer: trail.reads.append(Read(layer, *read))
    try:
        yield trail
    finally:
        for _, anchor in anchors:
            anchor.on_read = None
