"""Recall against the number of floats that a model carries, of experiments.state."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

from experiments.report.charts import Chart, Curve, over_seeds, tokens
from experiments.report.run import Found, Records
from experiments.report.section import Section, Table
from experiments.state.report import percent
from experiments.state.subjects import SUBJECTS

_PAIRS = 64  # that the curves by length and by floats are of
_HARDEST = "256/64"  # of the settings that were trained on


class Setting(NamedTuple):
    """What was asked, ``1024/64 random`` for example."""

    noise: str  # between the pairs, empty for zeros
    pairs: int
    length: int
    key: str


def state(found: Found) -> Section | None:
    """Right answers in every setting; curves of them by pairs, by length and by floats."""
    charts, tables = [], []
    for path, groups in found.states.items():
        named = _named(groups)
        keys = {key for records in named.values() for one in records for key in one["accuracy"]}
        settings = sorted(map(_setting, keys))
        for title, x, points in (
            ("Right answers by pairs, in the shortest text that was tried with them", "pairs", _by_pairs(settings)),
            (f"Right answers by length, {_PAIRS} pairs, zeros between", "tokens", _by_length(settings, "")),
            (f"Right answers by length, {_PAIRS} pairs, random ids between", "tokens", _by_length(settings, "random")),
        ):
            if len(points) > 1:
                charts += _chart(title, {name: _curve(records, points) for name, records in named.items()}, x, path)
        charts += _by_floats(groups, path)
        rows = [
            [
                one.key,
                *(
                    percent([at["accuracy"][one.key] for at in of if one.key in at["accuracy"]])
                    for of in named.values()
                ),
            ]
            for one in settings
        ]
        tables.append(Table("Right answers, %", ["length/pairs", *named], rows, path))
    lead = (
        "Associative recall of models that carry a state of the same size, and of those whose state grows; each at its "
        "best learning rate. The mean over seeds, in tables with the lowest where they differ; bands are one standard "
        "deviation over seeds. Between the pairs stand zeros, where nothing else is said."
    )
    return Section("state", "Recall against state", lead, tables=tables, charts=charts) if tables else None


def _named(groups: Mapping[tuple[str, int], Records]) -> dict[str, Records]:
    """By model, and by its floats where it has several sizes."""
    models = [model for model, _ in groups]
    return {
        _title(model) + (f", {floats:,} floats" if models.count(model) > 1 else ""): records
        for (model, floats), records in groups.items()
    }


def _title(model: str) -> str:
    return SUBJECTS[model].title


def _setting(key: str) -> Setting:
    size, *noise = key.split()
    length, pairs = map(int, size.split("/"))
    return Setting(" ".join(noise), pairs, length, key)


def _by_pairs(settings: list[Setting]) -> dict[str, int]:
    shortest = {one.pairs: one for one in reversed(settings) if not one.noise}
    return {one.key: pairs for pairs, one in shortest.items()}


def _by_length(settings: list[Setting], noise: str) -> dict[str, int]:
    return {one.key: one.length for one in settings if one.pairs == _PAIRS and one.noise == noise}


def _by_floats(groups: Mapping[tuple[str, int], Records], path: str) -> list[Chart]:
    """A curve for each model that was tried with several sizes."""
    by_model: dict[str, list[tuple[int, Records]]] = {}
    for (model, floats), records in groups.items():
        if all(_HARDEST in one["accuracy"] for one in records):
            by_model.setdefault(_title(model), []).append((floats, records))
    curves = {}
    for model, sizes in by_model.items():
        if len(sizes) > 1:
            points = [_curve(records, {_HARDEST: floats}) for floats, records in sizes]
            curves[model] = Curve(*(list(chain.from_iterable(parts)) for parts in zip(*points, strict=True)))
    return _chart(f"Right answers by floats a layer, {_HARDEST}", curves, "floats", path)


def _curve(records: Records, points: Mapping[str, int]) -> Curve:
    return over_seeds(
        [(x, 100 * one["accuracy"][key]) for key, x in points.items() if key in one["accuracy"]] for one in records
    )


def _chart(title: str, curves: Mapping[str, Curve], x: str, path: str) -> list[Chart]:
    chart = Chart(title, curves, x, "% of answers", log_x=True, limits=(-3, 103), ticks=tokens, note=path)
    return chart.best(most=True)
