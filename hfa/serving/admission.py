"""What a request has to pass before anything is computed for it: a rate per caller, and a size."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

from hfa.errors import RequestError


class TryLaterError(RequestError):
    """A refusal that time cures.

    Args:
        status: 429 or 503.
        sentence: what was wrong.
        retry_after_s: when to come back.
    """

    def __init__(self, status: int, sentence: str, retry_after_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        super().__init__(status, sentence)


class RateLimiter:
    """A token bucket per caller; full buckets are forgotten, so it holds only who was here lately.

    Args:
        rate_per_s: requests a second that each caller may send in the long run.
        burst: and at once.
        clock: seconds, monotonic.
    """

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # caller: tokens left, at this time
        self._swept = clock()

    def check(self, caller: str) -> None:
        """Raises TryLaterError (429) if `caller` has nothing left; takes nothing."""
        left = self._left(caller)
        if left < 1:
            raise TryLaterError(
                429,
                f"More than {self._burst} requests at once or {self._rate:g} a second; slow down.",
                (1 - left) / self._rate,
            )

    def take(self, caller: str) -> None:
        """Count one request of `caller`. Raises as `check`."""
        self.check(caller)
        self._sweep()
        self._buckets[caller] = (self._left(caller) - 1, self._clock())

    def __len__(self) -> int:
        return len(self._buckets)

    def _left(self, caller: str) -> float:
        left, at = self._buckets.get(caller, (float(self._burst), 0.0))
        return min(float(self._burst), left + (self._clock() - at) * self._rate)

    def _sweep(self) -> None:
        if self._clock() - self._swept < self._burst / self._rate:
            return
        self._swept = self._clock()
        self._buckets = {caller: kept for caller, kept in self._buckets.items() if self._left(caller) < self._burst}


class BodyReader:
    """Reads request bodies within bounds.

    Args:
        max_bytes: of one body.
        timeout_s: for one body to arrive.
        max_uploads: bodies on their way together; what is unverified holds no more memory than this many bodies.
    """

    def __init__(self, max_bytes: int, timeout_s: float, max_uploads: int) -> None:
        self._max_bytes, self._timeout_s, self._max_uploads = max_bytes, timeout_s, max_uploads
        self._uploads = 0

    def check(self, content_length: str | None) -> None:
        """Refuse by the headers alone. Raises RequestError 400 or 413, TryLaterError 503."""
        if content_length is not None:
            if not (content_length.isascii() and content_length.isdigit()):
                raise RequestError(400, "Content-Length is not a number.")
            if int(content_length[:20]) > self._max_bytes:
                raise self._too_large(f"{content_length[:20]} bytes")
        if self._uploads >= self._max_uploads:
            raise TryLaterError(503, "Too many requests are being received; try again.", 1)

    async def read(self, stream: AsyncIterator[bytes]) -> bytes:
        """The whole body. Raises RequestError 408 or 413."""
        body = bytearray()
        self._uploads += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                async for chunk in stream:
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large("more")
        except TimeoutError:
            raise RequestError(408, f"The body did not arrive within {self._timeout_s:g} s.") from None
        finally:
            self._uploads -= 1
        return bytes(body)

    def _too_large(self, got: str) -> RequestError:
        return RequestError(413, f"The body is {got}, and this miner reads {self._max_bytes} bytes at most.")
