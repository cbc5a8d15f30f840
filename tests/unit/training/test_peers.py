"""Peers from transformers, trained and measured by the commands that ours are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.training import evaluate, train

pytest.importorskip("transformers")
CONF = Path(__file__).parents[3] / "conf"
Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def peer(tmp_path: Path, cache_dir: Path, texts: Path) -> Compose:
    def make(name: str, *overrides: str) -> dict[str, Any]:
        fixed = [
            "experiment=smoke",
            f"model={name}",
            "data@data.sources.text=text",
            f"data.sources.text.paths=[{texts}]",
            "data.sources.needle.haystack=null",
            f"output_dir={tmp_path / 'outputs'}",
            f"cache_dir={cache_dir}",
            "trainer.max_steps=2",
            "trainer.val_check_interval=2",
            "model.num_layers=2",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*fixed, *(["model.d_model=128"] if name == "hf/xlstm" else []), *overrides])
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        return plain

    return make


READY = sorted(f"hf/{path.stem}" for path in (CONF / "model" / "hf").glob("*.yaml"))


@pytest.mark.parametrize("name", ["hf", *READY])
def test_a_peer_is_trained_and_measured(peer: Compose, name: str, tmp_path: Path) -> None:
    metrics = train(peer(name), tmp_path / "run")
    assert metrics["val/loss"] > 0
    artifact = tmp_path / "run" / "checkpoints" / "last"
    found = evaluate(
        peer(name, "mode=evaluate", f"checkpoint={artifact}", "evaluate.lengths=[300]", "evaluate.chunk_size=128",
             "evaluate.num_examples=2"),
        tmp_path / "evaluation",
    )  # fmt: skip
    assert found["test/bits_per_byte/text/300"] > 0
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert report["training"]["config"]["model"]["architecture"]
