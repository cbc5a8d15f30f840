"""Runs of ``train.py``, one process each on one core, and what is kept of them."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.language.ledger import Ledger, Record
from experiments.language.variant import Variant, composed, equal_size, model_config, num_parameters
from hfa import checkpoint
from hfa.errors import HFAError
from hfa.training.provenance import processor
from hfa.training.runs import RUN, differences, read_metrics

REPO = Path(__file__).parents[2]
OUTPUTS = REPO / "outputs"
MOST_EXTENSIONS = 3  # of the grid of learning rates, each by a factor of 2
_DECIDING = ("model", "data", "tokenizer", "optimizer", "scheduler", "loader", "trainer")
_FREE = ("loader.num_workers", "loader.val_examples", "trainer.log_every_n_steps", "trainer.threads")
NICENESS = 10  # of a run, however nice this process is
MONITOR = "val/bits_per_byte"
console = Console(highlight=False)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison: an experiment of ``train.py``, trained in every variant.

    Args:
        name: of its folder below ``outputs``.
        experiment: the option of ``conf/experiment``.
        parameters: that every variant comes as close to as its feed-forward width allows.
        variants: by name.
        ledger: where results are kept.
        evaluation: overrides of ``mode=evaluate``.
    """

    name: str
    experiment: str
    parameters: int
    variants: Mapping[str, Variant]
    ledger: Ledger
    evaluation: tuple[str, ...] = ()

    def sweep(self, name: str, lrs: Sequence[float], seed: int) -> Record:
        """Train a variant at every learning rate, and beyond them while the best is at an end; the best run.

        A single rate is taken as it is.
        """
        if self.variants[name].trained_as:
            return self.best(name)
        runs = {lr: self.train(name, lr, seed) for lr in sorted(lrs)}
        lr = min(runs, key=lambda lr: score(runs[lr]))
        for _ in range(MOST_EXTENSIONS if len(runs) > 1 else 0):
            if lr not in (min(runs), max(runs)):
                break
            further = lr * 2 if lr == max(runs) else lr / 2
            runs[further] = self.train(name, further, seed)
            lr = min(runs, key=lambda lr: score(runs[lr]))
        if lr in (min(runs), max(runs)) and len(runs) > 1:
            console.print(f"[red]{name}: the best learning rate is still at an end of the grid.[/red]")
        return runs[lr]

    def best(self, name: str, size: list[str] | None = None) -> Record:
        """The best recorded run of a variant, of those with the seed that its learning rate was swept with.

        Args:
            name: of the variant.
            size: the overrides that the runs begin with; None for those that it would be trained with now.

        Raises:
            LookupError: there is none.
        """
        runs = self.ledger.made(self.trained(name), self.overrides(name) if size is None else size)
        if not runs:
            raise LookupError(f"{name}: no finished run of this size in {self.ledger.path}; start with --sweep.")
        return min((run for run in runs if run["seed"] == runs[0]["seed"]), key=score)

    def train(self, name: str, lr: float, seed: int) -> Record:
        """Train a variant, or find that it was done before."""
        overrides = [*self.overrides(name), *chosen(lr, seed)]
        if done := self.ledger.find("training", name, overrides):
            changed = different(done["config"], composed(self.experiment, overrides))
            if not changed and done["parameters"] != self.size(name):  # of an architecture that is another one since
                changed = [f"its {done['parameters']:,} parameters"]
            if not changed:
                return done
            console.print(f"{name}, {lr:g}, seed {seed}: made anew, since then {', '.join(changed)} have changed")
        folder = self.folder(name, lr, seed)
        shutil.rmtree(folder, ignore_errors=True)  # cut off
        console.print(f"\n[bold]{name}[/bold], learning rate {lr:g}, seed {seed}")
        seconds = run(f"experiment={self.experiment}", *overrides, f"hydra.run.dir={_said(folder)}")
        record = training_record(folder) | {"seconds": seconds, "variant": name, "overrides": overrides}
        self.ledger.append({"kind": "training", "study": self.name, "lr": lr, "seed": seed, **record})
        console.print(
            f"  {name}: {record['metrics'][MONITOR]:.4f} bits per byte of validation text, {seconds / 60:.1f} minutes"
        )
        return self.train(name, lr, seed)

    def evaluate(self, name: str, lr: float, seed: int) -> Record:
        """Measure a trained variant on the test documents, or find that it was done before."""
        variant, trained = self.variants[name], self.trained(name)
        edits = [f"{key}={value}" for key, value in variant.edits.items()]
        evaluation = (*self.evaluation, *variant.evaluation)
        overrides = [*self.overrides(name), *chosen(lr, seed), *edits, *evaluation]
        made = self.ledger.find("training", trained, [*self.overrides(name), *chosen(lr, seed)])
        done = self.ledger.find("evaluation", name, overrides)
        if done and not (made and _time(done) < _time(made)):  # else it is of weights that were made anew since
            return done
        artifact = self.folder(trained, lr, seed) / "checkpoints" / "last"
        if not (artifact / "config.json").exists():
            raise HFAError(
                f"{_said(artifact)}: the weights of this run are not here, though its results are; "
                f"to train it again, delete its line in {_said(self.ledger.path)}."
            )
        folder = self.folder(name, lr, seed) / "evaluation"
        shutil.rmtree(folder, ignore_errors=True)
        if variant.edits:
            artifact = edited(artifact, folder / "edited", variant.edits)
        console.print(f"\n[bold]{name}[/bold], learning rate {lr:g}, seed {seed}: evaluation")
        seconds = run(
            "mode=evaluate",
            f"experiment={self.experiment}",
            f"checkpoint={_said(artifact)}",
            f"seed={seed}",
            f"hydra.run.dir={_said(folder)}",
            *evaluation,
        )
        measured = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        training = measured.pop("training")
        measured.pop("retention", None)  # `recall_by_depth`, cell by cell
        record = {"trained_commit": training.get("commit"), "variant": name, "overrides": overrides, "seconds": seconds}
        self.ledger.append(
            {"kind": "evaluation", "study": self.name, "lr": lr, "cpu": cpu(), **measured, **record, "seed": seed}
        )
        return self.evaluate(name, lr, seed)

    def overrides(self, name: str) -> list[str]:
        """What makes the variant, its size included."""
        chosen = self.variants[self.trained(name)].overrides
        return [*chosen, equal_size(self.experiment, chosen, self.parameters)]

    def size(self, name: str) -> int:
        """Parameters of the variant."""
        return num_parameters(model_config(self.experiment, self.overrides(name)))

    def trained(self, name: str) -> str:
        """The variant whose training gives this one's weights."""
        return self.variants[name].trained_as or name

    def folder(self, name: str, lr: float, seed: int) -> Path:
        """Where a run keeps its checkpoints and logs."""
        return OUTPUTS / self.name / name / f"lr{lr:g}-seed{seed}"


def _time(record: Record) -> datetime:
    return datetime.fromisoformat(record["date"])


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What decides a training and has another value now, as dotted keys."""
    deciding = {name: value for name, value in old.items() if name in _DECIDING}
    return [key for key, *_ in differences(deciding, new, _FREE)]


def chosen(lr: float, seed: int) -> tuple[str, str]:
    """The overrides in which the runs of one variant differ."""
    return f"optimizer.lr={lr:g}", f"seed={seed}"


def score(run: Record) -> float:
    """Bits per byte of validation text at the end; infinite when the run diverged."""
    value = run["metrics"].get(MONITOR)
    return math.inf if value is None or math.isnan(value) else value


def run(*arguments: str) -> float:
    """One ``train.py`` on one core, behind everything else on the machine; returns the seconds it took.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "train.py", *arguments]
    console.print(f"$ python {shlex.join(command[1:])}", style="dim", markup=False)
    began = time.monotonic()
    subprocess.run(
        ["nice", "-n", str(max(0, NICENESS - os.nice(0))), *command],
        check=True,
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
    )
    return round(time.monotonic() - began, 1)


def training_record(folder: Path) -> Record:
    """What is kept of a training: its provenance, its last metrics, its learning curve and its last sample texts."""
    facts = json.loads((folder / RUN).read_text(encoding="utf-8"))
    config = checkpoint.read_config(folder / "checkpoints" / "last")["provenance"]["config"]
    rows = read_metrics(folder / "metrics.csv")
    metrics = facts["metrics"]
    kept = ("commit", "dirty", "date", "command", "python", "torch", "device", "threads")
    return {
        **{key: facts[key] for key in kept},
        "cpu": cpu(),
        "config": config,
        "parameters": int(metrics["parameters"]),
        "tokens": int(metrics["tokens"]),
        "metrics": metrics,
        "validation": [[row["step"], row[MONITOR]] for row in rows if MONITOR in row],
        "training": [[row["step"], row["train/bits_per_byte"]] for row in rows if "train/bits_per_byte" in row],
        "samples": samples(folder / "samples.txt"),
    }


def samples(path: Path) -> str:
    """The texts of the last validation."""
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    last = text.rpartition("=== step ")[2].partition("\n")[0]
    at = text.find(f"=== step {last}\n")
    return text[at:].strip() if at >= 0 else ""


def edited(artifact: Path, folder: Path, edits: Mapping[str, Any]) -> Path:
    """A copy of an artifact, with other values in its model configuration.

    Raises:
        LookupError: its model has no such value.
    """
    shutil.copytree(artifact, folder)
    path = folder / "config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    if unknown := set(edits) - set(description["model"]):
        raise LookupError(f"{artifact}: its model has no {', '.join(sorted(unknown))}.")
    description["model"] |= edits
    path.write_text(json.dumps(description, indent=2, sort_keys=True), encoding="utf-8")
    return folder


def _said(path: Path) -> Path:
    """As commands are recorded: from the repository on, wherever that is."""
    return path.relative_to(REPO) if path.is_relative_to(REPO) else path


def cpu() -> str:
    """The processor and how many cores of it there are."""
    return f"{processor()}, {os.cpu_count()} cores"
