"""What a multirun ends with: one table over all jobs, the failed ones included."""

from __future__ import annotations

import csv
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hfa.errors import ConfigError
from hfa.mistakes import sentence
from hfa.training.monitor import direction
from hfa.training.runs import RUN, read_metrics

log = logging.getLogger(__name__)

_JOB = "job.json"
_LAST_COLUMNS = ("tokens_per_s", "parameters")


class Job(NamedTuple):
    """One job of a sweep."""

    number: int
    overrides: dict[str, str]
    status: str  # finished | diverged | failed
    error: str
    metrics: dict[str, float]
    run_dir: Path


class SweepTable:
    """A callback of Hydra's: notes how each job ends, and shows them all when the last one has.

    A failed job becomes a row with its sentence, and the exit code of the sweep 1; the others go on.
    """

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        if config.hydra.mode.name != "MULTIRUN":
            return
        said, worst = "", _worst(config.hydra.sweeper)
        if job_return.status.name == "FAILED":
            error: BaseException = vars(job_return)["_return_value"]  # the property would raise it
            mistake = sentence(error)
            said = mistake or f"{type(error).__name__}: {error}"
            if not _rank():
                log.error("Job %s failed: %s", config.hydra.job.num, said, exc_info=None if mistake else error)
            # Hydra stops a sweep at a job it holds for failed; the table tells it apart, and a search goes elsewhere.
            job_return.status, job_return.return_value = type(job_return.status).COMPLETED, worst
        elif job_return.return_value is None and "direction" in config.hydra.sweeper:  # it never came to a number
            job_return.return_value = worst
        if _rank():
            return  # a further process of a distributed job goes through the sweep as well
        overrides = (override.partition("=") for override in config.hydra.overrides.task)
        note = {
            "number": int(config.hydra.job.num),
            "overrides": {key: value for key, _, value in overrides},
            "status": "failed" if said else "finished",
            "error": said,
        }
        (Path(config.hydra.runtime.output_dir) / _JOB).write_text(json.dumps(note, indent=2), encoding="utf-8")

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Whether a search, if this is one, goes where the monitored metric is better."""
        checkpoints = config.callbacks.get("checkpoints")
        asked = str(config.hydra.sweeper.get("direction", "")).rpartition(".")[2].lower()
        wanted = {"min": "minimize", "max": "maximize"}[direction(checkpoints.monitor)] if checkpoints else asked
        if asked and asked != wanted:
            expected = f"{wanted}, which is better of callbacks.checkpoints.monitor={checkpoints.monitor}"
            sys.stderr.write(f"{ConfigError('hydra.sweeper.direction', asked, expected)}\n")
            raise SystemExit(2)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        if _rank():
            return
        sweep_dir = Path(config.hydra.sweep.dir)
        checkpoints = config.callbacks.get("checkpoints")
        try:
            jobs = read_jobs(sweep_dir)
            show_jobs(jobs, sweep_dir, monitor=checkpoints.monitor if checkpoints else None)
        except Exception:
            log.exception("The table of %s could not be made.", sweep_dir)
            raise SystemExit(1) from None  # all else Hydra turns into a warning
        if failed := [job for job in jobs if job.status == "failed"]:
            log.error("%d of %d jobs failed.", len(failed), len(jobs))
            raise SystemExit(1)

    def _nothing(self, **_: Any) -> None:
        """Hydra calls every hook of every callback."""

    on_run_start = on_run_end = on_job_start = on_compose_config = _nothing


def read_jobs(sweep_dir: Path) -> list[Job]:
    """The jobs of a sweep, by number."""
    jobs = []
    for path in sweep_dir.glob(f"*/{_JOB}"):
        note, path = json.loads(path.read_text(encoding="utf-8")), path.parent / RUN
        run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if run.get("status") == "diverged":
            note["status"] = "diverged"
        jobs.append(Job(**note, metrics=run.get("metrics", {}), run_dir=path.parent))
    return sorted(jobs)


def show_jobs(jobs: Sequence[Job], sweep_dir: Path, monitor: str | None) -> None:
    """Print the table; write it as sweep.csv, and the curves of the monitored metric as sweep.png."""
    from rich.table import Table

    from hfa.training.report import console

    varied, fixed = split_overrides(jobs)
    measured = metric_columns(jobs)
    with (sweep_dir / "sweep.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *varied, "status", *measured, "error"])
        for job in jobs:
            chosen, values = (
                (job.overrides.get(key, "") for key in varied),
                (job.metrics.get(name, "") for name in measured),
            )
            writer.writerow([job.number, *chosen, job.status, *values, job.error])
    table = Table()
    for name in ("job", *varied, "status", *measured):
        table.add_column(name.removeprefix("val/"), justify="right" if name in measured else "left", overflow="fold")
    best = best_job(jobs, monitor)
    for job in jobs:
        cells = [_cell(name, job.metrics.get(name)) for name in measured]
        row = [str(job.number), *(job.overrides.get(key, "") for key in varied), job.status, *cells]
        table.add_row(*row, style="bold" if job is best else "red" if job.status == "failed" else None)
    out = console()
    out.print(table)
    if fixed:
        shared = " ".join(f"{key}={value}" for key, value in fixed.items())
        out.print(f"all with {shared}", soft_wrap=True, highlight=False)
    for job in jobs:
        if job.error:
            out.print(f"job {job.number} failed: {job.error}", soft_wrap=True, highlight=False)
    plot = draw_curves(jobs, sweep_dir / "sweep.png", varied, monitor)
    for path in (sweep_dir / "sweep.csv", *([plot] if plot else [])):
        out.print(str(path), soft_wrap=True, highlight=False)


def split_overrides(jobs: Sequence[Job]) -> tuple[list[str], dict[str, str]]:
    """The keys whose value differs between jobs, and the overrides that all share."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    return varied, {key: jobs[0].overrides[key] for key in keys if key not in varied}


def metric_columns(jobs: Sequence[Job]) -> list[str]:
    """What is worth a column: what was validated last or at best, what was tested, then speed and size."""
    names = dict.fromkeys(name for job in jobs for name in job.metrics)
    detail = ("token_recall", "routing/")
    shown = ("best/", "val/", "test/")
    found = [name for name in names if name.startswith(shown) and not any(part in name for part in detail)]
    return found + [name for name in _LAST_COLUMNS if name in names]


def best_job(jobs: Sequence[Job], monitor: str | None) -> Job | None:
    """The job whose best checkpoint has the lowest monitored loss, or the highest recall."""
    key = f"best/{monitor}"
    there = [job for job in jobs if job.status == "finished" and not math.isnan(job.metrics.get(key, math.nan))]
    choose = max if monitor and direction(monitor) == "max" else min
    return choose(there, key=lambda job: job.metrics[key], default=None)


def draw_curves(jobs: Sequence[Job], path: Path, varied: Sequence[str], monitor: str | None) -> Path | None:
    """The monitored metric over the steps of every job; None when no job has any."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves: list[tuple[str, list[dict[str, float]]]] = []
    for job in jobs:
        if (log_path := job.run_dir / "metrics.csv").exists():
            points = [row for row in read_metrics(log_path) if monitor in row]
            label = " ".join(f"{key}={job.overrides.get(key, '')}" for key in varied) or f"job {job.number}"
            curves += [(label, points)] if points else []
    if not curves or monitor is None:
        return None
    figure = Figure(figsize=(10, 5.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, (label, points) in enumerate(curves):
        steps, values = [row["step"] for row in points], [row[monitor] for row in points]
        axes.plot(steps, values, ("-", "--", ":", "-.")[number // 10 % 4], marker="o", ms=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(monitor)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png")
    return path


def _rank() -> int:
    from hfa.training.trainer import rank

    return rank()


def _worst(sweeper: Any) -> float:
    """The value that a sweeper which searches likes least."""
    return -math.inf if "direction" in sweeper and "maximize" in str(sweeper.direction) else math.inf


def _cell(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    if name in _LAST_COLUMNS:
        return f"{value:,.0f}"
    return f"{value:.1%}" if "recall" in name else f"{value:.4f}"
