"""What the configs of all loggers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger

from hfa.config import Config, config


class RunInfo(NamedTuple):
    """What a logger wants to know of the run it follows."""

    name: str
    run_dir: Path
    cfg: Mapping[str, Any]  # resolved
    resumed_from: Path | None  # the run directory that this run goes on from


@config
class LoggerConfig(Config, ABC):
    """Base of the loggers' configs."""

    @abstractmethod
    def build(self, run: RunInfo) -> Logger:
        """Start logging."""
