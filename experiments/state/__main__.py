"""Train every model on associative recall, test it on more than it saw, and keep each trial as it is made.

A trial that is in the results already is not made again: the command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.entry import at_least, check_seeds, leave, program
from experiments.language.ledger import Ledger, Record
from experiments.language.study import OUTPUTS, cpu
from experiments.state.report import draw, table, trained
from experiments.state.subjects import SUBJECTS
from experiments.state.trial import FAR, TEST, Plan, trial
from hfa.allocator import keep_freed_memory
from hfa.training.provenance import provenance
from hfa.training.runs import differences

RESULTS = Path(__file__).parent / "results"
LRS = (2e-3, 4e-3, 8e-3)
STEPS = 400  # of 4,096 tokens
console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; returns the exit code."""
    asked = parse(arguments)
    folder = asked.results or (RESULTS if asked.record else OUTPUTS / "state")
    ledger = Ledger(folder / "trials.jsonl")
    torch.set_num_threads(1)
    for floats in asked.floats:
        for name in asked.models:
            for lr in asked.lrs:
                made(ledger, name, floats, asked, lr, asked.seeds[0])
            lr = best(ledger, name, floats, asked)
            for seed in asked.seeds[1:]:
                made(ledger, name, floats, asked, lr, seed)
    summary = table(ledger)
    console.print(summary, markup=False)
    if asked.plot:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.md").write_text(summary, encoding="utf-8")
        console.print(f"  {draw(ledger, folder / 'state.png')}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="*",
        default=[name for name, subject in SUBJECTS.items() if not subject.part],
        choices=list(SUBJECTS),
        help="in this order",
    )
    parser.add_argument("--floats", nargs="+", type=int, default=[8192], help="of a recurrent layer's state")
    parser.add_argument("--lrs", nargs="+", type=float, default=list(LRS), help="tried with the first seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="the rest at the best learning rate")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 4,096 tokens")
    parser.add_argument("--far", action="store_true", help="test on longer contexts and more pairs, too")
    parser.add_argument("--plot", action="store_true", help="write the table and draw the figure")
    parser.add_argument("--record", action="store_true", help="keep results beside the study, not under outputs/")
    parser.add_argument("--results", type=Path, help="keep results in this folder")
    asked = parser.parse_args(arguments)
    at_least("--floats", asked.floats, 1)
    at_least("--steps", [asked.steps], 1)
    at_least("--lrs", asked.lrs, 1e-9)
    check_seeds(asked.seeds)
    return asked


def made(ledger: Ledger, name: str, floats: int, asked: argparse.Namespace, lr: float, seed: int) -> Record:
    """The trial of a model, made now if it was not before."""
    floats = 0 if SUBJECTS[name].grows else floats
    plan = Plan(steps=asked.steps, lr=lr, seed=seed)
    settings = SUBJECTS[name].config(floats)
    tests = [*TEST, *(FAR if asked.far else ())]
    overrides = [
        f"{key}={value}" for key, value in {"floats": floats, **dataclasses.asdict(plan), "far": asked.far}.items()
    ]
    config = json.loads(json.dumps(settings.to_dict() | {"seed": seed}))  # lists for tuples, as lines have them
    if done := ledger.find("training", name, overrides):
        if not (changed := [key for key, *_ in differences(done["config"], config, ())]):
            return done
        console.print(f"{name}, {lr:g}, seed {seed}: made anew, since then {', '.join(changed)} have changed")
    console.print(f"\n[bold]{name}[/bold], {floats or 'growing'} floats, learning rate {lr:g}, seed {seed}")
    facts = provenance(config, cpu=cpu())
    measured = trial(settings, plan, tests, console.print)
    ledger.append(
        {"kind": "training", "variant": name, "overrides": overrides, "floats": floats, "lr": lr, "steps": asked.steps}
        | facts
        | measured
    )
    console.print(f"  {measured['cpu_seconds']} s of the processor; {measured['accuracy']}")
    return made(ledger, name, floats, asked, lr, seed)


def best(ledger: Ledger, name: str, floats: int, asked: argparse.Namespace) -> float:
    """The learning rate at which the first seed did best on what it was trained on."""
    records: list[dict[str, Any]] = [made(ledger, name, floats, asked, lr, asked.seeds[0]) for lr in asked.lrs]
    return float(max(records, key=trained)["lr"])


if __name__ == "__main__":
    keep_freed_memory()  # of the whole process, so not in what a test calls
    leave(main)
