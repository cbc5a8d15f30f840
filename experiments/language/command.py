"""The command line that studies of trained variants share."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from experiments.entry import at_least, check_seeds, program
from experiments.language.ledger import Ledger
from experiments.language.report import draw, draw_recall, table, written
from experiments.language.study import OUTPUTS, Study, console
from experiments.language.variant import Variant
from hfa.errors import HFAError

LRS = (1e-3, 2e-3, 4e-3, 8e-3)


def command(
    name: str,
    *,
    description: str | None,
    experiment: str,
    parameters: int,
    variants: Mapping[str, Variant],
    folder: Path,
    evaluation: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> int:
    """Train, measure and compare what is asked for.

    Args:
        name: of the study.
        description: for ``--help``.
        experiment: the option of ``conf/experiment`` that all variants start from.
        parameters: of every variant.
        variants: by name.
        folder: of the study, where ``--record`` keeps results.
        evaluation: overrides of ``mode=evaluate``.
        arguments: instead of the command line's.

    Returns:
        The exit code: 1 when something failed.
    """
    asked = parse(arguments, description, list(variants))
    results = asked.results or (folder / "results" if asked.record else OUTPUTS / name / "results")
    ledger = Ledger(results / "runs.jsonl")
    study = Study(
        name=name,
        experiment=experiment,
        parameters=parameters,
        variants=variants,
        ledger=ledger,
        evaluation=tuple(evaluation),
    )
    failed = follow(study, asked)
    summary = table(study)
    print(summary)
    if asked.plot:
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{name}.md").write_text(summary, encoding="utf-8")
        (results / f"{name}-samples.md").write_text(written(study), encoding="utf-8")
        for path in (draw(study, results / f"{name}.png"), draw_recall(study, results / f"{name}-recall.png")):
            if path:
                console.print(f"  {path}")
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None, description: str | None, variants: Sequence[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog=program(), description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=variants, choices=variants, help="in this order")
    parser.add_argument("--sweep", action="store_true", help="find the best learning rate, with the first seed")
    parser.add_argument(
        "--lrs", nargs="+", type=float, default=list(LRS), help="where the sweep begins; it does not go beyond one"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="to train and test at the best rate there is")
    parser.add_argument(
        "--jobs", type=int, default=1, help="models at once, each in a process on one core (%(default)s)"
    )
    parser.add_argument("--plot", action="store_true", help="draw what there is, and write the table")
    parser.add_argument("--record", action="store_true", help="keep results beside the study, not under outputs/")
    parser.add_argument("--results", type=Path, help="keep results in this folder")
    asked = parser.parse_args(arguments)
    at_least("--lrs", asked.lrs, 1e-9)
    check_seeds(asked.seeds)
    return asked


def follow(study: Study, asked: argparse.Namespace) -> list[str]:
    """Train and test as asked; what failed, once the rest is done."""
    together: dict[str, list[str]] = {}  # what is measured of another's weights waits for those
    for name in asked.models:
        together.setdefault(study.trained(name), []).append(name)
    one_by_one = partial(_follow, study, asked)
    if asked.jobs < 2:
        return [name for names in together.values() for name in one_by_one(names)]
    pool = ThreadPoolExecutor(asked.jobs)
    try:
        return [name for failed in pool.map(one_by_one, together.values()) for name in failed]
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: nothing is begun any more


def _follow(study: Study, asked: argparse.Namespace, names: Sequence[str]) -> list[str]:
    failed = []
    for name in names:
        try:
            if asked.sweep:
                study.sweep(name, asked.lrs, asked.seeds[0] if asked.seeds else 0)
            for seed in asked.seeds:
                lr = study.best(name)["lr"]
                if not study.variants[name].trained_as:
                    study.train(name, lr, seed)
                study.evaluate(name, lr, seed)
        except (LookupError, HFAError, subprocess.CalledProcessError) as error:
            console.print(f"[red]{name}: {error}[/red]")
            failed.append(name)
    return failed
