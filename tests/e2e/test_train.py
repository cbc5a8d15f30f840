"""`python train.py` as its users run it: processes, signals, sweeps, mistakes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hfa import checkpoint
from hfa.training.runs import read_metrics

ROOT = Path(__file__).parents[2]
MEASURED = {"tokens_per_s", "memory_mib"}  # what no two runs have alike


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(30):
        lines = [f"line {i} of document {number} says {i * number}\n" for i in range(60)]
        (folder / f"{number}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def command(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The smoke experiment, on small texts."""
    return [
        "experiment=smoke",
        "data@data.sources.text=text",
        f"data.sources.text.paths=[{texts}]",
        "data.sources.needle.haystack=null",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
    ]


def start(cwd: Path, *arguments: str, full_error: bool = False) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "150"} | ({"HYDRA_FULL_ERROR": "1"} if full_error else {})
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(cwd: Path, *arguments: str, full_error: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    process = start(cwd, *arguments, full_error=full_error)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    limit, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < limit, f"not in time: {what}"
        pause.wait(0.005)


def stop_at_step(process: subprocess.Popen[str], root: Path, step: int, signum: int) -> tuple[Path, str]:
    """Send a signal once metrics.csv shows `step`; the run directory and what was printed."""

    def reached() -> bool:
        assert process.poll() is None, process.communicate()
        logs = list(root.glob("outputs/*/*/metrics.csv"))
        return bool(logs) and any(row["step"] >= step for row in read_metrics(logs[0]))

    until(reached, f"step {step}")
    process.send_signal(signum)
    out, _ = process.communicate(timeout=120)
    (log,) = root.glob("outputs/*/*/metrics.csv")
    return log.parent, out


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = read_metrics(run_dir / "metrics.csv")
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in found]


def test_help_is_complete_and_imports_nothing_heavy(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    for text in ("experiment=quickstart", "mode=evaluate", "simplemind", "resume=latest", "cache_dir", "Exit codes"):
        assert text in result.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert not imported & {"torch", "lightning", "wandb", "numpy", "matplotlib", "bittensor"}
    assert not list(tmp_path.iterdir())


MISTAKES = [
    (["model=hfaa"], "model: no option 'hfaa'"),
    (["model.d_modle=64"], "did you mean model.d_model?"),
    (["model.d_model=abc"], "model.d_model: got 'abc', expected a valid integer"),
    (["seed=???"], "seed: no value yet"),
    (["--seed=1"], "--seed=1: there is no such flag"),
    (["experiment=smoke", "-m", "model=hfa,nope"], "model: no option 'nope'"),
    (["mode=evaluate", "checkpoint=nowhere"], "nowhere: no artifact here"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    code, out, err = run(tmp_path, *arguments)
    assert code == 2
    assert said in err
    assert (len(err.splitlines()), out) == (1, "")


def test_a_traceback_for_those_who_want_it(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "model=hfaa", full_error=True)
    assert code == 1
    assert "Traceback" in err


def test_killed_in_the_middle_and_resumed(tmp_path: Path, command: list[str]) -> None:
    """SIGKILL, and the resumed run has the losses of one that was left alone, to the last bit."""
    arguments = [
        *command,
        "scheduler=constant",
        "trainer.val_check_interval=10",
        "callbacks.checkpoints.every_n_steps=7",
    ]
    killed_in, whole_in = tmp_path / "killed", tmp_path / "whole"
    killed_in.mkdir()
    whole_in.mkdir()
    process = start(killed_in, *arguments, "trainer.max_steps=100000")
    killed, _ = stop_at_step(process, killed_in, 22, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    step = checkpoint.load(killed / "checkpoints" / "last").provenance["step"]
    assert step >= 21
    steps = f"trainer.max_steps={step + 15}"

    code, out, err = run(killed_in, *arguments, steps, "resume=latest", "hydra.run.dir=resumed")
    assert (code, err) == (0, "")
    assert f"Going on after step {step}" in out
    code, _, err = run(whole_in, *arguments, steps, "hydra.run.dir=whole")
    assert (code, err) == (0, "")
    assert rows(killed_in / "resumed") == rows(whole_in / "whole")
    assert [row["step"] for row in rows(whole_in / "whole") if "lr" in row] == list(range(1, step + 16))


def test_sigterm_leaves_an_artifact_that_can_be_evaluated(tmp_path: Path, command: list[str]) -> None:
    process = start(tmp_path, *command, "trainer.max_steps=100000", "trainer.val_check_interval=100000")
    stopped, out = stop_at_step(process, tmp_path, 3, signal.SIGTERM)
    assert process.returncode == 143
    assert f"resume={stopped}" in out
    step = json.loads((stopped / "run.json").read_text())["step"]
    assert checkpoint.load(stopped / "checkpoints" / "last").provenance["step"] == step

    code, out, err = run(tmp_path, *command, "mode=evaluate", "evaluate.lengths=[256,1024]", "evaluate.chunk_size=300")
    assert (code, err) == (0, ""), "the command of the training, which names the model's sizes, and what to do now"
    for text in ("1,024", "bits per byte", "needle", "recall, % [95% interval]", "selection", "retention.csv"):
        assert text in out
    (report,) = tmp_path.glob("outputs/*/*/evaluation.json")
    assert json.loads(report.read_text())["training"]["step"] == step
    assert {path.name for path in (report.parent / "plots").iterdir()} == {
        "retention.png",
        "recall.png",
        "storage.png",
        "selection.png",
        "answer.png",
        "loss_by_position.png",
    }


def test_ctrl_c(tmp_path: Path, command: list[str]) -> None:
    process = start(tmp_path, *command, "trainer.max_steps=100000", "trainer.val_check_interval=100000")
    stopped, out = stop_at_step(process, tmp_path, 2, signal.SIGINT)
    assert process.returncode == 130
    assert "Stopped by SIGINT after step" in out
    assert (stopped / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("models", "heads", "launcher"),
    [
        (["hfa", "simplemind"], "23", []),
        (["simplemind"], "123", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
    ],
    ids=["basic", "joblib"],
)
def test_a_sweep_with_a_job_that_fails(
    tmp_path: Path, command: list[str], models: list[str], heads: str, launcher: list[str]
) -> None:
    swept = [f"model={','.join(models)}", f"model.num_heads={','.join(heads)}"]
    arguments = [*command, *launcher, "-m", *swept, "trainer.max_steps=2"]
    code, out, err = run(tmp_path, *arguments)
    assert code == 1
    assert "Traceback" not in out + err
    (table,) = tmp_path.glob("outputs/sweep/*/sweep.csv")
    with table.open() as file:
        jobs = list(csv.DictReader(file))
    ended = [(model, number, "failed" if number == "3" else "finished") for model in models for number in heads]
    assert [(job.get("model", models[0]), job["model.num_heads"], job["status"]) for job in jobs] == ended
    assert all(float(job["val/loss"]) > 0 for job in jobs if job["status"] == "finished")
    assert "model.num_heads: got 3" in jobs[len(heads) - 1]["error"]
    shown = out.rpartition("━")[0] + out.rpartition("━")[2]
    for text in ("simplemind", "failed", "bits_per_byte", "recall/needle", "tokens_per_s", "parameters", "sweep.png"):
        assert text in shown
    assert f"{len(models)} of {len(jobs)} jobs failed" in out


@pytest.mark.parametrize(
    ("swept", "ended", "said"),
    [
        (
            ["trainer.strategy=ddp", "trainer.devices=1,2"],
            ["finished", "failed"],
            "trainer.devices: got 2, expected 1 in all",
        ),
        (
            ["trainer.strategy=fsdp", "trainer.devices=2", "model.num_heads=3,2"],
            ["failed", "finished"],
            "model.num_heads: got 3",
        ),
    ],
    ids=["other processes than the first job's", "a job that fails before there are several"],
)
def test_a_sweep_of_distributed_jobs(
    tmp_path: Path, command: list[str], swept: list[str], ended: list[str], said: str
) -> None:
    arguments = [*command, "-m", "trainer.max_steps=2", "model=hfa", *swept]
    code, out, err = run(tmp_path, *arguments)
    assert code == 1, out + err
    (table,) = tmp_path.glob("outputs/sweep/*/sweep.csv")
    with table.open() as file:
        jobs = list(csv.DictReader(file))
    assert [job["status"] for job in jobs] == ended
    assert said in jobs[ended.index("failed")]["error"]
    (artifact,) = tmp_path.glob("outputs/sweep/*/*/checkpoints/best")
    assert checkpoint.load(artifact).provenance["step"] == 2


def test_a_run_goes_on_with_more_processes(tmp_path: Path, command: list[str]) -> None:
    """DistributedDataParallel on the CPU; what is true of two processes is true of the stream and the checkpoint."""
    common = [*command, "scheduler=constant", "trainer.val_check_interval=2"]
    assert run(tmp_path, *common, "trainer.max_steps=2", "hydra.run.dir=one")[0] == 0
    two = ["trainer.strategy=ddp", "trainer.devices=2", "trainer.max_steps=4", "resume=one"]
    code, out, err = run(tmp_path, *common, *two, "hydra.run.dir=two")
    assert code == 0, err
    assert "2 processes after 1" in out + err
    assert all("processes after" in line for line in err.splitlines())
    assert rows(tmp_path / "two")[-2]["tokens"] == (2 + 2 * 2) * 4 * 256
    assert checkpoint.load(tmp_path / "two" / "checkpoints" / "best").provenance["step"] == 4


def test_every_process_needs_something_to_validate_on(tmp_path: Path, texts: Path) -> None:
    """Else nothing is ever validated, and no checkpoint kept."""
    text = ["experiment=smoke", "data=text", f"data.paths=[{texts}]", f"cache_dir={tmp_path}", "loader.val_examples=1"]
    code, _, err = run(tmp_path, *text, "trainer.strategy=ddp", "trainer.devices=2", "trainer.max_steps=2")
    assert code == 2, err
    assert "fewer than the 2 processes; raise loader.val_examples" in err
    assert "Traceback" not in err
