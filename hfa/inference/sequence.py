"""A request on its way through the engine."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from hfa.inference.generation import Generation
from hfa.inference.request import FinishEvent, FinishReason, GenerationRequest, Timing, TokenEvent
from hfa.inference.sampling import sample


class Sequence:
    """What the engine knows of one request: how far it is, what it holds, when things happened.

        prompt      p p p p p p p p
        position            ^ ............ tokens the model has read, a chunk at a time
        pending                       ^ .. the last token, sampled but not read yet

    Args:
        request: what is asked.
        state_bytes: what its state takes at its longest; reserved while it is active.
    """

    def __init__(self, request: GenerationRequest, state_bytes: int) -> None:
        self.request = request
        self.state_bytes = state_bytes
        self.generation = Generation()
        self.prompt = torch.tensor(request.tokens, dtype=torch.long)  # [T]
        self.position = 0
        self.pending = -1
        self.count = 0  # tokens generated
        self._generator = request.sampling.generator()
        self._submitted = time.monotonic()
        self._admitted: float | None = None
        self._first: float | None = None

    @property
    def unread(self) -> int:
        """Tokens of the prompt the model has not read."""
        return len(self.prompt) - self.position

    def admit(self) -> None:
        """Leave the queue."""
        self._admitted = time.monotonic()

    def verdict(self) -> FinishReason | None:
        """Why this sequence should end now, whatever it is doing."""
        if self.generation.cancelled:
            return "cancelled"
        limit = self.request.deadline_s
        if limit is not None and time.monotonic() - self._submitted >= limit:
            return "deadline"
        return None

    def commit(self, logits: Tensor) -> FinishReason | None:
        """Take the next token from logits [V]; returns why that was the last, if it was."""
        token = sample(logits, self.request.sampling, self._generator)
        if self._first is None:
            self._first = time.monotonic()
        if token in self.request.stop_tokens:
            return "stop"
        self.pending = token
        self.generation.push(TokenEvent(self.count, token))
        self.count += 1
        return "length" if self.count == self.request.max_tokens else None

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """End the stream."""
        now = time.monotonic()
        admitted = now if self._admitted is None else self._admitted
        first = now if self._first is None else self._first
        timing = Timing(admitted - self._submitted, first - admitted, now - first)
        self.generation.push(FinishEvent(reason, self.position, self.count, timing, error))
