"""Where the configurations of the runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.run import Found, compared
from experiments.report.section import Fold, Section, Table

_IGNORED = ("hydra", "name", "output_dir", "checkpoint", "seed")


def configuration(found: Found) -> Section | None:
    """Values in which runs differ; folded those that only some of them have, as other models or data have others."""
    configs = {name: flat(runs[0].config) for name, runs in compared(found.runs).items() if runs[0].config}
    if len(configs) < 2:
        return None
    keys = sorted({key for config in configs.values() for key in config})
    compared_keys = [key for key in keys if key not in _IGNORED and not key.endswith(".seed")]
    everywhere = [key for key in compared_keys if all(key in config for config in configs.values())]
    differing = [key for key in everywhere if len({repr(config[key]) for config in configs.values()}) > 1]
    of_some = [key for key in compared_keys if key not in everywhere]
    lead = f"{len(differing)} of the {len(everywhere)} values that all have differ; seeds and names are left out."
    tables = [_table(differing, configs)] if differing else []
    title = f"Values that only some have: {len(of_some)}"
    folds = [Fold(title, tables=[_table(of_some, configs)])] if of_some else []
    if not tables and not folds:
        return None
    return Section("configuration", "Configuration, where it differs", lead, tables=tables, folds=folds)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def said(value: Any) -> str:
    """A value as a person writes it."""
    return "null" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(keys: Sequence[str], configs: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[key, *(said(config[key]) if key in config else "" for config in configs.values())] for key in keys]
    return Table("", ["key", *configs], rows)
