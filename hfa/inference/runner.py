"""Runs the model: the part of a step that costs. It owns the states; nobody else sees one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hfa.inference.device import CPU
from hfa.inference.scheduler import Chunk, Plan
from hfa.inference.sequence import Sequence
from hfa.models import LanguageModel
from hfa.models.state import State, state_to

log = logging.getLogger(__name__)


class Output(NamedTuple):
    """What one sequence got from a step: logits, an error, or neither in the middle of a prompt."""

    sequence: Sequence
    logits: Tensor | None = None  # [V]
    error: Exception | None = None


class Runner:
    """One model on one device.

    A sequence's failure is its own: the states of the others are values that its computation cannot reach. When
    the device runs out of memory, the model and every state move to the CPU and the step is taken again there.

    Args:
        model: in evaluation mode, on `device`.
        device: where it is.
        dtype: of the matrix products; states keep their own.
    """

    def __init__(self, model: LanguageModel, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.dtype = dtype
        self._states: dict[Sequence, State] = {}

    def run(self, plan: Plan) -> list[Output]:
        """Read the chunks of prompts and decode one token of everybody running."""
        read = [self._guard(chunk.sequence, partial(self._prefill, chunk)) for chunk in plan.prefill]
        return read + [self._guard(sequence, partial(self._decode, sequence)) for sequence in plan.decode]

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence's state, if it has one."""
        self._states.pop(sequence, None)

    def _prefill(self, chunk: Chunk) -> Tensor | None:
        sequence = chunk.sequence
        tokens = sequence.prompt[None, chunk.start : chunk.end].to(self.device)  # [1, T]
        hidden, state = self.model.hidden(tokens, self._states.get(sequence))
        self._states[sequence] = state
        if chunk.end < len(sequence.prompt):
            return None
        logits: Tensor = self.model.head(hidden[0, -1])
        return logits

    def _decode(self, sequence: Sequence) -> Tensor:
        tokens = torch.tensor([sequence.pending], device=self.device)
        logits, self._states[sequence] = self.model.step(tokens, self._states[sequence])
        return logits[0]

    def _guard(self, sequence: Sequence, run: Callable[[], Tensor | None]) -> Output:
        try:
            return Output(sequence, self._attempt(run))
        except Exception as error:
            log.exception("The model failed on a request of %d tokens", len(sequence.prompt))
            return Output(sequence, error=error)

    def _attempt(self, run: Callable[[], Tensor | None]) -> Tensor | None:
        try:
            with self._precision():
                return run()
        except torch.OutOfMemoryError as error:
            if self.device == CPU:
                raise
            log.warning("%s ran out of memory (%s); the model and its states move to the CPU", self.device, error)
        self._move_to_cpu()
        with self._precision():
            return run()

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _move_to_cpu(self) -> None:
        self.model.to(CPU)
        self._states = {sequence: state_to(state, CPU) for sequence, state in self._states.items()}
        self.device = CPU
