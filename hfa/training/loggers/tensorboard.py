"""TensorBoard, an extra."""

from __future__ import annotations

import importlib.util

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from hfa.config import config
from hfa.errors import ConfigError
from hfa.training.loggers.base import LoggerConfig, RunInfo


@config
class TensorBoardConfig(LoggerConfig):
    """Event files below ``tensorboard/`` in the run directory."""

    def build(self, run: RunInfo) -> Logger:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("logger", "tensorboard", "TensorBoard to be installed", "pip install 'hfa[tensorboard]'")
        return TensorBoardLogger(run.run_dir, name="tensorboard", version="", default_hp_metric=False)
