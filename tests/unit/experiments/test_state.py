"""The state study: equal states, equal batches, a real trial, and the table made from what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.language.ledger import Ledger
from experiments.state import __main__ as command
from experiments.state.report import draw, table
from experiments.state.subjects import SUBJECTS
from experiments.state.trial import Plan, Setting, batches, num_floats
from hfa.errors import ConfigError
from hfa.types import IGNORE

RECURRENT = [name for name, subject in SUBJECTS.items() if not subject.grows]


@pytest.mark.parametrize(
    ("name", "floats"),
    [(name, n) for name in RECURRENT for n in (2048, 8192, 16_384) if n > 2048 or not name.startswith("active-")],
)
def test_recurrent_models_carry_what_was_asked_for(name: str, floats: int) -> None:
    with torch.device("meta"):
        assert floats <= num_floats(SUBJECTS[name].config(floats).build()) <= 1.02 * floats  # means carry weights, too


def test_a_state_that_cannot_be_made_is_one_sentence() -> None:
    for name in RECURRENT:
        with pytest.raises(ConfigError, match="--floats"):
            SUBJECTS[name].config(1000)


def test_all_models_see_the_same_batches() -> None:
    plan = Plan(steps=3, lr=1e-3, seed=1)
    again = Plan(steps=3, lr=4e-3, seed=1)
    for (tokens, labels), (same, _) in zip(batches(plan), batches(again), strict=True):
        assert torch.equal(tokens, same)
        assert tokens.numel() == 4096
        assert (labels != IGNORE).sum() > 0
    other = next(batches(Plan(steps=1, lr=1e-3, seed=2)))[0]
    first = next(batches(plan))[0]
    assert other.shape != first.shape or not torch.equal(other, first)


def test_a_trial_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "TEST", [*Plan(steps=1, lr=1, seed=0).train, Setting(64, 4, "random")])
    monkeypatch.setattr("experiments.state.trial.ANSWERS", 8)
    monkeypatch.setattr("experiments.state.trial.LEARNT", 0.0)
    threads = torch.get_num_threads()
    arguments = ["--models", "simplemind", "delta", "--lrs", "1e-3", "--seeds", "0", "--steps", "2", "--plot"]
    for _ in range(2):
        assert command.main([*arguments, "--results", str(tmp_path)]) == 0
    kept = list(Ledger(tmp_path / "trials.jsonl").read("training"))
    assert [one["variant"] for one in kept] == ["simplemind", "delta"]
    assert all(one["commit"] and one["cpu"] and one["tokens"] == 8192 for one in kept)
    assert "64/4 random" in table(Ledger(tmp_path / "trials.jsonl"))
    assert draw(Ledger(tmp_path / "trials.jsonl"), tmp_path / "again.png").stat().st_size > 10_000
    old = (tmp_path / "trials.jsonl").read_text().replace('"active_channels": 63', '"active_channels": 16')
    (tmp_path / "trials.jsonl").write_text(old)
    assert command.main([*arguments, "--results", str(tmp_path)]) == 0  # and again, where its settings were others
    torch.set_num_threads(threads)
    kept = list(Ledger(tmp_path / "trials.jsonl").read("training"))
    assert [one["variant"] for one in kept] == ["simplemind", "delta", "simplemind"]
