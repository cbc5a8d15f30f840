"""wandb, without credentials, without an answer, and when the line goes dead."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

from hfa.errors import CheckpointError, HFAError
from hfa.metrics.recall import Cell
from hfa.training import LMModule, evaluate, train
from hfa.training.loggers.wandb import download, run_id
from hfa.training.runs import read_metrics

Compose = Callable[..., dict[str, Any]]

BUCKET = {
    "id": "1",
    "name": "theid",
    "displayName": "a-run",
    "config": "{}",
    "summaryMetrics": "{}",
    "project": {"id": "p", "name": "hfa", "entity": {"id": "e", "name": "me"}},
    "historyLineCount": 0,
    "eventsLineCount": 0,
    "logLineCount": 0,
}


class Service(BaseHTTPRequestHandler):
    """As much of wandb as a run needs to begin."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if "graphql" not in self.path:
            self.server.stop.set()  # type: ignore[attr-defined]
            return
        answer = json.dumps({"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dying_service() -> Iterator[str]:
    """A service that lets a run begin and is gone when the first numbers come."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.stop = threading.Event()  # type: ignore[attr-defined]
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()

    def die() -> None:
        server.stop.wait()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()

    dying = threading.Thread(target=die, daemon=True)
    dying.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()  # type: ignore[attr-defined]
    dying.join()


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials, no settings, and no service left over from another test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    wandb.teardown()
    yield
    wandb.teardown()


def test_without_credentials_a_run_is_offline_and_complete(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    train(composed("logger=many", "name=a run/of mine"), tmp_path / "run")
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert "wandb: offline (no credentials" in caplog.text
    assert f"wandb sync {folder}" in caplog.text
    assert run_id(tmp_path / "run") == folder.name.rpartition("-")[2]
    assert list(folder.glob("files/media/images/recall*.png"))
    (table, *_) = folder.glob("files/media/table/samples*.json")
    assert json.loads(table.read_text())["columns"] == ["prompt", "continuation"]
    wandb.teardown()  # as at the end of a process; the service has then written everything
    logged = next(folder.glob("*.wandb")).read_bytes()
    for part in (
        b"val/bits_per_byte",
        b"tokens_per_s",
        b"memory_mib",
        b"model.safetensors",
        b"hfa.models.hfa.HFAConfig",
    ):
        assert part in logged, part
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    assert "wandb" not in capfd.readouterr().err  # nothing but what is said above


def test_a_run_that_fails_is_told_apart_and_a_job_has_the_name_of_its_sweep(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}
    start, finish = wandb.init, wandb.Run.finish

    def init(**options: Any) -> Any:
        told["name"] = options["name"]
        return start(**options)

    def end(run: Any, exit_code: int | None = None, **rest: Any) -> None:
        told["exit_code"] = exit_code
        finish(run, exit_code, **rest)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb.Run, "finish", end)
    cfg = composed("logger=wandb", "name=sweeping")
    with monkeypatch.context() as patch:
        patch.setattr(LMModule, "training_step", lambda *_: (_ for _ in ()).throw(RuntimeError("boom")))
        with pytest.raises(RuntimeError, match="boom"):
            train(cfg, tmp_path / "2026-11-26" / "0")
    assert told == {"name": "sweeping/2026-11-26/0", "exit_code": 1}
    train(cfg, tmp_path / "alone")
    assert told == {"name": "sweeping/alone", "exit_code": 0}


def test_an_evaluation_leaves_its_table_and_its_pictures(composed: Compose, tmp_path: Path) -> None:
    train(composed("~callbacks.samples", "logger=csv"), tmp_path / "run")
    cfg = composed(
        "mode=evaluate",
        f"checkpoint={tmp_path / 'run'}",
        "logger=many",
        "evaluate.lengths=[256]",
        "evaluate.num_examples=2",
    )
    evaluate(cfg, tmp_path / "evaluation")
    (folder,) = (tmp_path / "evaluation" / "wandb").glob("offline-run-*")
    (table,) = folder.glob("files/media/table/retention*.json")
    logged = json.loads(table.read_text())
    assert logged["columns"] == list(Cell._fields)
    assert {row[4] for row in logged["data"]} == {"exact", "storage", "selection", "answer"}
    assert list(folder.glob("files/media/images/retention*.png"))
    rows = (tmp_path / "evaluation" / "retention.csv").read_text().splitlines()
    assert rows[0] == ",".join(Cell._fields)
    assert len(rows) == 1 + len(logged["data"])


@pytest.mark.parametrize(("override", "named"), [("project=me/hfa", "me/hfa"), ("tags=['']", "tag")])
def test_a_name_that_wandb_refuses_is_one_sentence(
    composed: Compose, tmp_path: Path, override: str, named: str
) -> None:
    with pytest.raises(HFAError, match=rf"^logger.wandb: .*{named}.*; change what it names, or leave it out\.$"):
        train(composed("logger=wandb", f"logger.wandb.{override}"), tmp_path / "run")


def test_nobody_answers(
    composed: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    caplog.set_level(logging.INFO)
    train(composed("logger=wandb", "logger.wandb.init_timeout_s=0.5"), tmp_path / "run")
    assert "wandb: offline (" in caplog.text
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_the_line_goes_dead(
    composed: Compose,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    dying_service: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", dying_service)
    caplog.set_level(logging.INFO)
    cfg = composed(
        "logger=wandb", "logger.wandb.finish_timeout_s=1", "logger.wandb.log_artifact=false", "~callbacks.samples"
    )
    train(cfg, tmp_path / "run")
    assert f"wandb: {dying_service}/me/hfa/runs/theid" in caplog.text
    (folder,) = (tmp_path / "run" / "wandb").glob("run-*-theid")
    assert f"wandb sync {folder}" in caplog.text
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["step"] == cfg["trainer"]["max_steps"]


def test_an_artifact_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint=wandb:me/hfa/x:best: .* run `wandb login` first"):
        download("wandb:me/hfa/x:best", tmp_path)
