"""What a person sees while a model trains."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as L
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hfa.config import PositiveFloat, config
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.callbacks.telemetry import Telemetry

log = logging.getLogger(__name__)


@config
class ProgressConfig(CallbackConfig):
    """A bar on a terminal; elsewhere a line in the log every `every_s` seconds."""

    every_s: PositiveFloat

    def build(self, around: Surroundings) -> Progress:
        return Progress(self, around.telemetry, bar=around.interactive and sys.stderr.isatty())


class Progress(L.Callback):
    """Shows loss, bits per byte and tokens per second, and what each validation found."""

    def __init__(self, settings: ProgressConfig, telemetry: Telemetry, *, bar: bool) -> None:
        self._settings, self._telemetry, self._wants_bar = settings, telemetry, bar
        self._bar: Any = None
        self._open = ExitStack()
        self._said = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._said = time.monotonic()
        if self._wants_bar and trainer.is_global_zero:
            self._bar = self._open.enter_context(
                tqdm(
                    total=trainer.max_steps,
                    initial=trainer.global_step,
                    bar_format="{percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt}  {desc}  [{elapsed}<{remaining}]",
                    dynamic_ncols=True,
                    leave=False,
                )
            )
            self._open.enter_context(logging_redirect_tqdm())

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.n)
            self._bar.set_description_str(summary(self._telemetry.latest, "train"), refresh=False)
        elif time.monotonic() - self._said > self._settings.every_s:
            self._said = time.monotonic()
            log.info("step %d/%d  %s", trainer.global_step, trainer.max_steps, summary(self._telemetry.latest, "train"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            log.info("step %d  validation: %s", trainer.global_step, summary(metrics, "val"))

    def on_train_end(self, *_: Any) -> None:
        self._open.close()

    def on_exception(self, *_: Any) -> None:
        self._open.close()


def summary(metrics: Mapping[str, float], stage: str) -> str:
    """``loss 2.310  bits/byte 1.934  recall needle 98%  12.3K tokens/s`` of what there is."""
    words = []
    if f"{stage}/loss" in metrics:
        words.append(f"loss {metrics[f'{stage}/loss']:.3f}")
    if f"{stage}/bits_per_byte" in metrics:
        words.append(f"bits/byte {metrics[f'{stage}/bits_per_byte']:.3f}")
    recall = {name.rpartition("/")[2]: v for name, v in metrics.items() if name.startswith(f"{stage}/recall/")}
    if recall:
        words.append("recall " + " ".join(f"{name} {value:.0%}" for name, value in recall.items()))
    if stage == "train" and "tokens_per_s" in metrics:
        words.append(f"{metrics['tokens_per_s'] / 1000:.1f}K tokens/s")
    return "  ".join(words)
