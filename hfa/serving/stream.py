"""Answers on the wire: whole, or as server-sent events; either way a caller who hangs up ends the work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hfa.errors import RequestError
from hfa.serving.refusal import HUNG_UP, problem
from hfa.serving.reply import Reply
from hfa.serving.schemas import Answer, Done

T = TypeVar("T")

_PIECE = 1 << 20  # bytes of a download that are handed over together


class EventStream(StreamingResponse):
    """The reply as server-sent events, one JSON object in each::

        data: {"text":"..."}                        any number of times
        data: {"model":"hfa",...,"done":true}       the last, or
        data: {"error":{...}}                       if the model failed on the way

    Args:
        reply: the answer; its first piece is not there yet.
        count: is told the code of an error.
        headers: besides those of any stream.
    """

    def __init__(self, reply: Reply, count: Callable[[str], None], headers: Mapping[str, str] | None = None) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})}
        # nothing to iterate over: `stream_response` sends the pieces itself; each layer between is paid for every token
        super().__init__((), media_type="text/event-stream", headers=headers)
        self._reply, self._count = reply, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.close()

    async def stream_response(self, send: Send) -> None:
        """Send it all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._reply.pieces()) as pieces:
                async for piece in pieces:
                    body = _event({"text": piece})
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            last = _event(Done(**await _all(self._reply)))
        except RequestError as error:
            content = problem(error.status, str(error))
            self._count(content["error"]["code"])
            last = _event(content)
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Download(StreamingResponse):
    """Many bytes in pieces that a slow reader takes one by one, and no second copy of them all.

    Args:
        data: the body.
        done: called when it is sent, or nobody is there any more to take it.
    """

    def __init__(self, data: bytes, done: Callable[[], None]) -> None:
        super().__init__((), media_type="application/octet-stream", headers={"content-length": str(len(data))})
        self._data, self._done = data, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()

    async def stream_response(self, send: Send) -> None:
        """Send it all."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, len(self._data), _PIECE):
            await send({"type": "http.response.body", "body": self._data[start : start + _PIECE], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(content: BaseModel | dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % to_json(content)


async def whole(reply: Reply, request: Request) -> Answer | None:
    """The reply in one piece, or None when the caller hangs up before it is there."""
    return await unless_hung_up(request, _collect(reply), [reply])


async def unless_hung_up(request: Request, work: Awaitable[T], replies: Sequence[Reply]) -> T | None:
    """What `work` makes of `replies`; None, and nothing of them kept, when the caller hangs up before it is there."""
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        if not working.done():
            for reply in replies:
                reply.close(keep=0)
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
        for reply in replies:
            reply.close()


async def _collect(reply: Reply) -> Answer:
    text = "".join([piece async for piece in reply.pieces()])
    return Answer(text=text, **await _all(reply))


async def _all(reply: Reply) -> dict[str, Any]:
    """What there is to say of a reply that has ended."""
    assert reply.summary is not None
    return {**reply.summary.model_dump(), "logprobs": await reply.logprobs()}


def answered(answer: Answer | None) -> Response:
    """The answer as a response, or that nobody is there to get it."""
    if answer is None:
        return Response(status_code=HUNG_UP)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _hang_up(request: Request) -> None:
    """Return when the caller is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
