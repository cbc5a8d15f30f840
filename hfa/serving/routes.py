"""The path that answers, in this project's own words."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from hfa.serving.auth import Gate
from hfa.serving.metrics import Metrics
from hfa.serving.schemas import Answer, GenerateBody, Refusal, parse
from hfa.serving.service import Service
from hfa.serving.stream import EventStream, answered, whole

_REFUSALS = {
    400: "The body is not JSON.",
    401: "No signature, or not a good one: missing headers, too old, another receiver, tampered with, replayed.",
    403: "The hotkey is not registered, has no validator permit, or too little stake.",
    404: "The model asked for is not served here.",
    408: "The body did not arrive in time.",
    413: "The body, or the prompt with its answer, is too long; the message has both numbers.",
    422: "A field that is unknown or out of range, by name.",
    429: "Too many requests from this hotkey; `Retry-After` says when to come back.",
    500: "The model failed on this request.",
    503: "No model is loaded, or all are busy; `Retry-After` says when to come back.",
    504: "The deadline passed before the first token.",
}


def router(service: Service, gate: Gate, metrics: Metrics) -> APIRouter:
    """The route over what it needs."""
    routes = APIRouter()

    @routes.post(
        "/v1/generate",
        summary="Continue a text",
        response_model=Answer,
        responses=_responses(),
        openapi_extra={"requestBody": _request_body(), "security": [{"btauth": []}]},
    )
    async def generate(request: Request) -> Response:
        """Text in, text out. The answer says which model gave it, why that one, and where the time went.

        With `stream` true the answer comes as `text/event-stream`: events `{"text": ...}`, then one with
        `"done": true` and everything but the text, or one with `"error"`.
        """
        signed = await gate.admit(request)
        body = await asyncio.to_thread(parse, signed.body)
        reply = await service.answer(body, signed.caller)
        if body.stream:
            return EventStream(reply, metrics.refused)
        return answered(await whole(reply, request))

    return routes


def _responses() -> dict[int | str, dict[str, Any]]:
    streamed = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer."}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": text} for status, text in _REFUSALS.items()
    }
    return {200: streamed, **refusals}


def _request_body() -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": GenerateBody.model_json_schema()}}}
