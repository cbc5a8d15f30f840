"""A request on its way through the engine."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from hfa.inference.generation import Generation
from hfa.inference.prefix import Keys, Node
from hfa.inference.request import FinishEvent, FinishReason, GenerationRequest, Logprobs, Timing, TokenEvent
from hfa.inference.row import Row, Stash
from hfa.inference.sampling import log_probabilities, sample
from hfa.inference.session import Session


class Sequence:
    """What the engine knows of one request: how far it is, what it holds, when things happened.

        tokens      p p p p p p p p a a a      prompt and answer
        position            ^ ................ tokens the model has read, a chunk at a time

    Args:
        request: what is asked.
        arrival: number of the request, in the order of submission.
        session: the stream that it continues, if any.
        checkpoint_every: tokens between two checkpoints.
    """

    def __init__(
        self,
        request: GenerationRequest,
        arrival: int = 0,
        session: Session | None = None,
        checkpoint_every: int = 0,
    ) -> None:
        self.request = request
        self.session = session
        self.arrival = arrival
        self.generation = Generation()
        self.tokens = list(request.tokens)
        self.keys = Keys(self.tokens, checkpoint_every, request.cache_salt)
        self.position = 0
        self.row: Row | None = None  # its state, while it is active
        self.stash: Stash | None = None  # its state, while it is set aside
        self.is_long = False  # whether its prompt is read in small pieces beside streams
        self.node: Node | None = None  # the checkpoint that it began at
        self.cached = 0  # tokens of the prompt that a checkpoint had
        self.miss = ""
        self.preemptions = 0
        self.failed = False  # its state is good for nothing
        self._generator = request.sampling.generator()
        self._seen = torch.tensor(request.tokens if request.sampling.penalises else (), dtype=torch.long).unique()
        self._is_last = request.until() if request.until else None
        self._submitted = time.monotonic()
        self._began: float | None = None
        self._first: float | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.tokens

    @property
    def count(self) -> int:
        """Tokens generated."""
        return len(self.tokens) - len(self.prompt)

    @property
    def unread(self) -> int:
        """Tokens the model has not read."""
        return len(self.tokens) - self.position

    @property
    def active(self) -> Row:
        """The row of a sequence that has one."""
        assert self.row is not None
        return self.row

    @property
    def urgency(self) -> tuple[int, int]:
        """Who is set aside last when room is short; the least is the most urgent."""
        return -self.request.priority, self.arrival

    @property
    def deadline(self) -> float:
        """When it ends as it is, on the clock of `time.monotonic`."""
        limit = self.request.deadline_s
        return float("inf") if limit is None else self._submitted + limit

    def begin(self) -> None:
        """Its prompt is read from now on."""
        self._began = time.monotonic() if self._began is None else self._began

    def verdict(self) -> FinishReason | None:
        """Why this sequence should end now, whatever it is doing."""
        if self.generation.cancelled:
            return "cancelled"
        return "deadline" if time.monotonic() >= self.deadline else None

    def commit(self, logits: Tensor, best: int | None = None) -> FinishReason | None:
        """Take the next token from logits [V], whose likeliest is `best`; returns why that was the last, if it was."""
        request = self.request
        said = self.tokens[len(self.prompt) :] if request.sampling.penalises else ()
        token = sample(logits, request.sampling, self._generator, self._seen, said, best)
        if self._first is None:
            self._first = time.monotonic()
        if token in request.stop_tokens:
            return "stop"
        told = None if request.logprobs is None else Logprobs(*log_probabilities(logits, token, request.logprobs))
        number = self.count
        self.tokens.append(token)
        self.generation.push(TokenEvent(number, token, told))
        if self._is_last is not None and self._is_last(token):
            return "stop"
        return "length" if self.count == request.max_tokens else None

    def said(self, reason: FinishReason) -> list[int]:
        """What its session is from now on: as far as the caller was answered, and as it was when nothing came."""
        assert self.session is not None
        count = self.generation.num_given if reason == "cancelled" else self.count
        whole = reason in ("stop", "length")
        return self.tokens[: len(self.prompt) + count] if whole or (count and not self.failed) else self.session.tokens

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """End the stream."""
        now = time.monotonic()
        began = now if self._began is None else self._began
        first = now if self._first is None else self._first
        timing = Timing(began - self._submitted, first - began, now - first)
        read = min(self.position, len(self.prompt))
        imported = self.session is not None and self.session.imported
        self.generation.push(
            FinishEvent(reason, read, self.count, timing, self.cached, self.miss, self.preemptions, error, imported)
        )
