"""The stream between the engine's thread and whoever listens, on whichever event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial

from hfa.inference.request import Event, FinishEvent


class Generation:
    """The events of one request, to be read once::

        async for event in engine.submit(request):
            ...

    The last event is a `FinishEvent`. Leaving the loop early, or being cancelled in it, cancels the request; after
    that no token is handed out any more, and a session keeps those that were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self.num_given = 0  # tokens that were handed out
        self._wake: Callable[[], None] | None = None
        self._cancelled = False
        self._finished = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self, keep: int | None = None) -> None:
        """Ask the engine to stop; it ends the stream before its next step. From any thread, any number of times.

        Args:
            keep: tokens that reached the caller; None for all that were handed out.
        """
        with self._lock:
            self._cancelled = True
            self.num_given = self.num_given if keep is None else min(keep, self.num_given)

    def push(self, event: Event) -> None:
        """Add an event, from any thread."""
        with self._lock:
            self._events.append(event)
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def __aiter__(self) -> AsyncGenerator[Event]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event]:
        """The iterator itself, for those who want to close it at a moment of their own."""
        try:
            while not self._finished:
                event = await self._next()
                self._finished = isinstance(event, FinishEvent)
                yield event
        finally:
            if not self._finished:
                self.cancel()

    async def _next(self) -> Event:
        loop = asyncio.get_running_loop()
        while True:
            arrived = asyncio.Event()
            with self._lock:
                while self._events:
                    event = self._events.popleft()
                    if isinstance(event, FinishEvent):
                        return event
                    if not self._cancelled:
                        self.num_given += 1
                        return event
                self._wake = partial(self._notify, loop, arrived)
            await arrived.wait()

    def _notify(self, loop: asyncio.AbstractEventLoop, arrived: asyncio.Event) -> None:
        try:
            loop.call_soon_threadsafe(arrived.set)
        except RuntimeError:  # the listener's loop is closed: nobody will read this
            self.cancel()
