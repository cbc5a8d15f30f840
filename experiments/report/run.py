"""What the page is made of: runs, and the results of studies that train nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hfa.metrics.bits import LossByPosition
from hfa.metrics.recall import Recall

Points = list[tuple[float, float]]


@dataclass
class Run:
    """A training, or the measuring of a checkpoint, or both.

    Args:
        name: short, and its own; in a study its variant, learning rate and seed.
        path: of its folder, or of the study's results.
        model: what was trained.
        config: resolved.
        made: command, commit, seed, date, machine.
        metrics: the newest of each.
        curves: by metric, value against optimizer steps.
        bits: bits per byte by (text, length).
        loss: by position, of each text.
        recall: what was asked, by task, length and depth.
        samples: what it wrote.
        study: that it is of; empty for none.
        variant: of the study; its runs differ in their learning rates and seeds alone.
        chosen: whether its learning rate is the variant's best; the others are part of the sweep and no more.
    """

    name: str
    path: str
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    bits: dict[tuple[str, int], float] = field(default_factory=dict)
    loss: dict[str, LossByPosition] = field(default_factory=dict)
    recall: Recall | None = None
    samples: str = ""
    study: str = ""
    variant: str = ""
    chosen: bool = True

    @property
    def title(self) -> str:
        """Its name, with its study's before it."""
        return f"{self.study}/{self.name}" if self.study else self.name


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


def by_study(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """The runs that are compared, by study and variant; of no study, each by itself."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.chosen:
            found.setdefault(run.study, {}).setdefault(run.variant or run.name, []).append(run)
    return found


def compared(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The same, of all studies together."""
    return {
        f"{study}/{name}" if study else name: of
        for study, variants in by_study(runs).items()
        for name, of in variants.items()
    }


def measured(run: Run, data: Mapping[str, Any]) -> Run:
    """The run with what an evaluation of it found; a checkpoint's own model and configuration count.

    Args:
        run: gets it.
        data: as in evaluation.json.
    """
    if training := data.get("training"):
        run.config = training.get("config") or run.config
        run.model = model_name(run.config)
        run.metrics = {**(training.get("metrics") or {}), **run.metrics}
    run.made = run.made or made(data)
    run.bits |= {(one["source"], one["length"]): one["bits_per_byte"] for one in data.get("bits_per_byte", [])}
    run.loss |= {name: LossByPosition.from_json(one) for name, one in data.get("loss_by_position", {}).items()}
    if data.get("recall_by_depth", {}).get("counts"):
        run.recall = Recall.from_json(data["recall_by_depth"])
    return run


def made(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How it was made, of all that is said about it."""
    kept = ("command", "commit", "dirty", "seed", "date", "device", "cpu", "torch", "threads", "status", "checkpoint")
    return {key: facts[key] for key in kept if facts.get(key) is not None}


def model_name(config: Mapping[str, Any]) -> str:
    """What a configuration trains; empty where it does not say."""
    model = config.get("model") or {}
    target = str(model.get("_target_", "")).rpartition(".")[2].removesuffix("Config")
    return f"hf/{model['architecture']}" if "architecture" in model else target


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        found |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return found
