"""Stop when nothing gets better any more."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.callbacks import EarlyStopping

from hfa.config import PositiveInt, config
from hfa.training.callbacks.base import CallbackConfig, Surroundings, check_monitor


@config
class EarlyStoppingConfig(CallbackConfig):
    """Lightning's EarlyStopping on a validated metric."""

    monitor: str
    mode: Literal["min", "max"]
    patience: PositiveInt

    def build(self, around: Surroundings) -> EarlyStopping:
        check_monitor("callbacks.early_stopping.monitor", self.monitor, around.source)
        return EarlyStopping(self.monitor, mode=self.mode, patience=self.patience, check_on_train_epoch_end=False)
