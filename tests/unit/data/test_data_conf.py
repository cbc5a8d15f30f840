"""Every option of conf/data and conf/tokenizer composes, and builds what its name says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.data.mixture import MixtureConfig
from hfa.data.source import SourceConfig
from hfa.data.tasks.needle import NeedleConfig
from hfa.data.texts.files import FilesConfig
from hfa.data.tokenizers import TokenizerConfig, kinds
from hfa.errors import ConfigError

CONF = Path(__file__).parents[3] / "conf"


def node(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(overrides=["+seed=7", *overrides]), resolve=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def data(*overrides: str) -> SourceConfig:
    return from_node(node(*overrides)["data"], "data", SourceConfig)


NEEDED = {"text": ["data.paths=[README.md]"], "hub": ["data.name=some/set"]}


@pytest.mark.parametrize("path", sorted((CONF / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_option(path: Path) -> None:
    settings = data(f"+data={path.stem}", *NEEDED.get(path.stem, []), "data.seq_len=1100")
    assert (settings.seed, settings.seq_len) == (7, 1100)


@pytest.mark.parametrize("path", sorted((CONF / "tokenizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_tokenizer_option(path: Path) -> None:
    assert from_node(node(f"+tokenizer={path.stem}")["tokenizer"], "tokenizer", TokenizerConfig).vocab_size > 256
    assert path.stem in kinds()


def test_one_length_reaches_every_part() -> None:
    settings = data("+data=mixture", "data.seq_len=2048", "data.weights.mqar=5")
    assert isinstance(settings, MixtureConfig)
    assert {part.seq_len for part in settings.sources.values()} == {2048}
    assert settings.weights["mqar"] == 5
    needle = settings.sources["needle"]
    assert isinstance(needle, NeedleConfig)
    assert needle.haystack is not None
    assert needle.haystack.seq_len == 2048


def test_another_text_in_the_mixture() -> None:
    settings = data("+data=mixture", "data@data.sources.text=hub", "data.sources.text.name=some/set")
    assert isinstance(settings, MixtureConfig)
    assert settings.sources["text"].name == "some/set"
    needle = data("+data=needle", "data@data.haystack=text", "data.haystack.paths=[README.md]")
    assert isinstance(needle, NeedleConfig)
    assert isinstance(needle.haystack, FilesConfig)


def test_a_haystack_of_noise_from_the_command_line() -> None:
    settings = data("+data=needle", "data.haystack=null")
    assert isinstance(settings, NeedleConfig)
    assert settings.haystack is None


def test_keys_are_named_from_the_top() -> None:
    with pytest.raises(ConfigError, match=r"^data.sources.mqar.num_queries: got 9, expected at most num_pairs=\(4, 8"):
        data("+data=mixture", "data.sources.mqar.num_queries=9")
    with pytest.raises(ConfigError, match=r"^data.paths: got \[\], expected at least one file"):
        data("+data=text")
