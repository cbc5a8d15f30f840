"""Connections that do not have to be trusted: a request's head arrives in time, an answer is taken away in time."""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import logging
import math
import struct
import termios
from collections import Counter
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

_WARN_EVERY_S = 60.0
_GOODBYE_S = 1.0  # for a peer that has all it asked for to end TLS; many do so only when they next ask something
_LEAST_TAKEN = 1 << 16  # bytes of an answer that a reader takes within the time for it; as much as may be buffered


def bounded(
    *, head_timeout_s: float, write_timeout_s: float, max_connections: int, max_per_address: int
) -> type[BoundedProtocol]:
    """The protocol with its bounds.

    Args:
        head_timeout_s: for a request line and its headers to arrive, and for what is left of a refused body.
        write_timeout_s: for the next 64 KiB of an answer to be taken.
        max_connections: that are open together; one more takes the place of one whose sender is not proven, of the
            address that has most of those the one that has been so for longest; or has none.
        max_per_address: of one address.
    """
    bounds = {
        "head_timeout_s": head_timeout_s,
        "write_timeout_s": write_timeout_s,
        "max_connections": max_connections,
        "max_per_address": max_per_address,
    }
    return type("Bounded", (BoundedProtocol,), bounds)


def origin(client: tuple[str, int] | None) -> str:
    """Who is at the other end, as far as an address says so: of IPv6 the /64, all of which one machine may have."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return client[0]
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


class _Connection(h11.Connection):
    """Frames the pieces of a chunked answer itself: they change no state of h11's, and there are many of them."""

    _chunked = False

    def send(self, event: Any) -> Any:
        if type(event) is h11.Data and self._chunked and self.our_state is h11.SEND_BODY:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data) if event.data else b""
        sent = super().send(event)
        if type(event) is h11.Response:
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in sent.lower()
        return sent


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which alone waits for a head, and for a reader, as long as they please."""

    head_timeout_s: ClassVar[float]
    write_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    max_per_address: ClassVar[int]
    _warned_at: ClassVar[float] = -math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER)  # and with h11's own limit of a head, as uvicorn's
        self._origin = ""
        self._since = self.loop.time()  # when it was opened, or its last answer ended
        self._head_timer: asyncio.TimerHandle | None = None  # while it asks nothing
        self._write_timer: asyncio.TimerHandle | None = None
        self._goodbye_timer: asyncio.TimerHandle | None = None

    @property
    def is_proven(self) -> bool:
        """Whether it is answering somebody whose signature was seen to be right."""
        if self.cycle is None or (self.cycle.response_complete and not self.flow.write_paused):
            return False
        return bool(self.cycle.scope["state"].get("proven"))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._origin = origin(self.client)
        alike = (other for other in self.connections if isinstance(other, BoundedProtocol))
        there = [other for other in alike if not other.transport.is_closing()]
        if sum(other._origin == self._origin for other in there) > self.max_per_address:
            transport.abort()
            return
        if len(there) > self.max_connections:
            self._warn()
            unproven = [other for other in there if other is not self and not other.is_proven]
            held = Counter(other._origin for other in unproven)
            displaced = min(unproven, key=lambda one: (-held[one._origin], one._since), default=self)
            displaced.transport.abort()
            if displaced is self:
                return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer, self._goodbye_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # of a request that turns out to be none
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer is on its way already, or was
            self.transport.close()

    def shutdown(self) -> None:
        """Close what asks nothing; the rest closes after its answer. A loop would wait for TLS to end half a minute."""
        super().shutdown()
        if self.transport.is_closing():
            self._watch_goodbye()

    def _watch_goodbye(self) -> None:
        def look() -> None:
            if self._is_taken():
                self.transport.abort()
            else:
                self._watch_goodbye()

        self._goodbye_timer = self.loop.call_later(_GOODBYE_S, look)

    def _is_taken(self) -> bool:
        """Whether the peer's machine has all that was written; what is below TLS only the kernel tells."""
        if self.transport.get_write_buffer_size():
            return False
        queue = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return struct.unpack("i", queue) == (0,)

    def _watch_reader(self, left: int) -> None:
        """Close a connection that has taken too little of the `left` bytes when it is looked at again."""

        def look() -> None:
            now = self.transport.get_write_buffer_size()
            if now > left - _LEAST_TAKEN:
                self.transport.abort()
            else:
                self._watch_reader(now)

        self._write_timer = self.loop.call_later(self.write_timeout_s, look)

    def _warn(self) -> None:
        if self.loop.time() - BoundedProtocol._warned_at > _WARN_EVERY_S:
            BoundedProtocol._warned_at = self.loop.time()
            log.warning("More than %d connections: some of unproven senders are closed", self.max_connections)

    def _watch_head(self) -> None:
        """Run the clock while nothing is being answered, nor taken away."""
        if self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete):
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif self._head_timer is None:
            answered = self.cycle is not None  # and may be idle for longer than a head may take
            seconds = max(self.head_timeout_s, self.timeout_keep_alive) if answered else self.head_timeout_s
            self._head_timer = self.loop.call_later(seconds, self.transport.abort)
