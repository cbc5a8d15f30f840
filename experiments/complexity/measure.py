"""One measurement after another, each model in a process of its own.

A worker holds one model for one cell (a regime at a length). It is forked from a server that has imported everything
and run nothing, so that it starts at once, with a clean peak of memory, and its end is nobody else's.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.complexity.peers import peer_entries
from experiments.complexity.subjects import LOSS_PIECE, Entry, Subject, our_entries, random_tokens
from experiments.complexity.tally import Tally
from hfa.allocator import give_back, keep_freed_memory

Regime = Literal["prefill", "train", "decode"]
Facts = dict[str, Any]

DECODE_TOKENS = 16  # a measurement of decoding is this many tokens
STATE_TOKENS = 100_000
LEAST_ROUNDS = 3  # measurements of a cell of which an interval can be made
_COUNTED_TOKENS: dict[Regime, int] = {"prefill": 16384, "train": 4096}  # what is allocated is counted up to here
_MAPPING_STEPS = 2  # of training, until hardly any memory is mapped anew
_WARM_TOKENS = 4096  # as many as it takes to have met every kernel of prefill
_MEMORY_SHARE = 0.8  # of what is free: beyond it a worker's allocation fails, instead of the machine
_PR_SET_THP_DISABLE = 41  # see prctl(2)
_PRELOAD = ["experiments.complexity.measure"]


def entries() -> dict[str, Entry]:
    """Everything that can be measured, by its name on the command line: ours first."""
    return {**our_entries(), **peer_entries()}


class WorkerError(Exception):
    """A worker that failed, ran out of time or died; its text is why."""


class Worker:
    """One model in one cell, behind a pipe.

    Args:
        name: of the model.
        regime: what is measured.
        length: tokens of the prompt, the training sequence or the context.
        rounds: how often it will be measured, at most.
        threads: of torch.
        seed: of weights and tokens.
    """

    def __init__(self, name: str, regime: Regime, length: int, *, rounds: int, threads: int, seed: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, name, regime, length, rounds, threads, seed), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, what: Literal["describe", "prepare", "measure"], timeout_s: float) -> Facts:
        """The worker's answer.

        Raises:
            WorkerError: there is none.
        """
        try:
            self._pipe.send(what)
            if not self._pipe.poll(timeout_s):
                self.stop()
                raise WorkerError(f"not done after {timeout_s:.0f} s")
            answer: Facts = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            raise WorkerError(f"its process died with exit code {self._process.exitcode}") from None
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


class Cell:
    """What a worker does.

    Args:
        subject: the model, freshly built.
        regime: what is measured.
        length: tokens of the prompt, the training sequence or the context.
        rounds: how often it will be measured, at most.
        seed: of the tokens.
    """

    def __init__(self, subject: Subject, regime: Regime, length: int, *, rounds: int, seed: int) -> None:
        self.subject, self.regime, self.length, self.rounds = subject, regime, length, rounds
        self.tokens = random_tokens(length + 1, seed)
        self.state: Any = None
        subject.body.train() if regime == "train" else subject.deploy()

    def describe(self) -> Facts:
        """What is true of the model whatever the cell."""
        with torch.inference_mode():
            self.subject.body.eval()
            state_bytes = self.subject.state_bytes(STATE_TOKENS)
            self.subject.body.train(self.regime == "train")
        return {"body_parameters": self.subject.body_parameters, f"state_bytes_{STATE_TOKENS}": state_bytes}

    def prepare(self) -> Facts:
        """Warm up, and count what that allocates; for decoding, build the context."""
        if self.regime == "decode":
            with torch.inference_mode():
                # What kernels take to compile would count as the context's, and the longer ones be judged by it.
                self.subject.context(self.tokens[:, : min(self.length, _WARM_TOKENS)], 1)
                began = time.perf_counter()
                self.state = self.subject.context(self.tokens[:, : self.length], DECODE_TOKENS * (self.rounds + 1))
                context_s = time.perf_counter() - began
                self._decode(2)
                counted = self._count(lambda: self._decode(1), 1)
            return {"context_s": context_s, **counted}
        length = min(self.length, _COUNTED_TOKENS[self.regime])
        tokens = self.tokens[:, : length + 1]
        return self._count(lambda: self._prefill(tokens) if self.regime == "prefill" else self._train(tokens), length)

    def measure(self) -> Facts:
        """Once over the whole length: seconds by the clock and of the processor, and memory beyond the model's own.

        In training, of the last of a few steps, which finds the memory that those before it mapped, as in train.py.
        """
        if self.regime == "prefill":
            return self._peak(lambda: self._timed(lambda: self._prefill(self.tokens)))
        if self.regime == "decode":
            return self._peak(lambda: self._timed(lambda: self._decode(DECODE_TOKENS)))
        keep_freed_memory()

        def last() -> Facts:
            for _ in range(_MAPPING_STEPS):
                self._train(self.tokens)
            return self._timed(lambda: self._train(self.tokens))

        measured = self._peak(last)
        self.subject.body.zero_grad(set_to_none=True)
        give_back()  # the others of this cell take their turns meanwhile
        return measured

    def _peak(self, call: Callable[[], Facts]) -> Facts:
        """What it says, and the peak of this process's memory meanwhile beyond what it held before."""
        self.subject.body.zero_grad(set_to_none=True)  # of a step before: this one makes them again
        before = _forget_peak()
        said = call()
        return {"peak_bytes": _peak_bytes() - before, **said}

    @staticmethod
    def _timed(call: Callable[[], Facts]) -> Facts:
        wall, cpu = time.perf_counter(), time.process_time()
        said = call()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"seconds": wall, "cpu_seconds": cpu, **said}

    def _prefill(self, tokens: Tensor) -> Facts:
        with torch.inference_mode():
            self.subject.prefill(tokens[:, :-1])
        return {}

    def _train(self, tokens: Tensor) -> Facts:
        """Forward, loss and backward; the logits exist for a piece of the tokens at a time, for every model alike."""
        self.subject.body.zero_grad(set_to_none=True)
        hidden = self.subject.train_hidden(tokens[:, :-1])
        began = time.perf_counter()
        grads = []
        labels = tokens[:, 1:].split(LOSS_PIECE, dim=1)
        for piece, label in zip(hidden.detach().split(LOSS_PIECE, dim=1), labels, strict=True):
            piece = piece.requires_grad_()
            loss = F.cross_entropy(self.subject.head(piece)[0], label[0], reduction="sum") / hidden.shape[1]
            loss.backward()
            assert piece.grad is not None
            grads.append(piece.grad)
        head_s = time.perf_counter() - began
        hidden.backward(torch.cat(grads, dim=1))
        if (auxiliary := self.subject.auxiliary_loss()) is not None:
            auxiliary.backward()  # what it has in common with the rest is detached
        return {"head_seconds": head_s}

    def _decode(self, count: int) -> Facts:
        with torch.inference_mode():
            for token in self.tokens[:, :count].split(1, dim=1):
                _, self.state = self.subject.step(token, self.state)
        return {}

    @staticmethod
    def _count(call: Callable[[], object], length: int) -> Facts:
        with Tally() as tally:
            call()
        return {"counted_length": length, "allocated_bytes_per_token": tally.allocated_bytes / length}


def _serve(pipe: Connection, name: str, regime: Regime, length: int, rounds: int, threads: int, seed: int) -> None:
    """A worker's life: build, then answer until nobody asks any more."""
    torch.set_num_threads(threads)
    if regime == "train":
        _without_huge_pages()
    try:
        _limit_memory()
        torch.manual_seed(seed)
        cell = Cell(entries()[name].load(), regime, length, rounds=rounds, seed=seed)
        while True:
            asked = pipe.recv()
            pipe.send({"describe": cell.describe, "prepare": cell.prepare, "measure": cell.measure}[asked]())
    except (EOFError, BrokenPipeError):  # nobody is there any more
        return
    except Exception as error:  # of the model: it is the answer, and the run goes on
        said = (str(error).strip().splitlines() or [""])[0]
        with contextlib.suppress(BrokenPipeError):
            pipe.send({"failed": f"{type(error).__name__}: {said[:200]}"})


def _without_huge_pages() -> None:
    """As train.py runs, whatever torch was told when the server of these processes imported it."""
    with contextlib.suppress(AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def _limit_memory() -> None:
    """Let an allocation that the machine cannot hold fail, where the system can do that."""
    free = available_bytes()
    if free is not None:
        used = _status_bytes("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (used + int(_MEMORY_SHARE * free),) * 2)


def available_bytes() -> int | None:
    """Memory that is free on this machine; None where it does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _forget_peak() -> int:
    """Hand back what is free, start the peak of this process anew, and say what it holds now, in bytes."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS") or _peak_bytes()


def _peak_bytes() -> int:
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(field: str) -> int:
    """A field of Linux's own account of this process; 0 elsewhere."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
