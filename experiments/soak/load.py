"""Callers: those who ask and must be answered right, and those who must never get in."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from experiments.soak.world import MAX_TOKENS, Question, Worker, World
from hfa.network.bittensor import HotkeySigner

_GIVE_UP_S = 120.0  # a request that is not answered by then, retries included, is lost
_PATH = "/v1/generate"


@dataclass
class Tally:
    """What became of it all."""

    answered: int = 0
    streamed: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    retried: Counter[str] = field(default_factory=Counter)  # why an attempt had to be made again
    models: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)  # attempts that have to be refused, and were
    intruded: list[str] = field(default_factory=list)  # and were not
    seconds: list[float] = field(default_factory=list)  # of answered requests, retries included


class Callers:
    """Validators and strangers, each in a loop of its own until `stop`.

    Args:
        world: keys and questions.
        workers: asked in turns; a caller whose worker is gone goes to the next.
        seed: of who asks what.
        pause_s: between two requests of a caller, on average.
    """

    def __init__(self, world: World, workers: Sequence[Worker], seed: int, pause_s: float) -> None:
        self._world, self._workers, self._pause_s = world, workers, pause_s
        self._random = random.Random(seed)
        self._stopping = asyncio.Event()
        self.tally = Tally()

    async def run(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http:
            asking = [self._ask_on(http, signer) for signer in self._world.validators for _ in range(2)]
            await asyncio.gather(*asking, self._intrude_on(http))

    def stop(self) -> None:
        """Start nothing new; what was asked is waited for."""
        self._stopping.set()

    async def _ask_on(self, http: httpx.AsyncClient, signer: HotkeySigner) -> None:
        while not self._stopping.is_set():
            await self._ask(http, signer, self._random.choice(self._world.questions))
            await self._pause()

    async def _ask(self, http: httpx.AsyncClient, signer: HotkeySigner, question: Question) -> None:
        """One question until it is answered."""
        began = time.monotonic()
        asked = {"prompt": question.prompt, "max_tokens": MAX_TOKENS, "stream": self._random.random() < 0.4}
        if self._random.random() < 0.4:
            asked["model"] = "simplemind"
        while time.monotonic() - began < _GIVE_UP_S:
            worker = self._random.choice(self._workers)
            try:
                model, text = await self._attempt(http, signer, worker, asked)
            except (httpx.HTTPError, Refused) as error:
                self.tally.retried[str(error) if isinstance(error, Refused) else type(error).__name__] += 1
                await asyncio.sleep(0.3)
                continue
            tally = self.tally
            tally.answered += 1
            tally.streamed += bool(asked["stream"])
            tally.models[model] += 1
            tally.seconds.append(time.monotonic() - began)
            if text not in question.answers.get(model, []):
                tally.wrong.append(f"{model}: {text!r} to {question.prompt[:40]!r}")
            return
        self.tally.lost.append(question.prompt[:40])

    async def _attempt(
        self, http: httpx.AsyncClient, signer: HotkeySigner, worker: Worker, asked: dict[str, object]
    ) -> tuple[str, str]:
        body = json.dumps(asked).encode()
        headers = signer.sign(body, method="POST", path=_PATH, receiver=self._world.miner)
        answer = await http.post(f"http://{worker.url}{_PATH}", content=body, headers=headers)
        if answer.status_code != 200:
            raise Refused(f"{answer.status_code}")
        if not asked["stream"]:
            content = answer.json()
            return content["model"], content["text"]
        events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
        if not events or "done" not in events[-1]:
            raise Refused("stream cut off" if not events else "error in a stream")
        return events[-1]["model"], "".join(event["text"] for event in events[:-1])

    async def _intrude_on(self, http: httpx.AsyncClient) -> None:
        """Replays, tampering, strangers, missing signatures and noise; nobody may get in, whatever else goes on."""
        while not self._stopping.is_set():
            worker = self._random.choice(self._workers)
            body = json.dumps({"prompt": self._random.choice(self._world.questions).prompt, "max_tokens": 1}).encode()
            kind = self._random.choice(["replay", "tampered", "stranger", "unsigned", "noise"])
            with suppress(httpx.HTTPError, OSError):
                await self._intrude(http, worker, kind, body)
            await self._pause()

    async def _intrude(self, http: httpx.AsyncClient, worker: Worker, kind: str, body: bytes) -> None:
        url, receiver = f"http://{worker.url}{_PATH}", self._world.miner
        if kind == "noise":
            host, _, port = worker.url.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(self._random.randbytes(300) + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(1000), 30)
            writer.close()
            self._note(kind, int(answer.split(b" ")[1]) if answer else 400)
            return
        signer = self._world.stranger if kind == "stranger" else self._world.validators[0]
        headers = signer.sign(body, method="POST", path=_PATH, receiver=receiver) if kind != "unsigned" else {}
        if kind == "replay":
            first = await http.post(url, content=body, headers=headers)
            if first.status_code != 200:
                return
            other = self._random.choice(self._workers)
            url = f"http://{other.url}{_PATH}"
        sent = body.replace(b'"max_tokens": 1', b'"max_tokens": 9') if kind == "tampered" else body
        self._note(kind, (await http.post(url, content=sent, headers=headers)).status_code)

    def _note(self, kind: str, status: int) -> None:
        self.tally.refused[f"{kind}: {status}"] += 1
        if status == 200:
            self.tally.intruded.append(kind)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._random.expovariate(1 / self._pause_s))


class Refused(Exception):  # noqa: N818
    """An answer that is none, and that asking again may cure."""
