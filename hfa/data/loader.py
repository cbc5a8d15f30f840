"""From a source to batches: a map-style dataset, an order that can be entered anywhere, and stacking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from hfa.data.mixture import Mixture
from hfa.types import NOWHERE, Batch, Example, Source, Split


class Item(NamedTuple):
    """An example and the place of its source among the names of `source.parts()`."""

    example: Example
    source: int


class ExampleDataset(Dataset[Item]):
    """The examples of one split, by index; indices of a train split or a recall task have no end.

    Safe in worker processes: example `index` depends on nothing but the source's settings and `index`.
    """

    def __init__(self, source: Source, split: Split) -> None:
        self._source, self._split = source, split

    def __getitem__(self, index: int) -> Item:
        place = self._source.locate(index)[0] if isinstance(self._source, Mixture) else 0
        return Item(self._source.example(index, self._split), place)


class StreamSampler(Sampler[int]):
    """The indices `start`, `start` + 1 .. before `stop`, dealt out to `num_replicas` processes in turn.

    A run that has consumed n examples resumes with ``start=n``; the order is in the source, not here.

    Args:
        start: index of the first example.
        stop: index after the last.
        rank: which process this is.
        num_replicas: how many there are; each gets equally many, so a remainder is left out.
    """

    def __init__(self, start: int, stop: int, *, rank: int = 0, num_replicas: int = 1) -> None:
        whole = (stop - start) // num_replicas * num_replicas
        self._indices = range(start + rank, start + max(0, whole), num_replicas)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def collate(items: Sequence[Item]) -> Batch:
    """Stack items into a batch."""
    examples = [item.example for item in items]
    alone = np.full(len(examples[0].tokens), NOWHERE)
    groups = [alone if example.group is None else example.group for example in examples]
    columns = (*zip(*(example[:3] for example in examples), strict=True), groups)
    tokens, labels, gold, group = (torch.from_numpy(np.stack(arrays)) for arrays in columns)
    return Batch(tokens, labels, gold, torch.tensor([item.source for item in items]), group)
