"""Who runs in the next step: the most urgent first, callers in fair shares, prompts in chunks beside the streams."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from hfa.errors import RequestError
from hfa.inference.pages import PagePool, pages_of
from hfa.inference.request import FinishReason
from hfa.inference.row import Row
from hfa.inference.sequence import Sequence

_READ, _WRITTEN = 1.0, 2.0  # what a token of a prompt and one of an answer count in a caller's share
_REMEMBERED = 4096  # callers whose share is kept when they have nothing here


class Chunk(NamedTuple):
    """A piece of a prompt to read."""

    sequence: Sequence
    start: int
    end: int


class Plan(NamedTuple):
    """The work of one step."""

    failed: list[tuple[Sequence, Exception]]  # could not begin
    preempted: list[Sequence]  # set aside; they wait until the next step at least
    admitted: list[Sequence]
    prefill: list[Chunk]
    decode: list[Sequence]  # each gets one token


class Limits(NamedTuple):
    """What a scheduler keeps to.

    Args:
        max_concurrent: active sequences at most.
        max_queue: waiting sequences at most.
        page_size: tokens of a page; 0 for a model whose state does not grow.
        prefill_chunk: tokens of prompts in a step.
        long_prompt_chunk: tokens in a step of prompts longer than `prefill_chunk`, while anybody streams.
        checkpoint_every: where prompts are cut in any case, so that the state there can be kept; 0 for nowhere.
    """

    max_concurrent: int
    max_queue: int
    page_size: int
    prefill_chunk: int
    long_prompt_chunk: int
    checkpoint_every: int = 0

    def pages(self, length: int) -> int:
        """Pages of `length` tokens."""
        return pages_of(length, self.page_size)


class Scheduler:
    """Holds every sequence of the engine, waiting or active. Not thread-safe: the engine locks around it.

    A step reads at most `prefill_chunk` tokens of prompts, whoever they belong to, and decodes one token of every
    running sequence: the gap between two tokens of a stream is bounded by one chunk, however long a prompt is.
    Prompts are cut at multiples of the chunks alone.

    Pages are taken as sequences grow. When there are no more, checkpoints are evicted, then the least urgent
    sequence is set aside; it goes on where it was when there is room again. Of the waiting, the highest priority
    goes first, and within it the caller who was served least; a sequence takes the place of one of lower priority, or
    of a caller of equal priority who has two more.

    Args:
        limits: what it keeps to.
        pages: the pages of all sequences.
        reclaim: evicts checkpoints until that many pages are free, or there is nothing left to evict.
        begin: the state that a sequence starts from, for one that is admitted; sets its position.
        aside: is told of an active sequence that is set aside, while its pages hold what it has read.
        leave: is told of an active sequence that ends, while it still holds its pages.

    Source: fair shares by a counter of served tokens: virtual token counters, arXiv 2401.00588, section 4.
    """

    def __init__(
        self,
        limits: Limits,
        pages: PagePool,
        *,
        reclaim: Callable[[int], None] = lambda count: None,
        begin: Callable[[Sequence], Row] = lambda sequence: Row(),
        aside: Callable[[Sequence], None] = lambda sequence: None,
        leave: Callable[[Sequence], None] = lambda sequence: None,
    ) -> None:
        self.limits = limits
        self.pages = pages
        self._reclaim, self._begin, self._aside, self._leave = reclaim, begin, aside, leave
        self._waiting: list[Sequence] = []
        self._prefilling: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._served: dict[str, float] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return len(self._prefilling) + len(self._running)

    def sequences(self) -> list[Sequence]:
        """All that are held: running, reading their prompt, waiting."""
        return [*self._running, *self._prefilling, *self._waiting]

    def add_together(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Queue all of some sequences, or none; returns those that leave the queue for them. Raises as `add`."""
        before = list(self._waiting)
        try:
            return [displaced for one in sequences if (displaced := self.add(one)) is not None]
        except RequestError:
            self._waiting = before
            raise

    def add(self, sequence: Sequence) -> Sequence | None:
        """Queue a sequence; returns the one that has to leave the queue for it, if any.

        Raises:
            RequestError: 413 for a state that can never fit, 503 for a full queue in which nobody comes after it.
        """
        needed = self.limits.pages(sequence.request.seq_len)
        if needed > self.pages.num_pages:
            most = self.pages.num_pages * self.limits.page_size
            raise RequestError(
                413,
                f"{sequence.request.seq_len} tokens are more than the engine has memory for, which is {most}; "
                "send a shorter prompt or ask for fewer tokens.",
            )
        displaced = None
        free = self.limits.max_concurrent - self.num_active
        if self.num_waiting >= self.limits.max_queue + max(0, free):
            displaced = self._last_in_queue(sequence)
            if displaced is None:
                raise RequestError(
                    503, f"{self.num_active} requests are running and {self.num_waiting} are waiting; try again later."
                )
            self._waiting.remove(displaced)
        self._count_in(sequence.request.caller)
        self._waiting.append(sequence)
        return displaced

    def expire(self) -> list[tuple[Sequence, FinishReason]]:
        """Take out whoever was cancelled or is past its deadline; returns them, and why they end."""
        ended = [(sequence, reason) for sequence in self.sequences() if (reason := sequence.verdict())]
        for sequence, _ in ended:
            self.remove(sequence)
        return ended

    def schedule(self) -> Plan:
        """Decide on the next step, admitting whoever fits."""
        plan = Plan([], [], [], [], [])
        try:
            self._decode(plan)
            self._admit(plan)
            self._read(plan)
        except BaseException:
            self._waiting += [sequence for sequence, _ in plan.failed]  # else nobody would tell them
            raise
        return plan

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended; the pages of its row are free."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return
        self._leave(sequence)
        (self._running if sequence in self._running else self._prefilling).remove(sequence)
        self.pages.drop(sequence.active.pages)

    # The steps of `schedule`

    def _decode(self, plan: Plan) -> None:
        for sequence in sorted(self._running, key=lambda one: one.urgency):
            if sequence in self._running and self._grow(sequence, sequence.position + 1, plan):
                plan.decode.append(sequence)
        decodes = set(plan.decode)
        plan.decode[:] = [sequence for sequence in self._running if sequence in decodes]
        for sequence in plan.decode:
            sequence.position += 1
            self._charge(sequence, _WRITTEN)

    def _admit(self, plan: Plan) -> None:
        while waiting := [one for one in self._waiting if one not in plan.preempted]:
            sequence = min(waiting, key=self._turn)
            if not self._fits(sequence) and not self._make_way(sequence, plan):
                return
            self._waiting.remove(sequence)
            try:
                sequence.row = self._begin(sequence)
            except Exception as error:  # this one's alone
                plan.failed.append((sequence, error.with_traceback(None)))  # its frames hold the plan
                continue
            self._prefilling.append(sequence)
            restored = sequence.stash is not None
            if restored and not self._grow(sequence, sequence.position, plan):
                return  # it was the least urgent itself, and waits again
            plan.admitted.append(sequence)
            sequence.is_long = sequence.unread > self.limits.prefill_chunk
            if restored and sequence.unread == 1 and sequence.count:
                self._prefilling.remove(sequence)  # it streamed, and goes on streaming
                self._running.append(sequence)
                if self._grow(sequence, sequence.position + 1, plan):
                    sequence.position += 1
                    plan.decode.append(sequence)

    def _read(self, plan: Plan) -> None:
        room, long_room = self.limits.prefill_chunk, self.limits.long_prompt_chunk
        streams = bool(plan.decode)
        for sequence in sorted(self._prefilling, key=lambda one: -one.request.priority):
            if sequence not in self._prefilling:
                continue  # set aside meanwhile
            small = streams and sequence.is_long
            end = self._cut(sequence, self.limits.long_prompt_chunk if small else self.limits.prefill_chunk)
            size = end - sequence.position
            if size > (min(room, long_room) if small else room):
                if small:
                    continue
                break
            if not self._grow(sequence, end, plan):
                continue
            room, long_room = room - size, long_room - size * small
            sequence.begin()
            plan.prefill.append(Chunk(sequence, sequence.position, end))
            self._charge(sequence, _READ * size)
            sequence.position = end
            self._prefilling.remove(sequence)
            (self._prefilling if sequence.unread else self._running).append(sequence)
        plan.decode[:] = [sequence for sequence in plan.decode if sequence in self._running]
        plan.prefill[:] = [chunk for chunk in plan.prefill if chunk.sequence.row is not None]

    def _cut(self, sequence: Sequence, chunk: int) -> int:
        cuts = [(sequence.position // every + 1) * every for every in (chunk, self.limits.checkpoint_every) if every]
        return min(len(sequence.tokens), *cuts)

    # Room

    def _grow(self, sequence: Sequence, length: int, plan: Plan) -> bool:
        """Give a sequence the pages for `length` tokens; False when it had to be set aside itself."""
        row = sequence.active
        needed = self.limits.pages(length) - len(row.pages)
        while needed > self.pages.num_free:
            self._reclaim(needed)
            if needed <= self.pages.num_free:
                break
            last = max([*self._prefilling, *self._running], key=lambda one: one.urgency)
            self._preempt(last, plan)
            if last is sequence:
                return False
        row.pages += self.pages.take(max(0, needed))
        return True

    def _preempt(self, sequence: Sequence, plan: Plan) -> None:
        """Set a sequence aside."""
        self._aside(sequence)  # before anybody else writes into its pages
        (self._running if sequence in self._running else self._prefilling).remove(sequence)
        for chunk in [chunk for chunk in plan.prefill if chunk.sequence is sequence]:
            plan.prefill.remove(chunk)
            sequence.position = chunk.start
        if sequence in plan.decode:
            plan.decode.remove(sequence)
            sequence.position -= 1
        if sequence in plan.admitted:
            plan.admitted.remove(sequence)
        plan.preempted.append(sequence)
        self.pages.drop(sequence.active.pages)
        sequence.row = None
        sequence.preemptions += 1
        self._waiting.append(sequence)

    def _needed(self, sequence: Sequence) -> int:
        """Pages that an active or waiting sequence will take to read all it has, and one token more."""
        held = len(sequence.row.pages) if sequence.row else 0
        return max(0, self.limits.pages(min(len(sequence.tokens) + 1, sequence.request.seq_len)) - held)

    def _fits(self, sequence: Sequence, without: tuple[Sequence, ...] = ()) -> bool:
        active = [one for one in (*self._prefilling, *self._running) if one not in without]
        if len(active) >= self.limits.max_concurrent:
            return False
        left = self.pages.num_free + self.pages.num_idle + sum(len(one.active.pages) for one in without)
        return self._needed(sequence) + sum(map(self._needed, active)) <= left

    def _make_way(self, sequence: Sequence, plan: Plan) -> bool:
        """Set aside as few as possible, if that lets the sequence in: see `_yielding`."""
        yielding = self._yielding(sequence)
        for count in range(1, len(yielding) + 1):
            if self._fits(sequence, tuple(yielding[:count])):
                for one in yielding[:count]:
                    self._preempt(one, plan)
                return True
        return False

    def _yielding(self, new: Sequence) -> list[Sequence]:
        """Who would be set aside for `new`, the first first.

        Those of lower priority; and of equal priority, those of a caller as long as he has two places more.
        """
        places = Counter(one.request.caller for one in (*self._prefilling, *self._running))
        own, found = places[new.request.caller], []
        for one in sorted((*self._prefilling, *self._running), key=lambda one: one.urgency, reverse=True):
            lower = one.request.priority < new.request.priority
            equal = one.request.priority == new.request.priority
            if lower or (equal and places[one.request.caller] > own + 1):
                found.append(one)
                places[one.request.caller] -= 1
        return found

    # Shares

    def _turn(self, sequence: Sequence) -> tuple[int, float, float, int]:
        request = sequence.request
        return -request.priority, self._served.get(request.caller, 0.0), sequence.deadline, sequence.arrival

    def _last_in_queue(self, new: Sequence) -> Sequence | None:
        """Who leaves a full queue for `new`: somebody of lower priority, or the latest of who waits the most."""
        waiting = {one.request.caller: 0 for one in self._waiting}
        for one in self._waiting:
            waiting[one.request.caller] += 1
        own = waiting.get(new.request.caller, 0)

        def claim(one: Sequence) -> tuple[int, int, int]:
            return -one.request.priority, waiting[one.request.caller], one.arrival

        last = max((one for one in self._waiting if not one.preemptions), key=claim, default=None)
        if last is None:
            return None
        lower = last.request.priority < new.request.priority
        crowding = last.request.priority == new.request.priority and waiting[last.request.caller] > own + 1
        return last if lower or crowding else None

    def _count_in(self, caller: str) -> None:
        """A caller who comes back has no claim to what was not used meanwhile."""
        present = {one.request.caller for one in self.sequences()}
        if caller in present:
            return
        if not present:  # nobody competed with what was served until now
            self._served.clear()
        least = min((self._served.get(one, 0.0) for one in present), default=0.0)
        self._served[caller] = max(self._served.pop(caller, 0.0), least)
        while len(self._served) > _REMEMBERED + len(present):
            gone = next((one for one in self._served if one not in present and one != caller), None)
            if gone is None:
                return
            del self._served[gone]

    def _charge(self, sequence: Sequence, cost: float) -> None:
        caller = sequence.request.caller
        self._served[caller] = self._served.get(caller, 0.0) + cost
