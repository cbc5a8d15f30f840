"""A miner over HTTP: what is answered, what is refused, and with which sentence."""

from __future__ import annotations

import gc
import json
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import httpx
import hydra
import pytest
import torch
from omegaconf import OmegaConf

from hfa import checkpoint
from hfa.config import from_mapping
from hfa.data.tokenizers.byte import ByteTokenizer
from hfa.errors import ConfigError, RequestError
from hfa.network.client import HFAClient
from hfa.serving import admission
from hfa.serving.miner import HFAMiner, MinerConfig

CONF = Path(__file__).parents[3] / "conf"
HTTP = httpx.Client(verify=False, timeout=60, trust_env=False)  # one for all: each would read the certificates again


def signed(running, body: bytes, signer=None, *, path="/v1/generate", receiver=None, **request) -> httpx.Response:
    """Send `body`, signed as it is."""
    headers = (signer or running.validator).sign(body, method="POST", path=path, receiver=receiver or running.hotkey)
    headers |= request.pop("headers", {})
    return HTTP.post(running.url + path, content=request.pop("content", body), headers=headers, timeout=60, **request)


def ask(**body) -> bytes:
    return json.dumps({"prompt": "hello", "max_tokens": 4} | body).encode()


def message(response: httpx.Response) -> str:
    """The sentence of a refusal, whose shape is checked."""
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message"}
    return content["error"]["message"]


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    limit, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        pause.wait(0.01)


def greedy(model, prompt: str, count: int) -> list[int]:
    """The continuation by the model alone."""
    tokens = []
    with torch.inference_mode():
        hidden, state = model.hidden(torch.tensor([list(prompt.encode())]))
        logits = model.head(hidden[:, -1])
        for _ in range(count):
            tokens.append(int(logits[0].argmax()))
            logits, state = model.step(torch.tensor(tokens[-1:]), state)
    return tokens


def test_an_answer_says_everything(start, runs):
    running = start()
    content = signed(running, ask(prompt="hello", max_tokens=5)).json()
    text = bytes(greedy(checkpoint.load(runs / "hfa" / "checkpoints" / "last").model, "hello", 5))
    assert content["text"] == text.decode(errors="replace")
    assert (content["model"], content["reason"], content["finish_reason"]) == ("hfa", "the default", "length")
    assert content["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "cached_tokens": 0}
    assert content["cache_miss"] == "short"
    assert content["logprobs"] is None
    assert content["context_length"] == 10
    timings = content["timings"]
    parts = timings["queue_s"] + timings["prefill_s"] + timings["decode_s"]
    assert timings["total_s"] == pytest.approx(parts)
    assert timings["tokens_per_s"] == pytest.approx(4 / timings["decode_s"])
    assert timings["prefill_tokens_per_s"] == pytest.approx(5 / timings["prefill_s"])
    assert not [key for key in content if "score" in key or "accuracy" in key]


def test_what_a_checkpoint_had_is_told_with_the_reason_why_no_more(start):
    running = start("engine.checkpoint_every=64", "models=[hfa]")
    prompt = "tell me more " * 20
    told = [signed(running, ask(prompt=text)).json() for text in (prompt, prompt, prompt[:100] + "something else " * 5)]
    assert [one["usage"]["cached_tokens"] for one in told] == [0, 256, 64]
    assert [one["cache_miss"] for one in told] == ["new", "", "new"]
    record = HTTP.get(running.url + "/statistics").json()["architectures"]["hfa"]
    assert (record["cached_tokens"], record["cache_misses"]) == (320, {"new": 2})
    lines = HTTP.get(running.url + "/metrics").text.splitlines()
    assert 'hfa_cached_tokens_total{model="hfa"} 320.0' in lines
    assert 'hfa_cache_misses_total{model="hfa",reason="new"} 2.0' in lines


@pytest.mark.parametrize(("shared", "found"), [("false", 0), ("true", 256)])
def test_what_others_had_read_is_found_only_where_that_is_said(start, shared, found):
    """Else anybody could ask whether somebody has sent a prompt."""
    running = start("engine.checkpoint_every=64", "models=[hfa]", f"server.share_prompts={shared}")
    prompt, other = "tell me more " * 20, running.subnet.signer("other")
    running.client().generate(prompt, max_tokens=1)
    told = running.client(other).generate(prompt, max_tokens=1)
    assert told.usage["cached_tokens"] == found


def test_counters_begin_with_the_process(start, settings, subnet):
    """One that was restored and lost its last seconds would look as if all of it had happened anew."""
    validator = subnet.signer("validator")
    for _ in range(2):
        with HFAMiner(settings("models=[hfa]")) as miner:
            receiver = HTTP.get(miner.url + "/health").json()["hotkey"]
            with HFAClient(validator, url=miner.url, receiver=receiver) as client:
                client.generate("Once", max_tokens=2)
            lines = HTTP.get(miner.url + "/metrics").text.splitlines()
            total = HTTP.get(miner.url + "/statistics").json()["architectures"]["hfa"]["requests"]
    assert 'hfa_requests_total{model="hfa",outcome="succeeded"} 1.0' in lines
    assert total == 2


def test_logprobs_and_a_repetition_penalty(start):
    running = start("models=[hfa]")
    told = signed(running, ask(logprobs=2)).json()
    assert b"".join(bytes(one["bytes"]) for one in told["logprobs"]).decode(errors="replace") == told["text"]
    assert [one["top_logprobs"][0] for one in told["logprobs"]] == [
        {key: one[key] for key in ("token", "bytes", "logprob")} for one in told["logprobs"]
    ], "greedy takes the likeliest"
    with running.client() as client:
        stream = client.stream("hello", max_tokens=4, logprobs=1)
        last = list(stream)
        whole = client.generate("hello", max_tokens=4, logprobs=1)
        plain, penalized = (
            client.generate("hello", max_tokens=40, repetition_penalty=penalty).text for penalty in (1.0, 50.0)
        )
    assert last
    assert stream.answer.logprobs == whole.logprobs
    assert [one.top_logprobs[0].token for one in whole.logprobs] == [one.token for one in whole.logprobs]
    assert len(set(penalized)) > len(set(plain))


def test_a_wish_is_granted_and_an_unknown_one_is_404(start):
    running = start()
    with running.client() as client:
        answer = client.generate("hello", max_tokens=2, model="simplemind")
        assert (answer.model, answer.reason) == ("simplemind", "asked for")
        with pytest.raises(RequestError, match="model: got 'gpt', and this miner serves hfa, simplemind") as refused:
            client.generate("hello", model="gpt")
        assert refused.value.status == 404


def test_a_long_request_goes_to_the_model_that_takes_it_and_a_longer_one_is_413(start):
    running = start("models=[hfa,simplemind]")
    with running.client() as client:
        answer = client.generate("x" * 30_000, max_tokens=2)
        assert answer.model == "simplemind"
        assert answer.reason == "the request is 30002 tokens with its answer, and hfa takes 20000"
        with pytest.raises(RequestError, match=r"41002 tokens with its answer, and simplemind takes 40000") as refused:
            client.generate("x" * 41_000, max_tokens=2)
        assert refused.value.status == 413


def test_all_of_a_long_context_reaches_the_model(start, runs):
    """30,000 bytes, one of which differs, through HTTP and in pieces: the model alone says the same about each."""
    model = checkpoint.load(runs / "simplemind" / "checkpoints" / "last").model
    running = start("engine.prefill_chunk=704")
    with running.client() as client:
        for needle in "é7":
            prompt = f"{'hay ' * 2500}{needle}{'stack ' * 3333}?"
            answer = client.generate(prompt, max_tokens=6, model="simplemind")
            assert answer.usage["prompt_tokens"] == len(prompt.encode())
            assert answer.text == bytes(t for t in greedy(model, prompt, 6) if t < 256).decode(errors="replace")


def test_the_same_seed_gives_the_same_text_whatever_else_runs(start):
    running = start()
    with running.client() as client:
        crowd = [
            threading.Thread(target=lambda: running.client().generate("crowd " * 50, max_tokens=20)) for _ in range(3)
        ]
        alone = client.generate("hello", max_tokens=20, temperature=1.2, seed=5).text
        for thread in crowd:
            thread.start()
        among = client.generate("hello", max_tokens=20, temperature=1.2, seed=5).text
        for thread in crowd:
            thread.join()
        assert alone == among != client.generate("hello", max_tokens=20, temperature=1.2, seed=6).text


def test_a_seed_that_was_drawn_is_told(start):
    running = start()
    first = signed(running, ask(temperature=1.5, max_tokens=20)).json()
    again = signed(running, ask(temperature=1.5, max_tokens=20, seed=first["seed"])).json()
    assert first["text"] == again["text"]


def test_a_stream_is_the_whole_answer_in_pieces(start):
    running = start()
    with running.client() as client:
        stream = client.stream("hello", max_tokens=12, temperature=1.0, seed=3)
        pieces = list(stream)
        whole = client.generate("hello", max_tokens=12, temperature=1.0, seed=3)
    assert "".join(pieces) == stream.answer.text == whole.text
    assert len(pieces) > 1
    assert stream.answer.usage == whole.usage
    assert (stream.answer.model, stream.answer.finish_reason) == (whole.model, whole.finish_reason)


def test_stop_texts_end_the_answer_before_them(start):
    running = start()
    whole = signed(running, ask(max_tokens=12, temperature=1.0, seed=3)).json()
    at = len(whole["text"]) // 2
    stop = whole["text"][at : at + 2]
    cut = signed(running, ask(max_tokens=12, temperature=1.0, seed=3, stop=["nowhere", stop])).json()
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] <= whole["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"\xff\xfe{}", 400, "not JSON"),
        (b'{"prompt": "\\ud800", "max_tokens": 1}', 400, "not JSON"),
        (b"[]", 422, "body: got"),
        (b"{}", 422, "prompt: missing"),
        (ask(prompt=""), 422, "prompt: got '', expected"),
        (ask(prompt=3), 422, "prompt: got 3, expected"),
        (ask(max_tokens=0), 422, "max_tokens: got 0"),
        (ask(max_tokens="4"), 422, "max_tokens: got '4'"),
        (ask(max_tokens=10**6), 422, "max_tokens: got 1000000, and this miner generates 4096 at most"),
        (ask(temperature=-1), 422, "temperature: got -1"),
        (b'{"prompt": "a", "temperature": NaN}', 422, "temperature: got nan"),
        (ask(top_p=0), 422, "top_p: got 0"),
        (ask(seed=2**63), 422, "seed"),
        (ask(stop=[""]), 422, "stop.0"),
        (ask(stop="END"), 422, "stop: got 'END'"),
        (ask(deadline_s=0), 422, "deadline_s: got 0"),
        (ask(max_token=3), 422, "max_token: no such field; the fields are prompt, max_tokens"),
    ],
)
def test_bodies_that_are_no_request_are_refused_by_name(shared, body, status, words):
    response = signed(shared, body)
    assert response.status_code == status
    assert words in message(response)
    assert len(response.content) < 300


def test_who_does_not_sign_is_refused_in_few_bytes(shared):
    """Status line, headers and body together are less than what it takes to ask."""
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert len(answer.partition(b"\r\n\r\n")[2]) < 300
    assert b"traceback" not in answer.lower()


def test_what_is_wrong_with_a_signature(shared):
    body = ask()
    good = shared.validator.sign(body, method="POST", path="/v1/generate", receiver=shared.hotkey)
    url = shared.url + "/v1/generate"
    assert HTTP.post(url, content=body, headers=good, timeout=60).status_code == 200
    replayed = HTTP.post(url, content=body, headers=good)
    assert (replayed.status_code, "nonce" in message(replayed)) == (401, True)
    tampered = signed(shared, body, content=ask(prompt="hullo"))
    assert (tampered.status_code, "ignature" in message(tampered)) == (401, True)
    elsewhere = signed(shared, body, receiver=shared.validator.hotkey)
    assert (elsewhere.status_code, "receiving hotkey" in message(elsewhere)) == (401, True)
    other_path = HTTP.post(
        url + "?model=hfa",
        content=body,
        headers=shared.validator.sign(body, method="POST", path="/v1/generate", receiver=shared.hotkey),
    )
    assert other_path.status_code == 401
    with_query = signed(shared, body, path="/v1/generate?a=%2F&b")
    assert with_query.status_code == 200, "path and query are verified as they were sent"


def test_who_may_not_ask_is_refused_before_the_body_is_read(shared):
    """The headers promise a body that never comes; the answer comes all the same."""
    host, port = shared.url.removeprefix("http://").split(":")
    stranger = shared.subnet.signer("stranger", register=False)
    poor = shared.subnet.signer("poor", stake_tao=1.0)
    unpermitted = shared.subnet.signer("unpermitted", permit=False)
    for signer, words in (
        (stranger, b"not registered"),
        (poor, b"1 TAO at stake"),
        (unpermitted, b"no validator permit"),
    ):
        headers = signer.sign(b"", method="POST", path="/v1/generate", receiver=shared.hotkey)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            request = f"POST /v1/generate HTTP/1.1\r\nhost: x\r\n{lines}content-length: 1000\r\n\r\n"
            connection.sendall(request.encode())
            answer = b""
            while not answer.endswith(b"}}"):
                answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert words in answer
        assert len(answer) < 400


def test_bodies_over_the_cap_are_413_announced_or_not(start):
    running = start("server.max_body_bytes=2000")
    assert signed(running, ask(prompt="x" * 1900)).status_code == 200
    announced = signed(running, ask(prompt="x" * 5_000_000))
    assert announced.status_code == 413
    assert "2000 bytes at most" in message(announced)
    body = ask(prompt="x" * 5_000_000)
    pieces = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
    streamed = signed(running, body, content=pieces)
    assert streamed.status_code == 413
    assert "2000 bytes at most" in message(streamed)


def test_who_sends_on_after_a_refusal_still_gets_it(shared):
    """The whole of a body that nobody wants is sent before the answer is looked at; the connection is not reset."""
    host, port = shared.url.removeprefix("http://").split(":")
    size = 20_000_000
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode())
        connection.sendall(b"x" * size)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_body_that_does_not_come_is_408(start):
    running = start("server.body_timeout_s=0.2")
    host, port = running.url.removeprefix("http://").split(":")
    headers = running.validator.sign(b"", method="POST", path="/v1/generate", receiver=running.hotkey)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /v1/generate HTTP/1.1\r\nhost: x\r\n{lines}content-length: 9\r\n\r\n{{".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_no_bug(start, caplog, monkeypatch):
    monkeypatch.setattr(admission, "_GRACE_S", 60.0)
    running = start("server.max_uploads=1")
    host, port = running.url.removeprefix("http://").split(":")
    headers = running.validator.sign(b"", method="POST", path="/v1/generate", receiver=running.hotkey)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"POST /v1/generate HTTP/1.1\r\nhost: x\r\n{lines}content-length: 70000\r\n\r\n{{".encode())
        until(lambda: signed(running, ask(prompt="x" * 70_000)).status_code == 503)
    until(lambda: 'hfa_refusals_total{code="left"} 1.0' in HTTP.get(running.url + "/metrics").text)
    assert signed(running, ask()).status_code == 200
    assert "Traceback" not in caplog.text


def test_each_hotkey_has_a_rate_of_its_own(start):
    running = start("server.rate_burst=2", "server.rate_per_s=0.001")
    other = running.subnet.signer("other")
    assert [signed(running, ask()).status_code for _ in range(2)] == [200, 200]
    refused = signed(running, ask())
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 900
    assert "2 requests at once" in message(refused)
    assert signed(running, ask(), other).status_code == 200


def test_nobody_can_spend_the_rate_of_another(start):
    """Requests that claim a hotkey but do not prove it are not counted against it."""
    running = start("server.rate_burst=1", "server.rate_per_s=0.001")
    assert [signed(running, ask(), content=b"{}").status_code for _ in range(3)] == [401] * 3
    assert signed(running, ask()).status_code == 200


def test_hanging_up_ends_the_work(start):
    """A stream and a whole answer, both given up: the engine stops, and the record says so."""
    running = start()
    with running.client() as client:
        next(iter(client.stream("hello", max_tokens=4000)))
    body = ask(max_tokens=4000)
    headers = running.validator.sign(body, method="POST", path="/v1/generate", receiver=running.hotkey)
    with pytest.raises(httpx.ReadTimeout):
        HTTP.post(running.url + "/v1/generate", content=body, headers=headers, timeout=0.2)

    def record():
        return HTTP.get(running.url + "/statistics").json()["architectures"]["hfa"]

    until(lambda: record()["cancelled"] == 2)
    until(lambda: HTTP.get(running.url + "/health").json()["models"]["hfa"]["running"] == 0)
    assert record()["success_rate"] is None


def test_a_failing_model_is_avoided_and_probed_and_does_not_leak(start, monkeypatch, caplog):
    caplog.set_level("INFO")
    running = start("selection.probe_after_s=3600", "selection.min_requests=2")
    engine = running.miner.models["hfa"].engine
    broken = [True]
    hidden = engine._runner.model.hidden

    def failing(tokens, state=None, last=None):
        if broken[0]:
            raise RuntimeError("weights at /secret/place are gone")
        return hidden(tokens, state, last)

    monkeypatch.setattr(engine._runner.model, "hidden", failing)
    for stream in (False, True):
        response = signed(running, ask(stream=stream))
        assert response.status_code == (200 if stream else 500)
        assert "hfa failed on this request" in response.text
        assert "secret" not in response.text
    with running.client() as client:
        answer = client.generate("hello", max_tokens=2)
        assert (answer.model, answer.reason) == ("simplemind", "hfa failed 100% of its last 2 requests")
        broken[0] = False
        assert client.generate("hello", max_tokens=2, model="hfa").text
        record = client.statistics()["architectures"]["hfa"]
    assert (record["requests"], record["failed"], record["succeeded"]) == (3, 2, 1)
    assert record["last_error"]["error"] == "RuntimeError"
    for path in ("/statistics", "/metrics", "/health"):
        assert "secret" not in HTTP.get(running.url + path).text
    page = re.search(r"Status page at (http://\S+)", caplog.text)[1]
    assert "weights at /secret/place are gone" in HTTP.get(page).text, "the operator sees all of it"


def test_a_bug_is_500_without_a_word_about_it(start, monkeypatch):
    running = start()

    def bug(self, text):
        raise KeyError("the secret in the traceback")

    monkeypatch.setattr(type(running.miner.models["hfa"].tokenizer), "encode", bug)
    response = signed(running, ask())
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "secret" not in response.text
    monkeypatch.undo()
    assert signed(running, ask()).status_code == 200


def test_a_deadline_cuts_the_answer_and_one_without_a_token_is_504(start):
    running = start()
    cut = signed(running, ask(max_tokens=4000, deadline_s=0.5)).json()
    assert cut["finish_reason"] == "deadline"
    assert 0 < cut["usage"]["completion_tokens"] < 4000
    nothing = signed(running, ask(prompt="x" * 19_000, model="hfa", deadline_s=0.001))
    assert nothing.status_code == 504
    assert "within the deadline of 0.001 s" in message(nothing)


def test_a_full_engine_is_503_with_retry_after(start):
    running = start("engine.max_concurrent=1", "engine.max_queue=0", "models=[hfa]")
    with running.client() as client:
        pieces = iter(client.stream("hello", max_tokens=4000))
        next(pieces)
        assert HTTP.get(running.url + "/ready").status_code == 503
        refused = signed(running, ask())
        assert (refused.status_code, "1 requests are running" in message(refused)) == (503, True)
        assert int(refused.headers["retry-after"]) >= 1
        pieces.close()
    until(lambda: HTTP.get(running.url + "/ready").status_code == 204)
    assert signed(running, ask()).status_code == 200


def test_one_torn_artifact_is_a_warning_and_the_other_serves(start, runs, tmp_path, caplog):
    model = checkpoint.load(runs / "hfa" / "checkpoints" / "last").model
    folder = tmp_path / "runs" / "hfa" / "checkpoints" / "last"
    tokenizer = checkpoint.load(runs / "hfa" / "checkpoints" / "last").tokenizer
    checkpoint.save(folder, model=model, tokenizer=tokenizer, provenance={})
    other = checkpoint.load(runs / "simplemind" / "checkpoints" / "last")
    checkpoint.save(
        tmp_path / "runs" / "simplemind" / "checkpoints" / "last", model=other.model, tokenizer=tokenizer, provenance={}
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with caplog.at_level("INFO"):
        running = start(f"checkpoint_root={tmp_path / 'runs'}")
    assert "hfa is not served from here" in caplog.text
    assert "hfa, the default, is not served; the others answer what names no model" in caplog.text
    assert "Miner ready with 1 models: ['simplemind']" in caplog.text
    with running.client() as client:
        answer = client.generate("hello", max_tokens=2)
    assert (answer.model, answer.reason) == ("simplemind", "hfa is not loaded")


def test_a_model_that_says_less_than_its_tokenizer_knows_is_not_served(start, tiny, tmp_path, caplog):
    folder = tmp_path / "runs" / "hfa" / "checkpoints" / "last"
    checkpoint.save(folder, model=tiny("hfa", vocab_size=200), tokenizer=ByteTokenizer(), provenance={})
    start(f"checkpoint_root={tmp_path / 'runs'}")
    assert "hfa is not served from here" in caplog.text
    assert "the model has 200 token ids and its tokenizer 257" in caplog.text


@pytest.mark.parametrize("name", ["hfa", "simplemind"])
def test_of_a_model_with_more_ids_than_its_tokenizer_those_of_the_tokenizer_are_served(start, tiny, tmp_path, name):
    """As ``python train.py`` trains without further words: 50,257 ids for bytes."""
    folder = tmp_path / "runs" / name / "checkpoints" / "last"
    model = tiny(name, vocab_size=300).eval()
    with torch.no_grad():  # what no tokenizer can say is what it would say
        model.embedding.weight[257:] *= 100
    tokens = torch.tensor([list(b"hello")])
    allowed = int(model(tokens)[0][0, -1, :257].argmax())
    assert int(model(tokens)[0][0, -1].argmax()) >= 257
    checkpoint.save(folder, model=model, tokenizer=ByteTokenizer(), provenance={})
    running = start(f"checkpoint_root={tmp_path / 'runs'}", f"models=[{name}]", f"default={name}")
    answer = signed(running, ask(prompt="hello", max_tokens=1, temperature=0, logprobs=1)).json()
    assert running.miner.models[name].engine.num_parameters == model.num_parameters - 43 * model.config.d_model
    assert answer["text"].encode() == bytes([allowed])[: len(answer["text"])]


def test_no_model_at_all_is_503_and_the_miner_lives(start, tmp_path, caplog):
    with caplog.at_level("INFO"):
        running = start(f"checkpoint_root={tmp_path / 'nothing'}")
    assert "Miner ready with 0 models: []" in caplog.text
    refused = signed(running, ask())
    assert (refused.status_code, message(refused).startswith("No model is loaded")) == (503, True)
    assert HTTP.get(running.url + "/health").json()["status"] == "no models"
    ready = HTTP.get(running.url + "/ready")
    assert (ready.status_code, message(ready)) == (503, "No model is loaded.")


def test_one_folder_is_served_under_its_own_architecture(start, runs, caplog):
    with caplog.at_level("INFO"):
        running = start(f"checkpoint={runs / 'simplemind'}")
    assert "Miner ready with 1 models: ['simplemind']" in caplog.text
    with running.client() as client:
        assert client.generate("hello", max_tokens=2).model == "simplemind"


def test_a_stopped_miner_keeps_no_model(settings):
    with HFAMiner(settings()) as miner:
        engines = [weakref.ref(model.engine) for model in miner.models.values()]
        assert all(engine() for engine in engines)
    gc.collect()
    assert engines
    assert not any(engine() for engine in engines)


def test_the_log_says_what_is_served(start, caplog):
    with caplog.at_level("INFO"):
        start()
    assert "Miner ready with 2 models: ['hfa', 'simplemind']" in caplog.text
    assert "parameters on cpu, the default, from" in caplog.text
    assert caplog.text.count("the default") == 1


def test_open_paths_and_unknown_ones(shared):
    health = HTTP.get(shared.url + "/health").json()
    assert (health["status"], health["default"], health["hotkey"]) == ("ok", "hfa", shared.hotkey)
    assert set(health["models"]) == {"hfa", "simplemind"}
    assert health["models"]["hfa"]["parameters"] > 0
    assert HTTP.get(shared.url + "/ready").status_code == 204
    assert HTTP.get(shared.url + "/nope").status_code == 404
    assert "GET /nope" in message(HTTP.get(shared.url + "/nope"))
    assert HTTP.get(shared.url + "/v1/generate").status_code == 405
    assert HTTP.post(shared.url + "/nope", content=b"x").status_code == 404


def test_metrics_are_the_statistics(shared):
    signed(shared, ask(model="simplemind"))
    assert HTTP.post(shared.url + "/v1/generate").status_code == 401
    record = HTTP.get(shared.url + "/statistics").json()["architectures"]["simplemind"]
    lines = HTTP.get(shared.url + "/metrics").text.splitlines()
    assert f'hfa_requests_total{{model="simplemind",outcome="succeeded"}} {record["succeeded"]:.1f}' in lines
    assert f'hfa_tokens_total{{kind="prompt",model="simplemind"}} {record["prompt_tokens"]:.1f}' in lines
    assert 'hfa_running_requests{model="hfa"} 0.0' in lines
    assert any(line.startswith('hfa_refusals_total{code="unauthorized"}') for line in lines)


def test_openapi_describes_the_request_the_answer_and_the_refusals(shared):
    document = HTTP.get(shared.url + "/openapi.json").json()
    operation = document["paths"]["/v1/generate"]["post"]
    properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "model", "stream"} <= set(
        properties
    )
    assert all(field.get("description") for field in properties.values())
    assert set(operation["responses"]) >= {"200", "401", "403", "413", "422", "429", "503"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert operation["security"] == [{"btauth": []}]
    assert "btauth" in document["components"]["securitySchemes"]


def test_statistics_survive_a_restart_and_a_torn_file_does_not_stop_the_miner(settings, subnet, tmp_path, caplog):
    validator = subnet.signer("validator")

    def serve_once() -> int:
        with HFAMiner(settings()) as miner:
            hotkey = HTTP.get(miner.url + "/health").json()["hotkey"]
            with HFAClient(validator, url=miner.url, receiver=hotkey) as client:
                client.generate("hello", max_tokens=2)
                return client.statistics()["architectures"]["hfa"]["requests"]

    assert [serve_once(), serve_once()] == [1, 2]
    path = tmp_path / "statistics.json"
    path.write_bytes(path.read_bytes()[:40])
    assert serve_once() == 1
    assert "set aside" in caplog.text


def test_everything_is_released(settings, subnet):
    before = {thread.name for thread in threading.enumerate()}
    with HFAMiner(settings()) as miner:
        port = int(miner.url.rpartition(":")[2])
        assert {thread.name for thread in threading.enumerate()} >= {"engine-hfa", "engine-simplemind", "server"}
    gone = {"engine-hfa", "engine-simplemind", "server"}
    assert not gone & {thread.name for thread in threading.enumerate()} - before
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_run_returns_when_stopped(settings):
    with HFAMiner(settings("heartbeat_s=0.01")) as miner:
        thread = threading.Thread(target=miner.run)
        thread.start()
        miner.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_a_drain_cut_short_ends_the_stream_with_a_reason(settings, subnet):
    validator = subnet.signer("validator")
    with HFAMiner(settings("server.drain_s=60")) as miner:
        hotkey = HTTP.get(miner.url + "/health").json()["hotkey"]
        client = HFAClient(validator, url=miner.url, receiver=hotkey)
        stream = client.stream("hello", max_tokens=4000)
        pieces = iter(stream)
        next(pieces)
        miner.stop()
        miner.stop()
        rest: list[str] = []
        reader = threading.Thread(target=lambda: rest.extend(pieces))
        reader.start()
    reader.join(30)
    assert stream.answer.finish_reason == "shutdown"
    assert 0 < stream.answer.usage["completion_tokens"] < 4000


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("server.host=203.0.113.7", "server.host: got '203.0.113.7', expected an address of this machine"),
        ("engine.device=cuda:7", "engine.device: got 'cuda:7', expected a device of this machine"),
    ],
)
def test_what_cannot_work_is_one_sentence(settings, override, words):
    with pytest.raises(ConfigError) as refused, HFAMiner(settings(override)):
        pass
    assert words in str(refused.value)


def test_a_taken_port_is_one_sentence_even_while_the_other_is_still_loading(settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"server.port: got {port}, expected a free port"),
            HFAMiner(settings(f"server.port={port}")),
        ):
            pass


@pytest.mark.parametrize(
    "option",
    sorted(f"{path.parent.name}={path.stem}" for group in ("engine", "network") for path in (CONF / group).iterdir()),
)
def test_every_option_composes(runs, option):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("mine", [option, "network.netuid=7"])
    values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert from_mapping(MinerConfig, values, "mine").network.netuid == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("default=gpt", "default: got 'gpt', expected one of hf, hfa, hybrid, simplemind, transformer"),
        ("models=[hfa,gpt]", "models: got 'gpt', expected one of"),
        ("heartbeat_s=0", "heartbeat_s: got 0, expected greater than 0"),
        ("server.port=70000", "server.port: got 70000, expected 0 to 65535"),
        ("server.default_max_tokens=5000", "server.default_max_tokens: got 5000, expected at most max_tokens=4096"),
    ],
)
def test_a_wrong_value_names_its_key(settings, override, words):
    with pytest.raises(ConfigError) as refused:
        settings(override)
    assert words in str(refused.value)
