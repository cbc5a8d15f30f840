"""Where a run's numbers, texts and pictures go; metrics.csv is always one of the places."""

from hfa.training.loggers.base import LoggerConfig, RunInfo
from hfa.training.loggers.csv import MetricsCSV
from hfa.training.loggers.media import Media, media
from hfa.training.loggers.tensorboard import TensorBoardConfig
from hfa.training.loggers.wandb import WandbConfig

__all__ = [
    "LoggerConfig",
    "Media",
    "MetricsCSV",
    "RunInfo",
    "TensorBoardConfig",
    "WandbConfig",
    "media",
]
