"""Where a run's numbers, texts and pictures go; metrics.csv is always one of the places."""

from hfa.training.loggers.base import LoggerConfig, RunInfo
from hfa.training.loggers.csv import MetricsCSV, read_metrics
from hfa.training.loggers.media import close, log_folder, log_picture, log_table, log_texts
from hfa.training.loggers.tensorboard import TensorBoardConfig
from hfa.training.loggers.wandb import WandbConfig

__all__ = [
    "LoggerConfig",
    "MetricsCSV",
    "RunInfo",
    "TensorBoardConfig",
    "WandbConfig",
    "close",
    "log_folder",
    "log_picture",
    "log_table",
    "log_texts",
    "read_metrics",
]
