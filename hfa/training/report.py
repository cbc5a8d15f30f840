"""Tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from hfa.metrics.recall import MEASURES, Share

if TYPE_CHECKING:
    from hfa.training.evaluation import Evaluation

_WIDE = 160  # columns of a table that nobody's terminal limits


def console() -> Console:
    """Standard output; wide when it is a file or a pipe, so that no cell is cut. Brackets are what they are."""
    there = Console(markup=False)
    return there if there.is_terminal else Console(width=_WIDE, markup=False)


def show(found: Evaluation, *, title: str, files: Sequence[Path] = ()) -> None:
    """Print an evaluation: a row for each source at each length, and where the rest is."""
    tables = []
    if found.bits:
        tables.append(_table("text", "tokens", "bits per byte"))
        for (source, length), bits in sorted(found.bits.items()):
            tables[-1].add_row(source, f"{length:,}", f"{bits.value:.3f}")
    counts = list(found.answers())
    if counts:
        measures = [each for each in MEASURES if any(count.share(each).whole for *_, count in counts)]
        form = ["form"] if found.forms else []
        tables.append(_table("recall, % [95% interval]", "tokens", "answers", *measures, *form))
        for task, length, count in counts:
            cells = [_share(count.share(measure)) for measure in measures]
            forms = found.forms.get((task, length), Counter())
            shown = " or ".join(f"{form} ({of})" if len(forms) > 1 else form for form, of in forms.items())
            tables[-1].add_row(task, f"{length:,}", f"{count.answers:,}", *cells, *([shown] if found.forms else []))
    out = console()
    out.print(title, soft_wrap=True, highlight=False, style="bold")
    for table in tables:
        out.print(table)
    for path in files:
        out.print(str(path), soft_wrap=True, highlight=False)


def _table(*columns: str) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _share(share: Share) -> str:
    low, high = (100 * bound for bound in share.interval)
    return f"{100 * share.value:.1f} [{low:.0f}, {high:.0f}]" if share.whole else ""
