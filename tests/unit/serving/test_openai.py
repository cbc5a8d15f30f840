"""The official client of OpenAI against a miner on a real port; only the transport signs."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import ValidationError

from hfa.errors import RequestError
from hfa.network.client import BittensorAuth
from hfa.serving.openai import as_text
from hfa.serving.openai_schemas import ChatBody, CompletionBody, Message
from hfa.serving.reply import Reply
from hfa.serving.schemas import parse_as


def connect(running, signer=None) -> OpenAI:
    http = httpx.Client(auth=BittensorAuth(signer or running.validator, running.hotkey), trust_env=False)
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", http_client=http, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(shared) -> OpenAI:
    return connect(shared)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "hfa", "prompt": [{}] * 100_000},
        {"model": "hfa", "messages": [{}] * 100_000},
        {"model": "hfa", "messages": [{"role": "user", "content": [{}] * 100_000}]},
        {"model": "hfa", "prompt": "x", "stop": [1] * 100_000},
        {"model": "hfa", "prompt": "x", **{f"field{i}": 0 for i in range(50_000)}},
        {"": 0, "model": "hfa", "prompt": "x", **{f"field{i}": 0 for i in range(50_000)}},
        {"model": "hfa", "prompt": {f"field{i}": 0 for i in range(50_000)}},
        {"model": "hfa", "messages": [{f"field{i}": 0 for i in range(50_000)}]},
    ],
    ids=["prompt", "messages", "parts", "stop", "fields", "nameless", "object", "message"],
)
def test_a_body_that_is_wrong_in_a_hundred_thousand_ways_is_refused_for_the_first(body):
    """Each way would be an object of its own, and nobody else would run while they are made."""
    schema = ChatBody if "messages" in body else CompletionBody
    with pytest.raises(ValidationError) as refused:
        schema.model_validate_json(json.dumps(body))
    assert refused.value.error_count() <= 8
    with pytest.raises(RequestError) as refused:
        parse_as(schema, json.dumps(body).encode())
    assert refused.value.status == 422
    assert len(str(refused.value)) < 600


def test_an_answer_goes_back_as_the_client_dumps_it(client):
    turns = [{"role": "user", "content": "Once"}]
    said = client.chat.completions.create(model="hfa", messages=turns, max_tokens=4).choices[0].message
    turns += [said.model_dump(), {"role": "user", "content": "And then?"}]
    assert client.chat.completions.create(model="hfa", messages=turns, max_tokens=4).choices[0].finish_reason
    turns[1]["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    with pytest.raises(openai.BadRequestError, match=r"tool_calls: got a list of 1, expected"):
        client.chat.completions.create(model="hfa", messages=turns, max_tokens=4)


def test_every_choice_counts_as_a_request_of_its_caller(start):
    client = connect(start("server.rate_burst=4", "server.rate_per_s=0.001"))
    client.completions.create(model="hfa", prompt="Once", max_tokens=2, n=4)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="hfa", prompt="Once", max_tokens=2)


def test_choices_are_begun_together_or_not_at_all(start):
    """What finds no place leaves no trace in the record, and takes nobody else's place."""
    running = start("engine.max_concurrent=2", "engine.max_queue=2")
    client = connect(running)
    with pytest.raises(openai.InternalServerError) as refused:
        client.completions.create(model="hfa", prompt="Once", max_tokens=2, n=5)
    assert refused.value.status_code == 503
    assert client.completions.create(model="hfa", prompt="Once", max_tokens=2, n=4).choices[3]
    assert running.client().statistics()["architectures"]["hfa"]["requests"] == 4


def test_log_probabilities_have_a_limit(client):
    asked = {"model": "hfa", "prompt": "Once", "max_tokens": 1000, "n": 8, "logprobs": 20}
    with pytest.raises(openai.BadRequestError, match="lower max_tokens, n or logprobs"):
        client.completions.create(**asked)


def test_the_models_are_listed(client, shared):
    assert [model.id for model in client.models.list()] == list(shared.miner.models)
    assert client.models.retrieve("hfa").owned_by == "hfa"
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.models.retrieve("gpt-4")


def test_a_completion_is_what_generate_answers(client, shared):
    ours = shared.client().generate("Once upon", max_tokens=12, model="hfa", temperature=0.0)
    done = client.completions.create(model="hfa", prompt="Once upon", max_tokens=12, temperature=0)
    assert done.choices[0].text == ours.text
    assert done.model == "hfa"
    assert done.object == "text_completion"
    assert done.choices[0].finish_reason in ("length", "stop")
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (9, ours.usage["completion_tokens"])
    assert done.usage.total_tokens == 9 + done.usage.completion_tokens


def test_tokens_and_several_prompts(client):
    as_tokens = client.completions.create(model="hfa", prompt=list(b"Once upon"), max_tokens=8, temperature=0)
    both = client.completions.create(model="hfa", prompt=["Once upon", "And then"], max_tokens=8, temperature=0)
    assert both.choices[0].text == as_tokens.choices[0].text
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.prompt_tokens == 17


def test_a_stream_is_the_answer_in_pieces(client):
    asked = {"model": "simplemind", "prompt": "Once upon", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked)
    events = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events if event.choices) == whole.choices[0].text
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert events[-1].usage == whole.usage
    assert len({event.id for event in events}) == 1


def test_a_seed_repeats_and_choices_differ(client):
    asked = {"model": "hfa", "prompt": "Once", "max_tokens": 12, "seed": 5, "n": 3}
    one, again = (client.completions.create(**asked) for _ in range(2))
    assert [choice.text for choice in one.choices] == [choice.text for choice in again.choices]
    assert len({choice.text for choice in one.choices}) > 1


def test_logprobs_of_both_kinds(client):
    done = client.completions.create(model="hfa", prompt="Once", max_tokens=4, temperature=0, logprobs=3)
    told = done.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 4
    assert max(told.top_logprobs[0].values()) == pytest.approx(told.token_logprobs[0]), "greedy takes the likeliest"
    talk = client.chat.completions.create(
        model="hfa",
        messages=[{"role": "user", "content": "Once"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = talk.choices[0].logprobs.content
    assert len(content[0].top_logprobs) == 2
    assert content[0].logprob == pytest.approx(content[0].top_logprobs[0].logprob)


def test_logprobs_in_pieces_are_those_of_the_whole_and_no_two_tokens_are_one(client):
    """This vocabulary is bytes: those of a character that is not whole are told as bytes."""
    asked = {"model": "hfa", "prompt": "Once", "max_tokens": 24, "temperature": 2, "seed": 4, "logprobs": 20}
    whole = client.completions.create(**asked).choices[0]
    events = list(client.completions.create(**asked, stream=True))
    told = [event.choices[0].logprobs for event in events]
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for part in told for one in getattr(part, field)] == getattr(whole.logprobs, field)
    assert [len(top) for top in whole.logprobs.top_logprobs] == [20] * len(whole.logprobs.tokens)
    assert any(token.startswith("bytes:\\x") for top in whole.logprobs.top_logprobs for token in top)
    for token, at in zip(whole.logprobs.tokens, whole.logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or whole.text[at : at + len(token)] == token


def test_a_prompt_counts_once_however_many_choices_it_has(client):
    asked = {"model": "hfa", "prompt": ["Once upon", "And then"], "max_tokens": 4}
    done = client.completions.create(**asked, n=3)
    assert len(done.choices) == 6
    assert done.usage.prompt_tokens == 17
    assert done.usage.total_tokens == 17 + done.usage.completion_tokens


def test_a_stream_that_breaks_ends(client, monkeypatch):
    async def broken(self):
        yield "a"
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(Reply, "pieces", broken)
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(client.completions.create(model="hfa", prompt="x", max_tokens=4, stream=True, timeout=20))


def test_a_conversation(client):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Once"}, {"type": "text", "text": " upon"}]},
    ]
    talk = client.chat.completions.create(model="hfa", messages=messages, max_completion_tokens=10, temperature=0)
    assert talk.choices[0].message.role == "assistant"
    text = as_text([Message(**message) for message in messages])
    assert text == "system: Be brief.\nuser: Once upon\nassistant:"
    assert talk.usage.prompt_tokens == len(text)
    plain = client.completions.create(model="hfa", prompt=text, max_tokens=10, temperature=0)
    assert plain.choices[0].text.startswith(talk.choices[0].message.content)
    events = list(
        client.chat.completions.create(model="hfa", messages=messages, max_tokens=10, temperature=0, stream=True)
    )
    assert events[0].choices[0].delta.role == "assistant"
    said = "".join(event.choices[0].delta.content or "" for event in events)
    assert said == talk.choices[0].message.content
    assert events[-1].choices[0].finish_reason == talk.choices[0].finish_reason


def test_a_stop_text_ends_the_answer(client):
    asked = {"model": "hfa", "prompt": "Once upon", "max_tokens": 40, "seed": 3, "temperature": 1}
    full = client.completions.create(**asked).choices[0].text
    stop = full[5]
    cut = client.completions.create(**asked, stop=[stop]).choices[0]
    assert cut.text == full[: full.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_long_prompt_asked_again_is_told_to_be_cached(client):
    prompt = "tell me more " * 100
    first, again = (client.completions.create(model="hfa", prompt=prompt, max_tokens=2) for _ in range(2))
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens == 1024


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        (openai.NotFoundError, {"model": "gpt-4"}, "model: got 'gpt-4'"),
        (openai.BadRequestError, {"temperature": -1}, "temperature: got -1"),
        (openai.BadRequestError, {"max_tokens": 10**6}, "generates 4096 at most"),
        (openai.BadRequestError, {"suffix": "x"}, "suffix: no such field"),
        (openai.BadRequestError, {"prompt": "x" * 40000}, "Too long"),
        (openai.BadRequestError, {"prompt": [-1]}, "token ids outside"),
    ],
)
def test_errors_have_openai_s_shape(client, kind, asked, said):
    with pytest.raises(kind, match=said) as refused:
        client.completions.create(**{"model": "hfa", "prompt": "x", "max_tokens": 2} | asked)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code


@pytest.mark.parametrize("path", ["completions", "chat"])
def test_refusals_before_the_body_was_looked_at_have_that_shape_too(start, path):
    running = start("server.rate_burst=1", "server.rate_per_s=0.001", "server.max_body_bytes=500")

    def refused(client: OpenAI, **more) -> openai.APIStatusError:
        ask, prompt = client.completions.create, {"prompt": "x"}
        if path == "chat":
            ask, prompt = client.chat.completions.create, {"messages": [{"role": "user", "content": "x"}]}
        with pytest.raises(openai.APIStatusError) as error:
            ask(model="hfa", **prompt, **more)
        assert set(error.value.body) == {"message", "type", "param", "code"}
        return error.value

    bare = OpenAI(
        base_url=f"{running.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    )
    unsigned = refused(bare)
    assert isinstance(unsigned, openai.AuthenticationError)
    assert (unsigned.type, unsigned.code) == ("authentication_error", "unauthorized")
    assert "sign the request with btauth/1" in unsigned.message
    stranger = refused(connect(running, running.subnet.signer("stranger", register=False)))
    assert isinstance(stranger, openai.PermissionDeniedError)
    assert stranger.type == "permission_error"
    assert "Hotkey 5" in stranger.message
    large = refused(connect(running), user="x" * 1000)
    assert (large.status_code, large.code) == (413, "too_large")
    assert "500 bytes at most" in large.message
    client = connect(running)
    assert client.completions.create(model="hfa", prompt="x", max_tokens=1).usage.completion_tokens == 1
    often = refused(client)
    assert isinstance(often, openai.RateLimitError)
    assert (often.type, often.code) == ("rate_limit_error", "rate_limited")
    assert "slow down" in often.message


def test_other_errors_on_those_paths(shared, monkeypatch):
    wrong = httpx.get(f"{shared.url}/v1/chat/completions", trust_env=False)
    assert wrong.status_code == 405
    assert wrong.json()["error"].keys() == {"message", "type", "param", "code"}

    def bug(self, text):
        raise KeyError("the secret in the traceback")

    monkeypatch.setattr(type(shared.miner.models["hfa"].tokenizer), "encode", bug)
    with pytest.raises(openai.InternalServerError) as failed:
        connect(shared).completions.create(model="hfa", prompt="x")
    assert (failed.value.type, failed.value.code) == ("server_error", "internal")
    assert "secret" not in failed.value.message


def test_the_client_as_it_is_waits_and_tries_again(start):
    """Its own retries are signed anew, and Retry-After says when."""
    running = start("server.rate_burst=1", "server.rate_per_s=0.5")
    http = httpx.Client(auth=BittensorAuth(running.validator, running.hotkey), trust_env=False)
    client = OpenAI(base_url=f"{running.url}/v1", api_key="none", http_client=http)
    for _ in range(2):
        assert client.completions.create(model="hfa", prompt="x", max_tokens=1).usage.completion_tokens == 1
    assert 'hfa_refusals_total{code="rate_limited"} 1.0' in httpx.get(f"{running.url}/metrics", trust_env=False).text


def test_the_client_for_event_loops(shared):
    async def talk() -> tuple[str, str]:
        auth = BittensorAuth(shared.validator, shared.hotkey)
        async with AsyncOpenAI(
            base_url=f"{shared.url}/v1",
            api_key="none",
            http_client=httpx.AsyncClient(auth=auth, trust_env=False),
        ) as client:
            asked = {"model": "hfa", "prompt": "Once upon", "max_tokens": 8, "temperature": 0}
            whole = await client.completions.create(**asked)
            pieces = [event.choices[0].text async for event in await client.completions.create(**asked, stream=True)]
        return whole.choices[0].text, "".join(pieces)

    whole, joined = asyncio.run(talk())
    assert whole == joined


def test_leaving_a_stream_ends_the_work(start):
    running = start("server.rate_per_s=1000", "models=[hfa]")
    client = connect(running)
    with client.completions.create(model="hfa", prompt="x", max_tokens=4000, stream=True) as stream:
        next(iter(stream))
    engine = running.miner.models["hfa"].engine
    for _ in range(600):
        if not engine.load().running:
            break
        json.loads(httpx.get(f"{running.url}/health", trust_env=False).text)
    assert not engine.load().running
