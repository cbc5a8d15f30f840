"""Recall by depth, drawn after every validation."""

from __future__ import annotations

import lightning.pytorch as L

from hfa.config import config
from hfa.metrics.plot import plot_recall
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.loggers import media
from hfa.training.module import LMModule


@config
class RecallMapConfig(CallbackConfig):
    """Nothing to choose."""

    def build(self, around: Surroundings) -> RecallMap:
        return RecallMap(around)


class RecallMap(L.Callback):
    """Keeps the newest heat-map as plots/recall.png, and shows each to the loggers that take pictures."""

    def __init__(self, around: Surroundings) -> None:
        self._path, self._name = around.run_dir / "plots" / "recall.png", around.cfg["name"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        if not trainer.is_global_zero or not pl_module.recall.tasks():
            return
        step = trainer.global_step
        self._path.parent.mkdir(exist_ok=True)
        plot_recall({self._name: pl_module.recall}, self._path, title=f"Exact recall after {step} steps")
        for logger in media(trainer.loggers):
            logger.show_picture("recall", self._path, step)
