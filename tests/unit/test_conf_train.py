"""Every option of every group that `train.py` composes does compose, and makes the configs it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from hfa.errors import ConfigError
from hfa.mistakes import EXTRAS, keys, sentence
from hfa.training.settings import EvaluationSettings, TrainSettings, read_settings

CONF = Path(__file__).parents[2] / "conf"
DEFAULTS = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
GROUPS = [next(iter(entry)) for entry in DEFAULTS if isinstance(entry, dict) and "override" not in next(iter(entry))]
OPTIONS = [(path.parent.name, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
NEEDED = {"text": ["data.paths=[README.md]"], "hub": ["data.name=some/set"]}  # what a user must give


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["name=test", *overrides])
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return plain


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option(group: str, option: str) -> None:
    needed = NEEDED.get(option, []) if group == "data" else []
    settings = read_settings(composed(f"{group}={option}", *needed), TrainSettings)
    with torch.device("meta"):
        model = settings.model.build()
    optimizer = settings.optimizer.build(model)
    settings.scheduler.build(optimizer, settings.trainer.max_steps)
    for logger in settings.logger.values():
        assert type(logger).__module__.startswith("hfa.training.loggers")


def test_every_group_has_options() -> None:
    assert {group for group, _ in OPTIONS} == set(GROUPS)


def test_the_help_names_what_there_is() -> None:
    text = yaml.safe_load((CONF / "hydra" / "help" / "train.yaml").read_text())["template"]
    listed: list[tuple[str, str]] = []
    group = ""
    for line in text.partition("Groups, chosen with group=option:\n")[2].partition("Keys, set")[0].splitlines():
        group = line[2:15].strip() or group
        options, *_ = re.split(r" {4,}", line[15:])  # what comes after that is a remark
        listed += [(group, option.split()[0]) for option in re.split(r" {2,}", options) if option and "/" not in option]
    assert sorted(listed) == sorted(OPTIONS)


MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
CHOSEN = {  # the models an experiment is about, where it is not about all
    path.stem: [
        entry["override /model"]
        for entry in yaml.safe_load(path.read_text()).get("defaults", [])
        if "override /model" in entry
    ]
    for path in sorted((CONF / "experiment").glob("*.yaml"))
}
FITTING = [(experiment, model) for experiment, chosen in CHOSEN.items() for model in chosen or MODELS]


@pytest.mark.parametrize(("experiment", "model"), FITTING)
def test_experiments_fit_every_model_that_they_are_about(experiment: str, model: str) -> None:
    settings = read_settings(composed(f"experiment={experiment}", f"model={model}"), TrainSettings)
    assert settings.model.vocab_size >= settings.tokenizer.vocab_size


def test_several_loggers_at_once() -> None:
    settings = read_settings(composed("logger=many"), TrainSettings)
    assert set(settings.logger) == {"wandb", "tensorboard"}
    assert not read_settings(composed("logger=csv"), TrainSettings).logger


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=-1", "seed: got -1, expected a whole number from 0 to 2147483647"),
        ("name=a/../..", "name: got 'a/../..', expected a folder below output_dir"),
    ],
)
def test_what_composes_and_is_mistaken(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_settings(composed(override), TrainSettings)


def test_evaluating_asks_nothing_of_the_model_group() -> None:
    cfg = composed("mode=evaluate", "model.num_heads=3", "evaluate.lengths=[128,256]")
    assert read_settings(cfg, EvaluationSettings).evaluate.lengths == (128, 256)


@pytest.mark.parametrize(("choice", "extra"), EXTRAS.items())
def test_plugins_that_are_extras(choice: str, extra: str) -> None:
    group, _, option = choice.rpartition("/")
    kind: type = Launcher if group == "hydra/launcher" else Sweeper
    if any(extra in plugin.__module__ for plugin in Plugins.instance().discover(kind)):
        composed(f"{group}={option}")
        return
    with pytest.raises(MissingConfigException) as caught:
        composed(f"{group}={option}")
    assert sentence(caught.value) == f"{group}={option}: it is not installed; pip install 'hfa[{extra}]'."


def test_joblib_is_tested_with() -> None:
    composed("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def test_help_names_every_group_option_and_key() -> None:
    text = "\n".join(yaml.safe_load((CONF / "hydra" / "help" / "train.yaml").read_text()).values())
    words = set(text.replace("=", " ").split())
    for group, option in OPTIONS:
        assert {group, option} <= words, f"{group}={option} is missing in the help"
    top = yaml.safe_load((CONF / "train.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert top <= words


def test_keys_that_a_typo_is_compared_with() -> None:
    found = keys(CONF / "train.yaml")
    assert {"model.d_model", "data.num_pairs", "optimizer.lr", "loader.batch_size", "seed", "logger"} <= set(found)
