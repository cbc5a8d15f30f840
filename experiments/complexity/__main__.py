"""`python -m experiments.complexity`: what every model costs, ours beside what people use today.

Prefill, training and decode against the length, all models in turn in one run, each of the three into a file of its
own: ``--quick`` takes minutes, the full form a few hours. ``--help`` says what can be chosen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from rich.console import Console

from experiments.entry import check_seeds, leave
from hfa.errors import ConfigError, HFAError
from hfa.training.provenance import processor

if TYPE_CHECKING:
    from experiments.complexity.measure import Regime

RESULTS = Path(__file__).parent / "results"
OUTPUTS = Path("outputs/complexity")
REGIMES = ("prefill", "train", "decode")
DEFAULT_MODELS = (
    "hfa", "hfa-all-features", "hfa-tiny", "simplemind", "simplemind-all-features", "transformer",
    "llama", "gated-deltanet", "minimax", "xlstm", "mamba2",
)  # fmt: skip
FULL = {
    "prefill": (1024, 4096, 16384, 65536, 131072),
    "train": (1024, 4096, 16384),
    "decode": (1024, 16384, 65536, 100_000),
}
QUICK = {"prefill": (1024, 4096, 8192), "train": (1024,), "decode": (1024, 16384)}
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise HFAError(f"{message[:1].upper()}{message[1:]}; --help says what can be chosen.")


def main(arguments: list[str]) -> int:
    """Run the study, or draw a run that is there; returns the exit code."""
    options = parse(arguments)
    if options.plot:
        show(options.plot, options.clock)
        return 0
    os.environ.update(environment(options.threads))  # before torch is imported, here and in the workers
    check_models(options.models)
    show([measure(options, regime) for regime in options.regimes], options.clock)
    return 0


def measure(options: argparse.Namespace, regime: Regime) -> Path:
    """Run one regime into a file of its own, so that one can be measured anew without the others.

    Its ratios are of models that were measured in turn, so a file is of one run: a record is replaced as a whole,
    once that run is through.

    Returns:
        The file.
    """
    from experiments.complexity.measure import entries
    from experiments.complexity.study import Plan, Study

    plan = Plan(
        models=tuple(name for name in options.models if regime == "prefill" or not entries()[name].prefill_only),
        lengths={regime: options.lengths[regime]},
        repeats=options.repeats,
        limit_s=options.limit_s,
        cell_s=options.cell_s,
        threads=options.threads,
        seed=options.seed,
    )
    path = OUTPUTS / f"{regime}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = provenance(plan)

    def keep(rows: list[dict[str, Any]]) -> None:
        path.write_text(compact({"provenance": facts, "models": describe(study), "rows": rows}), encoding="utf-8")

    study = Study(plan, console.print, keep)
    study.run()
    facts["load_at_end"] = os.getloadavg()[0]
    keep(study.rows)
    return Path(shutil.copy(path, RESULTS / path.name)) if options.record else path


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, checked.

    Raises:
        HFAError: one that cannot work.
    """
    parser = Parser(prog="python -m experiments.complexity", description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", default=",".join(DEFAULT_MODELS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--regimes", default=",".join(REGIMES), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--lengths", help="comma-separated tokens, 4096 or 4K, for every regime (default: each its own)"
    )
    parser.add_argument(
        "--repeats", type=int, help="measurements of a model at a length, at most (default: 5; quick: 3)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    parser.add_argument("--limit-s", type=float, help="leave out what would take longer (default: 900; quick: 60)")
    parser.add_argument("--cell-s", type=float, help="repeat no further beyond this (default: 150; quick: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few and short lengths: minutes")
    parser.add_argument(
        "--record", action="store_true", help="keep a regime's results beside the study, once it is through"
    )
    parser.add_argument(
        "--plot", type=Path, nargs="+", metavar="JSON", help="measure nothing: show and draw what runs wrote"
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="that tables and plot go by (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    usual = QUICK if options.quick else FULL
    for key, (full, quick) in {"repeats": (5, 3), "limit_s": (900.0, 60.0), "cell_s": (150.0, 10.0)}.items():
        if getattr(options, key) is None:
            setattr(options, key, quick if options.quick else full)
    options.models = names(options.models)
    options.regimes = names(options.regimes)
    for regime in options.regimes:
        if regime not in REGIMES:
            raise ConfigError("--regimes", regime, f"some of {', '.join(REGIMES)}")
    chosen = sorted({tokens(one) for one in names(options.lengths)}) if options.lengths else None
    options.lengths = {regime: tuple(chosen or usual[regime]) for regime in REGIMES}
    for key in ("repeats", "threads", "limit_s", "cell_s"):
        if getattr(options, key) <= 0:
            raise ConfigError(f"--{key.replace('_', '-')}", getattr(options, key), "more than 0")
    check_seeds([options.seed], "--seed")
    for path in options.plot or []:
        if not _is_results(path):
            raise ConfigError("--plot", str(path), "a JSON file that a run wrote")
    return options


def _is_results(path: Path) -> bool:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"models", "rows", "provenance"} <= data.keys()


def check_models(models: tuple[str, ...]) -> None:
    """Every name must be known, and what peers need be installed."""
    from experiments.complexity.measure import entries
    from experiments.complexity.peers import preload

    known = entries()
    for name in models:
        if name not in known:
            raise ConfigError("--models", name, f"some of {', '.join(known)}")
    if not all(known[name].ours for name in models):
        preload()


def names(text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))


def tokens(text: str) -> int:
    """``4096`` or ``4K``."""
    number, unit = (text[:-1], 1024) if text[-1:] in "kK" else (text, 1)
    if not number.isdigit() or int(number) < 1:
        raise ConfigError("--lengths", text, "a number of tokens, such as 4096 or 4K")
    return int(number) * unit


def environment(threads: int) -> dict[str, str]:
    """What every process of a run is started with.

    Large temporaries come in huge pages: that helps every model here, by up to a third, and else a run measures page
    faults. :mod:`experiments.complexity.measure` does without in training, where memory is kept for the next step.
    """
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    return {**counts, "THP_MEM_ALLOC_ENABLE": os.environ.get("THP_MEM_ALLOC_ENABLE", "1")}


def describe(study: Any) -> dict[str, Any]:
    """What is known of the plan's models, ours first."""
    from experiments.complexity.measure import entries

    known = entries()
    return {
        name: {
            "title": known[name].title,
            "ours": known[name].ours,
            "same_body": known[name].same_body,
            "growth": known[name].growth,
            "feeding": known[name].feeding,
            **study.facts.get(name, {}),
        }
        for name in study.plan.models
    }


def provenance(plan: Any) -> dict[str, Any]:
    """Where the figures come from."""
    import dataclasses

    import hfa.training.provenance as made
    from experiments.complexity.measure import available_bytes

    facts = made.provenance(dataclasses.asdict(plan))
    versions: dict[str, str | None] = {}
    for package in ("transformers", "numba", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        **facts,
        "threads": plan.threads,
        "versions": versions,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "free_memory_bytes": available_bytes(),
        },
        "environment": environment(plan.threads),
        "load_at_start": os.getloadavg()[0],
    }


def compact(data: dict[str, Any]) -> str:
    """JSON with one line a row, so that two runs can be compared."""
    rows = ",\n  ".join(json.dumps(rounded(row)) for row in data["rows"])
    head = json.dumps({key: value for key, value in data.items() if key != "rows"}, indent=1)
    return f'{head[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n'


def rounded(value: Any) -> Any:
    """Floats to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def show(paths: Sequence[Path], clock: Literal["wall", "cpu"]) -> None:
    """The tables of runs of different regimes, and a picture of each beside its file."""
    from experiments.complexity.figures import Results
    from experiments.complexity.plot import plot
    from experiments.complexity.report import skipped, tables

    runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    models = {name: facts for run in runs for name, facts in run["models"].items()}
    rows = [row for run in runs for row in run["rows"]]
    for table in tables(Results({**runs[0], "models": models, "rows": rows}, clock)):
        console.print(table)
    for path, run in zip(paths, runs, strict=True):
        results, made = Results(run, clock), run["provenance"]
        for line in skipped(results):
            console.print(f"  {line}", style="dim")
        console.print(
            f"  {path}: {(made['commit'] or 'no commit')[:9]}{' (changed)' if made['dirty'] else ''},"
            f" {made['machine']['processor']},"
            f" {made['threads']} thread(s), {clock} clock; load {made['load_at_start']:.1f} before and"
            f" {made.get('load_at_end', float('nan')):.1f} after; plot: {plot(results, path.with_suffix('.png'))}"
        )


if __name__ == "__main__":
    leave(lambda: main(sys.argv[1:]), f"Interrupted; what was measured is kept in {OUTPUTS}.")
