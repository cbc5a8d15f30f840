"""What a request has to pass before anything is computed for it: a rate per caller, and a size."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from hfa.errors import RequestError

_SMALL = 1 << 16  # bytes of a body that takes no place
_GRACE_S = 0.5  # that a body may be behind before it is slow
_PACE = 1 << 18  # bytes a second that any line has: a body that comes slower is late, however little was announced


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
        self.charge(caller, 1)

    def charge(self, caller: str, requests: int) -> None:
        """Count requests that are let in already, be they more than are left: then the next one waits longer."""
        self._sweep()
        self._buckets[caller] = (self._left(caller) - requests, self._clock())

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


class Upload:
    """A body on its way, and how fast it comes.

    Args:
        address: where it comes from.
        pace: bytes a second with which it would be in time.
    """

    def __init__(self, address: str, pace: float) -> None:
        self.address, self._pace = address, pace
        self.slowest = False  # it had to make room for another
        self._began = time.monotonic()
        self._received = 0
        self._timeout: asyncio.Timeout | None = None  # while it is read

    @property
    def behind_s(self) -> float:
        """Seconds behind its pace; minus infinity for one that is here and waits to be judged."""
        return -math.inf if self._timeout is None else time.monotonic() - self._began - self._received / self._pace

    @contextlib.asynccontextmanager
    async def within(self, timeout_s: float) -> AsyncIterator[None]:
        """Reading it. Raises TimeoutError when that takes longer, or when it is ended."""
        try:
            async with asyncio.timeout(timeout_s) as self._timeout:
                yield
        finally:
            self._timeout = None

    def count(self, received: int) -> None:
        """Some bytes of it have come."""
        self._received += received

    def end(self) -> None:
        """Let another one have its place."""
        assert self._timeout is not None
        self.slowest = True
        with contextlib.suppress(RuntimeError):  # its own time is over at this very moment
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Places:
    """A few places, of which nobody has two: for what takes much memory as long as it takes.

    Args:
        most: places together.
        what: that needs one, for the sentence that says there is none.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most, self._what = most, what
        self._taken: set[str] = set()

    def take(self, caller: str) -> None:
        """Raises TryLaterError (503) when `caller` has one, or there is none."""
        if caller in self._taken:
            raise TryLaterError(503, f"Another {self._what} of yours is under way; wait for its end.", 1)
        if len(self._taken) >= self._most:
            raise TryLaterError(503, f"Others have all places for {self._what}s; try again.", 1)
        self._taken.add(caller)

    def give(self, caller: str) -> None:
        """Give it back."""
        self._taken.discard(caller)


class BodyReader:
    """Reads request bodies within bounds.

    Small ones, as most are, take no place: there are never more of them than connections. Of the others, one ends where
    another waits: one that would not be here in time anyway, so that who sends nothing holds nothing, or else one of
    the address that has most of the places, if that has two more than who waits.

    Args:
        max_bytes: of one body.
        timeout_s: for one body to arrive.
        max_uploads: bodies that are held together before their sender is proven: what is unverified takes no more
            memory than this many.
        max_uploads_per_address: of one address, so that nobody can take all places.
    """

    def __init__(self, max_bytes: int, timeout_s: float, max_uploads: int, max_uploads_per_address: int) -> None:
        self._max_bytes, self._timeout_s = max_bytes, timeout_s
        self._max_uploads, self._max_per_address = max_uploads, max_uploads_per_address
        self._uploads: list[Upload] = []

    @contextlib.contextmanager
    def place(self, headers: Mapping[str, str], address: str) -> Iterator[Upload]:
        """A place for one body, from before it is read until its sender is proven.

        Raises:
            RequestError: 400 or 413 by the headers alone.
            TryLaterError: 503 when there is no place.
        """
        length = self._check_length(headers)
        pace = max(min(self._max_bytes / self._timeout_s, _PACE), (length or self._max_bytes) / self._timeout_s)
        upload = Upload(address, pace)
        if length is None or length > _SMALL:
            self._make_room(address, [one for one in self._uploads if one.address == address], self._max_per_address)
            self._make_room(address, self._uploads, self._max_uploads)
            self._uploads.append(upload)
        try:
            yield upload
        finally:
            if upload in self._uploads:
                self._uploads.remove(upload)

    async def read(self, stream: AsyncIterator[bytes], upload: Upload) -> bytes:
        """The whole body. Raises RequestError 408 or 413, and TryLaterError 503 when another one gets its place."""
        body = bytearray()
        try:
            async with upload.within(self._timeout_s):
                async for chunk in stream:
                    upload.count(len(chunk))
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large("more")
        except TimeoutError:
            if upload.slowest:
                raise TryLaterError(503, "Others wait for the place of this body; send it faster.", 1) from None
            raise RequestError(408, f"The body did not arrive within {self._timeout_s:g} s.") from None
        return bytes(body)

    def _make_room(self, address: str, uploads: Sequence[Upload], limit: int) -> None:
        if len(uploads) < limit:
            return
        held = Counter(one.address for one in uploads)
        most = max(held.values())
        unfair = most > held[address] + 1
        slowest = max((one for one in uploads if not unfair or held[one.address] == most), key=lambda one: one.behind_s)
        if slowest.behind_s <= (-math.inf if unfair else _GRACE_S):
            raise TryLaterError(503, "Too many requests are being received; try again.", 1)
        slowest.end()
        self._uploads.remove(slowest)

    def _check_length(self, headers: Mapping[str, str]) -> int | None:
        length = headers.get("content-length")
        if length is None:
            return None
        if "transfer-encoding" in headers:  # two lengths: what one server reads as the end is a request to another
            raise RequestError(400, "Content-Length and Transfer-Encoding are both given; send one of them.")
        if not (length.isascii() and length.isdigit()):
            raise RequestError(400, "Content-Length is not a number.")
        if (size := int(length[:20])) > self._max_bytes:
            raise self._too_large(f"{length[:20]} bytes")
        return size

    def _too_large(self, got: str) -> RequestError:
        return RequestError(413, f"The body is {got}, and this miner reads {self._max_bytes} bytes at most.")
