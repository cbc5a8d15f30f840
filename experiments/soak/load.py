"""Callers: those who ask and must be answered right, and those who must never get in."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from experiments.soak.wires import SYNAPSE, TIMEOUT_S, WIRES, Asked, CutOff, Door, Refused, dendrite_headers
from experiments.soak.world import Question, Worker, World
from hfa.network.bittensor import HotkeySigner

_GIVE_UP_S = 120.0  # a request that is not answered by then, retries included, is lost
_SHARES = {"generate": 4, "dendrite": 2, "openai": 2, "session": 2}  # of the requests
_PATH = "/v1/generate"


@dataclass
class Tally:
    """What became of it all."""

    answered: Counter[str] = field(default_factory=Counter)  # by wire
    streamed: int = 0
    models: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # attempts that a worker which lives ended without a word
    attempts: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # how each ended
    waited_s: list[float] = field(default_factory=list)  # until a request was answered or given up, retries included
    refused: Counter[str] = field(default_factory=Counter)  # attempts that have to be refused, and were
    intruded: list[str] = field(default_factory=list)  # and were not


class Callers:
    """Validators and strangers, each in a loop of its own until `stop`.

    Args:
        world: keys and questions.
        workers: asked at random, and another when one refuses or is gone.
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
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, limits=limits) as http:
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
        """One question over one wire, until it is answered."""
        tally, began = self.tally, time.monotonic()
        wire = self._random.choices(list(_SHARES), list(_SHARES.values()))[0]
        wish = "simplemind" if self._random.random() < 0.4 else None
        asked = Asked(question.prompt, wish, self._random.random() < 0.4)
        waited_s = 0.0
        while waited_s < _GIVE_UP_S:
            worker = self._random.choice(self._workers)
            door, life = Door(http, f"http://{worker.url}", self._world.miner, signer), worker.life
            try:
                model, text = await WIRES[wire](door, asked)
            except (httpx.HTTPError, Refused) as error:
                outcome = str(error) if isinstance(error, Refused) else type(error).__name__
                tally.attempts[wire][outcome] += 1
                wordless = isinstance(error, httpx.HTTPError | CutOff)
                if wordless and life is not None and worker.life is life:
                    tally.dropped.append(f"{wire}: {outcome} {error}, worker {worker.index}")
                await asyncio.sleep(0.3)
                waited_s = time.monotonic() - began
                continue
            tally.attempts[wire]["answered"] += 1
            tally.answered[wire] += 1
            tally.streamed += asked.stream
            tally.models[model] += 1
            tally.waited_s.append(time.monotonic() - began)
            if text not in question.answers.get(model, []):
                tally.wrong.append(f"{model} over {wire}: {text!r} to {question.prompt[:40]!r}")
            return
        tally.waited_s.append(waited_s)
        tally.lost.append(f"{wire}: {question.prompt[:40]!r}")

    async def _intrude_on(self, http: httpx.AsyncClient) -> None:
        """Replays, tampering, strangers, missing signatures and noise; nobody may get in, whatever else goes on."""
        while not self._stopping.is_set():
            kind = self._random.choice(["replay", "tampered", "stranger", "unsigned", "noise"])
            with suppress(httpx.HTTPError, OSError):
                await self._intrude(http, self._random.choice(self._workers), kind)
            await self._pause()

    async def _intrude(self, http: httpx.AsyncClient, worker: Worker, kind: str) -> None:
        if kind == "noise":
            host, _, port = worker.url.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(self._random.randbytes(300) + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(1000), 30)
            writer.close()
            self._note(kind, int(answer.split(b" ")[1]) if answer else 400)
            return
        legacy = kind != "tampered" and self._random.random() < 0.3  # whose signature does not cover the body
        path, prompt = SYNAPSE if legacy else _PATH, self._random.choice(self._world.questions).prompt
        body = json.dumps({"prompt": prompt, "max_tokens": 1} | ({"context": ""} if legacy else {})).encode()
        signer = self._world.stranger if kind == "stranger" else self._world.validators[0]
        headers: dict[str, str] = {}
        if kind != "unsigned":
            miner = self._world.miner
            own = signer.sign(body, method="POST", path=path, receiver=miner)
            headers = dendrite_headers(signer, miner) if legacy else own
        if kind == "replay":
            first = await http.post(f"http://{worker.url}{path}", content=body, headers=headers)
            if first.status_code != 200:
                return
            worker = self._random.choice(self._workers)
        sent = body.replace(b'"max_tokens": 1', b'"max_tokens": 9') if kind == "tampered" else body
        answer = await http.post(f"http://{worker.url}{path}", content=sent, headers=headers)
        self._note(f"{'dendrite ' * legacy}{kind}", answer.status_code)

    def _note(self, kind: str, status: int) -> None:
        self.tally.refused[f"{kind}: {status}"] += 1
        if status == 200:
            self.tally.intruded.append(kind)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), self._random.expovariate(1 / self._pause_s))
