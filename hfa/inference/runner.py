"""Runs the model: the part of a step that costs. It owns the states; nobody else sees one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from hfa.inference.device import CPU
from hfa.inference.pool import StatePool
from hfa.inference.row import Row, Stash
from hfa.inference.sampling import likeliest
from hfa.inference.scheduler import Chunk, Plan
from hfa.inference.sequence import Sequence
from hfa.models import LanguageModel
from hfa.models.state import State

log = logging.getLogger(__name__)

T = TypeVar("T")

_FEW = 32  # tokens of a prompt that join the batch of those who decode; more are read faster by themselves


class Output(NamedTuple):
    """What one sequence got from a step: logits, an error, or neither in the middle of a prompt."""

    sequence: Sequence
    logits: Tensor | None = None  # [V]
    best: int | None = None  # what `likeliest` says of them, where it was asked
    error: Exception | None = None


class Runner:
    """One model on one device.

    Everybody who decodes is one batch, and so is a small piece of a prompt beside them: the weights are read once for
    all. The state of the batch is a value: a step makes the next one, and when it fails the old one is still there, so
    that each row is tried by itself and the failure is the failing row's alone. When the device runs out of memory,
    the model and every state move to the CPU and the step is taken again there.

    Args:
        model: in evaluation mode, on the device of the pool.
        pool: the states.
        dtype: of the matrix products; states keep their own.
    """

    def __init__(self, model: LanguageModel, pool: StatePool, dtype: torch.dtype) -> None:
        self.model, self.pool, self.dtype = model, pool, dtype
        self._packed = model.pack(dtype)
        self._rows: list[Row] = []  # the batch, in the order of
        self._batch: list[Tensor] = []  # its tensors of constant size, each [B, ...]
        self._handed: tuple[State, list[int]] | None = None  # its state after a step, and how many pages each row had

    @property
    def device(self) -> torch.device:
        return self.pool.device

    def run(self, plan: Plan) -> list[Output]:
        """Read the chunks of prompts and decode one token of everybody running."""
        together = [Chunk(sequence, sequence.position - 1, sequence.position) for sequence in plan.decode]
        apart = plan.prefill
        if together and apart and self._takes_varlen:
            together += [chunk for chunk in apart if chunk.end - chunk.start <= _FEW]
            apart = [chunk for chunk in apart if chunk.end - chunk.start > _FEW]
        return [self._guard(chunk) for chunk in apart] + self._together(together)

    def stash(self, row: Row) -> Stash:
        """A copy of a row's state, before anything else runs in its pages."""
        self.part(row)
        return self.attempt(partial(self.pool.stash, row))

    def restore(self, row: Row, stash: Stash) -> None:
        """Write what `stash` returned into a row, which has the pages for it."""
        self.attempt(partial(self.pool.restore, row, stash))

    def recurrent(self, row: Row) -> list[Tensor]:
        """The tensors of constant size of a row, wherever they are."""
        if row in self._rows:
            self._unpack()
            at = self._rows.index(row)
            return [x[at : at + 1] for x in self._batch]
        return row.recurrent or []

    def part(self, row: Row) -> None:
        """Take a row out of the batch, so that its tensors are its own; nothing happens when they are."""
        self.attempt(partial(self._part, row))

    def release(self, row: Row) -> None:
        """Forget a row whose stream has ended."""
        self.attempt(partial(self._leave, row))

    def attempt(self, run: Callable[[], T]) -> T:
        """Do what needs memory of the device; when that is full, once more on the CPU, with everything there."""
        try:
            return run()
        except torch.OutOfMemoryError as error:
            if self.device == CPU:
                raise
            log.warning("%s ran out of memory (%s); the model and its states move to the CPU", self.device, error)
        self._move_to_cpu()
        return run()

    def _alone(self, chunk: Chunk) -> Tensor | None:
        """Read the tokens of one row; its logits at the end of what it has."""
        sequence, row = chunk.sequence, chunk.sequence.active
        self._part(row)
        if row.recurrent is None:
            self.pool.begin(row)
        tokens = torch.tensor([sequence.tokens[chunk.start : chunk.end]], device=self.device)
        with self._precision():
            hidden, state = self.model.hidden(tokens, self.pool.rows([row], row.recurrent or []), last=1)
            logits = self.model.head(hidden[0, -1]) if chunk.end == len(sequence.tokens) else None
        row.recurrent, row.length = self.pool.recurrent(state), chunk.end
        self.pool.take_tries(state, [row])
        return logits

    def _together(self, chunks: list[Chunk]) -> list[Output]:
        if not self.model.ragged:
            return [self._guard(chunk) for chunk in chunks]
        if not chunks:
            return []
        try:
            return self.attempt(partial(self._step, chunks))
        except Exception as error:
            log.warning("A batch of %d failed (%s); each row is tried by itself", len(chunks), error)
            return [self._guard(chunk) for chunk in chunks]

    def _step(self, chunks: list[Chunk]) -> list[Output]:
        rows, lengths = [chunk.sequence.active for chunk in chunks], [chunk.end - chunk.start for chunk in chunks]
        self._join(rows)
        tokens = [token for chunk in chunks for token in chunk.sequence.tokens[chunk.start : chunk.end]]
        inputs, state = torch.tensor(tokens, device=self.device), self._state_of(rows)
        ends = [n for n, chunk in enumerate(chunks) if chunk.end == len(chunk.sequence.tokens)]
        with self._precision():
            if len(ends) == len(tokens):
                logits, state = self.model.step(inputs, state)
            else:
                hidden, state = self.model.hidden_varlen(inputs, lengths, state)
                logits = self.model.head(hidden[ends])
        said = dict(zip(ends, zip(logits.unbind(), likeliest(logits), strict=True), strict=True))
        self._handed, self._batch = (state, [len(row.pages) for row in rows]), []  # which has them now
        for row, chunk in zip(rows, chunks, strict=True):
            row.length = chunk.end
        return [Output(chunk.sequence, *said.get(n, ())) for n, chunk in enumerate(chunks)]

    def _state_of(self, rows: list[Row]) -> State:
        """The state of the batch: what the model handed back, unless a row has got a page since."""
        if self._handed is not None and [len(row.pages) for row in rows] == self._handed[1]:
            return self._handed[0]
        self._unpack()
        return self.pool.rows(rows, self._batch)

    def _unpack(self) -> None:
        """Take apart what the model handed back last, which until now nobody wanted row by row."""
        if self._handed is not None:
            state = self._handed[0]
            self._batch, self._handed = self.pool.recurrent(state), None
            self.pool.take_tries(state, self._rows)

    def _join(self, rows: list[Row]) -> None:
        """Make the batch consist of these rows, in this order."""
        if rows == self._rows:
            return
        self._unpack()
        for row in [row for row in self._rows if row not in rows]:
            self._part(row)
        new = [row for row in rows if row not in self._rows]
        for row in new:
            if row.recurrent is None:
                self.pool.begin(row)
        parts = [self._batch] if self._rows else []
        parts += [row.recurrent or [] for row in new]
        batch = [torch.cat(tensors) for tensors in zip(*parts, strict=True)] if new else self._batch
        order = [*self._rows, *new]
        if order != rows:
            where = torch.tensor([order.index(row) for row in rows], device=self.device)
            batch = [x.index_select(0, where) for x in batch]
        self._batch, self._rows = batch, list(rows)  # only now: whatever failed above leaves it as it was
        for row in new:
            row.recurrent = None

    def _part(self, row: Row) -> None:
        if row in self._rows:
            self._unpack()
            at = self._rows.index(row)
            row.recurrent = [x[at : at + 1].clone() for x in self._batch]
            self._leave(row)

    def _leave(self, row: Row) -> None:
        """Close the gap that a row leaves in the batch."""
        if row not in self._rows:
            return
        self._unpack()
        kept = [i for i, one in enumerate(self._rows) if one is not row]
        where = torch.tensor(kept, dtype=torch.long, device=self.device)
        self._batch = [x.index_select(0, where) for x in self._batch]
        self._rows = [self._rows[i] for i in kept]

    def _guard(self, chunk: Chunk) -> Output:
        try:
            return Output(chunk.sequence, self.attempt(partial(self._alone, chunk)))
        except Exception as error:
            log.exception("The model failed on a request of %d tokens", len(chunk.sequence.prompt))
            return Output(chunk.sequence, error=error)

    @property
    def _takes_varlen(self) -> bool:
        with self._precision():
            return self.model.takes_varlen

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        if self._packed or self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _move_to_cpu(self) -> None:
        self.model.to(CPU)
        self._packed = self.model.pack(self.dtype)
        self._unpack()
        self.pool.move_to_cpu()
        self._batch = [x.to(CPU) for x in self._batch]
