"""How SimpleMind's channels are used is drawn and logged while it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfa.training import train

Compose = Callable[..., dict[str, Any]]
SMALL = ("trainer.max_steps=2", "trainer.val_check_interval=2", "loader.val_examples=2")


def test_a_run_leaves_the_picture_and_the_numbers(composed: Compose, tmp_path: Path) -> None:
    metrics = train(
        composed(*SMALL, "model=hybrid", "model.pattern=[routed,flow]", "logger=wandb", "logger.wandb.mode=offline"),
        tmp_path / "run",
    )
    assert (tmp_path / "run" / "plots" / "routing.png").stat().st_size > 10_000
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/routing*.png"))
    assert 0 <= metrics["val/routing/dead"] < 1
    assert 1 <= metrics["val/routing/active"] <= 63
    assert metrics["val/routing/entropy_bits"] > 0


def test_a_model_without_channels_has_none(composed: Compose, tmp_path: Path) -> None:
    metrics = train(composed(*SMALL), tmp_path / "run")
    assert not any(name.startswith("val/routing") for name in metrics)
    assert not (tmp_path / "run" / "plots" / "routing.png").exists()
