"""When the model is validated: every `val_check_interval` optimizer steps, and after the last one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether the optimizer step that has just ended is validated."""
    interval = int(trainer.val_check_interval) // trainer.accumulate_grad_batches  # Lightning counts micro-batches
    return trainer.global_step % interval == 0 or trainer.global_step == trainer.max_steps


class ValidateLast(L.Callback):
    """Validates after the last step too: Lightning does so when it is asked to stop."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
