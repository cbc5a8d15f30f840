"""The paths of OpenAI's API that people's tools expect, for the official client as it is::

    http = httpx.Client(auth=BittensorAuth(signer, receiver))            # of hfa.network.client
    client = OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http)

Every request is signed, as everywhere here; the key is not looked at.
"""

from __future__ import annotations

import asyncio
import codecs
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from hfa.errors import RequestError
from hfa.inference import Sampling, TokenEvent
from hfa.network.base import Neuron
from hfa.serving import refusal
from hfa.serving.auth import Gate
from hfa.serving.logprobs import Decode, Likelihood, likelihoods
from hfa.serving.metrics import Metrics
from hfa.serving.openai_schemas import ChatBody, CompletionBody, Message
from hfa.serving.refusal import HUNG_UP, Shape
from hfa.serving.reply import Reply
from hfa.serving.schemas import Summary, parse_as
from hfa.serving.service import Order, Service, draw_seed
from hfa.serving.stream import unless_hung_up

_MOST_TOLD = 100_000  # tokens of one request, with their alternatives: a dictionary each
_AUTO = "auto"  # the model's name that leaves the choice to the miner
_FINISH = {"stop": "stop", "length": "length", "deadline": "length", "shutdown": "length"}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}  # types of errors, by status
_PATHS = ("/v1/models", "/v1/completions", "/v1/chat/")
_TURNS = ("\nsystem:", "\ndeveloper:", "\nuser:", "\nassistant:")  # where an answer of a chat ends


B = TypeVar("B", CompletionBody, ChatBody)
Tell = Callable[[Sequence[TokenEvent]], dict[str, Any]]  # the next tokens of an answer, as their log-probabilities


class Task(NamedTuple):
    """A request of either kind, on its way."""

    kind: Kind
    replies: list[Reply]  # one a choice, those of a prompt together
    num_choices: int  # of each prompt
    include_usage: bool


class Kind(NamedTuple):
    """In what the two kinds of answer differ."""

    prefix: str
    whole: str  # object of an answer
    piece: str  # object of an event
    content: Callable[[str, bool], dict[str, Any]]  # text, and whether it is a piece of an answer
    logprobs: Callable[[Decode], Tell]  # made anew for each answer


def router(service: Service, gate: Gate, metrics: Metrics) -> APIRouter:
    """The routes over what they need."""
    routes = APIRouter(tags=["OpenAI"])
    started = int(time.time())

    @routes.get("/v1/models", summary="The models served here")
    async def models() -> dict[str, Any]:
        """In the shape of OpenAI's; `auto` as a model's name lets the miner pick."""
        return {"object": "list", "data": [_card(name, started) for name in service.models]}

    @routes.get("/v1/models/{name}", summary="One model")
    async def model(name: str) -> Response:
        if name not in service.models:
            raise RequestError(404, f"model: got {name[:40]!r}, which is not served here.")
        return JSONResponse(_card(name, started))

    @routes.post(
        "/v1/completions", summary="Continue a text, as OpenAI's API has it", openapi_extra=_schema(CompletionBody)
    )
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionBody, _start_completion)

    @routes.post("/v1/chat/completions", summary="Answer in a conversation", openapi_extra=_schema(ChatBody))
    async def chat(request: Request) -> Response:
        """The models have learnt to continue texts; the conversation becomes one, a line `role: content` a turn, and
        the answer ends where the next turn would begin."""
        return await answer(request, ChatBody, _start_chat)

    async def answer(request: Request, schema: type[B], start: Callable[[Service, B, Neuron], Task]) -> Response:
        """What `start` begins, whole or as a stream; errors in the shape of OpenAI's."""
        signed = await gate.admit(request)
        try:
            body = await asyncio.to_thread(parse_as, schema, signed.body)
            gate.charge(signed.caller, body.num_choices - 1)  # one is counted
            task = await asyncio.to_thread(start, service, body, signed.caller)
            if body.stream:
                return _Stream(task, metrics.refused)
            texts = await unless_hung_up(request, asyncio.gather(*map(_collect, task.replies)), task.replies)
            return Response(status_code=HUNG_UP) if texts is None else await asyncio.to_thread(_whole, task, texts)
        except RequestError as error:
            status = 400 if error.status in (413, 422) else error.status  # as OpenAI has it
            name = "context_length_exceeded" if error.status == 413 else refusal.code(error.status)
            metrics.refused(refusal.code(error.status))
            return refusal.respond(request, status, str(error), refusal.retry_after(error), _problem, name)

    return routes


def as_text(messages: Sequence[Message]) -> str:
    """The text that a conversation is continued as: ``user: ...``, a line a turn, and ``assistant:`` at the end."""
    return "".join(f"{message.role}: {message.text}\n" for message in messages) + "assistant:"


def _start_completion(service: Service, body: CompletionBody, caller: Neuron) -> Task:
    replies = _start(service, body, body.prompts, body.max_tokens, body.logprobs, body.stops, caller)
    return _task(_COMPLETION, body, replies)


def _start_chat(service: Service, body: ChatBody, caller: Neuron) -> Task:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    replies = _start(service, body, [as_text(body.messages)], most, logprobs, [*body.stops, *_TURNS], caller)
    return _task(_CHAT, body, replies)


def _start(
    service: Service,
    body: CompletionBody | ChatBody,
    prompts: Sequence[str | list[int]],
    max_tokens: int | None,
    logprobs: int | None,
    stop: list[str],
    caller: Neuron,
) -> list[Reply]:
    """One reply for each choice of each prompt, all from one model, or none at all."""
    wish, most = None if body.model == _AUTO else body.model, service.max_tokens(max_tokens)
    told = 0 if logprobs is None else body.num_choices * most * (1 + logprobs)
    if told > _MOST_TOLD:
        raise RequestError(
            422,
            f"logprobs: got {body.num_choices} answers of {most} tokens with {logprobs} alternatives each, and this "
            f"miner tells of {_MOST_TOLD} tokens at most; lower max_tokens, n or logprobs.",
        )
    seed = draw_seed() if body.seed is None else body.seed
    sampling = Sampling(
        seed=seed,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=body.top_p or 1.0,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
    )
    order = Order(most, sampling, stop, wish, body.deadline_s, logprobs)
    orders = [
        order._replace(sampling=dataclasses.replace(sampling, seed=(seed + number) % 2**63))
        for number in range(body.n or 1)
    ]
    return service.start_together([(prompt, each) for prompt in prompts for each in orders], caller)


def _task(kind: Kind, body: CompletionBody | ChatBody, replies: list[Reply]) -> Task:
    usage = body.stream_options is not None and body.stream_options.include_usage
    return Task(kind, replies, body.n or 1, usage)


async def _collect(reply: Reply) -> str:
    return "".join([piece async for piece in reply.pieces()])


def _whole(task: Task, texts: Sequence[str]) -> Response:
    """The answer in one piece; with many log-probabilities it takes a while to write."""
    choices = []
    for index, (reply, text) in enumerate(zip(task.replies, texts, strict=True)):
        told = task.kind.logprobs(reply.decode)(reply.tokens) if reply.has_logprobs else None
        choices.append(
            {
                "index": index,
                "finish_reason": _finish_reason(reply),
                "logprobs": told,
                **task.kind.content(text, False),
            }
        )
    return JSONResponse({**_head(task, task.kind.whole), "choices": choices, "usage": _usage(task)})


class _Stream(StreamingResponse):
    """The answer as server-sent events, ended by ``data: [DONE]``."""

    def __init__(self, task: Task, count: Callable[[str], None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(_events(task, count), media_type="text/event-stream", headers=headers)
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for reply in self._task.replies:
                reply.close()


async def _events(task: Task, count: Callable[[str], None]) -> AsyncGenerator[str]:
    head = _head(task, task.kind.piece)
    queue: asyncio.Queue[tuple[int, str | None, Exception | None]] = asyncio.Queue()
    readers = [asyncio.create_task(_read(index, reply, queue)) for index, reply in enumerate(task.replies)]
    told = [0] * len(readers)
    tell = [task.kind.logprobs(reply.decode) for reply in task.replies]
    left = len(readers)
    try:
        for index in range(left if task.kind is _CHAT else 0):  # who speaks is said once
            yield _line({**head, "choices": [{"index": index, "finish_reason": None, "delta": _message("")}]})
        while left:
            index, piece, error = await queue.get()
            if error is not None:
                raise error
            reply, finish = task.replies[index], None
            fresh = reply.tokens[told[index] :]
            told[index] = len(reply.tokens)
            if piece is None:
                left -= 1
                finish = _finish_reason(reply)
            logprobs = tell[index](fresh) if reply.has_logprobs else None
            content = task.kind.content(piece or "", True)
            choice = {"index": index, "finish_reason": finish, "logprobs": logprobs, **content}
            yield _line({**head, "choices": [choice]})
        if task.include_usage:
            yield _line({**head, "choices": [], "usage": _usage(task)})
        yield "data: [DONE]\n\n"
    except RequestError as error:
        count(refusal.code(error.status))
        yield _line(_problem(error.status, str(error)))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(index: int, reply: Reply, queue: asyncio.Queue[tuple[int, str | None, Exception | None]]) -> None:
    try:
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                queue.put_nowait((index, piece, None))
        queue.put_nowait((index, None, None))
    except Exception as error:  # for who reads the queue, which would wait for ever
        queue.put_nowait((index, None, error))


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _head(task: Task, kind: str) -> dict[str, Any]:
    name = f"{task.kind.prefix}-{secrets.token_hex(12)}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": task.replies[0].model}


def _usage(task: Task) -> dict[str, Any]:
    """A prompt counts once, however many choices it has."""
    read = [_summary(reply).usage for reply in task.replies[:: task.num_choices]]
    prompt = sum(usage.prompt_tokens for usage in read)
    completion = sum(_summary(reply).usage.completion_tokens for reply in task.replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in read)},
    }


def _finish_reason(reply: Reply) -> str:
    return _FINISH[_summary(reply).finish_reason]


def _summary(reply: Reply) -> Summary:
    assert reply.summary is not None  # its pieces have all come
    return reply.summary


def _completion_logprobs(decode: Decode) -> Tell:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at = 0  # characters of the answer so far

    def tell(events: Sequence[TokenEvent]) -> dict[str, Any]:
        nonlocal at
        offsets = []
        for event in events:
            data = decode([event.token])
            first = decoder.decode(data[:1])  # a byte that goes on with a character is where that begins
            offsets.append(at + len(first) - (1 if data and not decoder.getstate()[0] else 0))
            at += len(first) + len(decoder.decode(data[1:]))
        told = likelihoods(events, decode)
        return {
            "tokens": [_text(one) for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [{_text(other): other.logprob for other in one.top_logprobs} for one in told],
            "text_offset": offsets,
        }

    return tell


def _text(one: Likelihood) -> str:
    """A token's text; of one that ends within a character its bytes, as OpenAI has it, so that no two are alike."""
    data = bytes(one.bytes)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_logprobs(decode: Decode) -> Tell:
    return lambda events: {"content": [one.model_dump() for one in likelihoods(events, decode)]}


_COMPLETION = Kind(
    "cmpl", "text_completion", "text_completion", lambda text, is_piece: {"text": text}, _completion_logprobs
)
_CHAT = Kind(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text, is_piece: {"delta": {"content": text}} if is_piece else {"message": _message(text)},
    _chat_logprobs,
)


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _card(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "hfa"}


def shape(path: str) -> Shape:
    """What an error on `path` looks like."""
    return _problem if path.startswith(_PATHS) else refusal.problem


def _problem(status: int, message: str, name: str | None = None) -> dict[str, Any]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    field, named, _ = message.partition(": ")
    parameter = field if named and field.isidentifier() and status < 500 else None
    return {"error": {"message": message, "type": kind, "param": parameter, "code": name or refusal.code(status)}}


def _schema(body: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}, "security": [{"btauth": []}]}
