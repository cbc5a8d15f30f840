"""What a run leaves in its directory, read without the framework that made it: studies and reports do that."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from hfa.errors import CheckpointError

RUN, CONFIG = "run.json", "config.yaml"

# What users add keys to: below these, one that the run did not have was added on purpose.
_OPEN_ENDED = ("data", "model.settings", "model.sizes")


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved configuration of a run; empty when its config.yaml is gone.

    Raises:
        CheckpointError: it is torn.
    """
    path = run_dir / CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is torn; remove it, and nothing is compared with it.")
    return config


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv, without empty cells; a last line that was cut off is left out."""
    with path.open(newline="") as file:
        lines = file.read()
    complete = lines[: lines.rfind("\n") + 1].splitlines()
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(complete)]


def differences(old: Any, new: Any, free: Collection[str], key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of what is not the same in two configurations, but for the keys in `free`.

    What the old one lacks is left out, since code that is newer may know more settings, except where users add keys.
    """
    if key in free:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        fresh = (name for name in new if name not in old) if key.startswith(_OPEN_ENDED) else ()
        for name in (*old, *fresh):
            yield from differences(old.get(name), new.get(name), free, f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
