"""Sessions as somebody uses them who keeps a conversation going."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hfa.errors import RequestError
from hfa.inference import Engine, EngineConfig, GenerationRequest, Sampling
from hfa.inference.sequence import Sequence
from hfa.inference.session import Exported

NAMES = sorted(path.stem for path in (Path(__file__).parents[3] / "conf" / "model").glob("*.yaml") if path.stem != "hf")
SETTINGS = {"prefill_chunk": 64, "checkpoint_every": 64, "state_budget_mib": 64}


def ask(tokens, max_tokens=5, **rest) -> GenerationRequest:
    return GenerationRequest(tokens=tuple(tokens), max_tokens=max_tokens, sampling=Sampling(), **rest)


def answer(engine: Engine, request: GenerationRequest, session: str | None = None):
    async def main():
        *tokens, end = [event async for event in engine.submit(request, session)]
        return [event.token for event in tokens], end

    return asyncio.run(asyncio.wait_for(main(), 60))


def do(engine: Engine, call):
    return engine.call(call).result(30)


@pytest.fixture
def text() -> list[int]:
    return torch.randint(0, 257, (200,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_turns_of_a_session_answer_as_one_long_prompt_would(start, tiny, text, name):
    model = tiny(name)
    engine = start(model, **SETTINGS)
    session = do(engine, lambda s: s.create())
    first, _ = answer(engine, ask(text), session.name)
    second, end = answer(engine, ask(text[:7]), session.name)
    assert session.tokens == [*text, *first, *text[:7], *second]
    assert end.cached_tokens == len(text) + len(first) - 1, "the last token of an answer is read with what follows"
    fresh = start(model, **SETTINGS)
    assert answer(fresh, ask([*text, *first, *text[:7]]))[0] == second


@pytest.mark.parametrize("name", NAMES)
def test_a_fork_goes_its_own_way(start, tiny, text, name):
    engine = start(tiny(name), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    other = do(engine, lambda s: s.fork(one.name))
    assert other.tokens == one.tokens
    left, right = answer(engine, ask([1]), one.name), answer(engine, ask([2]), other.name)
    assert left[1].cached_tokens == right[1].cached_tokens == len(text) + 4
    third = do(engine, lambda s: s.fork(one.name, len(text) + 5))
    assert answer(engine, ask([2]), third.name)[0] == right[0]


@pytest.mark.parametrize("name", NAMES)
def test_rolling_back_forgets_and_a_snapshot_makes_it_cheap(start, tiny, text, name):
    engine = start(tiny(name), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    kept = list(one.tokens)
    mark = do(engine, lambda s: s.snapshot(one.name))
    first, _ = answer(engine, ask([1, 2, 3]), one.name)
    do(engine, lambda s: s.roll_back(one.name, mark))
    assert one.tokens == kept
    assert mark == len(kept)
    again, end = answer(engine, ask([1, 2, 3]), one.name)
    assert again == first
    assert end.cached_tokens == mark - 1, "of the answer's last token there was no state yet"
    do(engine, lambda s: s.roll_back(one.name, 70))
    other, end = answer(engine, ask([5] * 60), one.name)
    assert end.cached_tokens == 64, "from the nearest checkpoint"
    assert other == answer(engine, ask([*text[:70], *[5] * 60]))[0]


@pytest.mark.parametrize("name", [*NAMES, "hf/llama"])
def test_an_exported_session_goes_on_elsewhere(start, tiny, text, name):
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    model = tiny(name)
    here, there = start(model, **SETTINGS), start(model, **SETTINGS)
    one = do(here, lambda s: s.create())
    answer(here, ask(text), one.name)
    data = do(here, lambda s: s.export(one.name).to_bytes())
    other = do(there, lambda s: s.load(Exported.from_bytes(data)))
    assert other.tokens == one.tokens
    (stayed, _), (moved, end) = answer(here, ask([9]), one.name), answer(there, ask([9]), other.name)
    assert stayed == moved
    assert end.cached_tokens == len(text) + 4


def test_what_is_imported_is_looked_at(start, tiny, text):
    """A file from outside names no other model, no token and no code that there is not, and no other shape."""
    model = tiny("hfa")
    engine = start(model, **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    data = do(engine, lambda s: s.export(one.name).to_bytes())
    tensors = safetensors.torch.load(data)
    facts = {"format": "hfa-session-1", "length": str(len(text) + 4), **engine.origin._asdict()}
    codes = next(name for name, x in tensors.items() if x.dtype == torch.uint8)
    memory = next(name for name in tensors if name.endswith("pages.0"))

    def saved(change, **more) -> bytes:
        changed = dict(tensors)
        change(changed)
        return safetensors.torch.save({k: x.contiguous() for k, x in changed.items()}, metadata=facts | more)

    wrong = {
        "no safetensors file": b"not at all",
        "no exported session": saved(lambda t: t.pop("tokens")),
        "is of another model": saved(lambda t: None, model="0" * 32),
        "token ids outside": saved(lambda t: t.update(tokens=tensors["tokens"] + 257)),
        "a code is": saved(lambda t: t.update({codes: tensors[codes] + 200})),
        "a tensor is": saved(lambda t: t.update({memory: tensors[memory][:, 1:]})),
        "has no tensor": saved(lambda t: t.pop(codes)),
    }
    hostile = [saved(lambda t: None, length=length) for length in ("²", "9" * 5000, "")] + [
        bare({"__metadata__": None})
    ]
    for said, bad in [*wrong.items(), *(("The file is no exported session", bad) for bad in hostile)]:
        with pytest.raises(RequestError, match=said) as refused:
            do(engine, lambda s, bad=bad: s.load(Exported.from_bytes(bad)))
        assert refused.value.status == 422
    longer = saved(lambda t: t.update(tokens=torch.zeros(model.config.max_seq_len + 1, dtype=torch.long)))
    with pytest.raises(RequestError, match=r"tokens, and the model reads") as refused:
        do(engine, lambda s: s.load(Exported.from_bytes(longer)))
    assert refused.value.status == 413
    assert len(engine._sessions) == 1
    assert do(engine, lambda s: s.load(Exported.from_bytes(saved(lambda t: None)))).tokens == one.tokens


def bare(header: dict) -> bytes:
    """A safetensors file of a header alone."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def test_a_session_is_for_one_request_at_a_time(start, model):
    engine = start(model, max_concurrent=2)
    session = do(engine, lambda s: s.create())
    model.gate.clear()
    running = engine.submit(ask([1, 2, 3]), session.name)
    with pytest.raises(RequestError, match="running on this session") as refused:
        engine.submit(ask([4]), session.name)
    assert refused.value.status == 409
    asked = engine.call(lambda s: s.fork(session.name))
    model.gate.set()

    async def rest():
        return [event async for event in running]

    asyncio.run(rest())
    with pytest.raises(RequestError, match="running on this session"):
        asked.result(30)
    assert do(engine, lambda s: s.fork(session.name)).tokens == session.tokens


def test_an_unknown_session_is_a_404(start, model):
    engine = start(model)
    with pytest.raises(RequestError, match="which is not here") as refused:
        engine.submit(ask([1]), "nobody")
    assert refused.value.status == 404


def test_a_failed_request_leaves_the_session_as_it_was(start, model):
    engine = start(model)
    session = do(engine, lambda s: s.create())
    first, _ = answer(engine, ask([1, 2, 3]), session.name)
    before = list(session.tokens)
    assert answer(engine, ask([21]), session.name)[1].reason == "error"
    assert session.tokens == before
    assert not session.busy
    again, _ = answer(engine, ask([4]), session.name)
    assert again == answer(engine, ask([1, 2, 3, *first, 4]))[0]


def test_the_idle_session_unused_for_longest_goes_for_a_new_one(start, model):
    engine = start(model, max_sessions=2)
    first, second = (do(engine, lambda s: s.create()) for _ in range(2))
    answer(engine, ask([1, 2, 3]), first.name)
    do(engine, lambda s: s.create())
    with pytest.raises(RequestError, match="not here"):
        engine.submit(ask([1]), second.name)
    assert answer(engine, ask([4]), first.name)[0]


def test_a_session_whose_pages_were_needed_reads_its_tokens_again(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS)
    session = do(engine, lambda s: s.create())
    answer(engine, ask(text), session.name)
    twin = do(engine, lambda s: s.fork(session.name))
    expected, _ = answer(engine, ask([7]), twin.name)
    while engine._sessions.evict():
        continue
    while engine._prefixes.evict():
        continue
    assert engine._pool.pages.num_free == engine._pool.pages.num_pages, "nothing leaks"
    again, end = answer(engine, ask([7]), session.name)
    assert again == expected
    assert (end.cached_tokens, end.miss) == (0, "evicted")


def test_deleted_sessions_give_everything_back(start, tiny, text):
    engine = start(tiny("hybrid"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    do(engine, lambda s: s.snapshot(one.name))
    other = do(engine, lambda s: s.fork(one.name, 100))
    for name in (one.name, other.name):
        do(engine, lambda s, name=name: s.delete(name))
    while engine._prefixes.evict():
        continue
    assert engine._pool.pages.num_free == engine._pool.pages.num_pages


def all_free(engine: Engine) -> bool:
    """Whether all pages are free when nothing is kept any more."""
    while engine._sessions.evict() or engine._prefixes.evict():
        continue
    return sorted(engine._pool.pages._free) == list(range(engine._pool.pages.num_pages))


def test_a_fork_never_takes_the_place_of_its_source(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS, max_sessions=1)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    with pytest.raises(RequestError, match="All 1 sessions are taken") as refused:
        do(engine, lambda s: s.fork(one.name))
    assert refused.value.status == 503
    assert one.row is not None
    assert do(engine, lambda s: s.get(one.name)) is one
    assert not one.busy
    assert all_free(engine)


def test_using_a_session_in_any_way_keeps_it(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS, max_sessions=3)
    first, second, third = (do(engine, lambda s: s.create()) for _ in range(3))
    answer(engine, ask(text), first.name)
    for session in (second, third):
        answer(engine, ask(text[:3]), session.name)
    do(engine, lambda s: s.snapshot(first.name))
    do(engine, lambda s: s.fork(second.name))
    with pytest.raises(RequestError, match="not here"):
        do(engine, lambda s: s.get(third.name))
    assert do(engine, lambda s: s.get(first.name)) is first


def test_without_memory_for_it_there_is_no_fork(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text[:198]), one.name)
    pages = engine._pool.pages
    while engine._prefixes.evict():
        continue
    taken = pages.take(pages.num_free)
    with pytest.raises(RequestError, match="needs 1 pages") as refused:
        do(engine, lambda s: s.fork(one.name))
    assert refused.value.status == 503
    assert len(engine._sessions) == 1
    pages.drop(taken)
    assert all_free(engine)


def test_a_snapshot_that_takes_the_place_of_the_state_itself(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text[:198]), one.name)
    do(engine, lambda s: s.snapshot(one.name))
    answer(engine, ask([1, 2]), one.name)
    pages = engine._pool.pages
    while engine._prefixes.evict():
        continue
    taken = pages.take(pages.num_free)
    assert do(engine, lambda s: s.snapshot(one.name)) == len(one.tokens)
    pages.drop(taken)
    do(engine, lambda s: s.delete(one.name))
    assert all_free(engine)


def test_an_import_that_fails_takes_no_memory(start, tiny, text, monkeypatch):
    engine = start(tiny("hfa"), **SETTINGS, max_sessions=1)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    data = do(engine, lambda s: s.export(one.name).to_bytes())
    one.busy = True
    with pytest.raises(RequestError, match="All 1 sessions are taken"):
        do(engine, lambda s: s.load(Exported.from_bytes(data)))
    one.busy = False

    def full(row, stash):
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(engine._pool, "restore", full)
        with pytest.raises(torch.OutOfMemoryError):
            do(engine, lambda s: s.load(Exported.from_bytes(data)))
    assert do(engine, lambda s: s.get(one.name)) is one, "nobody goes for one that is not there"
    assert all_free(engine)


def test_a_state_from_outside_that_is_not_finite_is_refused(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    facts, tensors = do(engine, lambda s: s.export(one.name))
    spoilt = {name: torch.full_like(x, float("nan")) if x.is_floating_point() else x for name, x in tensors.items()}
    with pytest.raises(RequestError, match="not finite") as refused:
        do(engine, lambda s: s.load(Exported(facts, spoilt)))
    assert refused.value.status == 422


def test_a_failure_on_a_state_from_outside_is_said_to_be(start, tiny, text, monkeypatch):
    """It is not the model's: whoever brings such states must not spoil its record."""
    engine = start(tiny("hfa"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    answer(engine, ask(text), one.name)
    brought = do(engine, lambda s: s.load(s.export(one.name)))

    def fail(*_):
        raise RuntimeError("overflow")

    monkeypatch.setattr(Sequence, "commit", fail)
    assert [answer(engine, ask(text), name)[1].imported for name in (one.name, brought.name)] == [False, True]


def test_what_comes_from_outside_is_nobody_else_s_checkpoint(start, tiny, text):
    """A state that says it has read other tokens than it has stays with whoever brought it, through forks too."""
    model = tiny("hfa")
    elsewhere, engine = start(model, **SETTINGS), start(model, **SETTINGS)
    forged = do(elsewhere, lambda s: s.create())
    answer(elsewhere, ask([5] * 60, 2), forged.name)
    forged.tokens = text[:61]
    data = do(elsewhere, lambda s: s.export(forged.name).to_bytes())
    one = do(engine, lambda s: s.load(Exported.from_bytes(data)))
    other = do(engine, lambda s: s.fork(one.name))
    for session in (one, other):
        assert answer(engine, ask(text[61:140], 1), session.name)[1].cached_tokens == 61
    honest, end = answer(engine, ask(text))
    assert (end.cached_tokens, end.miss) == (0, "new")
    assert honest == answer(elsewhere, ask(text))[0]


@pytest.mark.parametrize("reason", ["deadline", "cancelled"])
def test_a_turn_without_an_answer_leaves_the_session_as_it_was(start, tiny, text, reason):
    """The turn can be asked again, and stands there once."""
    engine = start(tiny("hfa"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    first, _ = answer(engine, ask(text), one.name)
    model = engine._runner.model

    async def cut_short():
        stream = engine.submit(ask(text, 5, deadline_s=1e-9 if reason == "deadline" else None), one.name)
        if reason == "cancelled":
            stream.cancel()
        return [event async for event in stream]

    (end,) = asyncio.run(cut_short())
    assert end.reason == reason
    assert one.tokens == [*text, *first]
    again, _ = answer(engine, ask([7]), one.name)
    assert again == answer(start(model, **SETTINGS), ask([*text, *first, 7]))[0]


def test_a_turn_cut_off_while_it_reads_goes_on_from_a_snapshot(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS | {"checkpoint_every": 0})
    one = do(engine, lambda s: s.create())
    first, _ = answer(engine, ask(text), one.name)
    kept = do(engine, lambda s: s.snapshot(one.name))
    do(engine, lambda s: s._pool.pages.forget(one.row.pages))
    one.row = None  # as after a deadline in the middle of its prompt
    again, end = answer(engine, ask([7]), one.name)
    assert end.cached_tokens == kept - 1 == len(text) + 4
    assert again == answer(start(engine._runner.model, **SETTINGS), ask([*text, *first, 7]))[0]
    do(engine, lambda s: s.delete(one.name))
    assert all_free(engine)


def test_a_turn_that_is_given_up_keeps_what_was_handed_out(start, model):
    """However far ahead of its listener the engine is."""
    engine = start(model)
    one = do(engine, lambda s: s.create())
    tokens, is_ahead, is_cancelled = [], threading.Event(), threading.Event()

    def ahead(token: int) -> bool:
        tokens.append(token)
        if len(tokens) == 20:
            is_ahead.set()
            assert is_cancelled.wait(30)
        return False

    async def leave() -> list[int]:
        stream, given = engine.submit(ask([1, 2, 3], 900, until=lambda: ahead), one.name), []
        async for event in stream:
            given.append(event.token)
            if len(given) == 3:
                assert await asyncio.to_thread(is_ahead.wait, 30)
                stream.cancel()
                is_cancelled.set()
                assert [event.reason async for event in stream.events()] == ["cancelled"]
                return given
        raise AssertionError

    given = asyncio.run(leave())
    assert one.tokens == [1, 2, 3, *given]
    again, _ = answer(engine, ask([4]), one.name)
    assert again == answer(engine, ask([1, 2, 3, *given, 4]))[0]


def test_a_session_ends_where_its_answer_does(start, model):
    """What decides the end is asked between two tokens: none is computed beyond it, and the state is there."""
    engine = start(model)
    one = do(engine, lambda s: s.create())
    whole, _ = answer(engine, ask([1, 2, 3], 9))
    stopped, end = answer(engine, ask([1, 2, 3], 9, until=lambda: lambda token: token == whole[4]), one.name)
    cut = whole.index(whole[4]) + 1
    assert (stopped, end.reason) == (whole[:cut], "stop")
    assert one.tokens == [1, 2, 3, *stopped]
    assert one.row.length == len(one.tokens) - 1


def test_snapshots_keep_the_latest_few_states(start, tiny):
    engine = start(tiny("simplemind"), **SETTINGS)
    one = do(engine, lambda s: s.create())
    positions = []
    for token in range(12):
        answer(engine, ask([token], 1), one.name)
        positions.append(do(engine, lambda s: s.snapshot(one.name)))
    assert list(one.marks) == [position - 1 for position in positions[-8:]], "an answer's last token is not read yet"
    assert do(engine, lambda s: s.roll_back(one.name, positions[0])).row is None, "this one is read again"


def test_who_has_most_sessions_makes_place_first(start, model):
    engine = start(model, max_sessions=3)
    modest = do(engine, lambda s: s.create(owner="modest"))
    many = [do(engine, lambda s: s.create(owner="greedy")) for _ in range(4)]
    assert do(engine, lambda s: s.get(modest.name)) is modest
    new = do(engine, lambda s: s.create(owner="new"))
    for session in (modest, many[-1], new):
        assert do(engine, lambda s, session=session: s.get(session.name)) is session


def test_nobody_with_more_sessions_takes_the_place_of_who_has_fewer(start, model):
    engine = start(model, max_sessions=3)
    modest = do(engine, lambda s: s.create(owner="modest"))
    for _ in range(2):
        do(engine, lambda s: s.create(owner="greedy")).busy = True
    with pytest.raises(RequestError, match="All 3 sessions are taken") as refused:
        do(engine, lambda s: s.create(owner="greedy"))
    assert refused.value.status == 503
    assert do(engine, lambda s: s.get(modest.name)) is modest


def test_a_session_is_its_owner_s_alone(start, tiny, text):
    engine = start(tiny("hfa"), **SETTINGS)
    mine = do(engine, lambda s: s.create(owner="me"))
    with pytest.raises(RequestError, match="not here") as refused:
        engine.submit(ask(text, caller="you"), mine.name)
    assert refused.value.status == 404
    with pytest.raises(RequestError, match="not here"):
        do(engine, lambda s: s.get(mine.name, "you"))
    assert answer(engine, ask(text, caller="me"), mine.name)[1].reason == "length"


def test_what_sessions_have_beside_their_pages_keeps_to_a_budget(start, tiny, text):
    """The states of the longest unused go; their tokens stay, and are read again."""
    engine = start(tiny("hfa"), **SETTINGS, max_sessions=8)
    sessions = [do(engine, lambda s: s.create()) for _ in range(3)]
    for session in sessions:
        answer(engine, ask(text), session.name)
    each = engine.session_bytes() // 3
    assert each > 0
    engine._sessions._budget = 5 * each // 2
    fork = do(engine, lambda s: s.fork(sessions[2].name))
    assert engine.session_bytes() <= 5 * each // 2
    assert [session.row is None for session in (*sessions, fork)] == [True, True, False, False]
    alone = answer(engine, ask([*sessions[0].tokens, *text]))
    assert answer(engine, ask(text), sessions[0].name)[0] == alone[0]


def test_a_closed_engine_answers_no_calls(limits, hash_model):
    engine = EngineConfig(**limits).build(hash_model(), "hash")
    engine.close()
    with pytest.raises(RequestError, match="shutting down"):
        engine.call(lambda s: s.create())
