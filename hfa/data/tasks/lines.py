"""Where lines begin, in text that is tokens already."""

from __future__ import annotations

import numpy as np

from hfa.types import Tokenizer


class Lines:
    """Finds the tokens that end a line.

    Args:
        tokenizer: of the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = (tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
        self._ends = np.array([text.rstrip(" \t").endswith("\n") for text in texts])

    def starts(self, tokens: np.ndarray) -> np.ndarray:
        """Positions at which a line starts, int64, ascending; the first is 0, and the end of the text may be one."""
        return np.append(0, np.flatnonzero(self._ends[tokens]) + 1)

    def nearest(self, tokens: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """For each wanted position the start of a line that is nearest to it."""
        starts = self.starts(tokens)
        after = np.searchsorted(starts, wanted).clip(max=len(starts) - 1)
        before = (after - 1).clip(min=0)
        nearer = np.where(wanted - starts[before] < starts[after] - wanted, before, after)
        found: np.ndarray = starts[nearer]
        return found
