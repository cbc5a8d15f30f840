"""The scheduler under random arrivals, departures and steps: nothing lost, nothing twice, never over a limit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.inference import GenerationRequest, Sampling
from hfa.inference.scheduler import Scheduler
from hfa.inference.sequence import Sequence


def sequence(length: int, state_bytes: int = 1) -> Sequence:
    return Sequence(GenerationRequest(tokens=(1,) * length, max_tokens=9, sampling=Sampling()), state_bytes)


arrival = st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 12))
departure = st.tuples(st.sampled_from(["cancel", "end"]), st.integers(0, 99), st.just(0))
step = st.tuples(st.just("step"), st.just(0), st.just(0))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(arrival, departure, step, step), max_size=60),
    st.integers(1, 4),
    st.integers(0, 4),
    st.integers(1, 9),
)
def test_nothing_is_lost_and_no_limit_is_passed(actions, max_concurrent, max_queue, chunk):
    budget = 20
    scheduler = Scheduler(max_concurrent=max_concurrent, max_queue=max_queue, budget_bytes=budget, prefill_chunk=chunk)
    held: list[Sequence] = []
    read: dict[Sequence, int] = {}
    for action, number, state_bytes in actions:
        if action == "add":
            new = sequence(number, state_bytes)
            if scheduler.num_waiting >= max_queue + max_concurrent - scheduler.num_active:
                with pytest.raises(RequestError, match="are waiting; try again later"):
                    scheduler.add(new)
                continue
            scheduler.add(new)
            held.append(new)
            read[new] = 0
        elif action == "cancel" and held:
            held[number % len(held)].generation.cancel()
        elif action == "end" and held:
            gone = held.pop(number % len(held))
            scheduler.remove(gone)
        elif action == "step":
            plan = scheduler.schedule()
            ended = {gone for gone, reason in plan.ended if reason == "cancelled"}
            assert all(gone.generation.cancelled for gone in ended)
            assert len(ended) == len(plan.ended)
            held = [one for one in held if one not in ended]
            for piece in plan.prefill:
                assert piece.start == read[piece.sequence]
                assert piece.start % chunk == 0
                assert piece.end == min(piece.start + chunk, len(piece.sequence.prompt))
                read[piece.sequence] = piece.end
            assert sum(piece.end - piece.start for piece in plan.prefill) <= chunk
            assert len(set(plan.decode)) == len(plan.decode)
            assert all(one.unread == 0 for one in plan.decode)
            assert bool(plan.prefill or plan.decode) == bool(held), "somebody always advances"
            assert not {piece.sequence for piece in plan.prefill} & set(plan.decode)
        assert set(scheduler.sequences()) == set(held)
        assert len(scheduler.sequences()) == len(held)
        assert scheduler.num_active <= max_concurrent
        waiting = scheduler.sequences()[scheduler.num_active :]
        assert scheduler.reserved_bytes == sum(one.state_bytes for one in held if one not in waiting) <= budget


def test_everybody_admitted_advances_in_turn():
    """Two long prompts share the steps; neither waits for the other to end."""
    scheduler = Scheduler(max_concurrent=2, max_queue=2, budget_bytes=9, prefill_chunk=4)
    first, second = sequence(12), sequence(12)
    scheduler.add(first)
    scheduler.add(second)
    order = [piece.sequence for _ in range(6) for piece in scheduler.schedule().prefill]
    assert order == [first, second] * 3


def test_short_prompts_share_one_step():
    scheduler = Scheduler(max_concurrent=4, max_queue=4, budget_bytes=9, prefill_chunk=8)
    asked = [sequence(2) for _ in range(4)]
    for one in asked:
        scheduler.add(one)
    assert [piece.sequence for piece in scheduler.schedule().prefill] == asked
    assert scheduler.schedule().decode == asked
