"""The byte tokenizer: 256 bytes and the end of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hfa.config import config
from hfa.data.tokenizers.base import ByteLevelTokenizer, Documents, TokenizerConfig, utf8
from hfa.errors import ConfigError

VOCAB_SIZE = 257


@config
class ByteConfig(TokenizerConfig):
    """No choices: `vocab_size` is there for others to interpolate."""

    def check(self) -> None:
        if self.vocab_size != VOCAB_SIZE:
            raise ConfigError("vocab_size", self.vocab_size, f"{VOCAB_SIZE}: 256 bytes and the end of text")

    def build(self, documents: Documents, cache_dir: Path | None = None) -> ByteTokenizer:
        return ByteTokenizer()


class ByteTokenizer(ByteLevelTokenizer):
    """Each byte of UTF-8 is its own id.

    "né" -> 110 195 169
    """

    def __init__(self) -> None:
        super().__init__("byte", [bytes([value]) for value in range(256)], VOCAB_SIZE)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), dtype=np.uint8).astype(np.int64) for text in texts]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "byte"}


def from_json(data: Mapping[str, Any]) -> ByteTokenizer:
    """Read back what :meth:`ByteTokenizer.to_json` gave."""
    return ByteTokenizer()
