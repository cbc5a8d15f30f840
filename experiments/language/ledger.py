"""The results of a study: one JSON line for each finished run, appended as it finishes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from experiments.lines import append_line, read_lines

Kind = Literal["training", "evaluation"]
Record = dict[str, Any]


class Ledger:
    """Lines of JSON, of which the newest counts where two are of one run.

    Args:
        path: the file; made when the first line comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Add a line, whole and by itself, whoever else adds one; numbers that are not finite become null."""
        append_line(self.path, _finite(record))

    def find(self, kind: Kind, variant: str, overrides: list[str]) -> Record | None:
        """The run of `variant` with exactly these overrides."""
        found = [one for one in self.read(kind, variant) if one["overrides"] == overrides]
        return found[-1] if found else None

    def read(self, kind: Kind, variant: str | None = None) -> Iterator[Record]:
        """All runs of a kind, oldest first."""
        for record in read_lines(self.path):
            if record["kind"] == kind and variant in (None, record["variant"]):
                yield record

    def size(self, variant: str) -> list[str]:
        """What the newest training of a variant has beside its learning rate and seed; nothing before the first."""
        trainings = list(self.read("training", variant))
        return trainings[-1]["overrides"][:-2] if trainings else []

    def made(self, variant: str, size: list[str], kind: Kind = "training") -> list[Record]:
        """The runs of a variant whose overrides begin with `size`, the first made first, each as it was made last."""
        newest: dict[tuple[str, ...], Record] = {}
        for run in self.read(kind, variant):
            if run["overrides"][: len(size)] == size:
                newest[tuple(run["overrides"])] = run
        return list(newest.values())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
