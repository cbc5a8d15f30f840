"""Admission: rates per caller and bodies within bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfa.errors import RequestError
from hfa.serving import admission
from hfa.serving.admission import BodyReader, RateLimiter, TryLaterError, Upload


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
    return BodyReader(**({"max_bytes": 10, "timeout_s": 30.0, "max_uploads": 2, "max_uploads_per_address": 2} | limits))


def announce(bodies: BodyReader, length: str | None) -> None:
    with bodies.place({} if length is None else {"content-length": length}, "10.0.0.1"):
        pass


def test_a_body_is_read_up_to_the_cap():
    assert asyncio.run(reader().read(chunks(4, 6), Upload("a", 1.0))) == b"x" * 10
    with pytest.raises(RequestError, match="10 bytes at most") as refused:
        asyncio.run(reader().read(chunks(4, 7), Upload("a", 1.0)))
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("length", "status"),
    [("11", 413), ("9" * 5000, 413), ("-1", 400), ("1e3", 400), ("²", 400), ("", 400)],
)
def test_an_announced_length_is_judged_before_the_body(length, status):
    with pytest.raises(RequestError) as refused:
        announce(reader(), length)
    assert refused.value.status == status
    assert len(str(refused.value)) < 200


def test_lengths_within_the_cap_pass():
    for length in (None, "0", "10", "0010"):
        announce(reader(), length)


def test_two_lengths_are_refused_before_the_body():
    with (
        pytest.raises(RequestError, match="both given") as refused,
        reader().place({"content-length": "1", "transfer-encoding": "chunked"}, "10.0.0.1"),
    ):
        pass
    assert refused.value.status == 400


def test_a_body_that_stops_coming_is_408():
    with pytest.raises(RequestError, match=r"within 0\.01 s") as refused:
        asyncio.run(reader(timeout_s=0.01).read(nothing(), Upload("a", 1.0)))
    assert refused.value.status == 408


def test_places_are_few_for_all_and_fewer_for_one_address_and_come_free():
    bodies = reader(max_uploads=3, max_uploads_per_address=2)

    def refused_at(address: str) -> bool:
        try:
            with bodies.place({}, address):
                return False
        except TryLaterError as error:
            return error.status == 503

    with bodies.place({}, "a"), bodies.place({}, "a"):
        assert refused_at("a")
        assert not refused_at("b")
        with bodies.place({}, "b"):
            assert refused_at("c")
    assert not refused_at("a")
    with contextlib.suppress(RuntimeError), bodies.place({}, "a"), bodies.place({}, "a"):
        raise RuntimeError
    assert not refused_at("a")


def test_a_small_body_takes_no_place():
    bodies = reader(max_uploads=1, max_bytes=1 << 20)
    with (
        bodies.place({}, "a"),
        bodies.place({"content-length": "65536"}, "b"),
        pytest.raises(TryLaterError),
        bodies.place({"content-length": "65537"}, "b"),
    ):
        pass


@pytest.mark.parametrize("address", ["a", "b"])
def test_who_holds_a_place_and_sends_nothing_makes_room(monkeypatch, address):
    monkeypatch.setattr(admission, "_GRACE_S", 0.05)
    bodies = reader(max_uploads=2, max_uploads_per_address=2, max_bytes=1000, timeout_s=10.0)

    async def fast():
        for _ in range(20):
            yield b"x" * 50
            await asyncio.sleep(0.02)

    async def send(stream, address):
        with bodies.place({}, address) as upload:
            return await bodies.read(stream, upload)

    async def scenario():
        honest = asyncio.create_task(send(fast(), "a"))
        slow = asyncio.create_task(send(nothing(), "a" if address == "a" else "c"))
        await asyncio.sleep(0.02)
        with pytest.raises(TryLaterError):  # nobody is slow yet
            await send(chunks(10), address)
        await asyncio.sleep(0.2)
        assert await send(chunks(10), address) == b"x" * 10
        with pytest.raises(TryLaterError, match="send it faster") as refused:
            await slow
        assert refused.value.status == 503
        assert len(await honest) == 1000

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_two_addresses_cannot_take_every_place_by_beginning_anew():
    """Who has just begun is not late yet; an address with many places still makes room for one with none."""
    bodies = reader(max_uploads=4, max_uploads_per_address=2, max_bytes=1000, timeout_s=10.0)

    async def send(stream, address):
        with bodies.place({}, address) as upload:
            return await bodies.read(stream, upload)

    async def scenario():
        silent = [asyncio.create_task(send(nothing(), address)) for address in "aabb"]
        await asyncio.sleep(0)
        assert await send(chunks(10), "c") == b"x" * 10
        held = asyncio.create_task(send(nothing(), "c"))
        await asyncio.sleep(0)
        for address in "abc":  # one more of those that have some displaces nobody
            with pytest.raises(TryLaterError):
                await send(nothing(), address)
        assert not held.done()
        for task in [*silent, held]:
            task.cancel()
        await asyncio.gather(*silent, held, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_to_announce_little_buys_no_time(monkeypatch):
    """A byte now and then would be in time for a body of few; it is slow all the same."""
    monkeypatch.setattr(admission, "_GRACE_S", 0.05)
    bodies = reader(max_uploads=1, max_uploads_per_address=1, max_bytes=1 << 29, timeout_s=120.0)

    async def drip():
        while True:
            yield b"x" * 100
            await asyncio.sleep(0.05)

    async def send(stream, address):
        with bodies.place({"content-length": "65537"}, address) as upload:
            return await bodies.read(stream, upload)

    async def scenario():
        slow = asyncio.create_task(send(drip(), "a"))
        await asyncio.sleep(0.3)
        assert len(await send(chunks(65537), "b")) == 65537
        with pytest.raises(TryLaterError, match="send it faster"):
            await slow

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_body_is_judged_by_its_own_length(monkeypatch):
    """Half of it in a tenth of its time is not slow, however little that is beside the largest body there may be."""
    monkeypatch.setattr(admission, "_GRACE_S", 0.0)
    bodies = reader(max_uploads=1, max_bytes=1 << 30, timeout_s=1.0)

    async def half():
        yield b"x" * 50_000
        await asyncio.sleep(0.2)
        yield b"x" * 50_000

    async def send(stream, address):
        with bodies.place({"content-length": "100000"}, address) as upload:
            return len(await bodies.read(stream, upload))

    async def scenario():
        honest = asyncio.create_task(send(half(), "a"))
        await asyncio.sleep(0.1)
        with pytest.raises(TryLaterError):
            await send(chunks(100_000), "b")
        assert await honest == 100_000

    asyncio.run(asyncio.wait_for(scenario(), 20))
