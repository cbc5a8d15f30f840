"""Tokens back to text, piece by piece, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from hfa.data.tokenizers import StreamDecoder


class TextAssembler:
    """Turns a stream of token ids into text that never has to be taken back.

        stop "END"    tokens    so E|N|T|E|ND|...
                      pieces    so  |  |ENT|  |     what may begin a stop text waits until it is certain

    Args:
        decoder: of whole characters.
        stop: texts that end the answer; neither they nor what follows is part of it.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that is certain now and was not before."""
        return self._pass(self._decoder.push([token]))

    def ends(self, token: int) -> bool:
        """Whether a stop text is complete with this token; for whoever does not want the text."""
        self.feed(token)
        return self.stopped

    def flush(self) -> str:
        """What was held back, now that no token follows."""
        piece = self._pass(self._decoder.flush()) + self._held
        self._held = ""
        return piece

    def _pass(self, fresh: str) -> str:
        if self.stopped:
            return ""
        if not self._stop:
            return fresh
        text = self._held + fresh
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
