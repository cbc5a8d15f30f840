"""Whole runs: what they leave, and how they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from hfa import checkpoint
from hfa.errors import CheckpointError, ConfigError, DataError
from hfa.training import callbacks, train
from hfa.training.callbacks import Interrupted
from hfa.training.callbacks.checkpoints import Checkpoints, CheckpointsConfig
from hfa.training.fit import build_data
from hfa.training.record import recorded
from hfa.training.runs import read_metrics
from hfa.training.settings import TrainSettings, read_settings

Compose = Callable[..., dict[str, Any]]

MEASURED = {"tokens_per_s", "memory_mib"}  # what no two runs have alike


class Signal(L.Callback):
    """Sends this process a signal while a step runs."""

    def __init__(self, signum: int, step: int) -> None:
        self.signum, self.step = signum, step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)
            self.step = -1


def stop_in_step(monkeypatch: pytest.MonkeyPatch, signum: int, step: int) -> None:
    """Let a signal arrive while optimizer step `step`, counted from 0, is made."""
    build = callbacks.ProgressConfig.build

    def with_signal(self: Any, around: Any) -> Any:
        progress = build(self, around)
        sender = Signal(signum, step)
        progress.on_train_batch_start = sender.on_train_batch_start
        return progress

    monkeypatch.setattr(callbacks.ProgressConfig, "build", with_signal)


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = read_metrics(run_dir / "metrics.csv")
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in found]


def test_what_a_run_leaves(composed: Compose, tmp_path: Path) -> None:
    cfg = composed("trainer.max_steps=5", "trainer.val_check_interval=2", "trainer.log_every_n_steps=2")
    metrics = train(cfg, tmp_path / "run")
    run = tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text()) == cfg
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["seed"], record["metrics"]) == ("finished", 0, metrics)
    found = rows(run)
    assert [row["step"] for row in found if "train/loss" in row] == [2, 4, 5]
    assert [row["step"] for row in found if "val/loss" in row] == [2, 4, 5]
    assert found[0]["lr"] == pytest.approx(1e-3)  # the warm-up's second step of two
    assert {"val/bits_per_byte", "val/recall/mqar", "val/recall/needle", "val/token_recall/needle"} <= metrics.keys()
    assert metrics["parameters"] == checkpoint.load(run / "checkpoints" / "last").model.num_parameters
    assert (run / "plots" / "recall.png").stat().st_size > 10_000
    assert (run / "samples.txt").read_text().count("=== step") == 3
    for name in ("last", "best"):
        artifact = checkpoint.load(run / "checkpoints" / name)
        assert artifact.provenance["config"] == cfg
        assert "val/loss" in artifact.provenance["metrics"]
    assert checkpoint.load(run / "checkpoints" / "last").provenance["step"] == 5


def test_the_best_checkpoint_stays_when_things_get_worse(composed: Compose, tmp_path: Path) -> None:
    bad = ("optimizer.lr=10", "scheduler=constant", "scheduler.warmup_steps=0", "trainer.gradient_clip_val=null")
    train(composed(*bad), tmp_path / "run")
    losses = {row["step"]: row["val/loss"] for row in rows(tmp_path / "run") if "val/loss" in row}
    assert losses[4] < losses[8], "this run was meant to get worse"
    train(composed(*bad, "trainer.max_steps=4"), tmp_path / "part")
    train(composed(*bad, f"resume={tmp_path / 'part'}"), tmp_path / "resumed")
    for run in ("run", "resumed"):
        best, last = (torch.load(tmp_path / run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
        assert (best["global_step"], last["global_step"]) == (4, 8)
        assert checkpoint.load(tmp_path / run / "checkpoints" / "best").provenance["step"] == 4
        metrics = json.loads((tmp_path / run / "run.json").read_text())["metrics"]
        assert (metrics["best/val/loss"], metrics["val/loss"]) == (losses[4], losses[8])


def test_a_run_that_diverges_says_so(composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(composed("optimizer.lr=1e30", "scheduler=constant", "scheduler.warmup_steps=0"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"
    assert "Diverged: the last val/loss is nan; try a lower optimizer.lr" in caplog.text


def test_a_run_that_stops_early_says_so_and_keeps_what_it_has_waited(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patient = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-12")
    with caplog.at_level("INFO"):
        metrics = train(composed(*patient, "trainer.val_check_interval=2"), tmp_path / "run")
    assert metrics["step"] == 4
    assert "Stopped after step 4 of 8: Monitored metric val/loss did not improve" in caplog.text
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt")["callbacks"]
    assert [state["wait_count"] for name, state in kept.items() if "EarlyStopping" in name] == [1]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_task_is_one_sentence(composed: Compose, tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"^needle: seq_len is 64"):
        train(composed("data.seq_len=64", f"loader.num_workers={workers}"), tmp_path)


def test_what_only_a_later_example_shows_is_one_sentence_from_a_worker_too(composed: Compose, tmp_path: Path) -> None:
    crowded = (
        "data.sources.needle.num_needles=[32,1,1,1]",
        "data.sources.needle.num_questions=1",
        "loader.num_workers=1",
    )
    settings = read_settings(composed(*crowded), TrainSettings)
    for split in ("train", "val"):
        build_data(settings)[1].parts()["needle"].example(0, split)  # this process looks at it, and finds nothing
    with pytest.raises(DataError, match=r"^needle: seq_len is 256[^\n]*$"):
        train(composed(*crowded), tmp_path)


def test_what_cannot_be_validated_on_is_found_before_any_step(composed: Compose, tmp_path: Path) -> None:
    cfg = composed()
    sources = cfg["data"]["sources"]
    sources["needle"]["haystack"] = {**sources["text"], "val_fraction": 0.0}
    with pytest.raises(DataError, match="the val split has no documents"):
        train(cfg, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["metrics"]["step"] == 0


def test_a_run_that_is_terminated_before_its_steps_is_interrupted(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as stopped, recorded(tmp_path, composed()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


def test_a_step_of_micro_batches_is_a_step_of_one_batch(composed: Compose, tmp_path: Path) -> None:
    common = ("model.dropout=0.0", "trainer.loss_average=examples", "trainer.max_steps=3")
    train(composed(*common, "loader.batch_size=4"), tmp_path / "whole")
    train(composed(*common, "loader.batch_size=2", "trainer.accumulate_grad_batches=2"), tmp_path / "halves")
    drawn = {"train/auxiliary_loss", "gradient_norm"}  # the index learns from a sample of each micro-batch
    for whole, halves in zip(rows(tmp_path / "whole"), rows(tmp_path / "halves"), strict=True):
        assert [halves[key] for key in whole.keys() - drawn] == pytest.approx(
            [whole[key] for key in whole.keys() - drawn], rel=1e-3
        )


# Between validations; when one is due; mid-window with accumulation and worker processes.
@pytest.mark.parametrize(
    ("step", "extra"),
    [(4, []), (7, []), (6, ["trainer.accumulate_grad_batches=2", "loader.num_workers=1"])],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, extra: list[str]
) -> None:
    common = [*extra, "trainer.max_steps=10", "trainer.val_check_interval=4", "trainer.log_every_n_steps=2"]
    train(composed(*common), tmp_path / "whole")
    part = tmp_path / "outputs" / "smoke" / "part"
    with monkeypatch.context() as patch:
        stop_in_step(patch, signal.SIGTERM, step)
        with pytest.raises(Interrupted) as stopped:
            train(composed(*common), part)
    assert (stopped.value.code, stopped.value.step) == (143, step + 1)
    assert json.loads((part / "run.json").read_text())["status"] == "interrupted"
    assert checkpoint.load(part / "checkpoints" / "last").provenance["step"] == step + 1
    train(composed(*common, "resume=latest"), tmp_path / "resumed")
    assert rows(tmp_path / "resumed") == rows(tmp_path / "whole")
    for kind in ("last", "best"):
        whole, resumed = (torch.load(tmp_path / run / "checkpoints" / f"{kind}.ckpt") for run in ("whole", "resumed"))
        for name, weight in whole["state_dict"].items():
            assert torch.equal(weight, resumed["state_dict"][name]), (kind, name)


def test_the_handlers_of_signals_are_put_back(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    stop_in_step(monkeypatch, signal.SIGINT, 2)
    with pytest.raises(Interrupted) as stopped:
        train(composed(), tmp_path / "run")
    assert stopped.value.code == 130
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_cannot_be_resumed(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"resume=latest: no run below .*smoke has a checkpoint"):
        train(composed("resume=latest"), tmp_path / "a")
    with pytest.raises(CheckpointError, match="neither a run directory"):
        train(composed("resume=nowhere"), tmp_path / "b")
    old = tmp_path / "old"
    train(composed("trainer.max_steps=4"), old)
    with pytest.raises(ConfigError, match=r"trainer.max_steps: got 4, expected more than the 4 steps"):
        train(composed("trainer.max_steps=4", f"resume={old}"), tmp_path / "c")
    with pytest.raises(ConfigError, match=r"optimizer.lr: got 0.5, expected 0.001 as in .*old"):
        train(composed("optimizer.lr=0.5", f"resume={old}"), tmp_path / "d")
    with pytest.raises(ConfigError, match=r"seed: got 1, expected 0 as in .*old"):
        train(composed("seed=1", f"resume={old}"), tmp_path / "f")
    with pytest.raises(ConfigError, match=r"trainer\.strategy: got 'fsdp', expected auto or ddp, since the optimizer"):
        train(composed("trainer.strategy=fsdp", "trainer.max_steps=9", f"resume={old}"), tmp_path / "s")
    with pytest.raises(ConfigError, match=r"data.sources.text.suffixes"):
        train(composed("data.sources.text.suffixes=[.txt]", f"resume={old}"), tmp_path / "g")
    torn = old / "checkpoints" / "last.ckpt"
    torn.write_bytes(torn.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"last.ckpt is torn"):
        train(composed(f"resume={torn}"), tmp_path / "e")
    assert json.loads((tmp_path / "e" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("tokenizer", [["tokenizer=bpe", "tokenizer.vocab_size=300", "model.vocab_size=300"], []])
def test_other_documents_are_not_gone_on_with(
    tokenizer: list[str], composed: Compose, tmp_path: Path, texts: Path
) -> None:
    """A trained tokenizer would give ids of another meaning to the same weights; a stream would be another."""
    old, texts = tmp_path / "old", shutil.copytree(texts, tmp_path / "texts")
    cfg = composed(*tokenizer, "trainer.max_steps=4", f"data.sources.text.paths=[{texts}]")
    train(cfg, old)
    assert checkpoint.load(old / "checkpoints" / "last").provenance["material"]["documents"]
    further = {**cfg, "resume": str(old), "trainer": {**cfg["trainer"], "max_steps": 6}}
    (texts / "new.txt").write_text("what was not there before\n" * 50)
    with pytest.raises(CheckpointError, match=r"the documents of its data were [0-9a-f]{16} and are [0-9a-f]{16} now"):
        train(further, tmp_path / "other")
    (texts / "new.txt").unlink()
    assert train(further, tmp_path / "same")["step"] == 6


def test_a_checkpoint_of_before_fingerprints_has_its_tokenizer_beside_it(
    composed: Compose, tmp_path: Path, texts: Path
) -> None:
    old, texts = tmp_path / "old", shutil.copytree(texts, tmp_path / "texts")
    paths = f"data.sources.text.paths=[{texts}]"
    cfg = composed("tokenizer=bpe", "tokenizer.vocab_size=300", "model.vocab_size=300", "trainer.max_steps=4", paths)
    train(cfg, old)
    edit(old / "checkpoints" / "last.ckpt", lambda held: held["hfa"].pop("material"))
    further = {**cfg, "resume": str(old), "trainer": {**cfg["trainer"], "max_steps": 6}}
    assert train(further, tmp_path / "same")["step"] == 6
    for document in list(texts.glob("*.txt"))[:10]:
        document.write_text("what was not there before\n" * 50)
    with pytest.raises(CheckpointError, match=r"the tokens of its data were [0-9a-f]{16} and are [0-9a-f]{16} now"):
        train(further, tmp_path / "other")


def test_weights_of_another_version_are_not_gone_on_with(composed: Compose, tmp_path: Path) -> None:
    old = tmp_path / "old"
    train(composed("trainer.max_steps=4"), old)
    edit(old / "checkpoints" / "last.ckpt", lambda held: held["state_dict"].update({"model.older": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"not those of this version's hfa \(model.older\); train anew"):
        train(composed(f"resume={old}"), tmp_path / "new")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a .ckpt file holds."""
    held = torch.load(path)
    change(held)
    torch.save(held, path)


def test_a_run_directory_is_one_process_s(composed: Compose, tmp_path: Path) -> None:
    cfg = composed()
    with recorded(tmp_path, cfg):
        before = (tmp_path / "run.json").read_text()
        with pytest.raises(ConfigError, match="another one is being made there"):
            train(composed("seed=1"), tmp_path)
        assert (tmp_path / "run.json").read_text() == before
    with recorded(tmp_path, cfg):
        pass


def checkpoints(run_dir: Path, monitor: str = "val/loss") -> Checkpoints:
    settings = CheckpointsConfig(monitor=monitor, every_n_steps=1)
    return Checkpoints(settings, SimpleNamespace(run_dir=run_dir))


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    kept = checkpoints(tmp_path)
    assert [kept._improved(value) for value in (float("nan"), 3.0, float("nan"), 2.0, 2.5)] == [
        False, True, False, True, False
    ]  # fmt: skip


def test_a_best_value_is_of_its_monitor(tmp_path: Path) -> None:
    loss, recall = checkpoints(tmp_path), checkpoints(tmp_path, "val/recall/needle")
    loss._improved(2.3)
    recall.load_state_dict(loss.state_dict())
    assert recall._improved(0.5)
    assert recall._improved(0.6), "more of it is better"
    assert not recall._improved(0.4)


def test_all_devices_of_a_machine_without_gpus_is_no_number(composed: Compose, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    with pytest.raises(ConfigError, match=r"trainer.devices: got -1, expected a number of processes"):
        train(composed("trainer=ddp", "trainer.accelerator=auto", "trainer.devices=-1"), tmp_path)


def test_a_job_of_one_process_is_not_made_by_others(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further process of a sweep meets the jobs that are of one device as well."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(
        ConfigError, match=r"trainer.strategy: got 'auto', expected ddp or fsdp in process 1 of several"
    ):
        train(composed(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_holds_one_run(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="a directory without checkpoints of another run"):
        train(composed(), tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=100", r"model.vocab_size: got 100, expected at least 257"),
        (
            "callbacks.checkpoints.monitor=val/accuracy",
            r"callbacks.checkpoints.monitor: .*val/recall/needle with this data",
        ),
        ("trainer.accelerator=gpu", r"trainer.accelerator: got 'gpu', expected a CUDA device"),
        ("trainer.devices=2", r"trainer.strategy: got 'auto', expected ddp or fsdp"),
        ("loader.batch_size=0", r"loader.batch_size: got 0, expected greater than 0"),
        ("+nonsense=1", r"nonsense: got 1"),
    ],
)
def test_combinations_that_cannot_work(composed: Compose, tmp_path: Path, override: str, message: str) -> None:
    if override.startswith("trainer.accelerator") and torch.cuda.is_available():
        override, message = "trainer.devices=0", "trainer.devices: got 0"
    with pytest.raises(ConfigError, match=message):
        train(composed(override), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
