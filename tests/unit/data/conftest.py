"""Small real data: a folder of text files, the tokenizers, and configs as YAML would give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hfa.data.mixture import MixtureConfig
from hfa.data.tasks.mqar import MQARConfig
from hfa.data.texts.files import FilesConfig
from hfa.data.tokenizers.byte import ByteTokenizer

WORDS = [
    "the",
    "flow",
    "carries",
    "what",
    "is",
    "not",
    "worth",
    "looking",
    "up",
    "and",
    "the",
    "anchors",
    "keep",
    "every",
    "token",
    "exactly",
]


def document(i: int) -> str:
    lines = (" ".join(WORDS[(i * j) % 7 : (i * j) % 7 + 6]) for j in range(1, 12))
    return f"document {i}\n" + "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short documents."""
    path = tmp_path_factory.mktemp("texts")
    for i in range(20):
        (path / f"{i:02}.txt").write_text(document(i), encoding="utf-8")
    return path


@pytest.fixture
def files_config(folder: Path) -> Callable[..., FilesConfig]:
    """A config over the folder; keywords replace its values."""

    def make(**changes: object) -> FilesConfig:
        values = {
            "name": "text",
            "seed": 0,
            "seq_len": 32,
            "val_fraction": 0.1,
            "test_fraction": 0.1,
            "split_seed": 0,
            "paths": (str(folder),),
            "suffixes": (".txt",),
            "exclude": (),
            "max_document_chars": None,
        }
        return FilesConfig(**{**values, **changes})

    return make


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def mqar_config() -> Callable[..., MQARConfig]:
    def make(**changes: object) -> MQARConfig:
        values = {
            "name": "mqar",
            "seed": 0,
            "seq_len": 64,
            "vocab_size": 128,
            "num_pairs": 4,
            "num_queries": None,
            "layout": "first",
            "noise": "zero",
            "noise_vocab_size": 16,
            "phrase_len": 8,
            "power_alpha": 0.01,
        }
        return MQARConfig(**{**values, **changes})

    return make


@pytest.fixture
def mixture_config(
    files_config: Callable[..., FilesConfig], mqar_config: Callable[..., MQARConfig]
) -> Callable[..., MixtureConfig]:
    """Text and a recall task, three to two."""

    def make(**changes: object) -> MixtureConfig:
        values = {
            "name": "mixture",
            "seed": 0,
            "seq_len": 32,
            "sources": {"prose": files_config(), "pairs": mqar_config(seq_len=32)},
            "weights": {"prose": 3, "pairs": 2},
        }
        return MixtureConfig(**{**values, **changes})

    return make
