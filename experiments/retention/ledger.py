"""Results: a line of JSON for each measured cell, appended as it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.lines import append_line, read_lines
from hfa.metrics.recall import Recall


class Ledger:
    """The cells of all seeds; of two lines about one cell the newer counts, of two trainings of one seed the newer.

    Args:
        path: a file of JSON lines; made when the first comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        append_line(self.path, record)

    def has(self, **key: Any) -> bool:
        """Whether a cell with these values was measured."""
        return any(key.items() <= record.items() for record in self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        newest: dict[int, dict[Any, dict[str, Any]]] = {}
        weights = {}
        for record in read_lines(self.path):
            seed = record["seed"]
            if weights.setdefault(seed, record["weights"]) != record["weights"]:
                weights[seed], newest[seed] = record["weights"], {}
            newest.setdefault(seed, {})[record["task"], record["length"]] = record
        return (record for of_seed in newest.values() for record in of_seed.values())

    def seeds(self) -> list[int]:
        return sorted({record["seed"] for record in self})

    def recall(self, seed: int | None = None) -> Recall:
        """What was counted with one seed, or with all together."""
        found = [Recall.from_json(record["recall"]) for record in self if seed in (None, record["seed"])]
        total = Recall(found[0].depth_bins if found else 1)
        for recall in found:
            total.merge(recall)
        return total
