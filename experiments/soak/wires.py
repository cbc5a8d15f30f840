"""The ways to ask a miner: each sends a question as its own clients do, and reads what comes back."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import httpx

from experiments.soak.world import MAX_TOKENS
from hfa.network.bittensor import HotkeySigner
from hfa.network.dendrite import body_hash

TIMEOUT_S = 60.0
SYNAPSE = "/InfiniteContextSynapse"


class Asked(NamedTuple):
    """What is asked for; no model leaves the choice to the miner."""

    prompt: str
    model: str | None
    stream: bool


class Answered(NamedTuple):
    """Which architecture answered, and what."""

    model: str
    text: str


class Refused(Exception):  # noqa: N818
    """An answer that is none, and that asking again may cure."""


class CutOff(Refused):
    """An answer that ends in the middle, without a word."""


class Door(NamedTuple):
    """One worker, as one caller sees it."""

    http: httpx.AsyncClient
    url: str
    miner: str  # hotkey
    signer: HotkeySigner

    async def send(
        self, path: str, content: Mapping[str, object], headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> httpx.Response:
        """The miner's answer; signed with btauth/1 unless there are headers. Raises Refused and httpx.HTTPError."""
        body = json.dumps(content).encode()
        if headers is None:
            headers = self.signer.sign(body, method=method, path=path, receiver=self.miner)
        answer = await self.http.request(method, self.url + path, content=body, headers=dict(headers))
        if not answer.is_success:
            raise Refused(str(answer.status_code))
        return answer


async def generate(door: Door, asked: Asked, path: str = "/v1/generate") -> Answered:
    """The miner's own path."""
    content = {"prompt": asked.prompt, "max_tokens": MAX_TOKENS, "stream": asked.stream, "model": asked.model}
    answer = await door.send(path, content)
    if asked.stream:
        return _streamed(answer)
    given = answer.json()
    return Answered(given["model"], given["text"])


async def dendrite(door: Door, asked: Asked) -> Answered:
    """The synapse of validators on v9 and v10, as their Dendrite signs it."""
    half = len(asked.prompt) // 2
    content = {"context": asked.prompt[:half], "prompt": asked.prompt[half:], "max_tokens": MAX_TOKENS}
    content |= {"architecture_preference": asked.model, "timeout": TIMEOUT_S}
    path = SYNAPSE.replace("/", "/Streaming") if asked.stream else SYNAPSE
    answer = await door.send(path, content, dendrite_headers(door.signer, door.miner))
    if asked.stream:
        return _streamed(answer)
    given = answer.json()
    return Answered(given["architecture_type"], given["response"])


async def openai(door: Door, asked: Asked) -> Answered:
    """OpenAI's completions."""
    content = {"prompt": asked.prompt, "max_tokens": MAX_TOKENS, "temperature": 0.0, "stream": asked.stream}
    answer = await door.send("/v1/completions", content | {"model": asked.model or "auto"})
    pieces = _events(answer) if asked.stream else [answer.json()]
    return Answered(pieces[0]["model"], "".join(piece["choices"][0]["text"] for piece in pieces))


async def session(door: Door, asked: Asked) -> Answered:
    """Two turns: half of the prompt, whose answer is rolled back, and the rest."""
    half = len(asked.prompt) // 2
    begun = (await door.send("/v1/sessions", {"model": asked.model})).json()
    path = f"/v1/sessions/{begun['id']}"
    await door.send(f"{path}/generate", {"prompt": asked.prompt[:half], "max_tokens": 1})
    await door.send(f"{path}/rollback", {"to": half})
    answered = await generate(door, Asked(asked.prompt[half:], None, asked.stream), f"{path}/generate")
    await door.send(path, {}, method="DELETE")
    return answered


WIRES: Mapping[str, Callable[[Door, Asked], Awaitable[Answered]]] = {
    "generate": generate,
    "dendrite": dendrite,
    "openai": openai,
    "session": session,
}


def dendrite_headers(signer: HotkeySigner, miner: str) -> dict[str, str]:
    """What a Dendrite signs for `miner`, the synapse having no hash fields."""
    nonce, name, hashed = time.time_ns(), str(uuid.uuid4()), body_hash([])
    signature = signer.keypair.sign(f"{nonce}.{signer.hotkey}.{miner}.{name}.{hashed}".encode())
    return {
        "name": SYNAPSE.strip("/"),
        "timeout": str(TIMEOUT_S),
        "computed_body_hash": hashed,
        "bt_header_axon_hotkey": miner,
        "bt_header_dendrite_hotkey": signer.hotkey,
        "bt_header_dendrite_nonce": str(nonce),
        "bt_header_dendrite_uuid": name,
        "bt_header_dendrite_signature": f"0x{signature.hex()}",
    }


def _streamed(answer: httpx.Response) -> Answered:
    *pieces, done = _events(answer)
    return Answered(done["model"], "".join(piece["text"] for piece in pieces))


def _events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a whole stream, without OpenAI's last. Raises Refused for an error in it, CutOff for no end."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    ended = bool(lines) and lines[-1] == "[DONE]"
    events = [json.loads(line) for line in (lines[:-1] if ended else lines)]
    if events and "error" in events[-1]:
        raise Refused(f"in a stream: {events[-1]['error']['code']}")
    if not ended and not (events and events[-1].get("done")):
        raise CutOff("stream cut off")
    return events
