"""The ledger of figures: ``python -m experiments.claims`` checks it, ``--write`` writes it and the documents' tables.

Checking reads the results again, counts again what is counted (a minute), and compares both with the ledger and the
ledger with the documents. ``--fast`` leaves the counting out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.claims import counted
from experiments.claims.claim import REPO, Claim, Table
from experiments.claims.documents import documents, filled, unknown_figures
from experiments.claims.studies import tables as study_tables
from experiments.entry import leave, program
from hfa.training.provenance import provenance

LEDGER = Path(__file__).parent / "ledger.json"
TOLERANCE = 0.01  # of what is counted, from one version of torch to another
console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write; returns the exit code, 1 when something does not hold."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the ledger and the documents' tables")
    parser.add_argument("--fast", action="store_true", help="do not count again")
    asked = parser.parse_args(arguments)
    tables = {table.name: table for table in study_tables()}
    kept = read_ledger()
    if asked.write or not asked.fast:
        facts = provenance({"seed": 0})
        made = {key: facts[key] for key in ("commit", "dirty", "date", "torch")}
        tables |= {table.name: table for table in counted.counted(made)}
    if asked.write:
        write(tables)
        return 0
    wrong = [*differences(tables, kept), *document_errors(kept)]
    for line in wrong:
        console.print(line, style="red", soft_wrap=True)
    claims = sum(len(table.claims) for table in kept.values())
    console.print(f"{claims} figures, {len(wrong)} that do not hold.")
    return 1 if wrong else 0


def read_ledger() -> dict[str, Table]:
    """The tables as they were written; none before the first time."""
    if not LEDGER.exists():
        return {}
    data: list[dict[str, Any]] = json.loads(LEDGER.read_text(encoding="utf-8"))
    return {
        one["name"]: Table(
            name=one["name"], head=one["head"], rows=one["rows"], claims=[_claim(claim) for claim in one["claims"]]
        )
        for one in data
    }


def write(tables: dict[str, Table]) -> None:
    """Keep the tables as the ledger, and put them into the documents."""
    data = [
        {"name": t.name, "head": t.head, "rows": t.rows, "claims": [claim.to_json() for claim in t.claims]}
        for t in tables.values()
    ]
    LEDGER.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for path in documents():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, tables, _name(path)), encoding="utf-8")
    console.print(f"{LEDGER}: {sum(len(table.claims) for table in tables.values())} figures")


def differences(found: dict[str, Table], kept: dict[str, Table]) -> list[str]:
    """What the results say now and the ledger does not, and what the ledger says and no result does.

    What is counted may differ by `TOLERANCE`, and what was not counted again is not missed.
    """
    expected = {name: table for name, table in kept.items() if name in found or name not in counted.TABLES}
    lines = []
    for name in sorted({*found, *expected}):
        new, old = (
            {claim.claim: claim for claim in tables[name].claims} if name in tables else {}
            for tables in (found, expected)
        )
        for said in dict.fromkeys([*new, *old]):
            if said not in old:
                lines.append(f"{name}: not in the ledger: {said} = {new[said].shown}")
            elif said not in new:
                lines.append(f"{name}: in no result: {said} = {old[said].shown}")
            elif not _same(new[said], old[said], TOLERANCE if name in counted.TABLES else 0.0):
                lines.append(f"{name}: {said}: {_written(new[said])} now, {_written(old[said])} in the ledger")
    return [f"{line}; python -m experiments.claims --write" for line in lines]


def _same(new: Claim, old: Claim, tolerance: float) -> bool:
    if tolerance:
        return abs(new.value - old.value) <= tolerance * abs(old.value)
    return all(new.to_json()[key] == old.to_json()[key] for key in ("shown", "value", "interval", "source"))


def _written(claim: Claim) -> str:
    """A figure as it is shown, with what its cell may leave out."""
    return f"{claim.shown} ({claim.value:.6g}, {claim.interval or 'no interval'})"


def document_errors(kept: dict[str, Table]) -> list[str]:
    """What stands in a document, and not in the ledger."""
    lines = []
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if filled(text, kept, _name(path)) != text:
            lines.append(f"{_name(path)}: a table is not the ledger's; python -m experiments.claims --write")
        lines += [
            f"{_name(path)}:{line}: {figure} is in no entry; make it one (experiments/claims/studies.py), or, where "
            "nobody measured it, say so in experiments/claims/given.txt"
            for line, figure in unknown_figures(text)
        ]
    return lines


def _claim(data: dict[str, Any]) -> Claim:
    return Claim(**{**data, "interval": tuple(data["interval"]) if data["interval"] else None})


def _name(path: Path) -> str:
    return str(path.relative_to(REPO)) if path.is_relative_to(REPO) else str(path)


if __name__ == "__main__":
    leave(main)
