"""Text out of tokens as they come."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from hfa.types import Tokenizer


class StreamDecoder:
    """Decodes a growing sequence; a character split over tokens comes out once, whole.

        push([0xE2])  -> ""
        push([0x82])  -> ""
        push([0xAC])  -> "€"

    The pieces joined, with :meth:`flush` last, equal `tokenizer.decode` of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The characters that `tokens` complete."""
        return self._decoder.decode(self._tokenizer.decode_bytes(tokens))

    def flush(self) -> str:
        """What is left at the end: U+FFFD when the last character is cut off, else nothing."""
        return self._decoder.decode(b"", final=True)
