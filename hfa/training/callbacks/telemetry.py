"""What a run logs while it trains: means of the window, speed, learning rate, memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

from hfa.allocator import give_back
from hfa.training.module import LMModule
from hfa.types import Batch


class Clock(L.Callback):
    """Notes when everything else that belongs to a step is done; the last of all callbacks.

    Validations, checkpoints and samples therefore do not count as training; waiting for data does.
    """

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        self.started = time.perf_counter()


class Telemetry(L.Callback):
    """Sends a row to all loggers every `log_every_n_steps` steps, and one after every validation.

    It is the first of all callbacks, so that a checkpoint of the same step holds a window that has been logged.
    """

    def __init__(self, log_every_n_steps: int) -> None:
        self.clock = Clock()
        self._every = log_every_n_steps
        self.latest: dict[str, float] = {}  # the newest value of everything, for the progress bar and the summary
        self._window, self._run = (0, 0.0), (0, 0.0)  # tokens and seconds
        self._step, self._lr = 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        forget_memory()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LMModule)
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        due = stepped and (self._step % self._every == 0 or self._step == trainer.max_steps)
        means = pl_module.totals("train") if due else {}  # waits for the device, so that the clock is right
        tokens, seconds = batch.tokens.numel() * trainer.world_size, time.perf_counter() - self.clock.started
        self._window = self._window[0] + tokens, self._window[1] + seconds
        if not due:
            return
        self._run = self._run[0] + self._window[0], self._run[1] + self._window[1]
        row = {f"train/{name}": value for name, value in means.items()} | {
            "lr": self._lr,
            "tokens": float(pl_module.tokens_seen),
            "tokens_per_s": self._window[0] / self._window[1],
            "memory_mib": memory_mib(),
        }
        if pl_module.gradient_norm is not None:
            row["gradient_norm"] = float(pl_module.gradient_norm)
        self._window = (0, 0.0)
        self._write(trainer, row)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, {name: float(value) for name, value in trainer.callback_metrics.items()})

    @property
    def tokens_per_s(self) -> float:
        """Over the whole run."""
        tokens, seconds = self._run
        return tokens / seconds if seconds else float("nan")

    def _write(self, trainer: L.Trainer, row: Mapping[str, float]) -> None:
        self.latest |= row
        for logger in trainer.loggers:
            logger.log_metrics(dict(row), trainer.global_step)


def forget_memory() -> None:
    """Let :func:`memory_mib` count from here, if the system can: an earlier run of a sweep may have held more."""
    if torch.cuda.is_initialized():  # what is on the CPU starts no GPU
        torch.cuda.reset_peak_memory_stats()
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_mib() -> float:
    """The most memory held since :func:`forget_memory`: of the GPU if this process uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")  # which can be reset; what getrusage says cannot
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
