"""Callers who hang up at the worst moments: the engine is free again and the record says what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from starlette.requests import Request

from hfa.errors import RequestError
from hfa.network.base import Neuron
from hfa.serving.schemas import GenerateBody
from hfa.serving.service import Service
from hfa.serving.statistics import Statistics
from hfa.serving.stream import EventStream, whole

CALLER = Neuron(0, "5Caller", 1000.0, True, None)
LONG = GenerateBody(prompt="hello", max_tokens=4000)


@pytest.fixture
def service(shared, settings, tmp_path) -> Service:
    """The models of a running miner, with a record of their own."""
    config = settings()
    return Service(
        shared.miner.models,
        default="hfa",
        statistics=Statistics(tmp_path / "own.json"),
        policy=config.selection,
        limits=config.server.limits(),
    )


async def gone() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def idle(service: Service) -> None:
    while service.models["hfa"].engine.load().running:
        await asyncio.sleep(0.005)


def run(scenario: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_gone_before_the_stream_began(service):
    """The response is cancelled before its body was asked for the first time."""

    async def scenario():
        response = EventStream(await service.answer(LONG, CALLER), lambda code: None)

        async def blocked(message):
            await asyncio.Event().wait()

        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, blocked)
        await idle(service)

    run(scenario)
    assert service.statistics.report()["hfa"].cancelled == 1


def test_gone_in_the_middle_of_a_stream(service):
    async def scenario():
        response = EventStream(await service.answer(LONG, CALLER), lambda code: None)
        left, sent = asyncio.Event(), []

        async def receive():
            await left.wait()
            return await gone()

        async def send(message):
            sent.append(message)
            if len(sent) == 3:
                left.set()

        await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
        await idle(service)

    run(scenario)
    report = service.statistics.report()["hfa"]
    assert (report.requests, report.cancelled) == (1, 1)
    assert 0 < report.completion_tokens < 4000


def test_gone_before_a_whole_answer(service):
    async def scenario():
        session = await service.models["hfa"].engine.session(lambda sessions: sessions.create(owner=CALLER.hotkey))
        reply = await service.answer(LONG, CALLER, session=("hfa", session.name))

        async def gone_later():
            while not reply.tokens:
                await asyncio.sleep(0.001)
            return await gone()

        assert await whole(reply, Request({"type": "http"}, gone_later)) is None
        await idle(service)
        assert session.tokens == [], "nothing of it was sent, so it may be asked again"

    run(scenario)
    assert service.statistics.report()["hfa"].cancelled == 1


def test_a_refused_request_leaves_no_trace(service):
    async def scenario():
        with pytest.raises(RequestError):
            await service.answer(GenerateBody(prompt="x", model="gpt"), CALLER)

    run(scenario)
    assert service.statistics.report() == {}


def test_closing_a_finished_reply_changes_nothing(service):
    async def scenario():
        reply = await service.answer(GenerateBody(prompt="hello", max_tokens=3), CALLER)
        pieces = [piece async for piece in reply.pieces()]
        reply.close()
        assert "".join(pieces)
        assert reply.summary.usage.completion_tokens == 3

    run(scenario)
    report = service.statistics.report()["hfa"]
    assert (report.requests, report.succeeded, report.cancelled) == (1, 1, 0)
    assert (report.prompt_tokens, report.completion_tokens) == (5, 3)


def test_a_stop_text_ends_the_work_too(service, monkeypatch):
    model = service.models["hfa"].engine._runner.model
    steps = []
    step = model.step
    monkeypatch.setattr(model, "step", lambda tokens, state: steps.append(1) or step(tokens, state))

    async def scenario():
        first = [
            piece async for piece in (await service.answer(LONG.model_copy(update={"max_tokens": 2}), CALLER)).pieces()
        ]
        reply = await service.answer(LONG.model_copy(update={"stop": ["".join(first)]}), CALLER)
        assert [piece async for piece in reply.pieces()] == []
        assert reply.summary.finish_reason == "stop"
        await idle(service)

    run(scenario)
    assert len(steps) < 1000


def test_a_stop_text_ends_the_session_where_it_ends_the_answer(service):
    """However slow the listener is, the next turn goes on from nothing that the caller was not given."""
    engine = service.models["hfa"].engine
    body = GenerateBody(prompt="Once upon a time", max_tokens=300, temperature=1.0, seed=3)

    async def say(body: GenerateBody):
        session = await engine.session(lambda sessions: sessions.create(owner=CALLER.hotkey))
        reply, pieces = await service.answer(body, CALLER, session=("hfa", session.name)), []
        async for piece in reply.pieces():
            pieces.append(piece)
            time.sleep(0.02)  # the engine would be far ahead
        return session, reply.summary, "".join(pieces)

    async def scenario():
        whole = (await say(body.model_copy(update={"max_tokens": 12})))[2]
        session, summary, cut = await say(body.model_copy(update={"stop": [whole[6:8]]}))
        assert summary.finish_reason == "stop"
        assert cut == whole[: whole.index(whole[6:8])]
        assert len(session.tokens) == summary.context_length < 40
        assert session.row.length == len(session.tokens) - 1, "and it has the state"

    run(scenario)


def test_models_that_share_a_tokenizer_encode_a_prompt_once(service, monkeypatch):
    tokenizer = service.models["hfa"].tokenizer
    encoded = []
    encode = type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, text: encoded.append(text) or encode(self, text))

    async def scenario():
        reply = await service.answer(GenerateBody(prompt="hello", max_tokens=1), CALLER)
        assert [piece async for piece in reply.pieces()]

    run(scenario)
    assert encoded == ["hello"]
