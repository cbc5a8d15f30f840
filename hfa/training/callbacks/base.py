"""What the configs of all callbacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L

from hfa.config import Config, config
from hfa.errors import ConfigError
from hfa.training.callbacks.telemetry import Telemetry
from hfa.types import Source, Tokenizer


class Surroundings(NamedTuple):
    """What only run time knows, for callbacks to be built with."""

    cfg: Mapping[str, Any]  # resolved
    run_dir: Path
    tokenizer: Tokenizer
    source: Source
    telemetry: Telemetry
    interactive: bool  # whether a person may be looking at a terminal


@config
class CallbackConfig(Config, ABC):
    """Base of the callbacks' configs."""

    @abstractmethod
    def build(self, around: Surroundings) -> L.Callback:
        """Make the callback of one run.

        Raises:
            ConfigError: it watches a metric that validation will not have.
        """


def check_monitor(key: str, monitor: str, source: Source) -> None:
    """Whether `monitor` is a validated metric: ``val/loss``, ``val/bits_per_byte``, ``val/recall/NAME``.

    Args:
        key: of the configuration, for the error.
        monitor: a metric.
        source: what is validated on.

    Raises:
        ConfigError: validation on this source will not have it.
    """
    parts = source.parts()
    there = ["val/loss"] + ["val/bits_per_byte"] * any(part.kind == "text" for part in parts.values())
    there += [f"val/recall/{name}" for name, part in parts.items() if part.kind == "recall"]
    if monitor not in there:
        raise ConfigError(key, monitor, f"one of {', '.join(there)} with this data")
