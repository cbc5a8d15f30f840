"""Errors as they go out: small JSON, and a connection that closes without cutting its own answer off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

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
    413: "too_large",
    422: "invalid_request",
    429: "rate_limited",
    500: "model_failed",
    503: "unavailable",
    504: "deadline",
}
HUNG_UP = 499  # for the server's own books: the caller is gone
_MAX_MESSAGE = 200  # characters: a refusal is smaller than what it refuses
_MAX_TO_STRANGERS = 140  # so that, headers included, a stranger gets less than 300 bytes
_TO_STRANGERS = (401, 403, 404, 405, 408, 413, 429, 503)
_LINGER_S = 2.0
_LINGER_BYTES = 32 * 2**20


def problem(status: int, message: str) -> dict[str, dict[str, str]]:
    """The body of an error."""
    longest = _MAX_TO_STRANGERS if status in _TO_STRANGERS else _MAX_MESSAGE
    short = message if len(message) <= longest else message[: longest - 3] + "..."
    return {"error": {"code": code(status), "message": short}}


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


def respond(request: Request, status: int, content: Any, headers: dict[str, str]) -> Response:
    """An error, whether or not the body it is about was read."""
    if getattr(request.state, "body_read", False) or request.method in ("GET", "HEAD"):
        return JSONResponse(content, status, headers)
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return UnreadRefusal(body, status, {**headers, "connection": "close"}, media_type="application/json")


def install(app: FastAPI, count: Callable[[str], None]) -> None:
    """Answer every error of `app` in one shape, telling `count` its code."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        headers = retry_after(error)
        count(code(error.status))
        log.debug("Refused with %d: %s", error.status, error)
        return respond(request, error.status, problem(error.status, str(error)), headers)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        count(code(error.status_code))
        message = f"{request.method} {request.url.path[:80]}: {error.detail}."
        return respond(request, error.status_code, problem(error.status_code, message), dict(error.headers or {}))

    async def left(request: Request, error: Exception) -> Response:
        count("left")
        return Response(status_code=HUNG_UP)

    async def bug(request: Request, error: Exception) -> Response:
        count("internal")
        content = {"error": {"code": "internal", "message": "The miner failed on this request; its log says why."}}
        return JSONResponse(content, 500, {"connection": "close"})  # which is what the server does after a bug

    handlers: dict[int | type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: refuse,
        HTTPException: http_error,
        ClientDisconnect: left,
        Exception: bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
