"""What the page is made of: runs, and the results of studies that measure no recall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hfa.metrics.bits import LossByPosition
from hfa.metrics.recall import Recall

Points = list[tuple[float, float]]
Made = Mapping[str, Any]  # command, commit, seed, date, machine
Records = list[dict[str, Any]]


@dataclass
class Run:
    """A training, or the measuring of a checkpoint, or both.

    Args:
        name: short, and its own; in a study its variant, learning rate and seed.
        path: of its folder, or of the study's results.
        model: what was trained.
        config: resolved.
        made: how, of the training first and of the measuring then.
        metrics: the newest of each.
        curves: by metric, value against optimizer steps.
        bits: bits per byte by (text, length).
        loss: by position, of each text.
        recall: what was asked, by task, length and depth.
        samples: what it wrote.
        study: that it is of; empty for none.
        variant: whose runs differ in their learning rates and seeds alone; empty where it is one run by itself.
        chosen: whether its learning rate is the variant's best; the others are part of the sweep and no more.
        training: what a checkpoint that was measured says of its training.
    """

    name: str
    path: str
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)
    bits: dict[tuple[str, int], float] = field(default_factory=dict)
    loss: dict[str, LossByPosition] = field(default_factory=dict)
    recall: Recall | None = None
    samples: str = ""
    study: str = ""
    variant: str = ""
    chosen: bool = True
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its name, with its study's before it."""
        return f"{self.study}/{self.name}" if self.study else self.name

    @property
    def seed(self) -> int | None:
        """Of the training."""
        return (self.training or (self.made[0] if self.made else {})).get("seed")

    @property
    def learning_rate(self) -> float | None:
        return (self.config.get("optimizer") or {}).get("lr")


@dataclass
class Found:
    """Everything that was found.

    Args:
        runs: of ``train.py``, of the studies that train, and of experiments.retention.
        costs: runs of experiments.complexity, by path.
        states: of experiments.state, by path: the trials of each model and number of floats, by seed.
        left_out: sentences on what could not be read.
    """

    runs: list[Run] = field(default_factory=list)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, dict[tuple[str, int], Records]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def by_study(runs: Iterable[Run]) -> dict[str, dict[str, list[Run]]]:
    """The runs that are compared, by study, and by the name that they have on the whole page."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.chosen:
            name = run.variant or run.name
            found.setdefault(run.study, {}).setdefault(f"{run.study}/{name}" if run.study else name, []).append(run)
    return found


def compared(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The same, of all studies together."""
    return {name: of for variants in by_study(runs).values() for name, of in variants.items()}


def measured(run: Run, data: Mapping[str, Any]) -> Run:
    """The run with what an evaluation of it found; a checkpoint's own model and configuration count.

    Args:
        run: gets it.
        data: as in evaluation.json.
    """
    if training := data.get("training"):
        run.training = training
        run.config = training.get("config") or run.config
        run.name = run.config.get("name") or run.name
        run.model = model_name(run.config)
        run.metrics = {**(training.get("metrics") or {}), **run.metrics}
    run.made.append(made(data))
    run.bits |= {
        (one["source"], one["length"]): one["bits_per_byte"]
        for one in data.get("bits_per_byte", [])
        if one["bits_per_byte"] is not None  # of a run that diverged
    }
    run.loss |= {name: LossByPosition.from_json(one) for name, one in data.get("loss_by_position", {}).items()}
    if data.get("recall_by_depth", {}).get("counts"):
        run.recall = Recall.from_json(data["recall_by_depth"])
    return run


def made(facts: Mapping[str, Any]) -> Made:
    """How it was made, of all that is said about it."""
    kept = ("command", "commit", "dirty", "seed", "date", "device", "cpu")
    return {key: facts[key] for key in kept if facts.get(key) is not None}


def model_name(config: Mapping[str, Any]) -> str:
    """What a configuration trains; empty where it does not say."""
    model = config.get("model") or {}
    target = str(model.get("_target_", "")).rpartition(".")[2].removesuffix("Config")
    return f"hf/{model['architecture']}" if "architecture" in model else target
