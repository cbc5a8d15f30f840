"""Admission: rates per caller and bodies within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.serving.admission import BodyReader, RateLimiter, TryLaterError


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def allowed(limiter: RateLimiter, caller: str = "a") -> bool:
    try:
        limiter.take(caller)
    except TryLaterError:
        return False
    return True


def test_a_burst_then_the_rate():
    clock = Clock()
    limiter = RateLimiter(rate_per_s=2.0, burst=3, clock=clock)
    assert [allowed(limiter) for _ in range(5)] == [True, True, True, False, False]
    clock.now += 0.5
    assert [allowed(limiter) for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [allowed(limiter) for _ in range(4)] == [True, True, True, False]


def test_retry_after_is_when_it_is_worth_it():
    clock = Clock()
    limiter = RateLimiter(rate_per_s=0.1, burst=1, clock=clock)
    limiter.take("a")
    with pytest.raises(TryLaterError) as refused:
        limiter.check("a")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 10)
    clock.now += 10
    limiter.check("a")


def test_looking_takes_nothing_and_callers_are_apart():
    limiter = RateLimiter(rate_per_s=1.0, burst=1, clock=Clock())
    for _ in range(5):
        limiter.check("a")
    assert allowed(limiter, "a")
    assert allowed(limiter, "b")
    assert not allowed(limiter, "a")


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from("abc")), max_size=80))
def test_no_caller_gets_more_than_burst_and_rate(arrivals):
    clock = Clock()
    limiter = RateLimiter(rate_per_s=1.5, burst=4, clock=clock)
    begin, passed = clock.now, dict.fromkeys("abc", 0)
    for wait, caller in arrivals:
        clock.now += wait
        passed[caller] += allowed(limiter, caller)
        assert passed[caller] <= 4 + 1.5 * (clock.now - begin) + 1e-6


def test_callers_that_are_long_gone_are_forgotten():
    clock = Clock()
    limiter = RateLimiter(rate_per_s=1.0, burst=2, clock=clock)
    for number in range(1000):
        limiter.take(f"caller {number}")
    clock.now += 3
    limiter.take("one more")
    assert len(limiter) == 1


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


async def nothing() -> AsyncIterator[bytes]:
    yield b"x"
    await asyncio.Event().wait()


def reader(**limits) -> BodyReader:
    return BodyReader(**({"max_bytes": 10, "timeout_s": 30.0, "max_uploads": 2} | limits))


def test_a_body_is_read_up_to_the_cap():
    assert asyncio.run(reader().read(chunks(4, 6))) == b"x" * 10
    with pytest.raises(RequestError, match="10 bytes at most") as refused:
        asyncio.run(reader().read(chunks(4, 7)))
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("length", "status"),
    [("11", 413), ("9" * 5000, 413), ("-1", 400), ("1e3", 400), ("²", 400), ("", 400)],
)
def test_an_announced_length_is_judged_before_the_body(length, status):
    with pytest.raises(RequestError) as refused:
        reader().check(length)
    assert refused.value.status == status
    assert len(str(refused.value)) < 200


def test_lengths_within_the_cap_pass():
    for length in (None, "0", "10", "0010"):
        reader().check(length)


def test_a_body_that_stops_coming_is_408():
    with pytest.raises(RequestError, match=r"within 0\.01 s") as refused:
        asyncio.run(reader(timeout_s=0.01).read(nothing()))
    assert refused.value.status == 408


def test_too_many_bodies_at_once_are_refused_until_one_has_come():
    async def main():
        bodies = reader()
        waiting = [asyncio.create_task(bodies.read(nothing())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TryLaterError) as refused:
            bodies.check("1")
        assert refused.value.status == 503
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        bodies.check("1")

    asyncio.run(main())
