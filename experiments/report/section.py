"""What a part of the page consists of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.report.charts import Chart

_NUMBER = re.compile(r"[+-]?\d[\d.,]*%?( .*)?")
_LONG = 48  # letters of a cell that may be broken anywhere


class Cell(NamedTuple):
    """A cell of a heat-map."""

    text: str
    notes: Sequence[str]  # the interval, and of how many
    colour: str
    dark: bool  # whether the colour is


class Grid(NamedTuple):
    """A heat-map."""

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]


class Table(NamedTuple):
    """A plain table; the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    @property
    def kinds(self) -> list[str]:
        """How each column is set: ``number`` to the right, ``word`` and ``long`` to the left."""
        return ["word", *(_kind([row[i] for row in self.rows]) for i in range(1, len(self.columns)))]


class Fold(NamedTuple):
    """What is shown when its title is clicked, or at once where it is `open`."""

    title: str
    open: bool = False
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    text: str = ""


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    lead: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    folds: Sequence[Fold] = ()

    def all_charts(self) -> Iterator[Chart]:
        """Those in folds, too."""
        yield from self.charts
        for fold in self.folds:
            yield from fold.charts


def _kind(cells: Sequence[str]) -> str:
    if all(_NUMBER.fullmatch(cell) for cell in cells if cell):
        return "number"
    return "long" if max(map(len, cells)) > _LONG else "word"
