"""The paths of sessions: conversations that the miner remembers, so that only what is new has to be sent and read::

    POST   /v1/sessions                    begin one; {"model": ...} picks the architecture
    POST   /v1/sessions/{id}/generate      continue it, with the fields of /v1/generate
    GET    /v1/sessions/{id}               how long it is
    POST   /v1/sessions/{id}/snapshot      keep the state of now; the answer's `position` is what to come back to
    POST   /v1/sessions/{id}/rollback      {"to": position}: forget what follows
    POST   /v1/sessions/{id}/fork          {"at": position}: another session with the same past
    GET    /v1/sessions/{id}/export        all of it as safetensors
    POST   /v1/sessions/import?model=...   a session that was exported, here or elsewhere
    DELETE /v1/sessions/{id}

A position counts tokens. A session belongs to the hotkey that began it, and may be dropped when it was unused for long,
those of whoever has most first. A turn that ends before its first token leaves the session as it was, and one that is
given up keeps what was sent of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from hfa.errors import RequestError
from hfa.inference import Engine
from hfa.inference.session import Exported, Session, Sessions
from hfa.serving.auth import Gate
from hfa.serving.metrics import Metrics
from hfa.serving.refusal import HUNG_UP
from hfa.serving.schemas import GenerateBody, parse_as
from hfa.serving.service import Service
from hfa.serving.stream import EventStream, whole

T = TypeVar("T")

_REMEMBERED = 4096  # sessions whose owner is known; an engine holds far fewer
_SIGNED: dict[str, Any] = {"security": [{"btauth": []}]}


class BeginBody(BaseModel):
    """A session to begin."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str | None = Field(None, max_length=64, description="The architecture; left out, the miner's default.")


class ForkBody(BaseModel):
    """Where to part."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    at: int | None = Field(None, ge=0, description="Tokens to share; left out, all.")


class RollBackBody(BaseModel):
    """Where to go back to."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    to: int = Field(ge=0, description="Tokens that stay.")


class SessionStatus(BaseModel):
    """A session as it is."""

    id: str
    model: str
    position: int = Field(description="Tokens in it, the last answer included.")
    ready: int = Field(description="Of those, what is in the state; the others are read with the next request.")


class _Owned(NamedTuple):
    model: str
    name: str  # the engine's
    hotkey: str


class Desk:
    """Which session belongs to whom, and in which engine it is."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._owned: OrderedDict[str, _Owned] = OrderedDict()

    async def begin(self, model: str | None, hotkey: str, make: Callable[[Sessions], Session]) -> SessionStatus:
        """A new session, made by `make` in the engine of `model`."""
        name = model or (self._service.default if self._service.default in self._service.models else None)
        name = name or next(iter(self._service.models), None)
        if name is None or name not in self._service.models:
            served = ", ".join(self._service.models) or "nothing"
            raise RequestError(404 if name else 503, f"model: got {name!r}, and this miner serves {served}.")
        session = await self._service.models[name].engine.session(make)
        identity = f"{name}-{session.name}"
        self._owned[identity] = _Owned(name, session.name, hotkey)
        while len(self._owned) > _REMEMBERED:
            self._owned.popitem(last=False)
        return self.status(identity, session)

    def find(self, identity: str, hotkey: str) -> tuple[_Owned, Engine]:
        """A caller's own session. Raises RequestError 404, for those of others too."""
        owned = self._owned.get(identity)
        if owned is None or owned.hotkey != hotkey:
            raise RequestError(404, f"session: got {identity[:40]!r}, which is not here; it may have been dropped.")
        self._owned.move_to_end(identity)
        return owned, self._service.models[owned.model].engine

    async def do(self, identity: str, hotkey: str, call: Callable[[Sessions, str], T]) -> T:
        """Something with a caller's own session."""
        owned, engine = self.find(identity, hotkey)
        return await engine.session(lambda sessions: call(sessions, owned.name))

    def forget(self, identity: str) -> None:
        self._owned.pop(identity, None)

    def status(self, identity: str, session: Session) -> SessionStatus:
        row = session.row  # read once: the engine's thread may take it
        ready = row.length if row else 0
        model = self._owned[identity].model
        return SessionStatus(id=identity, model=model, position=len(session.tokens), ready=ready)


def router(service: Service, gate: Gate, imports: Gate, metrics: Metrics) -> APIRouter:
    """The routes over what they need; an import comes through a gate of its own, which lets more bytes in."""
    routes = APIRouter(prefix="/v1/sessions", tags=["Sessions"])
    desk = Desk(service)

    @routes.post("", summary="Begin a session", openapi_extra=_body(BeginBody))
    async def begin(request: Request) -> SessionStatus:
        signed = await gate.admit(request)
        body, hotkey = parse_as(BeginBody, signed.body or b"{}"), signed.caller.hotkey
        return await desk.begin(body.model, hotkey, lambda sessions: sessions.create(owner=hotkey))

    @routes.post("/import", summary="Take up a session that was exported", openapi_extra=_SIGNED)
    async def load(request: Request, model: str | None = None) -> SessionStatus:
        signed = await imports.admit(request)
        hotkey = signed.caller.hotkey
        exported = await asyncio.to_thread(Exported.from_bytes, signed.body)
        return await desk.begin(model, hotkey, lambda sessions: sessions.load(exported, hotkey))

    @routes.post("/{identity}/generate", summary="Continue a session", openapi_extra=_body(GenerateBody))
    async def generate(request: Request, identity: str) -> Response:
        """As /v1/generate; the prompt is what follows the session, and `usage` counts what is new."""
        signed = await gate.admit(request)
        body = await asyncio.to_thread(parse_as, GenerateBody, signed.body)
        owned, _ = desk.find(identity, signed.caller.hotkey)
        if body.model not in (None, owned.model):
            raise RequestError(422, f"model: got {body.model!r}, and this session is of {owned.model}.")
        reply = await service.answer(body, signed.caller, session=(owned.model, owned.name))
        if body.stream:
            return EventStream(reply, metrics.refused)
        answer = await whole(reply, request)
        return Response(status_code=HUNG_UP) if answer is None else JSONResponse(answer.model_dump())

    @routes.get("/{identity}", summary="How long a session is", openapi_extra=_SIGNED)
    async def status(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        session = await desk.do(identity, signed.caller.hotkey, lambda sessions, name: sessions.get(name))
        return desk.status(identity, session)

    @routes.post("/{identity}/snapshot", summary="Keep the state of now", openapi_extra=_SIGNED)
    async def snapshot(request: Request, identity: str) -> dict[str, int]:
        signed = await gate.admit(request)
        keep: Callable[[Sessions, str], int] = lambda sessions, name: sessions.snapshot(name)  # noqa: E731
        return {"position": await desk.do(identity, signed.caller.hotkey, keep)}

    @routes.post("/{identity}/rollback", summary="Go back", openapi_extra=_body(RollBackBody))
    async def roll_back(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        to = parse_as(RollBackBody, signed.body).to
        session = await desk.do(identity, signed.caller.hotkey, lambda sessions, name: sessions.roll_back(name, to))
        return desk.status(identity, session)

    @routes.post("/{identity}/fork", summary="Another session with the same past", openapi_extra=_body(ForkBody))
    async def fork(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        at, hotkey = parse_as(ForkBody, signed.body or b"{}").at, signed.caller.hotkey
        owned, _ = desk.find(identity, hotkey)
        return await desk.begin(owned.model, hotkey, lambda sessions: sessions.fork(owned.name, at))

    @routes.get("/{identity}/export", summary="All of a session, as safetensors", openapi_extra=_SIGNED)
    async def export(request: Request, identity: str) -> Response:
        signed = await gate.admit(request)
        exported = await desk.do(identity, signed.caller.hotkey, lambda sessions, name: sessions.export(name))
        data = await asyncio.to_thread(exported.to_bytes)
        return Response(data, media_type="application/octet-stream")

    @routes.delete("/{identity}", summary="Forget a session", status_code=204, openapi_extra=_SIGNED)
    async def delete(request: Request, identity: str) -> Response:
        signed = await gate.admit(request)
        await desk.do(identity, signed.caller.hotkey, lambda sessions, name: sessions.delete(name))
        desk.forget(identity)
        return Response(status_code=204)

    return routes


def _body(schema: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": schema is not BeginBody, "content": content}, **_SIGNED}
