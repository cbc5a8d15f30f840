"""English words for tasks in text: those that RULER draws from."""

from __future__ import annotations

import functools
from importlib.resources import files

import numpy as np

_LISTS = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")


@functools.cache
def word_lists() -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Nouns, adjectives and verbs, each sorted; the lists of the package wonderwords."""
    folder = files("wonderwords") / "assets"
    texts = (folder.joinpath(name).read_text(encoding="utf-8") for name in _LISTS)
    nouns, adjectives, verbs = (tuple(sorted({w.strip() for w in t.splitlines() if w.strip()})) for t in texts)
    return nouns, adjectives, verbs


@functools.cache
def all_words() -> tuple[str, ...]:
    """Every noun, adjective and verb once, sorted."""
    return tuple(sorted(set().union(*word_lists())))


def draw_pairs(rng: np.random.Generator, count: int) -> list[str]:
    """`count` words such as ``quaint-lighthouse``, all different."""
    nouns, adjectives, _ = word_lists()
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < count:
        more = rng.integers(len(nouns) * len(adjectives), size=count - len(drawn) + 16)
        drawn = np.append(drawn, more)
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return [f"{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}" for i in drawn[:count].tolist()]
