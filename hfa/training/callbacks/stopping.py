"""Stop when nothing gets better any more."""

from __future__ import annotations

from lightning.pytorch.callbacks import EarlyStopping

from hfa.config import PositiveInt, config
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.monitor import check_monitor, direction


@config
class EarlyStoppingConfig(CallbackConfig):
    """Lightning's EarlyStopping on a validated metric."""

    monitor: str
    patience: PositiveInt

    def build(self, around: Surroundings) -> EarlyStopping:
        check_monitor("callbacks.early_stopping.monitor", self.monitor, around.source)
        mode = direction(self.monitor)
        return EarlyStopping(self.monitor, mode=mode, patience=self.patience, check_on_train_epoch_end=False)
