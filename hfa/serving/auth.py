"""Who asks: a signed request, judged as far as possible on its headers, and only then on its body."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from starlette.requests import Request

from hfa.network.base import Network, Neuron, Wire
from hfa.serving.admission import BodyReader, RateLimiter
from hfa.serving.connection import origin


class Signed(NamedTuple):
    """A request whose sender is proven and may ask."""

    caller: Neuron
    body: bytes


class Gate:
    """Lets a request in, or refuses it as early as it can.

        headers:  401 malformed, stale, another receiver · 403 unknown, no permit, little stake · 429 · 413 · 503
        body:     408 too slow · 413 too large · 401 bad signature, replay · 429

    Args:
        network: knows signatures and callers.
        limiter: counts requests whose sender is proven.
        reader: of bodies.
    """

    def __init__(self, network: Network, limiter: RateLimiter, reader: BodyReader) -> None:
        self._network, self._limiter, self._reader = network, limiter, reader

    async def admit(self, request: Request, wire: Wire | None = None) -> Signed:
        """The proven caller and the raw body. Raises RequestError.

        Args:
            request: as it came.
            wire: how it is signed; left out, by btauth/1.
        """
        wire = wire or self._network
        claimed = wire.screen(request.headers)
        caller = self._network.authorize(claimed)
        self._limiter.check(claimed)
        with self._reader.place(request.headers, origin(request.client)) as upload:
            body = await self._reader.read(request.stream(), upload)
            request.state.body_read = True
            await asyncio.to_thread(wire.verify, request.headers, body, method=request.method, path=_target(request))
        request.state.proven = True
        self._limiter.take(claimed)
        return Signed(caller, body)

    def charge(self, caller: Neuron, requests: int) -> None:
        """Count more than one request for what was admitted as one."""
        self._limiter.charge(caller.hotkey, requests)


def _target(request: Request) -> str:
    """Path and query exactly as received, which is what was signed."""
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")
