"""The table of a sweep."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from hfa.errors import ConfigError
from hfa.training.loggers.csv import MetricsCSV
from hfa.training.sweep import SweepTable, best_job, metric_columns, read_jobs, split_overrides

RESULTS = [
    {
        "best/val/loss": 1.5,
        "val/loss": 2.0,
        "best/val/recall/needle": 0.5,
        "val/recall/needle": 0.5,
        "val/token_recall/needle": 0.7,
        "tokens_per_s": 1234.0,
        "parameters": 10.0,
    },
    {
        "best/val/loss": 1.0,
        "val/loss": 3.0,
        "best/val/recall/needle": 1.0,
        "val/recall/needle": 1.0,
        "tokens_per_s": 999.0,
        "parameters": 20.0,
    },
]


def config(sweep_dir: Path, number: int, *overrides: str) -> Any:
    hydra = {
        "mode": "MULTIRUN",
        "job": {"num": number},
        "overrides": {"task": ["data.paths=[/a,/b]", *overrides]},
        "runtime": {"output_dir": str(sweep_dir / str(number))},
        "sweep": {"dir": str(sweep_dir)},
        "sweeper": {"direction": "minimize"},
    }
    cfg = OmegaConf.create({"hydra": hydra, "callbacks": {"checkpoints": {"monitor": "val/loss"}}})
    from hydra.types import RunMode

    cfg.hydra.mode = RunMode.MULTIRUN
    return cfg


def finished(value: float = 0.0) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)


def failed(error: Exception) -> JobReturn:
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


@pytest.fixture
def sweep_dir(tmp_path: Path) -> Path:
    """Two jobs that went well and two that did not."""
    table = SweepTable()
    for number, metrics in enumerate(RESULTS):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        (run_dir / "run.json").write_text(json.dumps({"metrics": metrics}))
        log = MetricsCSV(run_dir / "metrics.csv")
        for step in (1, 2):
            log.log_metrics({"val/loss": metrics["val/loss"] + 1 / step}, step)
        table.on_job_end(config(tmp_path, number, "model=hfa", f"seed=[{number}]"), finished())
    mistake = ConfigError("model.num_heads", 3, "a divisor of d_model=32")
    for number, error in ((2, mistake), (3, RuntimeError("boom"))):
        (tmp_path / str(number)).mkdir()
        outcome = failed(error)
        table.on_job_end(config(tmp_path, number, "model=transformer", f"seed={number}", "~logger"), outcome)
        assert outcome.status == JobStatus.COMPLETED, "Hydra would end the sweep here"
        assert outcome.return_value == math.inf, "what a search minimises"
    return tmp_path


def test_every_job_has_a_row(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        SweepTable().on_multirun_end(config(sweep_dir, 0))
    assert ended.value.code == 1
    with (sweep_dir / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert [row["model"] for row in rows] == ["hfa", "hfa", "transformer", "transformer"]
    assert float(rows[1]["best/val/loss"]) == 1.0
    assert rows[2]["error"] == "model.num_heads: got 3, expected a divisor of d_model=32."
    assert rows[3]["error"] == "RuntimeError: boom"
    shown = capsys.readouterr().out
    for text in (
        "1,234",
        "100.0%",
        "all with data.paths=[/a,/b]",
        "job 3 failed: RuntimeError: boom",
        "sweep.csv",
        "sweep.png",
    ):
        assert text in shown
    assert (sweep_dir / "sweep.png").stat().st_size > 10_000


def test_a_sweep_without_failures_ends_well(sweep_dir: Path) -> None:
    for number in (2, 3):
        (sweep_dir / str(number) / "job.json").unlink()
    SweepTable().on_multirun_end(config(sweep_dir, 0))
    assert (sweep_dir / "sweep.csv").read_text().count("finished") == 2


def test_columns(sweep_dir: Path) -> None:
    jobs = read_jobs(sweep_dir)
    assert split_overrides(jobs) == (["model", "seed", "~logger"], {"data.paths": "[/a,/b]"})
    assert metric_columns(jobs) == [
        *("best/val/loss", "val/loss", "best/val/recall/needle", "val/recall/needle"),
        *("tokens_per_s", "parameters"),
    ]


def test_the_best_job(sweep_dir: Path) -> None:
    jobs = read_jobs(sweep_dir)
    assert best_job(jobs, "val/loss") is jobs[1], "its best checkpoint counts, not its last validation"
    assert best_job(jobs, "val/recall/needle") is jobs[1]
    assert best_job(jobs, None) is None


def test_a_job_that_diverged_is_not_the_best(sweep_dir: Path) -> None:
    jobs = read_jobs(sweep_dir)[:2]
    assert all(job.status == "finished" for job in jobs)
    diverged = jobs[0]._replace(metrics={"best/val/loss": float("nan")})
    assert best_job([diverged, jobs[1]], "val/loss") is jobs[1]


def test_a_further_process_writes_no_table(sweep_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    SweepTable().on_multirun_end(config(sweep_dir, 0))
    assert not (sweep_dir / "sweep.csv").exists()


def test_a_further_process_goes_on_after_a_failure_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    outcome = failed(RuntimeError("boom"))
    SweepTable().on_job_end(config(tmp_path, 0), outcome)
    assert outcome.status == JobStatus.COMPLETED, "it would end, and Lightning kill the first process for that"
    assert not list(tmp_path.iterdir())


def test_a_search_is_told_of_a_run_without_a_number(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    outcome = JobReturn(status=JobStatus.COMPLETED, _return_value=None)
    SweepTable().on_job_end(config(tmp_path, 0), outcome)
    assert outcome.return_value == math.inf


def test_a_search_goes_where_the_metric_is_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = config(tmp_path, 0)
    SweepTable().on_multirun_start(cfg)
    cfg.callbacks.checkpoints.monitor = "val/recall/needle"
    with pytest.raises(SystemExit) as ended:
        SweepTable().on_multirun_start(cfg)
    assert ended.value.code == 2
    assert "hydra.sweeper.direction: got 'minimize', expected maximize" in capsys.readouterr().err
    del cfg.hydra.sweeper.direction  # a sweep that searches nothing
    SweepTable().on_multirun_start(cfg)


def test_single_runs_are_left_alone(tmp_path: Path) -> None:
    from hydra.types import RunMode

    cfg = config(tmp_path, 0)
    cfg.hydra.mode = RunMode.RUN
    outcome = failed(RuntimeError("boom"))
    SweepTable().on_job_end(cfg, outcome)
    assert outcome.status == JobStatus.FAILED
    assert not list(tmp_path.iterdir())
