"""Errors as they go out: small JSON, and a connection that closes without cutting its own answer off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from hfa.errors import RequestError
from hfa.serving.admission import TryLaterError

log = logging.getLogger(__name__)

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    422: "invalid_request",
    429: "rate_limited",
    500: "model_failed",
    503: "unavailable",
    504: "deadline",
}
HUNG_UP = 499  # for the server's own books: the caller is gone
_MOST_BYTES = 299  # of an error; to who is not proven, status line and headers included: nothing is amplified
_LINGER_S = 2.0
_LINGER_BYTES = 32 * 2**20


class Shape(Protocol):
    """What an error looks like on some paths."""

    def __call__(self, status: int, message: str, name: str | None = None) -> dict[str, Any]:
        """The body of an error.

        Args:
            status: of the answer.
            message: the sentence.
            name: for programs; left out, what the status is called.
        """
        ...


def problem(status: int, message: str, name: str | None = None) -> dict[str, Any]:
    """The shape of this project's own paths."""
    return {"error": {"code": name or code(status), "message": message}}


def code(status: int) -> str:
    """The name of an error, for programs."""
    return _CODES.get(status, "error")


def retry_after(error: RequestError) -> dict[str, str]:
    """The header that says when to come back, where there is a time to."""
    if isinstance(error, TryLaterError):
        return {"retry-after": str(error.retry_after_s)}
    return {"retry-after": "5"} if error.status == 503 else {}


class UnreadRefusal(Response):
    """A refusal before the body was read.

    The answer is sent whole, then what the caller is still sending is read away for a moment, then the connection is
    closed. Closing at once would reset it, and the caller might never see the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def linger_before_end(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await _read_away(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await super().__call__(scope, receive, linger_before_end)


async def _read_away(receive: Receive) -> None:
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while read < _LINGER_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def respond(
    request: Request,
    status: int,
    message: str,
    headers: Mapping[str, str],
    shape: Shape = problem,
    name: str | None = None,
) -> Response:
    """An error, whether or not the body it is about was read, with as much of its sentence as there is room for."""
    read = getattr(request.state, "body_read", False) or request.method in ("GET", "HEAD")
    headers = dict(headers) if read else {**headers, "connection": "close"}
    room = _MOST_BYTES if getattr(request.state, "proven", False) else _MOST_BYTES - _head_bytes(status, headers)
    body = _encoded(shape(status, message, name))
    kept = message[:room]  # whose bytes are at least as many
    while len(body) > room and kept:
        kept = kept[:-1]
        body = _encoded(shape(status, f"{kept}...", name))
    return (Response if read else UnreadRefusal)(body, status, headers, media_type="application/json")


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _head_bytes(status: int, headers: Mapping[str, str]) -> int:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "content-type: application/json", "content-length: 999"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return sum(len(line) + len("\r\n") for line in [*lines, ""])


def install(app: FastAPI, count: Callable[[str], None], shape: Callable[[str], Shape] = lambda path: problem) -> None:
    """Answer every error of `app` in the shape of its path, telling `count` its code."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        count(code(error.status))
        log.debug("Refused with %d: %s", error.status, error)
        return respond(request, error.status, str(error), retry_after(error), shape(request.url.path))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        count(code(error.status_code))
        message = f"{request.method[:16]} {request.url.path[:80]}: {error.detail}."
        return respond(request, error.status_code, message, error.headers or {}, shape(request.url.path))

    async def left(request: Request, error: Exception) -> Response:
        count("left")
        return Response(status_code=HUNG_UP)

    async def bug(request: Request, error: Exception) -> Response:
        count("internal")
        sentence = "The miner failed on this request; its log says why."
        content = shape(request.url.path)(500, sentence, "internal")
        return JSONResponse(content, 500, {"connection": "close"})  # which is what the server does after a bug

    handlers: dict[int | type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: refuse,
        HTTPException: http_error,
        ClientDisconnect: left,
        Exception: bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
