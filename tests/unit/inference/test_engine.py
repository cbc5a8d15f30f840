"""The engine: who joins, leaves and fails beside a request changes nothing about it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hfa.inference.engine as engine_module
from hfa.config import from_mapping
from hfa.errors import ConfigError, RequestError
from hfa.inference import Engine, EngineConfig, FinishEvent, GenerationRequest, Sampling, TokenEvent
from hfa.inference.pool import StatePool
from hfa.inference.runner import Runner
from hfa.inference.sequence import Sequence

NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml") if path.stem != "hf")
BROKEN, POISON = 21, 22  # of the hash model: reading one raises, the other makes NaN


def ask(tokens=(1, 2, 3), max_tokens=5, seed=0, temperature=0.0, **rest) -> GenerationRequest:
    sampling = Sampling(seed=seed, temperature=temperature)
    return GenerationRequest(tokens=tuple(tokens), max_tokens=max_tokens, sampling=sampling, **rest)


async def collect(events) -> tuple[list[int], FinishEvent]:
    tokens = []
    async for event in events:
        if isinstance(event, FinishEvent):
            return tokens, event
        assert event.number == len(tokens)
        tokens.append(event.token)
    raise AssertionError("the stream ended without a FinishEvent")


def answer(engine: Engine, request: GenerationRequest) -> tuple[list[int], FinishEvent]:
    async def main():
        return await asyncio.wait_for(collect(engine.submit(request)), 30)

    return asyncio.run(main())


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    limit = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        pause.wait(0.002)


def lone(model, request: GenerationRequest) -> list[int]:
    """The answer by the model alone, one token at a time and no engine."""
    generator = request.sampling.generator()
    state, tokens = model.init_state(1), []
    for token in request.tokens:
        logits, state = model.step(torch.tensor([token]), state)
    while len(tokens) < request.max_tokens:
        if request.sampling.temperature:
            probs = torch.softmax(logits[0] / request.sampling.temperature, -1)
            token = int(torch.multinomial(probs, 1, generator=generator))
        else:
            token = int(logits[0].argmax())
        if token in request.stop_tokens:
            break
        tokens.append(token)
        logits, state = model.step(torch.tensor([token]), state)
    return tokens


requests = st.builds(
    ask,
    tokens=st.lists(st.integers(0, 20), min_size=1, max_size=19),
    max_tokens=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    stop_tokens=st.sampled_from([frozenset(), frozenset({3, 5, 8})]),
)


@settings(max_examples=25)
@given(st.lists(st.tuples(requests, st.booleans()), min_size=1, max_size=9), st.integers(1, 6), st.integers(1, 4))
def test_ragged_admission_equals_lone_runs(hash_model, limits, asked, chunk, concurrent):
    """Whoever runs beside a request, joins, leaves early or waits, its tokens are those of the model alone."""
    settings = EngineConfig(
        **limits | {"prefill_chunk": chunk, "long_prompt_chunk": 1, "max_concurrent": concurrent, "max_queue": 9}
    )
    engine = settings.build(hash_model(), "hash")

    async def one(request, leaves):
        if not leaves:
            return (await collect(engine.submit(request)))[0]
        async for _ in engine.submit(request):
            break
        return None

    async def main():
        return await asyncio.wait_for(asyncio.gather(*(one(*pair) for pair in asked)), 30)

    try:
        answers = asyncio.run(main())
        until(lambda: engine.load().running + engine.load().waiting == 0)
        assert engine.load().state_bytes == 0
        until(lambda: not engine._runner._rows)  # whose end comes just after
        assert engine._pool.pages.num_free == engine._pool.pages.num_pages
    finally:
        engine.close()
    for (request, leaves), tokens in zip(asked, answers, strict=True):
        assert leaves or tokens == lone(hash_model(), request)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1 << 16), ("float32", 1), ("bfloat16", 1)])
def test_real_models_answer_the_same_alone_and_among_others(start, tiny, monkeypatch, name, dtype, least):
    """With weights as they are, and packed in either type."""
    monkeypatch.setattr("hfa.ops.fused.packing._LEAST", least)
    model = tiny(name)
    asked = [ask(range(1, 2 + 7 * i), 6, seed=i, temperature=float(i % 2)) for i in range(5)]
    engine = start(model, prefill_chunk=8, long_prompt_chunk=8, max_concurrent=5, dtype=dtype)

    async def main():
        return await asyncio.gather(*(collect(engine.submit(request)) for request in asked))

    together = [tokens for tokens, _ in asyncio.run(main())]
    assert together == [answer(engine, request)[0] for request in asked]


@pytest.mark.parametrize("name", ["llama", "xlstm"])
def test_peers_of_transformers_go_through_the_same_engine(start, tiny, name):
    """Their rows cannot differ in length, so each decodes by itself."""
    pytest.importorskip("transformers")
    engine = start(tiny(f"hf/{name}"), prefill_chunk=8, long_prompt_chunk=8, max_concurrent=3, state_budget_mib=16)
    asked = [ask(range(1, 2 + 7 * i), 4, seed=i, temperature=float(i % 2)) for i in range(4)]

    async def main():
        return await asyncio.gather(*(collect(engine.submit(request)) for request in asked))

    together = [tokens for tokens, _ in asyncio.run(main())]
    assert together == [answer(engine, request)[0] for request in asked]


def test_half_precision_answers(start, tiny):
    """Products in bfloat16, states as they are: the tokens are there, and the first is that of full precision."""
    full, half = (answer(start(tiny("hfa"), dtype=dtype), ask(range(40), 3)) for dtype in ("float32", "bfloat16"))
    assert half[1].reason == "length"
    assert half[0][0] == full[0][0]


def test_the_last_event_says_why_and_how_much(start, model):
    tokens, end = answer(start(model), ask(range(10), max_tokens=4))
    assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", 10, 4)
    assert len(tokens) == 4
    assert min(end.timing) >= 0


def test_stop_tokens_end_the_answer_and_are_not_in_it(start, model):
    engine = start(model)
    tokens, _ = answer(engine, ask(max_tokens=6))
    stopped, end = answer(engine, ask(max_tokens=6, stop_tokens=frozenset({tokens[3]})))
    assert end.reason == "stop"
    assert stopped == tokens[: tokens.index(tokens[3])]


def test_same_seed_same_tokens_other_seed_others(start, model):
    engine = start(model)
    first, again, other = (answer(engine, ask(max_tokens=20, temperature=1.5, seed=seed))[0] for seed in (7, 7, 8))
    assert first == again != other


def test_a_long_prompt_does_not_stop_a_running_stream(start, model):
    """Between two tokens of the short request the engine reads one small piece of the long one, never more."""
    engine = start(model, prefill_chunk=8, long_prompt_chunk=4)

    async def main():
        short = engine.submit(ask([1], max_tokens=30)).__aiter__()
        assert isinstance(await short.__anext__(), TokenEvent)
        long = asyncio.create_task(collect(engine.submit(ask([2] * 400, max_tokens=1))))
        assert [event async for event in short][-1].reason == "length"
        assert not long.done()
        await asyncio.wait_for(long, 30)

    asyncio.run(main())
    steps = "".join({1: "d", 4: "c", 8: "C"}[size] for size in model.calls[1:])
    assert "cc" not in steps.rstrip("cC"), "pieces between two tokens"
    assert "C" not in steps[: steps.rindex("d")], "large pieces beside a stream"
    assert steps.count("C") > 25, "large pieces once nobody streams"
    assert steps.count("c") * 4 + steps.count("C") * 8 == 400


@pytest.mark.parametrize("breaks", [False, True])
def test_small_pieces_are_read_in_one_pass_with_the_streams(start, tiny, breaks):
    """And each by itself where that fails; either way, answers are those of each alone."""
    model, seen = tiny("hfa"), []
    asked = [ask(range(3), 60), ask(range(50, 90), 4), ask(range(100, 130), 4)]
    engine = start(model, prefill_chunk=8, long_prompt_chunk=4, state_budget_mib=8)
    alone = [answer(engine, request)[0] for request in asked]
    varlen, hidden = model.hidden_varlen, model.hidden

    def together(tokens, lengths, state):
        seen.append(list(lengths))
        if breaks:
            raise RuntimeError("this model cannot read that")
        return varlen(tokens, lengths, state)

    def apart(tokens, state=None, last=None):
        seen.append(tokens.shape[1])
        return hidden(tokens, state, last)

    model.hidden_varlen = together

    async def main():
        first = engine.submit(asked[0]).events()
        tokens = [(await anext(first)).token]
        model.hidden = apart
        others = await asyncio.gather(*(collect(engine.submit(request)) for request in asked[1:]))
        return [[*tokens, *[event.token async for event in first if isinstance(event, TokenEvent)]]] + [
            tokens for tokens, _ in others
        ]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == alone
    assert [1, 4] in seen
    assert (4 in seen) == breaks


def test_a_short_prompt_overtakes_a_long_one(start, model):
    engine = start(model, prefill_chunk=4)
    model.gate.clear()

    async def main():
        long = asyncio.create_task(collect(engine.submit(ask([2] * 400, max_tokens=1))))
        short = asyncio.create_task(collect(engine.submit(ask([1], max_tokens=2))))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.wait_for(short, 30)
        assert not long.done()
        await asyncio.wait_for(long, 30)

    asyncio.run(main())


def test_leaving_the_loop_cancels(start, model):
    engine = start(model)

    async def main():
        async for _ in engine.submit(ask(max_tokens=900)):
            break
        while engine.load().running:
            await asyncio.sleep(0.002)

    asyncio.run(asyncio.wait_for(main(), 30))
    assert len(model.calls) < 900


def test_cancel_ends_the_stream_with_a_reason(start, model):
    engine = start(model)

    async def main():
        generation = engine.submit(ask(max_tokens=900))
        generation.cancel()
        return await collect(generation)

    assert asyncio.run(main())[1].reason == "cancelled"


def test_a_cancelled_task_cancels_its_request(start, model):
    engine = start(model)
    model.gate.clear()

    async def main():
        task = asyncio.create_task(collect(engine.submit(ask())))
        while not engine.load().running:
            await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model.gate.set()
        while engine.load().running:
            await asyncio.sleep(0.002)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_deadline_ends_running_and_waiting_requests(start, model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("hfa.inference.sequence.time", SimpleNamespace(monotonic=lambda: now[0]))
    engine = start(model, max_concurrent=1)
    model.gate.clear()

    async def main():
        running = asyncio.create_task(collect(engine.submit(ask(max_tokens=900, deadline_s=3.0))))
        waiting = asyncio.create_task(collect(engine.submit(ask(max_tokens=900, deadline_s=3.0))))
        assert await asyncio.to_thread(model.entered.acquire, timeout=30)
        now[0] = 3.0
        model.gate.set()
        return [end async for end in _ends(running, waiting)]

    running, waiting = asyncio.run(asyncio.wait_for(main(), 30))
    assert (running.reason, waiting.reason) == ("deadline", "deadline")
    assert (running.completion_tokens, waiting.completion_tokens) == (1, 0)
    assert (running.timing.queue_s, waiting.timing.queue_s) == (0.0, 3.0)


async def _ends(*tasks):
    for task in tasks:
        yield (await task)[1]


@pytest.mark.parametrize("bad", [BROKEN, POISON])
def test_a_failure_is_the_failing_request_s_alone(start, model, bad):
    engine = start(model)

    async def main():
        asked = [ask([1, 2, 3, 4, 5]), ask([1, 2, 3, 4, 5, bad]), ask([6, 7])]
        return await asyncio.gather(*(collect(engine.submit(request)) for request in asked))

    (first, end), (nothing, failed), (last, _) = asyncio.run(main())
    assert failed.reason == "error"
    assert nothing == []
    assert "\n" not in failed.error
    assert failed.error
    assert first == lone(model, ask([1, 2, 3, 4, 5]))
    assert last == lone(model, ask([6, 7]))
    assert end.error == ""
    assert engine.load().state_bytes == 0


def test_a_failed_request_is_let_go_at_once(start, model, monkeypatch):
    """And not when the garbage collector comes by, which it does seldom where little garbage holds much memory."""
    engine, made = start(model), []
    commit = Sequence.commit

    def noted(sequence, *logits):
        made.append(weakref.ref(sequence))
        return commit(sequence, *logits)

    monkeypatch.setattr(Sequence, "commit", noted)
    monkeypatch.setattr(engine_module.log, "exception", lambda *_: None)  # pytest keeps records, with their frames
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            assert answer(engine, ask([1, POISON]))[1].reason == "error"
        assert answer(engine, ask())[1].reason == "length"  # the loop of the engine holds on to the newest alone
        until(lambda: sum(one() is not None for one in made[:3]) == 0)
    finally:
        gc.enable()


def test_a_closed_engine_lets_its_memory_go_at_once(start, tiny):
    engine = start(tiny("hfa"))
    answer(engine, ask())
    pages = [weakref.ref(pool) for store in engine._pool._stores for pool in store]
    gc.collect()
    gc.disable()
    try:
        engine.close()
        assert pages
        assert all(pool() is None for pool in pages)
    finally:
        gc.enable()


def test_a_device_that_is_lost_leaves_no_caller_waiting(start, model, monkeypatch):
    engine = start(model)

    def lost(*_):
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine._runner, "release", lost)
    for _ in range(2):
        tokens, end = answer(engine, ask())
        assert (len(tokens), end.reason) == (5, "length")
    assert engine.load().running == 0


def test_a_full_queue_refuses_with_the_numbers(start, model):
    engine = start(model, max_concurrent=2, max_queue=1)
    model.gate.clear()
    for _ in range(3):
        engine.submit(ask())
    with pytest.raises(RequestError, match=r"^[0-2] requests are running and [1-3] are waiting") as refused:
        engine.submit(ask())
    assert refused.value.status == 503
    assert engine.load().room == 0
    model.gate.set()


def test_states_stay_within_their_budget(start, hash_model):
    """Pages of 64 tokens are 384 KiB each of a budget of 1 MiB: two of them, so one request at a time has both."""
    model = hash_model(bytes_per_token=6 * 1024)
    engine = start(model, max_concurrent=3)
    model.gate.clear()
    for _ in range(3):
        engine.submit(ask([1] * 64, max_tokens=5))
    assert model.entered.acquire(timeout=30)
    assert (engine.load().running, engine.load().waiting) == (1, 2)
    assert engine.load().state_bytes <= 2**20
    model.gate.set()
    until(lambda: engine.load().running + engine.load().waiting == 0)
    with pytest.raises(RequestError, match="130 tokens are more than the engine has memory for, which is 128") as no:
        engine.submit(ask([1] * 125, max_tokens=5))
    assert no.value.status == 413


def test_too_long_says_both_numbers(start, model):
    with pytest.raises(RequestError, match=r"990 tokens of prompt and 11 .* 1001, and hash takes 1000") as refused:
        start(model).submit(ask([1] * 990, max_tokens=11))
    assert refused.value.status == 413


@pytest.mark.parametrize("token", [-1, 23])
def test_a_token_outside_the_vocabulary_is_refused(start, model, token):
    with pytest.raises(RequestError, match="outside 0 to 22") as refused:
        start(model).submit(ask([1, token]))
    assert refused.value.status == 422


def test_closing_drains_then_ends_the_rest(start, model):
    """What finishes within the drain finishes; what does not ends with a reason; nobody new gets in."""
    engine = start(model, max_concurrent=2)

    async def main():
        short = asyncio.create_task(collect(engine.submit(ask(max_tokens=3))))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close, 30)
        return await short

    assert asyncio.run(main())[1].reason == "length"
    with pytest.raises(RequestError, match="shutting down"):
        engine.submit(ask())
    assert not engine.load().accepting
    assert engine.load().room == 0


def test_closing_without_patience_ends_running_and_waiting(start, model):
    engine = start(model, max_concurrent=1)
    model.gate.clear()

    async def main():
        tasks = [asyncio.create_task(collect(engine.submit(ask()))) for _ in range(2)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        while engine.load().accepting:
            await asyncio.sleep(0.002)
        model.gate.set()
        await closing
        return [end async for end in _ends(*tasks)]

    assert [end.reason for end in asyncio.run(asyncio.wait_for(main(), 30))] == ["shutdown", "shutdown"]
    assert not engine._thread.is_alive()
    engine.close()


def test_one_engine_serves_several_event_loops(start, model):
    engine = start(model)
    answers: list[list[int]] = []
    threads = [threading.Thread(target=lambda: answers.append(answer(engine, ask(max_tokens=20))[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 4
    assert all(tokens == answers[0] for tokens in answers)


def test_a_listener_whose_loop_is_gone_does_not_hurt_the_engine(start, model):
    engine = start(model)
    model.gate.clear()

    async def listen():
        pending = engine.submit(ask(max_tokens=900)).__aiter__().__anext__()
        pending.send(None)  # it waits for its first event now, as a task of this loop would
        return pending

    loop = asyncio.new_event_loop()
    pending = loop.run_until_complete(listen())
    loop.close()
    model.gate.set()
    until(lambda: engine.load().running == 0)
    assert len(model.calls) < 900
    assert len(answer(engine, ask())[0]) == 5
    pending.close()


def test_out_of_memory_moves_the_model_to_the_cpu_and_loses_nothing(model, limits):
    """``cpu:0`` stands for the GPU: the same hardware, but to the engine another device."""
    model.full = True
    pool = StatePool(model, torch.device("cpu:0"), 2**20, 3)
    engine = Engine(Runner(model, pool, torch.float32), EngineConfig(**limits), "hash")
    try:
        tokens, end = answer(engine, ask())
        assert end.reason == "length"
        assert tokens == lone(model, ask())
        assert engine.load().device == "cpu"
        model.full = True
        assert answer(engine, ask())[1].reason == "error"
    finally:
        engine.close()


@pytest.mark.parametrize("where", ["pool.begin", "pool.adopt", "pool.restore", "_join", "_leave"])
def test_out_of_memory_around_the_model_loses_nothing_either(limits, tiny, where):
    """Where rows begin, go on from a checkpoint, come back, join and leave the batch."""
    model = tiny("hfa")
    asked = [ask(range(20), 200), ask(range(30), 5, priority=1), ask(range(20), 3, priority=1)]
    alone = EngineConfig(**limits | {"state_budget_mib": 8}).build(model, "hash")
    expected = [answer(alone, request)[0] for request in asked]
    alone.close()
    runner = Runner(model, StatePool(model, torch.device("cpu:0"), 8 * 2**20, 2), torch.float32)
    owner, name = (runner.pool, where.removeprefix("pool.")) if "." in where else (runner, where)
    plain, failures = getattr(owner, name), []

    def fail_once(*args):
        if not failures:
            failures.append(where)
            raise torch.OutOfMemoryError("no memory left")
        return plain(*args)

    setattr(owner, name, fail_once)
    settings = {"max_concurrent": 2, "checkpoint_every": 8, "prefill_chunk": 8}
    engine = Engine(runner, EngineConfig(**limits | settings), "hash")

    async def main():
        first = engine.submit(asked[0]).events()
        tokens = [(await anext(first)).token]
        others = await asyncio.gather(*(collect(engine.submit(request)) for request in asked[1:]))
        return [[*tokens, *[event.token async for event in first if isinstance(event, TokenEvent)]]] + [
            tokens for tokens, _ in others
        ]

    try:
        assert asyncio.run(asyncio.wait_for(main(), 60)) == expected
        assert failures
        assert engine.load().device == "cpu"
    finally:
        engine.close()


def test_a_request_that_cannot_begin_ends_with_an_error(start, tiny):
    """It is in no list any more, its session is free, and the others go on."""
    engine = start(tiny("hfa"), checkpoint_every=8, prefill_chunk=8, state_budget_mib=8)
    expected = answer(engine, ask(range(30)))[0]
    session = engine.call(lambda sessions: sessions.create()).result(30)

    def broken(node):
        raise RuntimeError("this checkpoint cannot be read")

    start_at, engine._prefixes.start = engine._prefixes.start, broken

    async def main():
        gone = engine.submit(ask(range(9)))
        gone.cancel()
        asked = [engine.submit(ask(range(30)), session.name), gone, engine.submit(ask([7, 8]))]
        return await asyncio.wait_for(asyncio.gather(*map(collect, asked)), 30)

    (nothing, failed), (_, cancelled), (_, fine) = asyncio.run(main())
    assert (nothing, failed.reason, cancelled.reason, fine.reason) == ([], "error", "cancelled", "length")
    assert "cannot be read" in failed.error
    engine._prefixes.start = start_at
    assert not session.busy
    assert session.tokens == []

    async def again():
        return await asyncio.wait_for(collect(engine.submit(ask(range(30)), session.name)), 30)

    assert asyncio.run(again())[0] == expected


@pytest.mark.parametrize("where", ["weights", "states"])
def test_what_does_not_fit_on_its_device_runs_on_the_cpu(start, limits, tiny, monkeypatch, caplog, where):
    small, model, move = torch.device("cpu:0"), tiny("hfa"), type(tiny("hfa")).to

    def full(at, device):
        if where == at and device == small:
            raise torch.OutOfMemoryError("8 GiB asked, 4 GiB free")

    def to(model, device):
        full("weights", device)
        return move(model, device)

    def pool(model, device, *rest):
        full("states", device)
        return StatePool(model, device, *rest)

    monkeypatch.setattr(type(model), "to", to)
    monkeypatch.setattr(engine_module, "StatePool", pool)
    monkeypatch.setattr(engine_module, "choose_device", lambda name: small)
    engine = start(model, state_budget_mib=8)
    assert engine.load().device == "cpu"
    assert "do not fit on cpu:0 (8 GiB asked, 4 GiB free); it runs on the CPU" in caplog.text
    assert answer(engine, ask())[1].reason == "length"
    with pytest.raises(torch.OutOfMemoryError):
        EngineConfig(**limits | {"state_budget_mib": 8}).build(tiny("hfa"), "hash", fall_back=False)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "tpu"])
def test_an_unknown_device_names_the_key(device, limits):
    with pytest.raises(ConfigError, match=r"engine\.device: got .* expected auto, cpu, cuda"):
        from_mapping(EngineConfig, limits | {"device": device}, "engine")


def test_nobody_waits_for_a_token_while_a_session_is_attended_to(start, model, monkeypatch):
    """Listeners are woken just before the next step of the model, and what comes before it may take long."""
    engine, done, asked = start(model), threading.Event(), []
    run = engine._runner.run

    def run_and_call(plan):
        outputs = run(plan)
        if not asked:
            asked.append(engine.call(lambda _: done.wait(20)))  # answered before the next step
        return outputs

    monkeypatch.setattr(engine._runner, "run", run_and_call)

    async def main():
        try:
            await asyncio.wait_for(anext(engine.submit(ask()).events()), 10)
        finally:
            done.set()

    asyncio.run(main())


def test_a_generation_is_read_once(start, model):
    async def main():
        generation = start(model).submit(ask(max_tokens=1))
        await collect(generation)
        with pytest.raises(RuntimeError, match="once"):
            await generation.next()

    asyncio.run(main())
