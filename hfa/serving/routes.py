"""The paths of the API."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from hfa.errors import RequestError
from hfa.network.base import Network
from hfa.serving.auth import Gate
from hfa.serving.metrics import CONTENT_TYPE, Metrics
from hfa.serving.refusal import HUNG_UP
from hfa.serving.schemas import Answer, GenerateBody, Health, Refusal, StatisticsBody, parse
from hfa.serving.service import Service
from hfa.serving.stream import EventStream, whole

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


def router(service: Service, gate: Gate, network: Network, metrics: Metrics) -> APIRouter:
    """The routes over what they need."""
    routes = APIRouter()
    started = time.monotonic()

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
        answer = await whole(reply, request)
        return Response(status_code=HUNG_UP) if answer is None else JSONResponse(answer.model_dump())

    @routes.get("/health", summary="What is running here")
    async def health() -> Health:
        """Answers as long as the process lives, models or not."""
        age_s = network.last_sync_age_s
        return Health(
            status="ok" if service.models else "no models",
            default=service.default,
            models={name: model.status() for name, model in service.models.items()},
            network=network.name,
            netuid=network.netuid,
            hotkey=network.hotkey,
            metagraph_age_s=age_s if math.isfinite(age_s) else None,
            uptime_s=time.monotonic() - started,
        )

    @routes.get(
        "/ready", summary="Whether requests can be answered", responses={503: {"model": Refusal}}, status_code=204
    )
    async def ready() -> Response:
        """204 when a model would take a request now, 503 with the reason when none would."""
        if not service.models:
            raise RequestError(503, "No model is loaded.")
        if not any(model.engine.load().room for model in service.models.values()):
            raise RequestError(503, "All places in the queues are taken, or the miner is shutting down.")
        return Response(status_code=204)

    @routes.get("/statistics", summary="The track record of each architecture")
    async def statistics() -> StatisticsBody:
        """Counts, times and tokens since the statistics file was begun, restarts included."""
        return StatisticsBody(architectures=service.statistics.report())

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        """The same numbers, and the load of the moment, in the text format of Prometheus."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return routes


def _responses() -> dict[int | str, dict[str, Any]]:
    streamed = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The answer."}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": text} for status, text in _REFUSALS.items()
    }
    return {200: streamed, **refusals}


def _request_body() -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": GenerateBody.model_json_schema()}}}
