"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hfa.training.evaluation import Evaluation

_WIDE = 160  # columns of a table that nobody's terminal limits


def console() -> Console:
    """Standard output; wide when it is a file or a pipe, so that no cell is cut. Brackets are what they are."""
    there = Console(markup=False)
    return there if there.is_terminal else Console(width=_WIDE, markup=False)


def show(found: Evaluation, *, title: str, files: Sequence[Path] = ()) -> None:
    """Print an evaluation: a row for each source at each length, and where the rest is."""
    table = Table()
    table.add_column("measure")
    for name in ("tokens", "result", "95% interval", "right of all"):
        table.add_column(name, justify="right")
    for (source, length), bits in sorted(found.bits.items()):
        table.add_row(f"{source}: bits per byte", f"{length:,}", f"{bits.value:.3f}")
    for task, length, count in found.answers():
        low, high = count.interval
        interval, right = f"{low:.1%} to {high:.1%}", f"{count.exact} of {count.answers}"
        table.add_row(f"{task}: exact recall", f"{length:,}", f"{count.accuracy:.1%}", interval, right)
        for measure, share in count.retention().items():
            if count.audited:
                low, high = share.interval
                interval, right = f"{low:.1%} to {high:.1%}", f"{share.part} of {share.whole} tokens"
                table.add_row(f"  {measure}", f"{length:,}", f"{share.value:.1%}", interval, right)
    out = console()
    out.print(title, soft_wrap=True, highlight=False, style="bold")
    out.print(table)
    for path in files:
        out.print(str(path), soft_wrap=True, highlight=False)
