"""Which of the runs that were found are one, and what each is called on the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report.run import Run


def once(runs: Sequence[Run]) -> list[Run]:
    """Runs without copies: what one command made at one time may lie in its own folder and in a study's results."""
    kept, found = set[int](), dict[Any, Run]()
    for run in sorted(runs, key=lambda run: not (run.study or run.variant)):
        first = run.made[0] if run.made else {}
        key = (*(first.get(fact) for fact in ("command", "date", "seed")), run.metrics.get("val/loss"))
        same = found.setdefault(key if first.get("date") else id(run), run)
        if same is run or same.path == run.path:
            kept.add(id(run))
        else:
            same.model, same.config = same.model or run.model, same.config or run.config
            same.curves, same.samples = same.curves or run.curves, same.samples or run.samples
    return [run for run in runs if id(run) in kept]


def joined(runs: Sequence[Run]) -> list[Run]:
    """A training and its evaluation as one; a second evaluation stays by itself."""
    kept = [run for run in runs if not run.training]
    for one in (run for run in runs if run.training):
        training = next((run for run in kept if not run.study and _is_of(one, run)), None)
        if training and not (training.recall or training.bits):
            training.bits, training.loss, training.recall = one.bits, one.loss, one.recall
            training.made += one.made
        else:
            sizes = {key: training.metrics.get(key) for key in ("parameters", "tokens")} if training else {}
            one.metrics = {**one.metrics, **{key: size for key, size in sizes.items() if size is not None}}
            kept.append(one)
    return kept


def _is_of(evaluation: Run, run: Run) -> bool:
    """Whether what was measured is this training's newest checkpoint."""
    said = evaluation.training
    if not run.made or run.training or any(said.get(key) != run.made[0].get(key) for key in ("command", "commit")):
        return False
    return said.get("seed") == run.seed and (said.get("metrics") or {}).items() <= run.metrics.items()


def tell_apart(runs: Sequence[Run]) -> None:
    """Of one name there may be several studies, or runs: what they differ in is added to it, their path last."""
    for label in ("study", "variant"):
        for group in _groups(runs, label):
            _add(group, label, _paths(group))
    alone = [run for run in runs if not run.study and not run.variant]
    for describe in (_models, _seeds, _rates, _folders, _dates, _paths):
        for group in _groups(alone, "name"):
            _add(group, "name", describe(group))


def _groups(runs: Sequence[Run], label: str) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if name := getattr(run, label):
            groups.setdefault(f"{run.study}/{name}", []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _add(group: Sequence[Run], label: str, words: Sequence[str]) -> None:
    if len(set(words)) > 1:
        for run, word in zip(group, words, strict=True):
            setattr(run, label, ", ".join(filter(None, [getattr(run, label), word])))


def _models(group: Sequence[Run]) -> list[str]:
    return [run.model for run in group]


def _seeds(group: Sequence[Run]) -> list[str]:
    return ["" if run.seed is None else f"seed {run.seed}" for run in group]


def _rates(group: Sequence[Run]) -> list[str]:
    return ["" if run.learning_rate is None else f"learning rate {run.learning_rate:g}" for run in group]


def _folders(group: Sequence[Run]) -> list[str]:
    return [Path(run.path).resolve().name for run in group]


def _dates(group: Sequence[Run]) -> list[str]:
    return [str(run.made[0].get("date", ""))[:16].replace("T", " ") if run.made else "" for run in group]


def _paths(group: Sequence[Run]) -> list[str]:
    """Without what they have in common."""
    folders = [Path(run.path).resolve() for run in group]
    above = os.path.commonpath(folders)
    return [folder.relative_to(above).as_posix() for folder in folders]
