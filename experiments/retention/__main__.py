"""Train with each seed, measure every retention task at every length, and keep each cell as it is measured.

What is there already, a trained seed or a measured cell, is not made again: the command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from experiments.entry import at_least, check_seeds, leave, program
from experiments.retention.ledger import Ledger
from experiments.retention.plan import LENGTHS, MILLION
from experiments.retention.report import draw, table
from experiments.retention.study import OUTPUTS, console, estimate, measure, threads, train, training_record
from hfa.allocator import keep_freed_memory
from hfa.errors import ConfigError

RESULTS = Path(__file__).parent / "results"
QUICK = ("trainer.max_steps=20", "scheduler.warmup_steps=5")


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked for; returns the exit code."""
    asked = parse(arguments)
    folder = asked.results or (RESULTS if asked.record else OUTPUTS / "results")
    ledger = Ledger(folder / "cells.jsonl")
    threads(asked.threads)
    overrides = (*(QUICK if asked.quick else ()), *asked.overrides)
    if asked.threads is not None:
        overrides = (f"trainer.threads={asked.threads}", *overrides)
    if asked.seeds or asked.estimate:  # before a training, for what does not fit is known here
        console.print(estimate(asked.lengths, len(asked.seeds), overrides, quick=asked.quick))
    if asked.estimate:
        return 0
    trainings = folder / "training.json"
    for seed in asked.seeds:
        artifact = asked.checkpoint or train(seed, overrides, quick=asked.quick)
        measure(seed, artifact, asked.lengths, ledger, overrides, quick=asked.quick)
        if not asked.checkpoint:
            runs = json.loads(trainings.read_text(encoding="utf-8")) if trainings.exists() else {}
            runs = dict(sorted((runs | {f"seed{seed}": training_record(artifact)}).items()))
            trainings.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    if asked.plot:
        (folder / "table.md").write_text(table(ledger), encoding="utf-8")
        for path in draw(ledger, folder):
            console.print(f"  plot: {path}")
    console.print(table(ledger))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog=program(), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="to train and measure")
    lengths = [*LENGTHS, MILLION]
    parser.add_argument("--lengths", nargs="+", type=int, default=lengths, help="tokens; 1048576 is for passkeys alone")
    parser.add_argument("--quick", action="store_true", help="20 steps and 64 queries a cell: does it run?")
    parser.add_argument("--record", action="store_true", help="keep results beside the study, not under outputs/")
    parser.add_argument("--results", type=Path, help="keep results in this folder")
    parser.add_argument("--plot", action="store_true", help="write the table and draw the figures")
    parser.add_argument("--estimate", action="store_true", help="say how many tokens there are to run, and stop")
    parser.add_argument("--checkpoint", type=Path, help="measure this artifact instead of training one")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice unless given")
    parser.add_argument("--overrides", nargs="*", default=[], help="of train.py, e.g. model.window=64")
    asked = parser.parse_args(arguments)
    at_least("--lengths", asked.lengths, 1)
    at_least("--threads", [] if asked.threads is None else [asked.threads], 1)
    check_seeds(asked.seeds)
    if asked.checkpoint and asked.overrides:
        expected = "none beside --checkpoint, which is trained already"
        raise ConfigError("--overrides", " ".join(asked.overrides), expected, "leave one of them out")
    return asked


if __name__ == "__main__":
    keep_freed_memory()  # of the whole process, so not in what a test calls
    leave(main)
