"""Real keys, a real port and the real client against a miner's door of twenty lines."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from hfa.config import from_mapping
from hfa.errors import NetworkError, RequestError
from hfa.network.base import Network, WalletConfig
from hfa.network.bittensor import HotkeySigner, open_hotkey
from hfa.network.client import AsyncHFAClient, BittensorAuth, HFAClient
from hfa.network.local import LocalNetworkConfig, config_from_yaml, main

ROOT = Path(__file__).parents[2]


class Door(NamedTuple):
    """A running server, and what a caller needs to know of it."""

    url: str
    network: Network
    folder: Path  # subnets, wallets and nonces lie below it

    def flags(self, name: str) -> list[str]:
        wallet = ["--wallet.name", name, "--wallet.hotkey", "default", "--wallet.path", str(self.folder / "wallets")]
        return [*wallet, "--folder", str(self.folder / "subnets")]

    def signer(self, name: str) -> HotkeySigner:
        return open_hotkey(wallet(self.folder, name), "register it")

    def client(self, name: str) -> HFAClient:
        return HFAClient(self.signer(name), url=self.url, receiver=self.network.hotkey, timeout_s=30.0)


def wallet(folder: Path, name: str) -> WalletConfig:
    return WalletConfig(name=name, hotkey="default", path=str(folder / "wallets"))


def local_config(folder: Path) -> LocalNetworkConfig:
    values = vars(config_from_yaml(folder=str(folder / "subnets")))
    auth = from_mapping(type(values["auth"]), {**vars(values["auth"]), "nonce_dir": str(folder / "nonces")}, "auth")
    return from_mapping(LocalNetworkConfig, {**values, "auth": auth, "sync_interval_s": 0.5}, "network")


def make_app(network: Network, sock: socket.socket) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await network.start()
        await network.serve(*sock.getsockname()[:2])
        yield
        await network.close()

    app = FastAPI(lifespan=lifespan)

    @app.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": {"code": error.status, "message": str(error)}}, error.status)

    async def authenticated(request: Request) -> tuple[str, bytes]:
        network.authorize(network.screen(request.headers))
        body = await request.body()
        query = request.scope["query_string"].decode("latin-1")
        path = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        return network.verify(request.headers, body, method=request.method, path=path).hotkey, body

    @app.post("/v1/generate")
    async def generate(request: Request) -> Response:
        hotkey, body = await authenticated(request)
        asked = json.loads(body)
        text = f"{hotkey} asked {asked['prompt']}"
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": len(text)}
        timings = dict.fromkeys(("queue_s", "prefill_s", "decode_s", "total_s", "tokens_per_s"), 0.5)
        answer = {"model": asked.get("model", "hfa"), "reason": "asked", "finish_reason": "stop"}
        answer |= {"usage": usage, "timings": timings}
        if not asked.get("stream"):
            return JSONResponse({"text": text, **answer})

        async def events() -> AsyncIterator[str]:
            for event in (*({"text": word} for word in text.split(" ")), {"done": True, **answer}):
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/statistics")
    async def statistics(request: Request) -> dict[str, Any]:
        return {"asked_by": (await authenticated(request))[0]}

    return app


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Door]:
    network = local_config(folder).build(wallet(folder, "miner"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(make_app(network, sock), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
            yield Door(f"http://127.0.0.1:{port}", network, folder)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with opened(tmp_path_factory.mktemp("door")) as door:
        assert main(["register", *door.flags("validator"), "--stake", "1000", "--validator"]) == 0
        assert main(["register", *door.flags("poor"), "--stake", "999", "--validator"]) == 0
        assert main(["register", *door.flags("peer"), "--stake", "5000"]) == 0
        assert main(["create-wallet", *door.flags("stranger")[:6]]) == 0
        yield door


def signed(door: Door, body: bytes, path: str = "/v1/generate", name: str = "validator") -> dict[str, str]:
    return door.signer(name).sign(body, method="POST", path=path, receiver=door.network.hotkey)


def post(door: Door, headers: dict[str, str], body: bytes, path: str = "/v1/generate") -> tuple[int, str]:
    response = httpx.post(f"{door.url}{path}", content=body, headers=headers, trust_env=False)
    assert len(response.content) < 300 or response.is_success
    return response.status_code, response.text


def test_validator_asks_and_is_answered(door: Door) -> None:
    with door.client("validator") as client:
        answer = client.generate("what? \N{SNOWMAN}\u2028", max_tokens=5, model="simplemind")
        hotkey = door.signer("validator").hotkey
        assert answer.text == f"{hotkey} asked what? \N{SNOWMAN}\u2028"
        assert (answer.model, answer.finish_reason) == ("simplemind", "stop")
        assert client.statistics() == {"asked_by": hotkey}
        stream = client.stream("a b\u2028")
        assert stream.answer is None
        assert list(stream) == [hotkey, "asked", "a", "b\u2028"]
        assert stream.answer is not None
        assert stream.answer.timings["total_s"] == 0.5


def test_async_client(door: Door) -> None:
    async def scenario() -> None:
        signer = door.signer("validator")
        async with AsyncHFAClient(signer, url=door.url, receiver=door.network.hotkey, timeout_s=30.0) as client:
            answers = await asyncio.gather(*(client.generate(f"question {index}") for index in range(8)))
            assert [answer.text for answer in answers] == [f"{signer.hotkey} asked question {i}" for i in range(8)]
            stream = client.stream("a b")
            assert [piece async for piece in stream] == [signer.hotkey, "asked", "a", "b"]
            assert stream.answer is not None
            assert await client.statistics() == {"asked_by": signer.hotkey}
            with pytest.raises(RequestError, match="answered 404"):
                await client.health()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("stranger", "is not registered on netuid 1 of local"),
        ("poor", "999 TAO at stake; this miner answers from 1000"),
        ("peer", "has no validator permit"),
    ],
)
def test_who_may_not_ask_is_told_why(door: Door, name: str, sentence: str) -> None:
    with door.client(name) as client:
        for ask in (lambda: client.generate("hi"), lambda: list(client.stream("hi"))):
            with pytest.raises(RequestError, match=sentence) as raised:
                ask()
            assert raised.value.status == 403


def test_unsigned_replayed_tampered_and_misdirected_requests(door: Door) -> None:
    body = b'{"prompt": "hi"}'
    headers = signed(door, body)
    assert post(door, {}, body)[0] == 401
    status, text = post(door, headers, body + b" ")
    assert status == 401
    assert "does not verify" in text
    assert post(door, headers, body, "/v1/generate?")[0] == 200  # an empty query is none, on the wire and in the path
    status, text = post(door, headers, body)
    assert status == 401
    assert "already accepted" in text
    assert post(door, signed(door, body), body, "/v1/generate?a=1")[0] == 401
    assert post(door, signed(door, body, "/v1/generate?a=%7E&b=~"), body, "/v1/generate?a=%7E&b=~")[0] == 200
    wrong = door.signer("validator").sign(
        body, method="POST", path="/v1/generate", receiver=headers["X-Bittensor-Hotkey"]
    )
    status, text = post(door, wrong, body)
    assert status == 401
    assert "different receiving hotkey" in text


def test_refused_before_the_body_is_sent(door: Door) -> None:
    """A caller who announces a gigabyte is refused on the headers, with none of it on the way."""
    for headers in ({}, signed(door, b"", name="stranger")):
        connection = http.client.HTTPConnection(door.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/v1/generate")
        for name, value in {**headers, "Content-Length": str(10**9)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == (403 if headers else 401)
        connection.close()


def test_header_given_twice_on_the_wire_is_refused(door: Door) -> None:
    body = b'{"prompt": "hi"}'
    headers = [*signed(door, body).items(), ("X-Bittensor-Hotkey", door.signer("stranger").hotkey)]
    response = httpx.post(f"{door.url}/v1/generate", content=body, headers=headers, trust_env=False)
    assert response.status_code == 401
    assert "given twice" in response.text


def test_replay_is_refused_by_another_worker_and_after_a_restart(tmp_path: Path) -> None:
    body = b'{"prompt": "hi"}'
    with opened(tmp_path) as first, opened(tmp_path) as second:
        assert main(["register", *first.flags("validator"), "--validator"]) == 0
        headers = signed(first, body)
        assert post(first, headers, body)[0] == 200
        assert "already accepted" in post(second, headers, body)[1]
    with opened(tmp_path) as restarted:
        assert "already accepted" in post(restarted, headers, body)[1]
        assert post(restarted, signed(restarted, body), body)[0] == 200


def test_permit_given_and_taken_while_the_miner_runs(door: Door) -> None:
    flags = door.flags("newcomer")
    assert main(["register", *flags]) == 0
    with door.client("newcomer") as client:
        with pytest.raises(RequestError, match="permit"):
            client.generate("hi")
        assert main(["register", *flags, "--validator"]) == 0
        assert client.generate("hi").finish_reason == "stop"
        assert main(["deregister", *flags]) == 0
        with pytest.raises(RequestError, match="not registered"):
            client.generate("hi")


def test_auth_signs_any_httpx_request(door: Door) -> None:
    auth = BittensorAuth(door.signer("validator"), door.network.hotkey)
    with httpx.Client(base_url=door.url, auth=auth, trust_env=False) as client:
        response = client.get("/statistics", params={"q": "a b/\u00e9?"})
        assert response.status_code == 200
        response = client.post("/v1/generate", params={"x": ["1", "2"]}, json={"prompt": "\u00e9"})
        assert response.status_code == 200


def test_foreign_server_is_one_sentence(door: Door) -> None:
    def answer(status: bytes, body: bytes, ask: Callable[[HFAClient], object]) -> str:
        with socket.create_server(("127.0.0.1", 0)) as sock:

            def serve() -> None:
                connection, _ = sock.accept()
                with connection:
                    connection.recv(65536)
                    length = str(len(body)).encode()
                    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: " + length + b"\r\n\r\n" + body)

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            with (
                HFAClient(door.signer("validator"), url=url, receiver=door.network.hotkey, timeout_s=30.0) as client,
                pytest.raises((NetworkError, RequestError)) as raised,
            ):
                ask(client)
            thread.join()
            return str(raised.value)

    assert "expected a JSON object" in answer(b"200 OK", b"<html>", lambda client: client.generate("hi"))
    assert "expected a JSON object" in answer(b"200 OK", b"[" * 50_000, lambda client: client.statistics())
    assert "answer's text is wrong" in answer(b"200 OK", b"{}", lambda client: client.generate("hi"))
    assert "answered 502" in answer(b"502 Bad Gateway", b"<html>", lambda client: client.generate("hi"))
    assert "answered 302" in answer(b"302 Found", b"", lambda client: client.generate("hi"))
    assert "ended before" in answer(b"200 OK", b'data: {"text": "a"}\n\n', lambda client: list(client.stream("hi")))


def command(door: Door, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "hfa.network.client", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_command_line_asks_streams_and_refuses(door: Door, tmp_path: Path) -> None:
    context = tmp_path / "context.txt"
    context.write_text("The number is 42.\n")
    hotkey = door.signer("validator").hotkey
    flags = door.flags("validator")
    asked = command(door, *flags, "--context-file", str(context), "--prompt", "Which?", "--model", "hfa")
    assert (asked.returncode, asked.stdout) == (0, f"{hotkey} asked The number is 42.\nWhich?\n")
    assert "[hfa (asked), 24 tokens in, " in asked.stderr
    assert "round_trip_s" in asked.stderr
    streamed = command(door, *flags, "--prompt", "Which?", "--stream", "--statistics")
    assert streamed.returncode == 0
    assert streamed.stdout.startswith(f"{hotkey}askedWhich?\n{{")
    refused = command(door, *door.flags("poor"), "--prompt", "hi")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.endswith("999 TAO at stake; this miner answers from 1000.\n")
