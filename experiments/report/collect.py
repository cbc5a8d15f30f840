"""What there is to report: runs of ``train.py``, and the results that studies record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfa.errors import HFAError
from hfa.metrics.bits import LossByPosition
from hfa.metrics.recall import Recall
from hfa.training.loggers import read_metrics
from hfa.training.record import read_config

Points = list[tuple[float, float]]


@dataclass
class Run:
    """A training, or the measuring of a checkpoint, or both.

    Args:
        name: short, and its own.
        model: what was trained.
        config: resolved.
        made: command, commit, seed, date, machine.
        metrics: the newest of each.
        curves: by metric, value against optimizer steps.
        bits: bits per byte by (text, length).
        loss: by position, of each text.
        recall: what was asked, by task, length and depth.
        samples: what it wrote.
        group: a study's variant; runs of one differ in their seeds alone.
    """

    name: str
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    bits: dict[tuple[str, int], float] = field(default_factory=dict)
    loss: dict[str, LossByPosition] = field(default_factory=dict)
    recall: Recall | None = None
    samples: str = ""
    group: str = ""


@dataclass
class Found:
    """Everything that was found.

    Args:
        runs: of ``train.py``, and of the studies that train.
        costs: runs of experiments.complexity, by path.
        retention: results of experiments.retention, by path: seed to what was counted.
    """

    runs: list[Run] = field(default_factory=list)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    retention: dict[str, dict[str, Recall]] = field(default_factory=dict)


def collect(paths: Sequence[Path]) -> Found:
    """Look through folders and files.

    Args:
        paths: run directories, folders of them, or files of results.

    Raises:
        HFAError: one does not exist, or there is nothing to report in any.
    """
    found = Found()
    for path in paths:
        if not path.exists():
            raise HFAError(f"{path}: there is no such file or folder.")
        for file in sorted(_files(path)):
            _take(found, file, path)
    if not (found.runs or found.costs or found.retention):
        where = ", ".join(map(str, paths))
        raise HFAError(f"{where}: no runs here; name run directories, folders of them, or results of studies.")
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for pattern in ("run.json", "*.jsonl", "results/*.json", "*.json"):
        yield from (
            file for file in path.rglob(pattern) if "checkpoints" not in file.parts and "wandb" not in file.parts
        )


def _take(found: Found, file: Path, root: Path) -> None:
    if file.name == "run.json":
        run = _run(file.parent, root)
        if run.name not in {other.name for other in found.runs}:
            found.runs.append(run)
    elif file.name == "runs.jsonl":
        found.runs += _study(file)
    elif file.name == "cells.jsonl":
        found.retention.setdefault(str(file), _cells(file))
    elif file.suffix == ".json" and str(file) not in found.costs:
        data = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"rows", "models", "provenance"} <= data.keys():
            found.costs[str(file)] = data
        elif isinstance(data, dict) and "recall_by_depth" in data and not (file.parent / "run.json").exists():
            run = Run(name=f"{file.parent.parent.name}/{file.stem}")
            found.runs.append(_measured(run, data))


def _run(folder: Path, root: Path) -> Run:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    name = folder.relative_to(root).as_posix() if folder != root and folder.is_relative_to(root) else folder.name
    run = Run(name=name, config=read_config(folder), made=_made(facts), metrics=facts.get("metrics") or {})
    run.model = _model(run.config)
    if (folder / "evaluation.json").exists():
        return _measured(run, json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    if (folder / "metrics.csv").exists():
        for row in read_metrics(folder / "metrics.csv"):
            for key, value in row.items():
                if key != "step":
                    run.curves.setdefault(key, []).append((row["step"], value))
    if (folder / "samples.txt").exists():
        run.samples = _last_samples((folder / "samples.txt").read_text(encoding="utf-8"))
    return run


def _measured(run: Run, data: Mapping[str, Any]) -> Run:
    """The run with what an evaluation of it found; a checkpoint's own model and configuration count."""
    training = data.get("training") or {}
    run.config = training.get("config") or run.config
    run.model = _model(run.config)
    run.made = run.made or _made(data)
    run.bits |= {(one["source"], one["length"]): one["bits_per_byte"] for one in data.get("bits_per_byte", [])}
    run.loss |= {name: LossByPosition.from_json(one) for name, one in data.get("loss_by_position", {}).items()}
    if data.get("recall_by_depth", {}).get("counts"):
        run.recall = Recall.from_json(data["recall_by_depth"])
    run.metrics = {**(training.get("metrics") or {}), **run.metrics}
    return run


def _study(file: Path) -> Iterator[Run]:
    """A run for each training of a study, with its evaluation."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    measured = {(one["variant"], one["lr"], one["seed"]): one for one in records if one["kind"] == "evaluation"}
    for one in records:
        key = (one["variant"], one["lr"], one["seed"])
        if one["kind"] != "training":
            continue
        run = Run(
            name=f"{one['study']}/{one['variant']} lr {one['lr']:g} seed {one['seed']}",
            model=one["variant"],
            config=one["config"],
            made=_made(one),
            metrics={**one["metrics"], "parameters": one["parameters"], "tokens": one["tokens"]},
            curves={"val/bits_per_byte": one["validation"], "train/bits_per_byte": one["training"]},
            samples=one.get("samples", ""),
            group=f"{one['study']}/{one['variant']} lr {one['lr']:g}",
        )
        if key in measured:
            run = _measured(run, {**measured[key], "training": {"config": one["config"]}})
            run.model = one["variant"]
        yield run


def _cells(file: Path) -> dict[str, Recall]:
    by_seed: dict[str, Recall] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        recall = Recall.from_json(one["recall"])
        name = f"seed {one['seed']}"
        if name in by_seed:
            by_seed[name].merge(recall)
        else:
            by_seed[name] = recall
    return by_seed


def _made(facts: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("command", "commit", "dirty", "seed", "date", "device", "cpu", "torch", "threads", "status", "checkpoint")
    return {key: facts[key] for key in kept if facts.get(key) is not None}


def _model(config: Mapping[str, Any]) -> str:
    model = config.get("model") or {}
    target = str(model.get("_target_", "")).rpartition(".")[2].removesuffix("Config")
    return f"hf/{model['architecture']}" if "architecture" in model else target


def _last_samples(text: str) -> str:
    last = text.rpartition("=== step ")[2].partition("\n")[0]
    at = text.find(f"=== step {last}\n")
    return text[at:].strip() if at >= 0 else ""
