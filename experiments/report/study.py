"""The runs of a study that trains variants: experiments.language and what is made like it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.report.run import Run, made, measured, model_name

Record = Mapping[str, Any]
Key = tuple[str, tuple[str, ...]]  # the variant and the overrides: two records of one key are of one run


def read(records: Sequence[Record], folder: Path) -> Iterator[Run]:
    """A run for each training with its evaluation, and for each evaluation of what another variant trained.

    Args:
        records: of the study's ledger.
        folder: that it is in.
    """
    trainings = {_key(one): one for one in records if one["kind"] == "training"}
    best = _best_rates(trainings)
    runs = {key: _trained(one, folder, one["lr"] == best[key]) for key, one in trainings.items()}
    for one in records:
        if one["kind"] == "evaluation":
            source = _source(one, trainings)
            if source and source[0] == one["variant"]:
                run = runs[source]
            else:
                run = runs[_key(one)] = _run(one, folder, not source or runs[source].chosen)
                run.made = []
                if source:
                    run.model = runs[source].model
                    run.config = _edited(trainings[source]["config"], one["overrides"][len(source[1]) :])
                    run.metrics = {key: trainings[source][key] for key in ("parameters", "tokens")}
            measured(run, one)
    yield from runs.values()


def _key(record: Record) -> Key:
    return record["variant"], tuple(record["overrides"])


def _source(evaluation: Record, trainings: Mapping[Key, Record]) -> Key | None:
    """The training of what was measured: its overrides come first, then edits, then what was asked of it."""
    overrides = tuple(evaluation["overrides"])
    fitting = [key for key in trainings if overrides[: len(key[1])] == key[1]]
    return next((key for key in fitting if key[0] == evaluation["variant"]), fitting[0] if fitting else None)


def _best_rates(trainings: Mapping[Key, Record]) -> dict[Key, float]:
    """For each training its variant's best learning rate, of the seed that all were tried with; of runs of another
    size than the newest none.
    """
    best: dict[Key, float] = {}
    for variant in {variant for variant, _ in trainings}:
        made = {key: one for key, one in trainings.items() if key[0] == variant}
        size = list(made)[-1][1][:-2]  # all but learning rate and seed
        of_size = [one for key, one in made.items() if key[1][:-2] == size]
        lr = min((one for one in of_size if one["seed"] == of_size[0]["seed"]), key=_score)["lr"]
        best |= {key: lr if key[1][:-2] == size else math.nan for key in made}
    return best


def _score(training: Record) -> float:
    value = training["metrics"].get("val/bits_per_byte")
    return math.inf if value is None else value


def _run(record: Record, folder: Path, chosen: bool) -> Run:
    return Run(
        name=f"{record['variant']}, learning rate {record['lr']:g}, seed {record['seed']}",
        path=str(folder),
        model=record["variant"],
        made=[made(record)],
        study=record["study"],
        variant=record["variant"],
        chosen=chosen,
    )


def _trained(record: Record, folder: Path, chosen: bool) -> Run:
    run = _run(record, folder, chosen)
    run.config = record["config"]
    run.model = model_name(run.config) or run.model
    run.metrics = {**record["metrics"], "parameters": record["parameters"], "tokens": record["tokens"]}
    run.curves = {
        f"{split}/bits_per_byte": [(step, value) for step, value in record[name] if value is not None]  # it diverged
        for split, name in (("val", "validation"), ("train", "training"))
    }
    run.samples = record["samples"]
    return run


def _edited(config: Mapping[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The configuration with the edits among the overrides, which name values of the model."""
    edits = dict(override.split("=", 1) for override in overrides)
    model = {key: yaml.safe_load(edits[key]) if key in edits else value for key, value in config["model"].items()}
    return {**config, "model": model}
