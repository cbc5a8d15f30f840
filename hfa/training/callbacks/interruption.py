"""Ctrl-C and SIGTERM: finish the step, keep the state, stop."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as L

from hfa.training.callbacks.validation import validation_follows
from hfa.training.trainer import rank

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """Training was asked to stop and has; its checkpoints are written. The exit code is what a shell expects.

    Args:
        signum: SIGINT or SIGTERM.
        step: optimizer steps done; None outside of training.
    """

    def __init__(self, signum: int, step: int | None) -> None:
        super().__init__(128 + signum)
        self.signum, self.step = signum, step

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return name if self.step is None else f"{name} after step {self.step}"


class Interruption(L.Callback):
    """Turns a signal into `Interrupted` at the end of the optimizer step it arrives in, or of the validation.

    A second Ctrl-C stops at once, with the checkpoints as they are. Comes after the callbacks that have work to do
    at the end of a step.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trainer, self._step = trainer, trainer.global_step
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only that one handle signals
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._note)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and not validation_follows(trainer):  # else a resumed run would lack this validation
            self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_requested(trainer)

    def on_train_end(self, *_: Any) -> None:
        self._restore()

    def on_exception(self, *_: Any) -> None:
        self._restore()

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        requested = self._received is not None
        if trainer.world_size > 1:  # of any process
            requested = bool(trainer.strategy.reduce_boolean_decision(requested, all=False))
        if requested:
            raise Interrupted(self._received or signal.SIGTERM, trainer.global_step)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self._received is not None and signum == signal.SIGINT:
            self._restore()
            raise KeyboardInterrupt
        self._received = signum
        if rank() == 0:
            again = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
            log.info("Stopping after this step%s ...", again)
        launcher = self._trainer.strategy.launcher if self._trainer else None
        if launcher is not None and signum == signal.SIGTERM:
            launcher.kill(signum)  # the other processes of this machine; Ctrl-C reaches them by itself

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
