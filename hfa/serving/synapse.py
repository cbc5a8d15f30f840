"""The path that validators on Bittensor v9 and v10 ask by: `POST /InfiniteContextSynapse`, as their Dendrite sends it.

The answer is the synapse as it came, with what the miner has to say filled in. A miner does not grade itself: every
field for a score goes back as null, whatever was in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from hfa.errors import RequestError
from hfa.network.base import Neuron, Wire
from hfa.serving.auth import Gate
from hfa.serving.metrics import Metrics
from hfa.serving.refusal import HUNG_UP, code, respond, retry_after
from hfa.serving.schemas import Answer, GenerateBody
from hfa.serving.service import Service
from hfa.serving.stream import EventStream, whole

NAME = "InfiniteContextSynapse"
_GRADES = ("bertscore", "retrieval_precision", "retrieval_recall", "per_item_scores", "evaluation_breakdown")
_ECHOED = ("name", "timeout", "computed_body_hash")
_STATUS, _MESSAGE, _TIME = (f"bt_header_axon_{name}" for name in ("status_code", "status_message", "process_time"))


class Synapse(BaseModel):
    """The fields of the synapse that ask for something; the others are sent back as they came."""

    model_config = ConfigDict(extra="allow", frozen=True)

    context: str
    prompt: str
    max_tokens: int = Field(100, ge=1)
    timeout: float = Field(12.0, gt=0, allow_inf_nan=False)
    architecture_preference: str | None = None
    stream: bool = False

    @classmethod
    def read(cls, body: bytes) -> Synapse:
        """The synapse in a raw body. Raises RequestError 400."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:64]
        raise RequestError(400, f"{where or 'body'}: {first['msg']}; send an {NAME} as JSON.")

    def asked(self, served: Mapping[str, object], streamed: bool) -> GenerateBody:
        """The same in our own terms: the context, right before the prompt; a preference we cannot meet is none."""
        prompt = self.context + self.prompt
        if not prompt:
            raise RequestError(400, "context and prompt: both are empty; send some text.")
        wish = self.architecture_preference if self.architecture_preference in served else None
        asked = {"prompt": prompt, "max_tokens": self.max_tokens, "model": wish, "deadline_s": self.timeout}
        return GenerateBody.model_validate(asked | {"stream": self.stream or streamed})

    def answered(self, answer: Answer, state_bytes: int) -> dict[str, Any]:
        """The synapse that goes back."""
        own = {name: None if _is_grade(name) else value for name, value in self.model_dump().items()}
        return own | {
            "response": answer.text,
            "processing_time": answer.timings.total_s,
            "context_length": answer.context_length,
            "tokens_per_second": answer.timings.tokens_per_s,
            "memory_usage_mb": state_bytes / 2**20,
            "checkpoint_count": None,
            "architecture_type": answer.model,
            "model_info": {
                "reason": answer.reason,
                "finish_reason": answer.finish_reason,
                **answer.usage.model_dump(),
            },
        }


def router(service: Service, gate: Gate, wire: Wire, metrics: Metrics) -> APIRouter:
    """The two paths, one of which always streams."""
    routes = APIRouter()

    async def answer(request: Request, streamed: bool) -> Response:
        try:
            signed = await gate.admit(request, wire)
            return await _answer(request, signed.caller, await asyncio.to_thread(Synapse.read, signed.body), streamed)
        except RequestError as error:
            metrics.refused(code(error.status))
            headers = {_STATUS: str(error.status)}  # the sentence may hold what a header cannot
            return respond(request, error.status, str(error), headers | retry_after(error), _problem)

    async def _answer(request: Request, caller: Neuron, synapse: Synapse, streamed: bool) -> Response:
        began = time.monotonic()
        asked = synapse.asked(service.models, streamed)
        reply = await service.answer(asked, caller)
        headers = {name: request.headers[name] for name in _ECHOED if name in request.headers}
        headers |= {_STATUS: "200", _MESSAGE: "Success"}
        if asked.stream:
            return EventStream(reply, metrics.refused, headers)
        given = await whole(reply, request)
        if given is None:
            return Response(status_code=HUNG_UP)
        headers[_TIME] = f"{time.monotonic() - began:.6f}"
        state_bytes = service.models[given.model].engine.state_bytes(given.context_length)
        # what came may hold NaN, which JSON has not; a null says the same
        content = to_json(synapse.answered(given, state_bytes), inf_nan_mode="null")
        return Response(content, headers=headers, media_type="application/json")

    body = {"required": True, "content": {"application/json": {"schema": Synapse.model_json_schema()}}}
    extra = {"requestBody": body, "security": [{"dendrite": []}]}
    statuses: dict[int | str, dict[str, Any]] = {status: {} for status in (400, 401, 403, 408, 413, 429, 500, 503, 504)}

    @routes.post(f"/{NAME}", summary="Answer a validator of v9 or v10", responses=statuses, openapi_extra=extra)
    async def synapse(request: Request) -> Response:
        """The synapse goes back with the answer in it; with `stream` true, as server-sent events."""
        return await answer(request, streamed=False)

    @routes.post(f"/Streaming{NAME}", summary="The same, streamed", responses=statuses, openapi_extra=extra)
    async def streaming_synapse(request: Request) -> Response:
        """Server-sent events as `/v1/generate` gives them."""
        return await answer(request, streamed=True)

    return routes


def _is_grade(name: str) -> bool:
    return name.endswith("_score") or name in _GRADES


def _problem(status: int, message: str, name: str | None = None) -> dict[str, Any]:
    return {"message": message}
