"""The engine: one thread, one model, one loop. Schedule, run, sample, commit."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from hfa.config import Config, NonNegativeInt, PositiveInt, config
from hfa.errors import ConfigError, RequestError, first_line
from hfa.inference.device import CPU, choose_device, is_device_name
from hfa.inference.disk import Origin
from hfa.inference.generation import Generation, woken_together
from hfa.inference.pool import StatePool
from hfa.inference.request import FinishReason, GenerationRequest
from hfa.inference.runner import Output, Runner
from hfa.inference.scheduler import Limits, Plan, Scheduler
from hfa.inference.sequence import Sequence
from hfa.inference.session import Session, Sessions
from hfa.inference.states import States
from hfa.models import LanguageModel

log = logging.getLogger(__name__)

T = TypeVar("T")

_JOIN_S = 10.0  # how long a step that is under way may take to end when the engine closes


@config
class EngineConfig(Config):
    """How a model is served.

    Args:
        device: auto, cpu, cuda or cuda:N; a GPU that runs out of memory falls back to the CPU.
        dtype: of the matrix products.
        threads: of the CPU, for this model; 0 leaves it to torch.
        prefill_chunk: tokens of prompts read in one step; smaller means steadier streams, larger faster prompts.
        long_prompt_chunk: those of prompts longer than `prefill_chunk`, while anybody streams: what a long prompt
            adds to the gap between two tokens of a stream; divides `prefill_chunk`.
        max_concurrent: requests that run together.
        max_queue: requests that wait; more are refused.
        state_budget_mib: memory for the states of running requests.
        swap_budget_mib: memory for the states of requests that are set aside; beyond it they are computed again.
        checkpoint_every: tokens between two checkpoints of a prompt's state, from which prompts that begin alike
            start; whole pages of the exact memory; 0 for none.
        checkpoint_budget_mib: memory for checkpoints; their pages are among those of the states.
        checkpoint_dir: a folder that they are written to as well, each model's to one of its own in it, and found in
            after a restart; empty for none.
        checkpoint_disk_mib: for what one model writes there.
        max_sessions: streams that stay when their answer ends; an idle one of whoever has most goes for a new one.
        session_budget_mib: memory for what their states have beside their pages; beyond it, the tokens of those that
            were unused for longest are read again.
    """

    device: str
    dtype: Literal["float32", "bfloat16"]
    threads: NonNegativeInt
    prefill_chunk: PositiveInt
    long_prompt_chunk: PositiveInt
    max_concurrent: PositiveInt
    max_queue: NonNegativeInt
    state_budget_mib: PositiveInt
    swap_budget_mib: NonNegativeInt
    checkpoint_every: NonNegativeInt
    checkpoint_budget_mib: NonNegativeInt
    checkpoint_dir: str
    checkpoint_disk_mib: PositiveInt
    max_sessions: PositiveInt
    session_budget_mib: NonNegativeInt

    def check(self) -> None:
        if not is_device_name(self.device):
            raise ConfigError("device", self.device, "auto, cpu, cuda or cuda:N")
        if self.prefill_chunk % self.long_prompt_chunk:
            raise ConfigError(
                "long_prompt_chunk", self.long_prompt_chunk, f"a divisor of prefill_chunk={self.prefill_chunk}"
            )

    def build(self, model: LanguageModel, name: str, tokenizer: str = "", *, fall_back: bool = True) -> Engine:
        """Start an engine for `model`, which it takes over and moves to its device.

        Args:
            model: in any mode, on any device.
            name: for logs and refusals.
            tokenizer: fingerprint of the vocabulary; states are not carried to another one.
            fall_back: to the CPU, where a GPU has no room for the model and its states.

        Raises:
            ConfigError: a device that is not there, or budgets that hold nothing.
            torch.OutOfMemoryError: no room, and no falling back.
        """
        device, model = choose_device(self.device), model.eval()
        try:
            pool = self._pool(model.to(device), device)
        except torch.OutOfMemoryError as error:
            if device == CPU or not fall_back:
                raise
            log.warning("%s and its states do not fit on %s (%s); it runs on the CPU", name, device, first_line(error))
            pool = self._pool(model.to(CPU), CPU)
        if pool.page_size and self.checkpoint_every % pool.page_size:
            raise ConfigError(
                "checkpoint_every", self.checkpoint_every, f"a multiple of {pool.page_size}, the page of this model"
            )
        return Engine(Runner(model, pool, getattr(torch, self.dtype)), self, name, tokenizer)

    def _pool(self, model: LanguageModel, device: torch.device) -> StatePool:
        return StatePool(model, device, self.state_budget_mib * 2**20, self.max_concurrent)


class Load(NamedTuple):
    """What an engine is doing at a moment."""

    accepting: bool
    running: int
    waiting: int
    max_concurrent: int
    max_queue: int
    state_bytes: int  # of running requests
    budget_bytes: int
    swapped_bytes: int  # of requests that are set aside
    device: str

    @property
    def room(self) -> int:
        """Requests it would still take."""
        return max(0, self.max_concurrent + self.max_queue - self.running - self.waiting) if self.accepting else 0


class Engine:
    """Serves one model to any number of callers, on any number of event loops::

        async for event in engine.submit(request):
            ...

    Requests join and leave between any two steps. Token ids come in and go out; the engine knows neither text nor
    the network.

    Args:
        runner: the model.
        settings: the limits.
        name: of the model, for logs.
        tokenizer: fingerprint of the vocabulary.
    """

    def __init__(self, runner: Runner, settings: EngineConfig, name: str, tokenizer: str = "") -> None:
        self.name = name
        self._runner, self._pool = runner, runner.pool
        self._threads = settings.threads
        self._tokenizer = tokenizer
        self._wake: Callable[[], None] = lambda: None  # whoever listens to what the engine's thread has pushed
        self._states = States(
            runner,
            name,
            lambda: self.origin,
            lambda: self._wake(),
            checkpoint_every=settings.checkpoint_every,
            checkpoint_budget_mib=settings.checkpoint_budget_mib,
            checkpoint_dir=settings.checkpoint_dir,
            checkpoint_disk_mib=settings.checkpoint_disk_mib,
            swap_budget_mib=settings.swap_budget_mib,
            max_sessions=settings.max_sessions,
            session_budget_mib=settings.session_budget_mib,
        )
        self._prefixes, self._sessions = self._states.prefixes, self._states.sessions
        limits = Limits(
            max_concurrent=settings.max_concurrent,
            max_queue=settings.max_queue,
            page_size=self._pool.page_size,
            prefill_chunk=settings.prefill_chunk,
            long_prompt_chunk=settings.long_prompt_chunk,
            checkpoint_every=settings.checkpoint_every,
        )
        self._scheduler = Scheduler(
            limits,
            self._pool.pages,
            reclaim=self._states.reclaim,
            begin=lambda sequence: runner.attempt(functools.partial(self._states.begin, sequence)),
            aside=self._states.set_aside,
            leave=self._states.park,
        )
        self._calls: deque[tuple[Future[Any], Callable[[Sessions], Any]]] = deque()
        self._arrivals = itertools.count()
        self._changed = threading.Condition(threading.RLock())  # guards the scheduler
        self._accepting = True
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def max_seq_len(self) -> int:
        """Tokens of prompt and answer together that the model accepts."""
        return self._runner.model.config.max_seq_len

    @property
    def num_parameters(self) -> int:
        return self._runner.model.num_parameters

    @functools.cached_property
    def origin(self) -> Origin:
        """The hashes of the weights and of the vocabulary, which a state belongs to."""
        return Origin(fingerprint(self._runner.model), self._tokenizer)

    def state_bytes(self, seq_len: int) -> int:
        """Bytes that the state of one request takes at `seq_len` tokens."""
        return self._pool.state_bytes(seq_len)

    def session_bytes(self) -> int:
        """Bytes that the states of all sessions have beside their pages; about, while sessions come and go."""
        return self._sessions.num_bytes  # without the lock: anybody may ask, and no step is to wait for that

    def submit(self, request: GenerationRequest, session: str | None = None) -> Generation:
        """Queue a request; its events come from the result.

        Args:
            request: what is asked. With a session, its tokens are those that follow the session's.
            session: the name of the stream to continue.

        Raises:
            RequestError: 404 for a session that is not there or not this caller's, 409 for one that is busy, 413 for a
                request that is too long, 422 for a token that is none, 503 for an engine that is full or closing.
        """
        if session is not None:
            return self._continue(request, session)
        return self.submit_together([request])[0]

    def submit_together(self, requests: Iterable[GenerationRequest]) -> list[Generation]:
        """Queue all of some requests, or none. Raises as `submit`."""
        sequences = []
        for request in requests:
            self._check(request)
            sequences.append(self._sequence(request, None))
        self._queue(sequences)
        return [sequence.generation for sequence in sequences]

    async def session(self, call: Callable[[Sessions], T]) -> T:
        """Do something with the sessions, between two steps: ``await engine.session(lambda s: s.fork(name))``."""
        future = await asyncio.to_thread(self.call, call)  # an engine in a step may hold its lock for a while
        return await asyncio.wrap_future(future)

    def call(self, call: Callable[[Sessions], T]) -> Future[T]:
        """What `session` does, for callers without an event loop."""
        future: Future[T] = Future()
        with self._changed:
            if not self._accepting:
                raise RequestError(503, f"{self.name} is shutting down.")
            self._calls.append((future, call))
            self._changed.notify_all()
        return future

    def _continue(self, request: GenerationRequest, name: str) -> Generation:
        with self._changed:
            session = self._sessions.idle(name, request.caller)
            whole = dataclasses.replace(request, tokens=(*session.tokens, *request.tokens))
            self._check(whole)
            session.busy = True
            try:
                sequence = self._sequence(whole, session)
                self._queue([sequence])
                return sequence.generation
            except BaseException:
                session.busy = False
                raise

    def _check(self, request: GenerationRequest) -> None:
        settings = self._runner.model.config
        if request.seq_len > settings.max_seq_len:
            raise RequestError(
                413,
                f"{len(request.tokens)} tokens of prompt and {request.max_tokens} to generate are {request.seq_len}, "
                f"and {self.name} takes {settings.max_seq_len}.",
            )
        if min(request.tokens) < 0 or max(request.tokens) >= settings.vocab_size:
            raise RequestError(422, f"The prompt has token ids outside 0 to {settings.vocab_size - 1}.")

    def _sequence(self, request: GenerationRequest, session: Session | None) -> Sequence:
        return Sequence(request, next(self._arrivals), session, self._prefixes.every)

    def _queue(self, sequences: list[Sequence]) -> None:
        with self._changed:
            if not self._accepting:
                raise RequestError(503, f"{self.name} is shutting down.")
            displaced = self._scheduler.add_together(sequences)
            self._changed.notify_all()
        for sequence in displaced:
            self._end(sequence, "displaced")

    def load(self) -> Load:
        """A snapshot, from any thread."""
        with self._changed:
            scheduler, pool = self._scheduler, self._pool
            limits, pages = scheduler.limits, pool.pages
            return Load(
                accepting=self._accepting and self._thread.is_alive(),
                running=scheduler.num_active,
                waiting=scheduler.num_waiting,
                max_concurrent=limits.max_concurrent,
                max_queue=limits.max_queue,
                state_bytes=scheduler.num_active * pool.row_bytes + pages.num_held * pool.page_bytes,
                budget_bytes=limits.max_concurrent * pool.row_bytes + pages.num_pages * pool.page_bytes,
                swapped_bytes=self._states.swapped_bytes,
                device=str(self._runner.device),
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, give those that are there `drain_s` seconds, end the rest, stop. Idempotent."""
        with self._changed:
            self._accepting = False
            self._changed.wait_for(lambda: not self._scheduler.sequences(), timeout=drain_s)
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("%s is still in a step after %g s; its thread is left behind", self.name, _JOIN_S)
        else:
            self._pool.release()  # now, and not when the garbage collector comes by
            self._runner.model.unpack()

    def _loop(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode(), woken_together() as self._wake:
            while self._wait_for_work():
                try:
                    self._step()
                except Exception as error:
                    log.exception("A step of %s failed", self.name)
                    self._end_all("error", _describe(error))
        self._end_all("shutdown")
        while self._calls:
            future, _ = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(RequestError(503, f"{self.name} is shutting down."))

    def _wait_for_work(self) -> bool:
        with self._changed:
            if not self._scheduler.sequences():
                self._wake()
            self._changed.wait_for(lambda: self._stopping or self._calls or self._scheduler.sequences())
            return not self._stopping

    def _step(self) -> None:
        self._answer_calls()
        with self._changed:
            ended = self._scheduler.expire()
        for sequence, reason in ended:
            self._end(sequence, reason)
        with self._changed:
            plan = self._scheduler.schedule()
        self._settle(plan)
        self._wake()  # those who listen to the last step: while the model runs, Python's lock is free for them
        for output in self._runner.run(plan):
            self._states.keep(output.sequence)
            self._commit(output)

    def _answer_calls(self) -> None:
        """Do what was asked of the sessions."""
        if self._calls:
            self._wake()  # nobody waits for what may take long; so it is wherever this is called
        while self._calls:
            future, call = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with self._changed:
                    result = call(self._sessions)
            except Exception as error:  # the asker's, with its traceback
                future.set_exception(error)
            else:
                future.set_result(result)

    def _settle(self, plan: Plan) -> None:
        """End who could not begin, and give who was set aside its state again."""
        for sequence, error in plan.failed:
            log.warning("A request to %s could not begin (%s)", self.name, _describe(error))
            sequence.failed = True
            self._end(sequence, "error", _describe(error))
        for sequence in plan.admitted:
            self._states.restore(sequence)

    def _commit(self, output: Output) -> None:
        sequence, logits, best, error = output
        reason: FinishReason | None = None
        if logits is not None:
            try:
                reason = sequence.commit(logits, best)
            except Exception as failure:
                finite = bool(logits.isfinite().all())
                log.error("Sampling failed for a request to %s: %s", self.name, failure, exc_info=finite)
                error = failure.with_traceback(None)  # which would keep this frame, and with it the state, for a while
                if not finite:  # what it began with may be to blame
                    self._states.distrust(sequence)
        if error is not None:
            reason, sequence.failed = "error", True
        if reason is not None:
            with self._changed:
                self._scheduler.remove(sequence)
            self._end(sequence, reason, _describe(error) if error else "")

    def _end(self, sequence: Sequence, reason: FinishReason, error: str = "") -> None:
        self._states.release(sequence)
        if sequence.session is not None:
            if reason != "displaced":  # of which another thread tells, and nothing has run
                self._sessions.settle(sequence.session, sequence.said(reason))
            sequence.session.busy = False
        sequence.finish(reason, error)
        with self._changed:
            self._changed.notify_all()

    def _end_all(self, reason: FinishReason, error: str = "") -> None:
        with self._changed:
            sequences = self._scheduler.sequences()
            for sequence in sequences:
                sequence.failed = reason == "error"
                self._scheduler.remove(sequence)
        for sequence in sequences:
            self._end(sequence, reason, error)


def fingerprint(model: LanguageModel) -> str:
    """A hash of the sizes and weights of a model."""
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _describe(error: Exception) -> str:
    said, kind = first_line(error)[:200], type(error).__name__
    return kind if said == kind else f"{kind}: {said}"
