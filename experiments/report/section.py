"""What a part of the page consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a heat-map."""

    text: str
    note: str  # the interval, and of how many
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


class Chart(NamedTuple):
    title: str
    svg: str
    note: str = ""


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    lead: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    grids: Sequence[Grid] = ()
    details: Sequence[tuple[str, Sequence[Grid]]] = ()
    texts: Sequence[tuple[str, str]] = ()
