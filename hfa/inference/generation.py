"""The stream between the engine's thread and whoever listens, on whichever event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from hfa.inference.request import Event, FinishEvent

_Listener: TypeAlias = "tuple[Generation, asyncio.Future[None]]"  # who waits for an event; a plain tuple is made fast


class _Held(threading.local):
    """Listeners that a thread wakes later."""

    listeners: list[_Listener] | None = None


_held = _Held()


@contextmanager
def woken_together() -> Iterator[Callable[[], None]]:
    """Wake whoever listens to what this thread pushes at the end, or when what this gives is called, all at once.

    Else each waking would hand Python's lock to the loop, and the engine would wait for it between any two streams.
    """
    _held.listeners = []

    def wake() -> None:
        listeners, _held.listeners = _held.listeners, []
        if listeners:
            _wake(listeners)

    try:
        yield wake
    finally:
        wake()
        _held.listeners = None


def _wake(listeners: list[_Listener]) -> None:
    by_loop = defaultdict(list)
    for listener in listeners:
        by_loop[listener[1].get_loop()].append(listener)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_arrived, waiting)
        except RuntimeError:  # the listeners' loop is closed: nobody will read this
            for generation, _ in waiting:
                generation.cancel()


def _arrived(listeners: list[_Listener]) -> None:
    for _, arrived in listeners:
        if not arrived.done():  # who waited may have been cancelled
            arrived.set_result(None)


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
        self._listener: _Listener | None = None
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
            listener, self._listener = self._listener, None
        if listener is None:
            return
        if _held.listeners is None:
            _wake([listener])
        else:
            _held.listeners.append(listener)

    def __aiter__(self) -> AsyncGenerator[Event]:
        return self.events()

    async def events(self) -> AsyncGenerator[Event]:
        """The iterator itself, for those who want to close it at a moment of their own."""
        try:
            while not self._finished:
                event = await self.next()
                yield event
        finally:
            if not self._finished:
                self.cancel()

    async def next(self) -> Event:
        """The next event, for those who cancel by themselves when they stop asking before the last one.

        Raises:
            RuntimeError: the last one was handed out.
        """
        if self._finished:
            raise RuntimeError("a generation is read once, up to its FinishEvent")
        while True:
            with self._lock:
                while self._events:
                    event = self._events.popleft()
                    if type(event) is FinishEvent:
                        self._finished = True
                        return event
                    if not self._cancelled:
                        self.num_given += 1
                        return event
                arrived = asyncio.get_running_loop().create_future()
                self._listener = self, arrived
            await arrived
