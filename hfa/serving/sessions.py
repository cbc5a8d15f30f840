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
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from hfa.errors import RequestError
from hfa.inference.session import Exported, Session, Sessions
from hfa.serving.admission import Places
from hfa.serving.auth import Gate
from hfa.serving.metrics import Metrics
from hfa.serving.schemas import GenerateBody, Sent, parse_as
from hfa.serving.service import Service
from hfa.serving.stream import Download, EventStream, answered, whole

T = TypeVar("T")

_SIGNED: dict[str, Any] = {"security": [{"btauth": []}]}


class BeginBody(Sent):
    """A session to begin."""

    model_config = ConfigDict(strict=True)

    model: str | None = Field(None, max_length=64, description="The architecture; left out, the miner's default.")


class ForkBody(Sent):
    """Where to part."""

    model_config = ConfigDict(strict=True)

    at: int | None = Field(None, ge=0, description="Tokens to share; left out, all.")


class RollBackBody(Sent):
    """Where to go back to."""

    model_config = ConfigDict(strict=True)

    to: int = Field(ge=0, description="Tokens that stay.")


class SessionStatus(BaseModel):
    """A session as it is."""

    id: str
    model: str
    position: int = Field(description="Tokens in it, the last answer included.")
    ready: int = Field(description="Of those, what is in the state; the others are read with the next request.")


class Desk:
    """Which engine a session is in: its public name begins with the architecture's."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def begin(self, model: str | None, make: Callable[[Sessions], Session]) -> SessionStatus:
        """A new session, made by `make` in the engine of `model`."""
        name = model or (self._service.default if self._service.default in self._service.models else None)
        name = name or next(iter(self._service.models), None)
        if name is None or name not in self._service.models:
            served = ", ".join(self._service.models) or "nothing"
            raise RequestError(404 if name else 503, f"model: got {name!r}, and this miner serves {served}.")
        session = await self._service.models[name].engine.session(make)
        return _status(name, session)

    def find(self, identity: str) -> tuple[str, str]:
        """The architecture and the name in its engine. Raises RequestError 404."""
        for model in self._service.models:
            if identity.startswith(f"{model}-"):
                return model, identity.removeprefix(f"{model}-")
        raise RequestError(404, f"session: got {identity[:40]!r}, which is not here; it may have been dropped.")

    async def do(self, identity: str, hotkey: str, call: Callable[[Sessions, Session], T]) -> T:
        """Something with a caller's own session. Raises RequestError 404 for those of others too."""
        model, name = self.find(identity)
        return await self._service.models[model].engine.session(lambda all_: call(all_, all_.get(name, hotkey)))


def router(
    service: Service, gate: Gate, imports: Gate, loading: Places, exports: Places, metrics: Metrics
) -> APIRouter:
    """The routes over what they need; an import comes through a gate of its own, which lets more bytes in."""
    routes = APIRouter(prefix="/v1/sessions", tags=["Sessions"])
    desk = Desk(service)

    @routes.post("", summary="Begin a session", openapi_extra=_body(BeginBody))
    async def begin(request: Request) -> SessionStatus:
        signed = await gate.admit(request)
        body = await asyncio.to_thread(parse_as, BeginBody, signed.body or b"{}")
        return await desk.begin(body.model, lambda sessions: sessions.create(owner=signed.caller.hotkey))

    @routes.post("/import", summary="Take up a session that was exported", openapi_extra=_SIGNED)
    async def load(request: Request, model: str | None = None) -> SessionStatus:
        signed = await imports.admit(request)
        hotkey = signed.caller.hotkey
        loading.take(hotkey)
        try:
            exported = await asyncio.to_thread(Exported.from_bytes, signed.body)
            del signed  # the tensors are copies
            return await desk.begin(model, lambda sessions: sessions.load(exported, hotkey))
        finally:
            loading.give(hotkey)

    @routes.post("/{identity}/generate", summary="Continue a session", openapi_extra=_body(GenerateBody))
    async def generate(request: Request, identity: str) -> Response:
        """As /v1/generate; the prompt is what follows the session, and `usage` counts what is new."""
        signed = await gate.admit(request)
        body = await asyncio.to_thread(parse_as, GenerateBody, signed.body)
        model, name = desk.find(identity)
        if body.model not in (None, model):
            raise RequestError(422, f"model: got {body.model!r}, and this session is of {model}.")
        reply = await service.answer(body, signed.caller, session=(model, name))
        if body.stream:
            return EventStream(reply, metrics.refused)
        return answered(await whole(reply, request))

    @routes.get("/{identity}", summary="How long a session is", openapi_extra=_SIGNED)
    async def status(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        model, _ = desk.find(identity)
        return await desk.do(identity, signed.caller.hotkey, lambda sessions, session: _status(model, session))

    @routes.post("/{identity}/snapshot", summary="Keep the state of now", openapi_extra=_SIGNED)
    async def snapshot(request: Request, identity: str) -> dict[str, int]:
        signed = await gate.admit(request)
        position = await desk.do(
            identity, signed.caller.hotkey, lambda sessions, session: sessions.snapshot(session.name)
        )
        return {"position": position}

    @routes.post("/{identity}/rollback", summary="Go back", openapi_extra=_body(RollBackBody))
    async def roll_back(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        to, (model, _) = (await asyncio.to_thread(parse_as, RollBackBody, signed.body)).to, desk.find(identity)
        return await desk.do(
            identity,
            signed.caller.hotkey,
            lambda sessions, session: _status(model, sessions.roll_back(session.name, to)),
        )

    @routes.post("/{identity}/fork", summary="Another session with the same past", openapi_extra=_body(ForkBody))
    async def fork(request: Request, identity: str) -> SessionStatus:
        signed = await gate.admit(request)
        at, (model, _) = (await asyncio.to_thread(parse_as, ForkBody, signed.body or b"{}")).at, desk.find(identity)
        return await desk.do(
            identity, signed.caller.hotkey, lambda sessions, session: _status(model, sessions.fork(session.name, at))
        )

    @routes.get("/{identity}/export", summary="All of a session, as safetensors", openapi_extra=_SIGNED)
    async def export(request: Request, identity: str) -> Response:
        hotkey = (await gate.admit(request)).caller.hotkey
        exports.take(hotkey)
        try:
            exported = await desk.do(identity, hotkey, lambda sessions, session: sessions.export(session.name))
            data = await asyncio.to_thread(exported.to_bytes)
        except BaseException:
            exports.give(hotkey)
            raise
        return Download(data, lambda: exports.give(hotkey))

    @routes.delete("/{identity}", summary="Forget a session", status_code=204, openapi_extra=_SIGNED)
    async def delete(request: Request, identity: str) -> Response:
        signed = await gate.admit(request)
        await desk.do(identity, signed.caller.hotkey, lambda sessions, session: sessions.delete(session.name))
        return Response(status_code=204)

    return routes


def _status(model: str, session: Session) -> SessionStatus:
    row = session.row  # read once: the engine's thread may take it
    ready = row.length if row else 0
    return SessionStatus(id=f"{model}-{session.name}", model=model, position=len(session.tokens), ready=ready)


def _body(schema: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema.model_json_schema()}}
    return {"requestBody": {"required": schema is not BeginBody, "content": content}, **_SIGNED}
