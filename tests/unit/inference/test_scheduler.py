"""The scheduler under random arrivals, departures and steps: nothing lost, nothing twice, never over a limit."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.inference import GenerationRequest, Sampling
from hfa.inference.pages import PagePool
from hfa.inference.row import Row
from hfa.inference.scheduler import Limits, Plan, Scheduler
from hfa.inference.sequence import Sequence

PAGE = 4


def sequence(length: int, number: int = 0, *, max_tokens: int = 9, **rest) -> Sequence:
    return Sequence(GenerationRequest(tokens=(1,) * length, max_tokens=max_tokens, sampling=Sampling(), **rest), number)


def scheduler(*, max_concurrent=4, max_queue=8, num_pages=20, prefill_chunk=8, long_prompt_chunk=4) -> Scheduler:
    def begin(one: Sequence) -> Row:
        one.position = 0
        return Row()

    limits = Limits(max_concurrent, max_queue, PAGE, prefill_chunk, long_prompt_chunk)
    return Scheduler(limits, PagePool(num_pages), begin=begin)


def run(plan: Plan) -> None:
    """What the engine does with a plan: everybody whose tokens are all read gets one more."""
    for one in [chunk.sequence for chunk in plan.prefill] + plan.decode:
        if not one.unread:
            one.tokens.append(1)


arrival = st.tuples(st.just("add"), st.integers(1, 30), st.integers(0, 2), st.sampled_from("abc"))
departure = st.tuples(st.sampled_from(["cancel", "end"]), st.integers(0, 99), st.just(0), st.just(""))
step = st.tuples(st.just("step"), st.just(0), st.just(0), st.just(""))


@settings(max_examples=200)
@given(
    st.lists(st.one_of(arrival, departure, step, step, step), max_size=80),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(10, 24),  # 39 tokens are the most that is asked
    st.sampled_from([(1, 1), (4, 2), (8, 4), (9, 3)]),
)
def test_nothing_is_lost_and_no_limit_is_passed(actions, max_concurrent, max_queue, num_pages, chunks):
    chunk, small = chunks
    one = scheduler(
        max_concurrent=max_concurrent,
        max_queue=max_queue,
        num_pages=num_pages,
        prefill_chunk=chunk,
        long_prompt_chunk=small,
    )
    held: list[Sequence] = []
    for number, (action, size, priority, caller) in enumerate(actions):
        if action == "add":
            new = sequence(size, number, priority=priority, caller=caller)
            full = one.num_waiting >= max_queue + max_concurrent - one.num_active
            try:
                gone = one.add(new)
            except RequestError:
                assert full
                continue
            assert (gone is not None) == full
            if gone is not None:
                assert gone.row is None
                held.remove(gone)
            held.append(new)
        elif action == "cancel" and held:
            held[size % len(held)].generation.cancel()
        elif action == "end" and held:
            one.remove(held.pop(size % len(held)))
        elif action == "step":
            before = {item: item.position for item in held}
            ended = [item for item, _ in one.expire()]
            plan = one.schedule()
            assert all(item.generation.cancelled for item in ended)
            held = [item for item in held if item not in ended]
            running = [chunk.sequence for chunk in plan.prefill] + plan.decode
            assert len(set(running)) == len(running), "nobody runs twice"
            assert bool(running) == bool(held), "somebody always advances"
            for piece in plan.prefill:
                assert piece.start == (before[piece.sequence] if piece.sequence not in plan.admitted else 0)
                assert piece.end == piece.sequence.position
                assert piece.end - piece.start <= chunk
                assert piece.end == len(piece.sequence.tokens) or piece.end % small == 0
            assert sum(piece.end - piece.start for piece in plan.prefill) <= chunk
            beside = [p.end - p.start for p in plan.prefill if p.sequence.is_long]
            assert not plan.decode or sum(beside) <= small
            for item in running:
                assert len(item.active.pages) * PAGE >= item.position
            run(plan)
            for item in [item for item in held if item.count == item.request.max_tokens]:
                one.remove(item)
                held.remove(item)
        assert sorted(map(id, one.sequences())) == sorted(map(id, held)), "nobody lost, nobody twice"
        active = one.sequences()[: one.num_active]
        assert len(active) <= max_concurrent
        taken = [page for item in active for page in item.active.pages]
        assert len(taken) == len(set(taken)) == one.pages.num_held, "no page lost, none shared"
        assert one.pages.num_free + len(taken) == num_pages
        assert all(item.row is None for item in held if item not in active)


def test_everybody_admitted_advances_in_turn():
    """Two long prompts share the steps; neither waits for the other to end."""
    one = scheduler(prefill_chunk=4)
    first, second = sequence(12), sequence(12, 1)
    one.add(first)
    one.add(second)
    order = [piece.sequence for _ in range(6) for piece in one.schedule().prefill]
    assert order == [first, second] * 3


def test_who_waits_for_others_prompts_waits_in_the_queue(monkeypatch):
    """Or the track record would call a model slow for what its callers asked beside it."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    one = scheduler(prefill_chunk=4)
    first, second = sequence(12), sequence(2, 1)
    one.add(first)
    one.add(second)
    one.schedule()
    now[0] = 5.0
    one.schedule()
    for item, waited in ((first, 0.0), (second, 5.0)):
        item.finish("length")
        assert asyncio.run(item.generation.next()).timing.queue_s == waited


def test_short_prompts_share_one_step():
    one = scheduler()
    asked = [sequence(2, number) for number in range(4)]
    for item in asked:
        one.add(item)
    plan = one.schedule()
    assert [piece.sequence for piece in plan.prefill] == asked
    run(plan)
    assert one.schedule().decode == asked


def test_callers_get_equal_shares_however_many_they_ask():
    """One caller has asked ten times before the other asks once: the other is next but one."""
    one = scheduler(max_concurrent=1, max_queue=20)
    for number in range(10):
        one.add(sequence(4, number, max_tokens=1, caller="greedy"))
    order = []
    for number in range(10, 13):
        one.add(sequence(4, number, max_tokens=1, caller="modest"))
    while held := one.sequences():
        plan = one.schedule()
        for piece in plan.prefill:
            order.append(piece.sequence.request.caller)
            one.remove(piece.sequence)
        assert plan.prefill or not held
    assert order[:6] == ["greedy", "modest"] * 3
    assert order[6:] == ["greedy"] * 7


def test_who_comes_back_has_saved_nothing_up():
    one = scheduler(max_concurrent=1, max_queue=20)
    one.add(sequence(4, 0, caller="busy"))
    one._served |= {"idle": 0.0, "busy": 1000.0}
    one.add(sequence(4, 1, caller="idle"))
    assert one._served["idle"] == 1000.0


def test_a_newcomer_has_no_claim_to_what_was_served_before_he_came():
    one = scheduler(max_concurrent=1, max_queue=20)
    for number in range(50):
        alone = sequence(4, number, max_tokens=1, caller="regular")
        one.add(alone)
        one.schedule()
        one.remove(alone)
    for number in range(3):
        one.add(sequence(4, 50 + number, max_tokens=1, caller="newcomer"))
    one.add(sequence(4, 60, max_tokens=1, caller="regular"))
    order = []
    while one.sequences():
        for piece in one.schedule().prefill:
            order.append(piece.sequence.request.caller)
            one.remove(piece.sequence)
    assert order.index("regular") <= 1


def test_a_higher_priority_takes_the_place_of_a_lower():
    one = scheduler(max_concurrent=2)
    low = [sequence(4, number, priority=0) for number in range(2)]
    for item in low:
        one.add(item)
    run(one.schedule())
    high = sequence(4, 2, priority=1)
    one.add(high)
    plan = one.schedule()
    assert plan.preempted == [low[1]], "the latest of the lowest"
    assert plan.decode == [low[0]]
    assert [piece.sequence for piece in plan.prefill] == [high]
    assert low[1].row is None
    assert low[1].position == 4
    one.add(sequence(4, 3, priority=0))
    assert not one.schedule().preempted, "equal priority waits"


def test_a_caller_with_many_places_makes_way_for_one_with_none():
    """Until he has but one more; and nobody makes way for himself."""
    one = scheduler(max_concurrent=4, max_queue=20)
    many = [sequence(4, number, max_tokens=50, caller="many") for number in range(6)]
    for item in many:
        one.add(item)
    run(one.schedule())
    assert not one.schedule().preempted
    few = [sequence(4, 6 + number, max_tokens=50, caller="few") for number in range(3)]
    for item in few:
        one.add(item)
    plan = one.schedule()
    assert plan.preempted == [many[3], many[2]], "the latest first"
    assert [piece.sequence for piece in plan.prefill] == few[:2]
    for _ in range(5):
        run(plan)
        plan = one.schedule()
        assert not plan.preempted
        assert len(plan.decode) == 4


def test_without_pages_the_least_urgent_is_set_aside_and_comes_back():
    one = scheduler(num_pages=4, max_concurrent=2)
    first, second = sequence(7, 0, max_tokens=9), sequence(7, 1, max_tokens=9)
    one.add(first)
    one.add(second)
    preempted, finished = [], []
    for _ in range(60):
        plan = one.schedule()
        preempted += plan.preempted
        run(plan)
        for item in one.sequences():
            if item.count == 9:
                finished.append(item)
                one.remove(item)
    assert set(preempted) == {second}
    assert finished == [first, second]
    assert one.pages.num_free == 4


def test_a_full_queue_gives_way_to_priority_and_to_those_who_wait_less():
    one = scheduler(max_concurrent=1, max_queue=2)
    run(one.schedule())
    asked = [sequence(4, number, caller="many") for number in range(3)]
    for item in asked:
        one.add(item)
    one.schedule()
    with pytest.raises(RequestError, match="1 requests are running and 2 are waiting"):
        one.add(sequence(4, 3, caller="many"))
    assert one.add(sequence(4, 4, caller="few")) is asked[2]
    with pytest.raises(RequestError):
        one.add(sequence(4, 5, caller="few"))
    assert one.add(sequence(4, 6, caller="few", priority=1)) is not None


def test_who_could_not_begin_is_not_lost_when_the_rest_of_a_plan_fails(monkeypatch):
    one, new = scheduler(), sequence(3)
    monkeypatch.setattr(one, "_begin", lambda sequence: 1 / 0)
    monkeypatch.setattr(one, "_read", lambda plan: {}["room"])
    one.add(new)
    with pytest.raises(KeyError):
        one.schedule()
    assert one.sequences() == [new]
