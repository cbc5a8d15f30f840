"""Text as a source: documents, split, laid end to end and cut into windows."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from hfa.config import Fraction, NonNegativeInt, config
from hfa.data.corpus import Corpus, digest, open_corpus, split_documents
from hfa.data.source import SPLITS, SourceConfig
from hfa.data.stream import DocumentStream
from hfa.errors import DataError
from hfa.types import NOWHERE, Example, Source, Split, Tokenizer


@config
class TextConfig(SourceConfig):
    """Base of the configs whose documents are text.

    Args:
        val_fraction: of the documents, held out for validation.
        test_fraction: of the documents, held out for the last test.
        split_seed: chooses which are held out; apart from `seed`, so that runs with other seeds are comparable.
    """

    val_fraction: Fraction
    test_fraction: Fraction
    split_seed: NonNegativeInt

    @abc.abstractmethod
    def read(self) -> Iterator[str]:
        """All documents, always in the same order."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when :meth:`read` would give something else."""

    def build(self, tokenizer: Tokenizer, cache_dir: Path) -> TextSource:
        corpus = open_corpus(cache_dir, self.fingerprint(), self._texts(), tokenizer)
        return TextSource(self, corpus, tokenizer)

    def documents(self) -> Iterator[str]:
        digests = np.array([digest(text) for text in self._texts()], dtype=np.uint64)
        wanted = set(self.assign(digests)["train"].tolist())
        return (text for i, text in enumerate(self._texts()) if i in wanted)

    def assign(self, digests: np.ndarray) -> dict[Split, np.ndarray]:
        """The documents of each split; see :func:`~hfa.data.corpus.split_documents`."""
        return split_documents(digests, self.split_seed, self.val_fraction, self.test_fraction)

    def _texts(self) -> Iterator[str]:
        return (text for text in self.read() if text)


def fingerprint(splits: Iterable[np.ndarray]) -> str:
    """A short hash of which documents are in which split, uint64 [documents] each; the same with every tokenizer."""
    digests = hashlib.blake2b(digest_size=8)
    for documents in splits:
        digests.update(hashlib.blake2b(documents.astype("<u8").tobytes()).digest())
    return digests.hexdigest()


class TextSource:
    """Windows of `seq_len` tokens over documents, each token of train the label of exactly one position in an epoch.

        stream     a a a . b b . c c c c .      `.` is the end of text
        tokens 0   a a a .                      example i starts at i * seq_len
        labels 0     a a . b
        tokens 1           b b . c
        labels 1             b . c c

    The train split is shuffled by document, anew in each epoch, and goes on without end; the others have a fixed
    order and a last whole window: what is left over behind it is no label.
    """

    kind: Literal["text", "recall"] = "text"

    def __init__(self, settings: TextConfig, corpus: Corpus, tokenizer: Tokenizer) -> None:
        self.name, self.seq_len, self.vocab_size = settings.name, settings.seq_len, tokenizer.vocab_size
        self._settings, self._corpus, self._tokenizer = settings, corpus, tokenizer
        self._split = settings.assign(corpus.digests)
        self.fingerprint = fingerprint(corpus.digests[documents] for documents in self._split.values())
        self._streams = {
            split: self._stream(split, tokenizer.end_of_text, settings.seed if split == "train" else None)
            for split in SPLITS
        }
        self._unbroken = {split: self._stream(split, None, None) for split in SPLITS}

    def example(self, index: int, split: Split) -> Example:
        """Window `index` of the split.

        Raises:
            DataError: val or test is shorter than one window.
            IndexError: val or test has fewer windows.
        """
        count = self.num_examples(split)
        if split != "train" and not 0 <= index < count:
            if count:
                raise IndexError(f"{self.name}: {split} has {count} examples of {self.seq_len} tokens, not {index + 1}")
            raise DataError(
                f"{self.name}: seq_len is {self.seq_len} and the {split} split has {self._streams[split].num_tokens} "
                f"tokens; it takes one more than seq_len, so lower it or raise {split}_fraction."
            )
        window = self._streams[split].read(index * self.seq_len, self.seq_len + 1)
        return Example(window[:-1], window[1:], np.full(self.seq_len, NOWHERE))

    def num_examples(self, split: Split) -> int:
        """Windows in one pass; the train split goes on after them with another order."""
        tokens = self._streams[split].num_tokens
        return -(-tokens // self.seq_len) if split == "train" else max(0, tokens - 1) // self.seq_len

    def parts(self) -> dict[str, Source]:
        return {self.name: self}

    def at_length(self, seq_len: int) -> TextSource:
        return TextSource(dataclasses.replace(self._settings, seq_len=seq_len), self._corpus, self._tokenizer)

    def unbroken(self, split: Split) -> DocumentStream:
        """The split's documents in a fixed order with nothing between them.

        Raises:
            DataError: the split is empty.
        """
        stream = self._unbroken[split]
        if not stream.num_tokens:
            raise DataError(f"{self.name}: the {split} split has no documents; raise {split}_fraction.")
        return stream

    def _stream(self, split: Split, end_of_text: int | None, shuffle_seed: int | None) -> DocumentStream:
        return DocumentStream(self._corpus, self._split[split], end_of_text=end_of_text, shuffle_seed=shuffle_seed)
