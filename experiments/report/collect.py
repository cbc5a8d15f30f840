"""What there is to report: runs of ``train.py``, and the results that studies record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.report import study
from experiments.report.run import Found, Run, made, measured, model_name
from experiments.retention.ledger import Ledger
from hfa.errors import HFAError
from hfa.training.loggers import read_metrics
from hfa.training.record import read_config


def collect(paths: Sequence[Path]) -> Found:
    """Look through folders and files.

    Args:
        paths: run directories, folders of them, or files of results.

    Raises:
        HFAError: one does not exist, or there is nothing to report in any.
    """
    found, taken = Found(), set[Path]()
    for path in paths:
        if not path.exists():
            raise HFAError(f"{path}: there is no such file or folder.")
        for file in sorted(_files(path)):
            if file.resolve() not in taken:
                taken.add(file.resolve())
                _take(found, file, path)
    _tell_apart(found.runs)
    if not (found.runs or found.costs or found.retention):
        where = ", ".join(map(str, paths))
        raise HFAError(f"{where}: no runs here; name run directories, folders of them, or results of studies.")
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for pattern in ("*.jsonl", "*.json"):
        yield from (
            file for file in path.rglob(pattern) if "checkpoints" not in file.parts and "wandb" not in file.parts
        )


def _tell_apart(runs: Sequence[Run]) -> None:
    """Two folders may hold a run or a study of one name each: these are called by their paths."""
    for label in ("study", "name"):
        paths: dict[tuple[str, str], set[str]] = {}
        for run in runs:
            paths.setdefault((run.study, getattr(run, label)), set()).add(run.path)
        for run in runs:
            if getattr(run, label) and len(paths[run.study, getattr(run, label)]) > 1:
                setattr(run, label, run.path)


def _take(found: Found, file: Path, root: Path) -> None:
    if file.name == "run.json":
        found.runs.append(_run(file.parent, root))
    elif file.name == "runs.jsonl":
        found.runs += study.read(file)
    elif file.name == "cells.jsonl":
        ledger = Ledger(file)
        found.retention[str(file)] = {f"seed {seed}": ledger.recall(seed) for seed in ledger.seeds()}
    elif file.suffix == ".json":
        data = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"rows", "models", "provenance"} <= data.keys():
            found.costs[str(file)] = data
        elif isinstance(data, dict) and "recall_by_depth" in data and not (file.parent / "run.json").exists():
            run = Run(name=f"{file.resolve().parents[1].name}/{file.stem}", path=str(file))
            found.runs.append(measured(run, data))


def _run(folder: Path, root: Path) -> Run:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    name = folder.relative_to(root).as_posix() if folder != root and folder.is_relative_to(root) else folder.name
    run = Run(name, str(folder), config=read_config(folder), made=made(facts), metrics=facts.get("metrics") or {})
    run.model = model_name(run.config)
    if (folder / "evaluation.json").exists():
        return measured(run, json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    if (folder / "metrics.csv").exists():
        for row in read_metrics(folder / "metrics.csv"):
            for key, value in row.items():
                if key != "step":
                    run.curves.setdefault(key, []).append((row["step"], value))
    if (folder / "samples.txt").exists():
        run.samples = _last_samples((folder / "samples.txt").read_text(encoding="utf-8"))
    return run


def _last_samples(text: str) -> str:
    last = text.rpartition("=== step ")[2].partition("\n")[0]
    at = text.find(f"=== step {last}\n")
    return text[at:].strip() if at >= 0 else ""
