"""Who runs in the next step: admission in order of arrival, prompts in chunks, everybody running once a step."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from hfa.errors import RequestError
from hfa.inference.request import FinishReason
from hfa.inference.sequence import Sequence


class Chunk(NamedTuple):
    """A piece of a prompt to read."""

    sequence: Sequence
    start: int
    end: int


class Plan(NamedTuple):
    """The work of one step."""

    ended: list[tuple[Sequence, FinishReason]]  # cancelled or past their deadline: nothing more to run
    prefill: list[Chunk]
    decode: list[Sequence]  # each gets one token


class Scheduler:
    """Holds every sequence of the engine, waiting or active. Not thread-safe: the engine locks around it.

    A step reads at most `prefill_chunk` tokens of prompts, whoever they belong to, and decodes one token of every
    running sequence: the gap between two tokens of a stream is bounded by one chunk, however long a prompt is.
    A prompt is cut at multiples of `prefill_chunk` and nowhere else, so that what a request computes does not
    depend on its neighbours.

    Args:
        max_concurrent: active sequences at most.
        max_queue: waiting sequences at most.
        budget_bytes: for the states of all active sequences, each counted at its longest.
        prefill_chunk: tokens.
    """

    def __init__(self, *, max_concurrent: int, max_queue: int, budget_bytes: int, prefill_chunk: int) -> None:
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.budget_bytes = budget_bytes
        self.prefill_chunk = prefill_chunk
        self.reserved_bytes = 0
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return len(self._prefilling) + len(self._running)

    def sequences(self) -> list[Sequence]:
        """All that are held: running, reading their prompt, waiting."""
        return [*self._running, *self._prefilling, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            RequestError: 413 for a state that can never fit, 503 for a full queue.
        """
        if sequence.state_bytes > self.budget_bytes:
            raise RequestError(
                413,
                f"{sequence.request.seq_len} tokens need {sequence.state_bytes} bytes of state, and the engine has "
                f"{self.budget_bytes}; send a shorter prompt or ask for fewer tokens.",
            )
        free = self.max_concurrent - self.num_active
        if self.num_waiting >= self.max_queue + max(0, free):
            raise RequestError(
                503, f"{self.num_active} requests are running and {self.num_waiting} are waiting; try again later."
            )
        self._waiting.append(sequence)

    def schedule(self) -> Plan:
        """Decide on the next step, admitting whoever fits."""
        ended = [(sequence, reason) for sequence in self.sequences() if (reason := sequence.verdict())]
        for sequence, _ in ended:
            self.remove(sequence)
        self._admit()
        decode = list(self._running)
        return Plan(ended, self._chunks(), decode)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return
        (self._running if sequence in self._running else self._prefilling).remove(sequence)
        self.reserved_bytes -= sequence.state_bytes

    def _admit(self) -> None:
        while self._waiting and self.num_active < self.max_concurrent:
            if self.reserved_bytes + self._waiting[0].state_bytes > self.budget_bytes:
                return
            sequence = self._waiting.popleft()
            self.reserved_bytes += sequence.state_bytes
            sequence.admit()
            self._prefilling.append(sequence)

    def _chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        room = self.prefill_chunk
        for _ in range(len(self._prefilling)):
            sequence = self._prefilling[0]
            size = min(sequence.unread, self.prefill_chunk)
            if size > room:
                break
            room -= size
            chunks.append(Chunk(sequence, sequence.position, sequence.position + size))
            sequence.position += size
            self._prefilling.popleft()
            if sequence.unread:
                self._prefilling.append(sequence)
            else:
                self._running.append(sequence)
        return chunks
