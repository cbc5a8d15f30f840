"""Byte-level byte-pair encoding, trained on the data's own train documents."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfa.config import PositiveInt, config
from hfa.data.tokenizers.base import ByteLevelTokenizer, Documents, TokenizerConfig, utf8
from hfa.errors import ConfigError

log = logging.getLogger(__name__)

Merges = Sequence[tuple[str, str]]
MAX_VOCAB_SIZE = 1 << 24  # more than any tokenizer has; a file that says more would only fill the memory


@config
class BPEConfig(TokenizerConfig):
    """Byte-pair encoding with GPT-2's way of cutting text into words.

    Args:
        vocab_size: ids in all: 256 bytes, the learnt merges, and the end of text.
        train_bytes: documents are read for training until they add up to this many bytes.
    """

    train_bytes: PositiveInt

    def check(self) -> None:
        if self.vocab_size <= 257:
            raise ConfigError("vocab_size", self.vocab_size, "more than 257", "tokenizer=byte has no merges")

    def build(self, documents: Documents, cache_dir: Path | None = None) -> BPETokenizer:
        """Train, or read back what the same documents gave before.

        Raises:
            ConfigError: the data has no text to train on.
        """
        texts = list(_first_bytes(documents(), self.train_bytes))
        if not texts:
            raise ConfigError("tokenizer", "bpe", "data with text to train on", "choose data=stdlib, or tokenizer=byte")
        if cache_dir is None:
            return self._train(texts)
        path = cache_dir / "tokenizers" / f"bpe-{self._key(texts)}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            self._train(texts).save(fresh)
            fresh.replace(path)
        return from_json(json.loads(path.read_text(encoding="utf-8")))

    def _key(self, texts: Iterable[str]) -> str:
        import tokenizers

        digest = hashlib.blake2b(f"{tokenizers.__version__} {self.vocab_size}".encode(), digest_size=8)
        for text in texts:
            digest.update(hashlib.blake2b(utf8(text)).digest())
        return digest.hexdigest()

    def _train(self, texts: Sequence[str]) -> BPETokenizer:
        from tokenizers import trainers

        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1, initial_alphabet=sorted(byte_letters()), show_progress=False
        )
        engine = _engine({}, [])
        engine.train_from_iterator(texts, trainer)
        model = json.loads(engine.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if len(tokens) < self.vocab_size - 1:
            log.warning("bpe: the documents yield %d of %d ids; the rest is unused.", len(tokens), self.vocab_size - 1)
        return BPETokenizer("bpe", tokens, [(left, right) for left, right in model["merges"]], self.vocab_size)


class BPETokenizer(ByteLevelTokenizer):
    """Pairs of neighbours are merged, earliest learnt first, inside each word.

    "low lower" -> low Ġlow er

    Args:
        name: ``bpe`` or ``gpt2``.
        tokens: each id's bytes, written in the letters of :func:`byte_letters`.
        merges: pairs in the order they were learnt.
        vocab_size: number of ids; the last is the end of text.

    Raises:
        KeyError, ValueError: tokens in other letters, a byte without one, a merge of what is not a token.
    """

    def __init__(self, name: str, tokens: Sequence[str], merges: Merges, vocab_size: int) -> None:
        letters = byte_letters()
        vocab = {token: i for i, token in enumerate(tokens)}
        if not (letters.keys() <= vocab.keys() and len(vocab) == len(tokens) < vocab_size <= MAX_VOCAB_SIZE):
            raise ValueError(f"{len(tokens)} tokens of {vocab_size}, or a byte without a token, or a token twice")
        for left, right in merges:
            if not (left in vocab and right in vocab and left + right in vocab):
                raise ValueError(f"a merge of {left!r} and {right!r}, which are not all tokens")
        super().__init__(name, [bytes(letters[letter] for letter in token) for token in tokens], vocab_size)
        self._tokens, self._merges = list(tokens), list(merges)
        self._engine = _engine(vocab, self._merges)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        found = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in found]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.name, "vocab_size": self.vocab_size, "tokens": self._tokens, "merges": self._merges}


def from_json(data: Mapping[str, Any]) -> BPETokenizer:
    """Read back what :meth:`BPETokenizer.to_json` gave.

    Raises:
        KeyError, TypeError, ValueError: it gave something else.
    """
    tokens, merges = list(data["tokens"]), [(left, right) for left, right in data["merges"]]
    return BPETokenizer(data["kind"], tokens, merges, int(data["vocab_size"]))


def byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others for 256 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [value for value in range(256) if value not in set(printable)]
    return {chr(v): v for v in printable} | {chr(256 + i): v for i, v in enumerate(hidden)}


def _engine(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    engine = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def _first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    for document in documents:
        yield document
        limit -= len(utf8(document))
        if limit <= 0:
            return
