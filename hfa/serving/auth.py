"""Who asks: btauth/1, judged as far as possible on the headers, and only then on the body."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from starlette.requests import Request

from hfa.network.base import Network, Neuron
from hfa.serving.admission import BodyReader, RateLimiter


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

    async def admit(self, request: Request) -> Signed:
        """The proven caller and the raw body. Raises RequestError."""
        claimed = self._network.screen(request.headers)
        caller = self._network.authorize(claimed)
        self._limiter.check(claimed)
        self._reader.check(request.headers.get("content-length"))
        body = await self._reader.read(request.stream())
        request.state.body_read = True
        await asyncio.to_thread(
            self._network.verify, request.headers, body, method=request.method, path=_target(request)
        )
        self._limiter.take(claimed)
        return Signed(caller, body)


def _target(request: Request) -> str:
    """Path and query exactly as received, which is what was signed."""
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")
