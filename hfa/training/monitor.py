"""The validated metric that a run is judged by: its best checkpoint, when it may stop, and its place in a sweep."""

from __future__ import annotations

from typing import Literal

from hfa.errors import ConfigError
from hfa.types import Source


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


def direction(monitor: str) -> Literal["min", "max"]:
    """Which values of a metric are good: high ones of recall, low ones of all else."""
    return "max" if monitor.startswith("val/recall/") else "min"


def better(monitor: str, value: float, than: float) -> bool:
    """Whether one value of a metric beats another."""
    return value > than if direction(monitor) == "max" else value < than
