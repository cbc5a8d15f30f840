"""Documents as one array of tokens on disk, made once and read from there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hfa.data.source import SPLITS
from hfa.errors import DataError
from hfa.types import Split, Tokenizer

log = logging.getLogger(__name__)

_FORMAT = 1  # of the folders; another one makes them anew
_BATCH_CHARS = 4 << 20  # text handed to the tokenizer at once: enough to fill its threads, small in memory


class Corpus:
    """The tokens of all documents, one after the other.

        tokens     h e l l o w o r l d
        offsets    0         5         10     document i is tokens[offsets[i]:offsets[i + 1]]

    A folder holds it: `tokens.bin`, `offsets.npy`, `digests.npy`. The tokens are mapped, not read, in the smallest
    type that holds the vocabulary; a process that unpickles a corpus maps them again.

    Raises:
        DataError: the files do not fit together.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder, self._vocab_size = folder, vocab_size
        try:
            self.offsets: np.ndarray = np.load(folder / "offsets.npy")  # int64 [documents + 1]
            self.digests: np.ndarray = np.load(folder / "digests.npy")  # uint64 [documents], of their text
            self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=_dtype(vocab_size), mode="r")
        except (OSError, ValueError, EOFError):
            raise DataError(f"{folder}: the cached corpus is torn; delete this folder.") from None
        if len(self.tokens) != self.offsets[-1] or len(self.digests) + 1 != len(self.offsets):
            raise DataError(f"{folder}: the cached corpus is torn; delete this folder.")

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path, int]]:
        return Corpus, (self._folder, self._vocab_size)


def open_corpus(cache_dir: Path, key: str, documents: Iterable[str], tokenizer: Tokenizer) -> Corpus:
    """The corpus of `documents`, tokenized now unless that was done before.

    Several processes may do this at once: each writes a folder of its own, and the first to rename it wins.

    Args:
        cache_dir: where corpora are kept.
        key: says which documents these are; with the tokenizer's fingerprint it names the folder.
        documents: read only when the corpus is not there yet; must not be empty.
        tokenizer: what encodes them.

    Raises:
        DataError: there are no documents.
    """
    name = hashlib.blake2b(f"{_FORMAT} {key} {tokenizer.fingerprint()}".encode(), digest_size=12).hexdigest()
    folder = cache_dir / "corpora" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
        try:
            _write(fresh, documents, tokenizer)
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return Corpus(folder, tokenizer.vocab_size)


def digest(document: str) -> int:
    """64 bits that stand for the document's text."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "little")


def split_documents(
    digests: np.ndarray, seed: int, val_fraction: float, test_fraction: float
) -> dict[Split, np.ndarray]:
    """Assign each document to one split, by its text alone: equal documents stay together.

    Each text has a place between 0 and 1, and what lies below `val_fraction` is held out as val, what follows below
    their sum as test: where it stays when other documents come or go. Only a split that would have none takes a
    document from beside it.

    Args:
        digests: uint64 [documents].
        seed: another seed, another choice.
        val_fraction: of the distinct documents, about; one at least, if it is not 0.
        test_fraction: likewise.

    Returns:
        The documents of each split, int64, ascending.

    Raises:
        DataError: no document would be left to train on.
    """
    distinct, inverse = np.unique(digests, return_inverse=True)
    key = np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    place = _mixed(distinct ^ key) / 2.0**64
    least_val, least_test = int(val_fraction > 0), int(test_fraction > 0)
    if least_val + least_test >= len(distinct):
        raise DataError(
            f"{len(distinct)} distinct documents leave none to train on when {least_val} is held out as val and "
            f"{least_test} as test; add documents, or set max_document_chars lower, so that a long one is several."
        )
    val = max(int(np.sum(place < val_fraction)), least_val)
    held_out = max(int(np.sum(place < val_fraction + test_fraction)), val + least_test)
    held_out = min(held_out, len(distinct) - 1)
    val = min(val, held_out - least_test)
    rank = np.argsort(np.argsort(place))
    choice = np.where(rank < val, 1, np.where(rank < held_out, 2, 0))[inverse]
    return {split: np.flatnonzero(choice == i) for i, split in enumerate(SPLITS)}


def _mixed(values: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit integers without visible pattern (splitmix64's)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def _write(folder: Path, documents: Iterable[str], tokenizer: Tokenizer) -> None:
    started, dtype = time.perf_counter(), _dtype(tokenizer.vocab_size)
    lengths: list[int] = []
    digests: list[int] = []
    with (folder / "tokens.bin").open("wb") as file:
        for batch in _batches(documents):
            for document, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                lengths.append(len(ids))
                digests.append(digest(document))
                file.write(ids.astype(dtype).tobytes())
    if not lengths:
        raise DataError("the data has no documents with text in them.")
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(folder / "digests.npy", np.array(digests, dtype=np.uint64))
    took = time.perf_counter() - started
    log.info("Tokenized %d documents into %d tokens in %.1f s.", len(lengths), sum(lengths), took)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for document in documents:
        batch.append(document)
        chars += len(document)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _dtype(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32
