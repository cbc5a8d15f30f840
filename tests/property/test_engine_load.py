"""The engine under random load: every answer is the model's own, and at the end everything is where it was."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfa.config import from_node
from hfa.errors import RequestError
from hfa.inference import Engine, EngineConfig, FinishEvent, GenerationRequest, Sampling, TokenEvent
from hfa.inference.sampling import sample
from hfa.inference.session import Exported
from hfa.models import LanguageModel, ModelConfig

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem != "hf")
TINY = {
    "vocab_size": 61,
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "d_ff": 48,
    "dropout": 0.0,
    "max_seq_len": 4096,
    "num_channels": 8,
    "active_channels": 4,
    "window": 8,
    "block_size": 4,
    "num_retrieved": 4,
    "num_ranked": 8,
    "chunk_size": 8,
}
PATTERNS = {"hfa": ["flow", "anchor"], "hybrid": ["routed", "anchor"]}
POISON = 60  # in a prompt that says so, its embedding is NaN


@pytest.fixture(scope="module", autouse=True)
def small_pages() -> Iterator[None]:
    """Pages of four tokens for models without anchor blocks as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hfa.inference.pool._PAGE_SIZE", 4)
        yield


def build(name: str) -> LanguageModel:
    values = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    small = {key: value for key, value in TINY.items() if key in values}
    if name in PATTERNS:
        small["pattern"] = PATTERNS[name]
    torch.manual_seed(0)
    model = from_node(values | small, "model", ModelConfig).build().eval()
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for x in model.parameters():  # answers that follow from all that was read, not from the last token alone
            if x.ndim > 1:
                x += 2 * x.std() * torch.randn(x.shape, generator=noise)
    return model


def limits(**more: object) -> dict[str, Any]:
    values = yaml.safe_load((CONF / "engine" / "default.yaml").read_text())
    values.pop("_target_")
    own = {"device": "cpu", "threads": 1, "prefill_chunk": 8, "long_prompt_chunk": 4, "max_queue": 100}
    own |= {"state_budget_mib": 4}
    return values | own | {"checkpoint_every": 8} | more


def start(name: str, *, pages: int, max_concurrent: int, **more: object) -> Engine:
    """An engine with that many pages of memory."""
    engine = EngineConfig(**limits(max_concurrent=max_concurrent, **more)).build(build(name), name)
    pool = engine._pool.pages
    if pool.num_pages > pages:
        pool._free = list(range(pages))
        pool.num_pages = pages
    return engine


def lone(model: LanguageModel, request: GenerationRequest) -> tuple[list[int], list[float]]:
    """The answer by the model alone, and the log-probability of each token."""
    generator, answer, logprobs = request.sampling.generator(), [], []
    with torch.inference_mode():
        logits, state = model(torch.tensor([request.tokens]))
        logits = logits[:, -1]
        while len(answer) < request.max_tokens:
            token = sample(logits[0], request.sampling, generator, request.tokens, answer)
            answer.append(token)
            logprobs.append(float(torch.log_softmax(logits[0], -1)[token]))
            logits, state = model.step(torch.tensor([token]), state)
    return answer, logprobs


def check_answer(answer: list[TokenEvent], model: LanguageModel, request: GenerationRequest) -> None:
    """As far as it goes, an answer is that of a lone run, and each token as likely as there."""
    tokens, logprobs = lone(model, request)
    assert [event.token for event in answer] == tokens[: len(answer)]
    found = [event.logprobs.logprob for event in answer]
    rounding = 1e-3  # it grows with the weights, which are loud here
    assert found == pytest.approx(logprobs[: len(answer)], abs=rounding)


def check_empty(engine: Engine) -> None:
    """Nothing is lost, shared or leaked once all streams have ended."""
    limit = time.monotonic() + 30
    while engine.load().running + engine.load().waiting or engine._runner._rows:  # these are told last
        assert time.monotonic() < limit
        time.sleep(0.002)
    pool = engine._pool.pages
    assert pool.num_free + pool.num_idle == pool.num_pages
    assert engine.load().swapped_bytes == 0
    while engine._prefixes.evict():
        continue
    assert pool.num_free == pool.num_pages
    assert sorted(pool._free) == list(range(pool.num_pages))


sampling = st.builds(
    Sampling,
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)


@st.composite
def load(draw):
    """Requests that partly begin alike, some of which are given up after a while."""
    common = draw(st.lists(st.integers(0, 59), min_size=20, max_size=20))
    asked = []
    for _ in range(draw(st.integers(1, 8))):
        tokens = [*common[: draw(st.integers(0, 20))], *draw(st.lists(st.integers(0, 59), min_size=1, max_size=12))]
        request = GenerationRequest(
            tokens=tuple(tokens),
            max_tokens=draw(st.integers(1, 12)),
            sampling=draw(sampling),
            priority=draw(st.integers(0, 2)),
            caller=draw(st.sampled_from("ab")),
        )
        asked.append((request, draw(st.sampled_from([None, None, None, 0, 2])), draw(st.booleans())))
    return asked


async def collect(engine: Engine, request: GenerationRequest, leaves_after: int | None, session: str | None = None):
    tokens: list[TokenEvent] = []
    stream = engine.submit(dataclasses.replace(request, logprobs=0), session)
    if leaves_after == 0:
        stream.cancel()
    async for event in stream:
        if isinstance(event, FinishEvent):
            return tokens, event
        tokens.append(event)
        if leaves_after == len(tokens):
            return tokens, None
    raise AssertionError("no end")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(load(), st.integers(12, 30), st.integers(1, 4), st.sampled_from([0, 64]))
def test_whatever_else_runs_the_answer_is_the_model_s(name, asked, pages, max_concurrent, swap):
    """Joined, cut, set aside, swapped or read again, begun at a checkpoint: the tokens are those of a lone run."""
    engine = start(name, pages=pages, max_concurrent=max_concurrent, swap_budget_mib=swap)

    async def main():
        tasks = []
        for request, leaves_after, waits in asked:
            tasks.append(asyncio.create_task(collect(engine, request, leaves_after)))
            if waits:
                await asyncio.sleep(0.003)
        return await asyncio.wait_for(asyncio.gather(*tasks), 60)

    try:
        answers = asyncio.run(main())
        check_empty(engine)
    finally:
        engine.close()
    model = build(name)
    for (request, leaves_after, _), (tokens, end) in zip(asked, answers, strict=True):
        check_answer(tokens, model, request)
        assert leaves_after is not None or len(tokens) == request.max_tokens
        assert leaves_after is not None or end.reason == "length"


def poisoned(module: torch.nn.Module, arguments: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """NaN where POISON follows 16 and 17, as in no answer; in a batch, tokens of all rows stand beside each other."""
    tokens = arguments[0]
    spoilt = (tokens == POISON) & (tokens.roll(1, -1) == 17) & (tokens.roll(2, -1) == 16)
    return out.masked_fill(spoilt[..., None], torch.nan)


@pytest.mark.parametrize("name", NAMES)
def test_a_poisoned_stream_reaches_no_neighbour(name, caplog):
    """Its NaN stay in its own row and pages, also when others get those afterwards."""
    engine = start(name, pages=40, max_concurrent=4, checkpoint_every=0)
    engine._runner.model.embedding.register_forward_hook(poisoned)
    good = [
        GenerationRequest(tokens=tuple(range(n, n + 15)), max_tokens=20, sampling=Sampling(temperature=0.5, seed=n))
        for n in range(12)
    ]

    async def main():
        tasks = []
        for request in good:
            bad = GenerationRequest(tokens=(*range(18), POISON, 1, 2), max_tokens=5, sampling=Sampling())
            tasks += [asyncio.create_task(collect(engine, one, None)) for one in (request, bad)]
        return await asyncio.wait_for(asyncio.gather(*tasks), 60)

    try:
        answers = asyncio.run(main())
        check_empty(engine)
    finally:
        engine.close()
    model = build(name)
    for request, (tokens, _), (nothing, failed) in zip(good, answers[::2], answers[1::2], strict=True):
        assert failed.reason == "error"
        assert nothing == []
        assert "tried by itself" not in caplog.text
        assert len(tokens) == request.max_tokens
        check_answer(tokens, model, request)


class Talker:
    """Somebody who keeps a conversation and knows what the session has to be.

    say       a turn: to its end, given up after a while, past its deadline, or of a prompt that poisons the model
    ask       the same without a session
    fork      go on in a copy
    mark      keep the state of now
    back      go back to a position
    carry     export, delete, import
    forge     import a state that says it has read other tokens, and look what comes of it
    overtake  two without a session, of which the second goes first
    """

    def __init__(self, engine: Engine, *, may_fail: bool) -> None:
        self.engine, self.may_fail = engine, may_fail
        self.tokens: list[int] = []
        self.name = ""
        self.checked: list[tuple[GenerationRequest, list[TokenEvent]]] = []

    async def run(self, script: list[tuple[Any, ...]]) -> None:
        for action, *how in script:
            try:
                if not self.name:
                    self.name = (await self.engine.session(lambda s: s.create(self.tokens))).name
                await getattr(self, action)(*how)
            except RequestError as refused:
                if refused.status not in (404, 409, 413, 503):
                    raise
                self.name = "" if refused.status == 404 else self.name

    async def say(self, request: GenerationRequest, leaves_after: int | None) -> None:
        whole = dataclasses.replace(request, tokens=(*self.tokens, *request.tokens))
        answer, end = await self.turn(request, leaves_after)
        reason = "cancelled" if end is None else end.reason
        now = [*whole.tokens, *(event.token for event in answer)]
        assert reason != "error" or self.may_fail or POISON in now
        if POISON not in now:
            self.checked.append((whole, answer))
        session = await self.engine.session(lambda s: s.get(self.name))
        if leaves_after is not None:  # the engine may have been done, late or have failed when its listener left
            done = request.deadline_s is not None or len(session.tokens) == len(whole.tokens) + request.max_tokens
            assert session.tokens in (now, self.tokens) or done
            assert session.tokens[: len(now)] == now or session.tokens == self.tokens
            self.tokens = session.tokens
        elif answer and reason != "error":
            self.tokens = now
        assert session.tokens == self.tokens
        assert session.row is None or session.row.length <= len(self.tokens)

    async def ask(self, request: GenerationRequest, leaves_after: int | None) -> None:
        answer, end = await collect(self.engine, request, leaves_after)
        now = [*request.tokens, *(event.token for event in answer)]
        assert end is None or end.reason != "error" or self.may_fail or POISON in now
        if POISON not in now:
            self.checked.append((request, answer))

    async def turn(self, request: GenerationRequest, leaves_after: int | None):
        ended = await collect(self.engine, request, leaves_after, self.name)
        while (await self.engine.session(lambda s: s.get(self.name))).busy:
            await asyncio.sleep(0.001)
        return ended

    async def fork(self) -> None:
        self.name = (await self.engine.session(lambda s: s.fork(self.name))).name

    async def mark(self) -> None:
        await self.engine.session(lambda s: s.snapshot(self.name))

    async def back(self, share: float) -> None:
        to = int(share * len(self.tokens))
        await self.engine.session(lambda s: s.roll_back(self.name, to))
        self.tokens = self.tokens[:to]

    async def carry(self) -> None:
        data = await self.engine.session(lambda s: s.export(self.name).to_bytes())
        await self.engine.session(lambda s: s.delete(self.name))
        self.name = ""
        self.name = (await self.engine.session(lambda s: s.load(Exported.from_bytes(data)))).name

    async def forge(self, said: list[int], length: int) -> None:
        """Import the state of other tokens than it says, go on from it, and ask as somebody would who shares them."""
        honest = GenerationRequest(tokens=tuple(said), max_tokens=2, sampling=Sampling())
        await self.ask(dataclasses.replace(honest, tokens=tuple(said[: length + 1])), None)
        one = await self.engine.session(lambda s: s.create())
        await collect(self.engine, dataclasses.replace(honest, tokens=(1,) * length), None, one.name)
        data = await self.engine.session(lambda s: s.export(one.name).to_bytes())
        tensors, header = safetensors.torch.load(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = header["__metadata__"]
        tensors["tokens"] = torch.tensor(said[: int(facts["length"])], dtype=torch.long)
        forged = await self.engine.session(
            lambda s: s.load(Exported.from_bytes(safetensors.torch.save(tensors, metadata=facts)))
        )
        rest = tuple(said[len(forged.tokens) :])
        await collect(self.engine, dataclasses.replace(honest, tokens=rest), None, forged.name)
        await self.ask(honest, None)

    async def overtake(self, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        """Ask for something urgent just after something that is not."""
        low, high = (dataclasses.replace(one[1], priority=n) for n, one in enumerate((first, second)))
        slow = asyncio.create_task(self.ask(low, None))
        await asyncio.sleep(0.003)
        await asyncio.gather(slow, self.ask(high, None))


BEGINNINGS = [[(7 * n + n * n // 3 + 11 * number) % 60 for n in range(40)] for number in range(6)]


@st.composite
def turn(draw):
    beginning = draw(st.sampled_from([*BEGINNINGS, *BEGINNINGS[:1] * 4]))
    tokens = beginning[: draw(st.sampled_from([0, 3, 9, 17, 25, 33, 40]))]
    tokens += draw(st.lists(st.integers(0, 59), min_size=1, max_size=9))
    if draw(st.integers(0, 9)) == 0:
        tokens.insert(len(tokens) // 2, POISON)
    request = GenerationRequest(
        tokens=tuple(tokens),
        max_tokens=draw(st.integers(1, 16)),
        sampling=draw(sampling),
        priority=draw(st.integers(0, 2)),
        deadline_s=draw(st.sampled_from([None, None, None, None, 1e-9, 0.01])),
    )
    return draw(st.sampled_from(["say", "ask"])), request, draw(st.sampled_from([None, None, None, None, 0, 2]))


script = st.lists(
    st.one_of(
        turn(),
        turn(),
        st.sampled_from([("fork",), ("fork",), ("mark",), ("carry",)]),
        st.tuples(st.just("back"), st.floats(0, 1)),
        st.tuples(st.just("forge"), st.sampled_from(BEGINNINGS), st.integers(9, 30)),
        st.tuples(st.just("overtake"), turn(), turn()),
    ),
    min_size=2,
    max_size=8,
)


def failing(call: Callable[[Any], Any], every: int) -> Callable[[Any], Any]:
    count = itertools.count(1)

    def called(argument: Any) -> Any:
        if next(count) % every == 0:
            raise RuntimeError("a fault of the test")
        return call(argument)

    return called


def all_poisoned(module: torch.nn.Module, arguments: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    return out.masked_fill((arguments[0] == POISON)[..., None], torch.nan)


@pytest.mark.parametrize("name", ["hfa", "transformer", "simplemind"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(script, min_size=1, max_size=4),
    st.integers(36, 80),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 64, 64]),
    st.booleans(),
    st.sampled_from([None, None, None, 3]),
)
def test_conversations_hold_whatever_happens_around_them(
    name, scripts, pages, max_concurrent, max_sessions, swap, disk, fails_every
):
    """Turns that fail, end late or are given up, in sessions that come, go and are forged, over checkpoints on disk."""
    with tempfile.TemporaryDirectory() as folder:
        more = {"swap_budget_mib": swap, "max_sessions": max_sessions, "checkpoint_dir": folder if disk else ""}
        if disk:
            before = start(name, pages=pages, max_concurrent=1, **more)
            for tokens in BEGINNINGS:
                request = GenerationRequest(tokens=tuple(tokens), max_tokens=1, sampling=Sampling())
                asyncio.run(collect(before, request, None))
            before.close()
        engine = start(name, pages=pages, max_concurrent=max_concurrent, **more)
        engine._runner.model.embedding.register_forward_hook(all_poisoned)
        if fails_every:
            engine._prefixes.start = failing(engine._prefixes.start, fails_every)
        talkers = [Talker(engine, may_fail=bool(fails_every)) for _ in scripts]

        async def main():
            together = (talker.run(script) for talker, script in zip(talkers, scripts, strict=True))
            await asyncio.wait_for(asyncio.gather(*together), 60)

        try:
            asyncio.run(main())
            while engine._sessions.evict():
                continue
            check_empty(engine)
            assert len(engine._sessions) <= max_sessions
            assert not any(session.busy for session in engine._sessions._sessions.values())
        finally:
            engine.close()
    model = build(name)
    for talker in talkers:
        for request, answer in talker.checked:
            check_answer(answer, model, request)


def test_being_set_aside_changes_nothing():
    """Four pages for three streams that need two to three each: somebody is always set aside, and comes back."""
    for swap in (0, 64):
        engine = start("hfa", pages=12, max_concurrent=3, swap_budget_mib=swap, checkpoint_every=0)
        asked = [
            GenerationRequest(tokens=tuple(range(n, n + 12)), max_tokens=20, sampling=Sampling(seed=n, temperature=0.7))
            for n in range(3)
        ]

        async def main(engine=engine, asked=asked):
            return await asyncio.wait_for(asyncio.gather(*(collect(engine, one, None) for one in asked)), 60)

        try:
            answers = asyncio.run(main())
            check_empty(engine)
        finally:
            engine.close()
        assert sum(end.preemptions for _, end in answers) > 0
        for request, (tokens, _) in zip(asked, answers, strict=True):
            assert len(tokens) == request.max_tokens
            check_answer(tokens, build("hfa"), request)


def test_many_requests_of_mixed_sizes_are_all_answered_or_refused():
    """The small form of `python -m experiments.serving load`."""
    engine = start("hfa", pages=60, max_concurrent=8, max_queue=32, swap_budget_mib=1)
    draw = random.Random(0)
    ended: dict[str, int] = {}

    async def one(number: int) -> None:
        request = GenerationRequest(
            tokens=tuple(draw.choices(range(60), k=draw.choice([1, 5, 20, 60]))),
            max_tokens=draw.choice([1, 3, 10]),
            sampling=Sampling(seed=number, temperature=draw.choice([0.0, 1.0])),
            priority=draw.choice([0, 0, 1]),
            caller=draw.choice("abc"),
            deadline_s=draw.choice([None, None, 0.05]),
        )
        try:
            _, end = await collect(engine, request, draw.choice([None, None, None, None, 1]))
            reason = "left" if end is None else end.reason
        except RequestError as refused:
            reason = f"refused with {refused.status}"
        ended[reason] = ended.get(reason, 0) + 1

    async def main():
        tasks = []
        for number in range(300):
            tasks.append(asyncio.create_task(one(number)))
            if number % 10 == 0:
                await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*tasks), 120)

    try:
        asyncio.run(main())
        check_empty(engine)
    finally:
        engine.close()
    assert sum(ended.values()) == 300
    assert set(ended) <= {"length", "left", "refused with 503", "deadline", "displaced"}
    assert ended["length"]
