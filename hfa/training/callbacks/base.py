"""What the configs of all callbacks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L

from hfa.config import Config, config
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
