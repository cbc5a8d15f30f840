"""What the configs of all sources share."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hfa.config import Config, NonNegativeInt, PositiveInt, config
from hfa.types import Source, Split, Tokenizer

SPLITS: tuple[Split, ...] = ("train", "val", "test")


@config
class SourceConfig(Config, abc.ABC):
    """Base of the sources' configs.

    Args:
        name: what reports call the source.
        seed: decides the order of text and what the recall tasks draw.
        seq_len: tokens in an example.
    """

    name: str
    seed: NonNegativeInt
    seq_len: PositiveInt

    @abc.abstractmethod
    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Source:
        """Make the source; what is expensive is kept below `cache_dir` and found there the next time."""

    def documents(self) -> Iterator[str]:
        """The texts of the train split, for tokenizers that are trained; a recall task has none."""
        return iter(())


def generator(seed: int, split: Split, index: int, *purpose: int) -> np.random.Generator:
    """The random numbers of one example: the same for the same arguments, unrelated for others.

    Args:
        seed: of the source.
        split: of the example.
        index: of the example.
        purpose: numbers that tell apart what is drawn twice for one example.
    """
    return np.random.default_rng([seed, SPLITS.index(split), index, *purpose])
