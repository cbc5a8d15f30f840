"""Documents laid end to end without a gap, epoch after epoch, readable at any position."""

from __future__ import annotations

import numpy as np

from hfa.data.corpus import Corpus


class DocumentStream:
    """An endless sequence of tokens made of documents.

        documents   a a a | b b | c
        epoch 0     b b . a a a . c .        `.` is the end of text
        epoch 1     c . b b . a a a .        ... position 9 of the stream is the first of epoch 1

    Args:
        corpus: where the tokens are.
        documents: the documents to take, int64 [documents].
        end_of_text: put after each document; None puts nothing.
        shuffle_seed: each epoch has an order of its own, drawn from this; None keeps the given order in all.
    """

    def __init__(
        self, corpus: Corpus, documents: np.ndarray, *, end_of_text: int | None, shuffle_seed: int | None
    ) -> None:
        self._corpus, self._documents = corpus, documents
        self._end_of_text, self._shuffle_seed = end_of_text, shuffle_seed
        self._lengths = np.diff(corpus.offsets)[documents] + (end_of_text is not None)
        self.num_tokens = int(self._lengths.sum())  # in one epoch
        self._kept: tuple[int, np.ndarray, np.ndarray] | None = None

    def read(self, position: int, count: int) -> np.ndarray:
        """`count` tokens from `position` on, int64, in time independent of the position."""
        out = np.full(count, self._end_of_text or 0, dtype=np.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(position + filled, self.num_tokens)
            order, ends = self._layout(epoch)
            at = int(np.searchsorted(ends, offset, side="right"))
            skipped = offset - int(ends[at] - self._lengths[order[at]])
            while at < len(order) and filled < count:
                document = self._documents[order[at]]
                start, stop = self._corpus.offsets[document], self._corpus.offsets[document + 1]
                text = self._corpus.tokens[start + skipped : stop][: count - filled]
                out[filled : filled + len(text)] = text  # its end of text, if any, is there already
                filled += int(self._lengths[order[at]]) - skipped
                at, skipped = at + 1, 0
        return out

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the documents in an epoch, and where each ends; the last one asked for is kept."""
        if self._shuffle_seed is None:
            epoch = 0
        if self._kept is None or self._kept[0] != epoch:
            order = np.arange(len(self._documents))
            if self._shuffle_seed is not None:
                order = np.random.default_rng([self._shuffle_seed, epoch]).permutation(order)
            self._kept = (epoch, order, np.cumsum(self._lengths[order]))
        return self._kept[1:]
