"""Several sources in fixed proportions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import NonNegativeInt, config
from hfa.data.corpus import digest
from hfa.data.source import SourceConfig
from hfa.errors import ConfigError
from hfa.types import Example, Source, Split, Tokenizer


@config
class MixtureConfig(SourceConfig):
    """See :class:`Mixture`.

    Args:
        sources: the parts, by the names that reports call them.
        weights: of each part, in whole numbers: how many of every ``sum(weights)`` examples it gives. A part with 0
            gives none; it can still be evaluated, as one of :meth:`Mixture.parts`.
    """

    sources: dict[str, SourceConfig]
    weights: dict[str, NonNegativeInt]

    def check(self) -> None:
        if not self.sources:
            raise ConfigError("sources", self.sources, "at least one source")
        if self.weights.keys() != self.sources.keys():
            expected = f"a weight for each of {', '.join(self.sources)}, and for nothing else"
            raise ConfigError("weights", self.weights, expected)
        if not any(self.weights.values()):
            raise ConfigError("weights", self.weights, "at least one above 0")
        for name, source in self.sources.items():
            if isinstance(source, MixtureConfig):
                raise ConfigError(f"sources.{name}", source.name, "a source that is no mixture", "name its parts here")
            if source.seq_len != self.seq_len:
                raise ConfigError(f"sources.{name}.seq_len", source.seq_len, f"the mixture's seq_len={self.seq_len}")

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> Mixture:
        parts = {name: source.build(tokenizer, cache_dir) for name, source in self.sources.items()}
        return Mixture(self, parts)

    def documents(self) -> Iterator[str]:
        """The texts of all parts; one that several parts read comes once."""
        seen = set()
        for text in chain.from_iterable(source.documents() for source in self.sources.values()):
            if (known := digest(text)) not in seen:
                seen.add(known)
                yield text


class Mixture:
    """A fixed, shuffled schedule of parts, repeated; each part gives its examples in order and skips none.

        weights     text: 2, needle: 1
        index       0       1       2       3       4       5     ..
        part        text    needle  text    text    needle  text
        its index   0       0       1       2       1       3

    The schedule has as many places as the weights' sum, so proportions are exact in every cycle.
    """

    def __init__(self, settings: MixtureConfig, parts: Mapping[str, Source]) -> None:
        self.name, self.seq_len = settings.name, settings.seq_len
        self.kind: Literal["text", "recall"] = "text" if any(p.kind == "text" for p in parts.values()) else "recall"
        self.vocab_size = max(part.vocab_size for part in parts.values())
        self.fingerprint = " ".join(sorted({part.fingerprint for part in parts.values()} - {""}))
        self._settings, self._parts = settings, dict(parts)
        self._weights = np.array([settings.weights[name] for name in self._parts])
        places = np.repeat(np.arange(len(parts)), self._weights)
        self._schedule = np.random.default_rng(settings.seed).permutation(places)
        self._earlier = np.array([np.count_nonzero(self._schedule[:i] == p) for i, p in enumerate(self._schedule)])

    def locate(self, index: int) -> tuple[int, int]:
        """Which part gives example `index`, as a place in :meth:`parts`, and the example's index there."""
        cycle, place = divmod(index, len(self._schedule))
        part = int(self._schedule[place])
        return part, cycle * int(self._weights[part]) + int(self._earlier[place])

    def example(self, index: int, split: Split) -> Example:
        part, inner = self.locate(index)
        return list(self._parts.values())[part].example(inner, split)

    def num_examples(self, split: Split) -> int | None:
        """Examples until the first part has been passed once; None when all go on without end."""
        counts = [part.num_examples(split) for part in self._parts.values()]
        ends = [
            self._index_of(part, count)
            for part, count in enumerate(counts)
            if count is not None and self._weights[part]
        ]
        return min(ends, default=None)

    def parts(self) -> dict[str, Source]:
        return dict(self._parts)

    def at_length(self, seq_len: int) -> Mixture:
        sources = {}
        for name, source in self._settings.sources.items():
            try:
                sources[name] = dataclasses.replace(source, seq_len=seq_len)
            except ConfigError as error:
                raise error.under(f"sources.{name}") from None
        settings = dataclasses.replace(self._settings, seq_len=seq_len, sources=sources)
        return Mixture(settings, {name: part.at_length(seq_len) for name, part in self._parts.items()})

    def _index_of(self, part: int, inner: int) -> int:
        """Where in the mixture the part's example `inner` comes."""
        cycle, nth = divmod(inner, int(self._weights[part]))
        return cycle * len(self._schedule) + int(np.flatnonzero(self._schedule == part)[nth])
