"""Which checkpoint an evaluation is of, and what the command line may say about its model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hfa import checkpoint
from hfa.errors import ConfigError
from hfa.training.artifact import as_trained, load_artifact
from hfa.training.fit import build_data, build_model
from hfa.training.settings import EvaluationSettings, TrainSettings, read_settings

Compose = Callable[..., dict[str, Any]]


def kept(cfg: dict[str, Any], folder: Path) -> Path:
    """A fresh checkpoint of what `cfg` says."""
    settings = read_settings(cfg, TrainSettings)
    tokenizer, source = build_data(settings)
    model = build_model(settings, tokenizer, source)
    return checkpoint.save(folder, model=model, tokenizer=tokenizer, provenance={"step": 1, "config": cfg})


@pytest.fixture
def loaded(composed: Compose, tmp_path: Path) -> Callable[..., checkpoint.Artifact]:
    """What an evaluation loads: of two runs, HFA's and then the hybrid's."""
    for name in ("hfa", "hybrid"):
        kept(composed(f"model={name}"), tmp_path / "outputs" / name / "checkpoints" / "best")

    def load(*overrides: str) -> checkpoint.Artifact:
        cfg = composed("mode=evaluate", *overrides)
        return load_artifact(read_settings(cfg, EvaluationSettings), cfg, overrides, "cpu")

    return load


def test_the_newest_of_all_or_of_the_architecture_that_was_chosen(
    loaded: Callable[..., checkpoint.Artifact], tmp_path: Path
) -> None:
    assert loaded("checkpoint=best").model.config.name == "hybrid"
    assert loaded("checkpoint=best", "model=hfa").model.config.name == "hfa"
    assert loaded(f"checkpoint={tmp_path / 'outputs/hfa/checkpoints/best'}").model.config.name == "hfa"


def test_what_agrees_with_the_checkpoint_may_be_said_again(
    loaded: Callable[..., checkpoint.Artifact], tmp_path: Path
) -> None:
    there = loaded("checkpoint=best", "model=hfa").model.config
    again = loaded("checkpoint=best", "model=hfa", f"model.num_heads={there.num_heads}", "tokenizer=byte")
    assert again.model.config == there


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.num_heads=1", r"model.num_heads: got 1, expected \d+, as in \S+hfa/checkpoints/best; leave it out\."),
        ("model=hybrid", r"model: got 'hybrid', expected hfa, the architecture of \S+; leave it out\."),
        ("tokenizer=bpe", r"tokenizer: got 'BPE, .*', expected Byte, vocab_size=257, as \S+ was trained with; leave"),
    ],
)
def test_what_the_checkpoint_is_not_is_refused(
    loaded: Callable[..., checkpoint.Artifact], tmp_path: Path, override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        loaded(f"checkpoint={tmp_path / 'outputs/hfa/checkpoints/best'}", override)


def test_what_is_measured_is_written_down_as_it_was_trained(
    loaded: Callable[..., checkpoint.Artifact], composed: Compose
) -> None:
    cfg = composed("mode=evaluate", "model=hfa")  # as composed, and not chosen
    artifact = loaded("checkpoint=best")
    assert as_trained(cfg, artifact, [])["model"] == artifact.provenance["config"]["model"] != cfg["model"]
    assert as_trained(cfg, artifact, [])["data"] == cfg["data"]
    assert as_trained({**cfg, "name": "mine"}, artifact, ["++name=mine"])["name"] == "mine"


def test_weights_of_half_the_precision_are_computed_with_in_full(
    loaded: Callable[..., checkpoint.Artifact], tmp_path: Path
) -> None:
    there = loaded("checkpoint=best", "model=hfa")
    folder = tmp_path / "outputs" / "half" / "checkpoints" / "best"
    checkpoint.save(folder, model=there.model.bfloat16(), tokenizer=there.tokenizer, provenance={})
    assert {weight.dtype for weight in loaded(f"checkpoint={folder}").model.parameters()} == {torch.float32}
