"""Sessions over HTTP, as somebody uses them who keeps a conversation with a miner."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from hfa.inference.session import Exported
from hfa.network.client import BittensorAuth


class Caller:
    """A validator with a signing transport."""

    def __init__(self, running, signer=None) -> None:
        auth = BittensorAuth(signer or running.validator, running.hotkey)
        self.http = httpx.Client(base_url=running.url, auth=auth, trust_env=False, timeout=60)

    def post(self, path: str, **body: object) -> dict[str, Any]:
        response = self.http.post(f"/v1/sessions{path}", json=body)
        assert response.is_success, response.text
        return response.json()

    def say(self, identity: str, prompt: str, **more: object) -> str:
        return self.post(f"/{identity}/generate", prompt=prompt, max_tokens=6, **more)["text"]


@pytest.fixture(scope="module")
def caller(shared) -> Caller:
    return Caller(shared)


def test_a_conversation_with_everything_one_does_with_it(caller, shared):
    one = caller.post("", model="hfa")
    assert (one["model"], one["position"], one["ready"]) == ("hfa", 0, 0)
    first = caller.say(one["id"], "Once upon a time")
    kept = caller.post(f"/{one['id']}/snapshot")["position"]
    assert kept == caller.http.get(f"/v1/sessions/{one['id']}").json()["position"]
    second = caller.say(one["id"], " and then")
    plain = shared.client().generate(f"Once upon a time{first} and then", max_tokens=6, model="hfa").text
    assert second == plain, "a session answers as one long prompt would"
    other = caller.post(f"/{one['id']}/fork")
    assert caller.say(one["id"], "!") == caller.say(other["id"], "!")
    back = caller.post(f"/{one['id']}/rollback", to=kept)
    assert back["position"] == back["ready"] + 1 == kept
    assert caller.say(one["id"], " and then") == second, "as if nothing had been asked since"
    assert caller.http.delete(f"/v1/sessions/{other['id']}").status_code == 204
    assert caller.http.get(f"/v1/sessions/{other['id']}").status_code == 404


def test_an_export_is_taken_up_again(caller):
    one = caller.post("", model="simplemind")
    caller.say(one["id"], "Once upon a time")
    data = caller.http.get(f"/v1/sessions/{one['id']}/export").content
    response = caller.http.post("/v1/sessions/import?model=simplemind", content=data)
    other = response.json()
    assert other["position"] == caller.http.get(f"/v1/sessions/{one['id']}").json()["position"]
    assert caller.say(one["id"], " and") == caller.say(other["id"], " and")
    refused = caller.http.post("/v1/sessions/import?model=hfa", content=data)
    assert refused.status_code == 422
    assert "another model" in refused.json()["error"]["message"]


def test_an_import_that_is_taken_up_holds_the_place_of_the_next(caller, monkeypatch):
    """Or a caller on a fast line would have any number of them in memory."""
    one = caller.post("", model="simplemind")
    caller.say(one["id"], "Once upon a time")
    data = caller.http.get(f"/v1/sessions/{one['id']}/export").content
    entered, gate, read = threading.Event(), threading.Event(), Exported.from_bytes

    def slowly(data: bytes) -> Exported:
        entered.set()
        assert gate.wait(30)
        return read(data)

    monkeypatch.setattr(Exported, "from_bytes", slowly)

    def load() -> httpx.Response:
        return caller.http.post("/v1/sessions/import?model=simplemind", content=data)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(load)
        assert entered.wait(30)
        refused = load()
        gate.set()
        assert first.result().status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "Another import of yours is under way" in refused.json()["error"]["message"]
    assert load().status_code == 200


def test_an_import_of_more_numbers_than_there_are_is_refused(caller):
    facts = {"tokens": {"dtype": "I64", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    header = json.dumps(facts).encode()
    response = caller.http.post("/v1/sessions/import?model=hfa", content=len(header).to_bytes(8, "little") + header)
    assert response.status_code == 422
    assert "no safetensors file" in response.json()["error"]["message"]


def test_a_session_may_be_larger_than_any_other_body(start):
    """A long session's state is far more than a request may be; an import has a limit of its own."""
    running = start("models=[hfa]", "server.max_body_bytes=4000", "server.max_import_bytes=4000000")
    caller = Caller(running)
    one = caller.post("", model="hfa")
    caller.say(one["id"], "x" * 3000)
    data = caller.http.get(f"/v1/sessions/{one['id']}/export").content
    assert len(data) > 100_000
    for content in (data, (data[at : at + 10_000] for at in range(0, len(data), 10_000))):  # announced and not
        other = caller.http.post("/v1/sessions/import?model=hfa", content=content).json()
        assert other["position"] == caller.http.get(f"/v1/sessions/{one['id']}").json()["position"]
    assert caller.say(one["id"], " and") == caller.say(other["id"], " and")
    refused = caller.http.post("/v1/sessions/import?model=hfa", content=b"x" * 4_000_001)
    assert refused.status_code == 413
    assert "4000000 bytes at most" in refused.json()["error"]["message"]
    assert caller.http.post(f"/v1/sessions/{one['id']}/generate", content=b"x" * 5000).status_code == 413


def test_an_answer_in_a_session_says_what_was_not_read_again_and_how_likely_it_was(caller):
    one = caller.post("", model="hfa")
    caller.say(one["id"], "Once upon a time")
    told = caller.post(f"/{one['id']}/generate", prompt=" and", max_tokens=3, logprobs=1, repetition_penalty=1.5)
    assert told["usage"]["cached_tokens"] == len("Once upon a time") + 6 - 1, "the last token is read with what follows"
    assert told["cache_miss"] == ""
    assert [len(token["top_logprobs"]) for token in told["logprobs"]] == [1, 1, 1]


def test_a_session_streams(caller):
    one = caller.post("")
    response = caller.http.post(
        f"/v1/sessions/{one['id']}/generate", json={"prompt": "Once", "max_tokens": 4, "stream": True}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert '"done":true' in response.text


def test_a_session_is_nobody_else_s(caller, shared):
    one = caller.post("")
    stranger = Caller(shared, shared.subnet.signer("other"))
    for response in (
        stranger.http.get(f"/v1/sessions/{one['id']}"),
        stranger.http.get(f"/v1/sessions/{one['id']}/export"),
        stranger.http.post(f"/v1/sessions/{one['id']}/generate", json={"prompt": "x"}),
        stranger.http.delete(f"/v1/sessions/{one['id']}"),
    ):
        assert response.status_code == 404
        assert "which is not here" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/generate", {"prompt": "x", "model": "simplemind"}, 422, "this session is of hfa"),
        ("/rollback", {"to": 7}, 422, "expected 0 to 0"),
        ("/rollback", {}, 422, "to: missing"),
        ("/snapshot", {}, 409, "continue it first"),
        ("/fork", {"at": -1}, 422, "at: got -1"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(caller, path, body, status, said):
    one = caller.post("", model="hfa")
    response = caller.http.post(f"/v1/sessions/{one['id']}{path}", json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == {409: "conflict", 422: "invalid_request"}[status]
