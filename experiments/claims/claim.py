"""A claim: one figure of a document, with everything it takes to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
_QUOTED_CONFIG = "config"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure.

    Args:
        claim: what it says, in words.
        shown: how it is written in the document.
        value: the number itself.
        interval: its 95% interval or its quartiles, where it has one.
        source: the file of results it is read from, or what computes it.
        made: command, commit, seed, machine, date and configuration of those results.
    """

    claim: str
    shown: str
    value: float
    interval: tuple[float, float] | None
    source: str
    made: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a line of the ledger; floats to six digits."""
        data = asdict(self)
        data["value"] = _rounded(self.value)
        data["interval"] = [_rounded(bound) for bound in self.interval] if self.interval else None
        return data


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a document, and what it claims.

    Args:
        name: of the block in the document that it fills.
        head: titles of the columns.
        rows: cells; a figure stands in them as it is `shown`.
        claims: the figures.
    """

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    claims: Sequence[Claim]

    def markdown(self) -> str:
        """The table as it stands in the document."""
        aligned = ["---", *["---:"] * (len(self.head) - 1)]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.head, aligned, *self.rows))


def read(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of results, and what is kept of how it was made.

    Args:
        path: below the repository.
    """
    data: dict[str, Any] = json.loads((REPO / path).read_text(encoding="utf-8"))
    where = f"{path}, {'provenance.' if 'provenance' in data else ''}{_QUOTED_CONFIG}"
    made = made_by(data.get("provenance", data), where)
    if "training" in data:  # of the weights that were measured
        made["training"] = {key: data["training"].get(key) for key in ("command", "commit", "dirty", "step")}
    return data, made


def made_by(made: dict[str, Any], where: str) -> dict[str, Any]:
    """What is kept of a provenance.

    Args:
        made: the provenance.
        where: its configuration stands.
    """
    machine = made.get("machine", {}).get("processor") or made.get("cpu") or made.get("device")
    kept = {key: made.get(key) for key in ("command", "commit", "dirty", "seed", "date", "torch", "threads")}
    return {**kept, "machine": machine, "config": where}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
