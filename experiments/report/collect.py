"""What there is to report: runs of ``train.py``, and the results that studies record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.language.ledger import Ledger as Trials
from experiments.language.study import samples
from experiments.report import study
from experiments.report.cost import costs
from experiments.report.identity import joined, once, tell_apart
from experiments.report.run import Found, Run, made, measured, model_name
from experiments.retention.ledger import Ledger as Cells
from experiments.state.report import at_best
from hfa.errors import HFAError
from hfa.training.runs import RUN, read_config, read_metrics

_NAMED = 8  # folders, of those in which nothing was read


def collect(paths: Sequence[Path]) -> Found:
    """Look through folders and files.

    Args:
        paths: run directories, folders of them, or files of results.

    Raises:
        HFAError: one does not exist, or there is nothing to report in any.
    """
    found, used = Found(), dict[Path, bool]()
    for path in paths:
        if not path.exists():
            raise HFAError(f"{path}: there is no such file or folder.")
        for file in sorted(_files(path)):
            if file.resolve() not in used:
                used[file.resolve()] = _take(found, file)
    if unread := list(_unread(paths, used)):
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        found.left_out.append(f"Nothing to report in {', '.join(unread[:_NAMED])}{more}.")
    if not (found.runs or found.costs or found.states):
        where = ", ".join(map(str, paths))
        sentences = [f"{where}: no runs here; name run directories, folders of them, or results of studies."]
        raise HFAError(" ".join(sentences + found.left_out))
    found.runs = joined(once(found.runs))
    tell_apart(found.runs)
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for pattern in ("*.jsonl", "*.json"):
        yield from (
            file for file in path.rglob(pattern) if "checkpoints" not in file.parts and "wandb" not in file.parts
        )


def _unread(paths: Sequence[Path], used: Mapping[Path, bool]) -> Iterator[str]:
    """What was named and gave nothing, and folders of files of which none did, nor any further down."""
    for path in paths:
        files = list(_files(path))
        for folder in sorted({path if path.is_file() else file.parent for file in files} or {path}):
            if not any(used[file.resolve()] for file in files if folder in (file, *file.parents)):
                yield str(folder)


def _take(found: Found, file: Path) -> bool:
    """Add what is in a file; whether there was anything, be it that it cannot be read."""
    try:
        if file.name == RUN:
            found.runs.append(_run(file.parent))
        elif file.name == "runs.jsonl":
            found.runs += list(study.read(_records(file), file.parent))
        elif file.name == "cells.jsonl":
            found.runs += _retention(file)
        elif file.name == "trials.jsonl":
            _records(file)
            found.states[str(file)] = at_best(Trials(file))
        else:
            return file.suffix == ".json" and _results(found, file)
    except HFAError as error:
        found.left_out.append(str(error))
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        found.left_out.append(f"{file} was not read: {reason}.")
    return True


def _run(folder: Path) -> Run:
    facts, config = _json(folder / RUN), read_config(folder)
    run = Run(str(config.get("name") or folder.resolve().name), str(folder), model_name(config), config)
    if (folder / "evaluation.json").exists():
        return measured(run, _json(folder / "evaluation.json"))
    run.made, run.metrics = [made(facts)], facts.get("metrics") or {}
    if (folder / "metrics.csv").exists():
        for row in read_metrics(folder / "metrics.csv"):
            for key, value in row.items():
                if key != "step":
                    run.curves.setdefault(key, []).append((row["step"], value))
    run.samples = samples(folder / "samples.txt")
    return run


def _retention(file: Path) -> Iterator[Run]:
    """A run a seed; what trained them is in another file beside it, if in any."""
    cells, trainings = _records(file), file.parent / "training.json"
    trained = _json(trainings) if trainings.exists() else {}
    name, ledger = _study(file), Cells(file)
    for seed in ledger.seeds():
        facts = trained.get(f"seed{seed}") or {}
        found = [made(cell.get("provenance") or {"seed": seed}) for cell in cells if cell["seed"] == seed]
        yield Run(
            name=f"{name}, seed {seed}",
            path=str(file.parent),
            made=([made(facts)] if facts else []) + [one for i, one in enumerate(found) if one not in found[:i]],
            metrics=facts.get("metrics") or {},
            recall=ledger.recall(seed),
            variant=name,
        )


def _results(found: Found, file: Path) -> bool:
    data = _json(file)
    if {"rows", "models", "provenance"} <= data.keys():
        costs(Found(costs={str(file): data}))  # raises where it only looks like one
        found.costs[str(file)] = data
    elif "recall_by_depth" in data and not (file.parent / RUN).exists():
        found.runs.append(measured(Run(f"{_study(file)}/{file.stem}", str(file)), data))
    else:
        return False
    return True


def _study(file: Path) -> str:
    """What a file of results is of: ``experiments/retention/results/cells.jsonl`` is of retention."""
    return next(name for name in reversed(file.resolve().parent.parts) if name != "results")


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise HFAError(f"{file} was not read: it is no JSON, or was cut off.") from None
    return data if isinstance(data, dict) else {}


def _records(file: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise HFAError(f"{file} was not read: line {number} is no JSON, or was cut off; take it out.") from None
    return records
