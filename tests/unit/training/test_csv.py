"""metrics.csv."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfa.errors import CheckpointError
from hfa.training.loggers.csv import MetricsCSV
from hfa.training.runs import read_metrics


def test_rows_are_there_at_once_and_columns_come_as_they_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(path)
    log.log_metrics({"train/loss": 0.1 + 0.2}, 10)
    assert path.read_text() == f"step,train/loss\n10,{0.1 + 0.2!r}\n"
    log.log_metrics({"val/loss": 1.0}, 10)
    log.log_metrics({"train/loss": 0.25}, 20)
    assert path.read_text().splitlines()[0] == "step,train/loss,val/loss"
    assert read_metrics(path) == [
        {"step": 10, "train/loss": 0.1 + 0.2},
        {"step": 10, "val/loss": 1.0},
        {"step": 20, "train/loss": 0.25},
    ]


def test_a_resumed_run_begins_with_what_led_to_its_checkpoint(tmp_path: Path) -> None:
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    log = MetricsCSV(old)
    for step in (1, 2, 3):
        log.log_metrics({"loss": float(step)}, step)
    resumed = MetricsCSV(new, resumed_from=old, resumed_step=2)
    resumed.log_metrics({"loss": 30.0}, 3)
    assert [row["loss"] for row in read_metrics(new)] == [1.0, 2.0, 30.0]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.")
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}]
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    "written", [b"a,b\n1,2\n", b"step,loss\n1,\xff\n", b"step,loss\n1,much\n", b"step,loss\n1,2,3\n"]
)
def test_what_is_no_metrics_csv_is_one_sentence(tmp_path: Path, written: bytes) -> None:
    (tmp_path / "old.csv").write_bytes(written)
    with pytest.raises(CheckpointError, match=r"old\.csv: no metrics\.csv of a run"):
        MetricsCSV(tmp_path / "metrics.csv", resumed_from=tmp_path / "old.csv", resumed_step=3)
