"""One run of a study as a user makes it: trained, measured as it is and edited, recorded, shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.language.ledger import Ledger
from experiments.language.report import table
from experiments.language.study import Study
from experiments.language.variant import Variant


def test_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.language.study.OUTPUTS", tmp_path / "outputs")
    small = ("trainer.max_steps=2", "loader.batch_size=1", "loader.val_examples=2", "data.seq_len=64")
    study = Study(
        name="test",
        experiment="language",
        parameters=100_000,
        variants={
            "hfa": Variant(title="HFA", overrides=("model=hfa", "model.d_model=32", *small)),
            "unread": Variant(title="HFA, retrieval off", trained_as="hfa", edits={"num_retrieved": 0}),
        },
        ledger=Ledger(tmp_path / "runs.jsonl"),
        evaluation=("evaluate.lengths=[64,128]", "evaluate.num_examples=2", "evaluate.text_tokens=4096"),
    )
    trained = study.train("hfa", 1e-3, 0)
    assert trained["tokens"] == 2 * 64
    assert trained["config"]["optimizer"]["lr"] == 1e-3
    assert {"commit", "command", "cpu", "date", "dirty", "seconds", "seed", "samples"} <= set(trained)
    for name in study.variants:
        measured = study.evaluate(name, 1e-3, 0)
        assert [one["length"] for one in measured["bits_per_byte"]] == [64, 128]
    assert len(list(study.ledger.read("evaluation"))) == 2
    assert "HFA, retrieval off" in table(study)
