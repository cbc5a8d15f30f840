"""Ask a miner in Python; every request is signed with btauth/1.

with HFAClient(signer, url="http://127.0.0.1:8091", receiver=hotkey) as client:
    print(client.generate("The capital of France is", max_tokens=8).text)
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict, Unpack
from urllib.parse import urlsplit

import httpx
import pydantic

from hfa.errors import NetworkError, RequestError
from hfa.network.base import Signer

_CONNECT_TIMEOUT_S = 10.0
_MOST_S = 1e6


class Sampling(TypedDict, total=False):
    """What a request may ask for besides its prompt; what is left out, the miner decides."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: list[str]
    logprobs: int
    model: str
    deadline_s: float


class Likelihood(NamedTuple):
    """A token that could have been next."""

    token: str
    bytes: list[int]
    logprob: float  # nats


class TokenLogprob(NamedTuple):
    """A token of an answer, and the likeliest instead of it."""

    token: str
    bytes: list[int]
    logprob: float  # nats
    top_logprobs: list[Likelihood]


class Answer(NamedTuple):
    """What a miner answered."""

    text: str
    model: str  # the architecture that answered
    reason: str  # why it was chosen
    finish_reason: str
    usage: dict[str, int]  # prompt_tokens, completion_tokens
    timings: dict[str, float | None]  # queue_s, prefill_s, decode_s, total_s, tokens_per_s
    logprobs: list[TokenLogprob] | None = None  # of each token, where they were asked for


_ANSWER = pydantic.TypeAdapter(Answer)


class BittensorAuth(httpx.Auth):
    """Signs each request with btauth/1: method, path with query as sent, raw body, and the receiver.

    Args:
        signer: the caller's hotkey.
        receiver: the miner's hotkey, ss58.
    """

    requires_request_body = True

    def __init__(self, signer: Signer, receiver: str) -> None:
        self._signer, self._receiver = signer, receiver

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        path = request.url.raw_path.decode("ascii")
        signed = self._signer.sign(request.content, method=request.method, path=path, receiver=self._receiver)
        request.headers.update(signed)
        yield request


class HFAClient:
    """A caller of one miner.

    Args:
        signer: the caller's hotkey.
        url: where the miner is, ``http://host:port``.
        receiver: the miner's hotkey, ss58.
        timeout_s: how long the miner may be silent.

    All calls raise RequestError with the miner's own sentence when it refuses, and NetworkError when there is no miner
    at `url` or it answers something else.
    """

    def __init__(self, signer: Signer, *, url: str, receiver: str, timeout_s: float = 600.0) -> None:
        self._http = httpx.Client(**_http_options(signer, url, receiver, timeout_s))

    def generate(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """The answer to `prompt`, whole."""
        with _failures(self._http.base_url):
            return _answer(_content(self._http.post("/v1/generate", json={"prompt": prompt, **sampling})))

    def stream(self, prompt: str, **sampling: Unpack[Sampling]) -> TextStream:
        """The answer to `prompt` in pieces; asked for when the iteration begins."""
        return TextStream(self._http, {"prompt": prompt, **sampling, "stream": True})

    def statistics(self) -> dict[str, Any]:
        with _failures(self._http.base_url):
            return _content(self._http.get("/statistics"))

    def health(self) -> dict[str, Any]:
        with _failures(self._http.base_url):
            return _content(self._http.get("/health"))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncHFAClient:
    """:class:`HFAClient` for an event loop."""

    def __init__(self, signer: Signer, *, url: str, receiver: str, timeout_s: float = 600.0) -> None:
        self._http = httpx.AsyncClient(**_http_options(signer, url, receiver, timeout_s))

    async def generate(self, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        with _failures(self._http.base_url):
            return _answer(_content(await self._http.post("/v1/generate", json={"prompt": prompt, **sampling})))

    def stream(self, prompt: str, **sampling: Unpack[Sampling]) -> AsyncTextStream:
        return AsyncTextStream(self._http, {"prompt": prompt, **sampling, "stream": True})

    async def statistics(self) -> dict[str, Any]:
        with _failures(self._http.base_url):
            return _content(await self._http.get("/statistics"))

    async def health(self) -> dict[str, Any]:
        with _failures(self._http.base_url):
            return _content(await self._http.get("/health"))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class TextStream:
    """Iterates over the pieces of one answer; `answer` is None until the last piece was read."""

    def __init__(self, http: httpx.Client, body: dict[str, Any]) -> None:
        self._http, self._body, self._events = http, body, _Events()

    @property
    def answer(self) -> Answer | None:
        return self._events.answer

    def __iter__(self) -> Iterator[str]:
        self._events = _Events()
        with (
            _failures(self._http.base_url),
            self._http.stream("POST", "/v1/generate", json=self._body) as response,
        ):
            if not response.is_success:
                response.read()
                _content(response)
            for chunk in response.iter_bytes():
                yield from self._events.feed(chunk)
        self._events.end()


class AsyncTextStream:
    """:class:`TextStream` for an event loop."""

    def __init__(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        self._http, self._body, self._events = http, body, _Events()

    @property
    def answer(self) -> Answer | None:
        return self._events.answer

    async def __aiter__(self) -> AsyncIterator[str]:
        self._events = _Events()
        with _failures(self._http.base_url):
            async with self._http.stream("POST", "/v1/generate", json=self._body) as response:
                if not response.is_success:
                    await response.aread()
                    _content(response)
                async for chunk in response.aiter_bytes():
                    for piece in self._events.feed(chunk):
                        yield piece
        self._events.end()


class _Events:
    """Server-sent events, a JSON object in one ``data:`` line each, cut out of chunks that end anywhere."""

    def __init__(self) -> None:
        self.answer: Answer | None = None
        self._pieces: list[str] = []
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                piece = self._read(line.removeprefix(b"data:"))
                if piece:
                    yield piece

    def end(self) -> None:
        if self.answer is None:
            raise NetworkError("The stream ended before the answer was complete; ask again.")

    def _read(self, data: bytes) -> str:
        event = _mapping(data)
        if "error" in event:
            raise RequestError(503, _sentence(event) or "The miner failed in the middle of its answer.")
        if event.get("done") is True:
            self.answer = _answer({"text": "".join(self._pieces), **event})
            return ""
        piece = event.get("text")
        if not isinstance(piece, str):
            raise _foreign(data)
        self._pieces.append(piece)
        return piece


def _http_options(signer: Signer, url: str, receiver: str, timeout_s: float) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        reachable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        reachable = False
    if not reachable:
        raise NetworkError(f"url: got {url!r}, expected http://host:port.")
    if not (receiver and receiver.isascii()):
        raise NetworkError(f"receiver: got {receiver!r}, expected a hotkey's address, ss58.")
    if not 0 < timeout_s <= _MOST_S:
        raise NetworkError(f"timeout: got {timeout_s!r}, expected seconds above 0, and at most {_MOST_S:g}.")
    return {
        "base_url": url,
        "auth": BittensorAuth(signer, receiver),
        "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
        "trust_env": not _is_loopback(parts.hostname or ""),  # a proxy cannot reach this machine's loopback
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _failures(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise NetworkError(f"The miner at {url} did not answer in time ({type(error).__name__}).") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cause = str(error) or type(error).__name__
        raise NetworkError(f"The miner at {url} cannot be reached ({cause}); is it running?") from error
    except ValueError as error:  # a host or a text that has no bytes, a number that JSON has not
        raise NetworkError(f"This cannot be sent to {url} ({error}).") from None


def _content(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response. Raises RequestError with the server's sentence for anything but a success."""
    if response.is_success:
        return _mapping(response.content)
    try:
        sentence = _sentence(_mapping(response.content))
    except NetworkError:
        sentence = ""
    raise RequestError(response.status_code, sentence or f"The miner answered {response.status_code}.")


def _sentence(refusal: dict[str, Any]) -> str:
    error = refusal.get("error")
    return str(error.get("message") or "") if isinstance(error, dict) else ""


def _mapping(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _foreign(data) from None
    if not isinstance(value, dict):
        raise _foreign(data)
    return value


def _answer(values: dict[str, Any]) -> Answer:
    try:
        return _ANSWER.validate_python({name: values[name] for name in Answer._fields if name in values})
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise NetworkError(f"The answer's {where} is wrong ({problem['msg']}); is this an HFA miner?") from None


def _foreign(data: bytes) -> NetworkError:
    return NetworkError(f"The answer begins with {data[:60]!r}, expected a JSON object; is this an HFA miner?")


if __name__ == "__main__":
    from hfa.network.ask import main

    raise SystemExit(main())
