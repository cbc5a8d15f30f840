"""Tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hfa.metrics.recall import Count
    from hfa.training.evaluation import Evaluation

_WIDE = 160  # columns of a table that nobody's terminal limits


def console() -> Console:
    """Standard output; wide when it is a file or a pipe, so that no cell is cut. Brackets are what they are."""
    there = Console(markup=False)
    return there if there.is_terminal else Console(width=_WIDE, markup=False)


def show(found: Evaluation, *, title: str, files: Sequence[Path] = ()) -> None:
    """Print an evaluation: a row for each source, a column for each length."""
    answers = {(task, length): count for task, length, count in found.answers()}
    lengths = sorted({length for _, length in (*found.bits, *answers)})
    table = Table()
    table.add_column("")
    for length in lengths:
        table.add_column(f"{length:,} tokens", justify="right")
    for name in dict.fromkeys(source for source, _ in found.bits):
        cells = [f"{found.bits[name, n].value:.3f}" if (name, n) in found.bits else "" for n in lengths]
        table.add_row(f"{name}: bits per byte", *cells)
    for task in found.recall.tasks():
        cells = [_accuracy(answers[task, n]) if (task, n) in answers else "" for n in lengths]
        table.add_row(f"{task}: exact recall", *cells)
    out = console()
    out.print(title, soft_wrap=True, highlight=False, style="bold")
    out.print(table)
    if found.recall.tasks():
        out.print("In brackets the 95% interval (Wilson), then right and all answers.")
    for path in files:
        out.print(str(path), soft_wrap=True, highlight=False)


def _accuracy(count: Count) -> str:
    low, high = count.interval
    return f"{count.accuracy:.1%} ({low:.0%} to {high:.0%}), {count.exact}/{count.answers}"
