"""What the tokenizers share: every id stands for bytes, so no text is unknown and nothing is lost."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfa.config import Config, PositiveInt, config
from hfa.errors import DataError
from hfa.types import Tokenizer

Documents = Callable[[], Iterable[str]]


@config
class TokenizerConfig(Config, abc.ABC):
    """Base of the tokenizers' configs."""

    vocab_size: PositiveInt

    @abc.abstractmethod
    def build(self, documents: Documents, cache_dir: Path | None = None) -> Tokenizer:
        """Make the tokenizer.

        Args:
            documents: gives the texts to train on; called only by tokenizers that are trained.
            cache_dir: where trained ones are kept; None trains anew.
        """


class ByteLevelTokenizer(abc.ABC):
    """A tokenizer whose ids each stand for a few bytes of UTF-8; the last id is the end of text.

    Args:
        name: its kind, which is also the module that reads it back.
        pieces: the bytes of each id, from id 0; ids past the last piece stand for nothing.
        vocab_size: number of ids, `end_of_text` and unused ones included.
    """

    def __init__(self, name: str, pieces: Sequence[bytes], vocab_size: int) -> None:
        self.name, self.vocab_size, self.end_of_text = name, vocab_size, vocab_size - 1
        self._pieces = list(pieces) + [b""] * (vocab_size - len(pieces))

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int64 [T]; many texts at once are faster than one by one.

        Raises:
            DataError: a text with a lone surrogate, which has no bytes.
        """

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything that decides what `encode` returns, as JSON-able data; ``kind`` names the module."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, which holds no special tokens: ``<|endoftext|>`` is ordinary text here."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that `tokens` stand for: the exact inverse of `encode`.

        Raises:
            DataError: an id outside the vocabulary.
        """
        found = []
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} is not one of the {self.vocab_size} of the {self.name} tokenizer.")
            found.append(self._pieces[token])
        return b"".join(found)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text each id stands for, int64 [vocab_size]; special and unused ids count 0."""
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def fingerprint(self) -> str:
        """A short hash of :meth:`to_json`."""
        return hashlib.blake2b(json.dumps(self.to_json()).encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write :meth:`to_json` to `path`."""
        path.write_text(json.dumps(self.to_json()), encoding="utf-8")


def utf8(text: str) -> bytes:
    """The bytes of `text`.

    Raises:
        DataError: a lone surrogate.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        broken = f"U+{ord(text[error.start]):04X}"
        raise DataError(f"the text holds the lone surrogate {broken} at {error.start}; send valid Unicode.") from None
