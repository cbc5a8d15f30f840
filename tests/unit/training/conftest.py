"""Runs of a few seconds, composed as the command line composes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[3] / "conf"

Compose = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep tokenized text."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small documents."""
    folder = tmp_path_factory.mktemp("texts")
    for number in range(30):
        lines = [f"line {i} of document {number} says {i * number}\n" for i in range(60)]
        (folder / f"{number}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def composed(tmp_path: Path, cache_dir: Path, texts: Path) -> Compose:
    """The smoke experiment on small texts, with overrides, as plain data."""
    fixed = [
        "experiment=smoke",
        "data@data.sources.text=text",
        f"data.sources.text.paths=[{texts}]",
        "data.sources.needle.haystack=null",
        f"output_dir={tmp_path / 'outputs'}",
        f"cache_dir={cache_dir}",
        "model.pattern=[flow,anchor]",
        "model.num_layers=2",
    ]

    def make(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*fixed, *overrides])
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        return plain

    return make
