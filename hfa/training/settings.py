"""The whole configuration of ``train.py``, checked before anything expensive begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from hfa.config import MAX_SEED, Config, Name, NonNegativeInt, PositiveInt, config, from_mapping
from hfa.data.source import SourceConfig
from hfa.data.tokenizers import TokenizerConfig
from hfa.errors import ConfigError
from hfa.models import ModelConfig
from hfa.training.callbacks import CallbackConfig
from hfa.training.datamodule import LoaderConfig
from hfa.training.loggers import LoggerConfig
from hfa.training.optimizer import OptimizerConfig
from hfa.training.scheduler import SchedulerConfig
from hfa.training.trainer import TrainerConfig

_S = TypeVar("_S", bound="Settings")


@config
class EvaluateConfig(Config):
    """What ``mode=evaluate`` measures."""

    lengths: tuple[PositiveInt, ...] | None  # tokens per example; None takes the data's own
    num_examples: PositiveInt  # of every recall task, at every length
    text_tokens: PositiveInt  # of every text, at every length: the same text, or one window where that is longer
    depth_bins: PositiveInt
    chunk_size: PositiveInt  # tokens run at once
    batch_size: PositiveInt
    generate: bool  # let the model write answers by itself as well, where a task in text ends with them

    def check(self) -> None:
        if self.lengths == ():
            raise ConfigError("lengths", self.lengths, "at least one length, or null for data.seq_len")


@config
class Settings(Config):
    """What training and evaluating are both told, by the names of the keys."""

    seed: NonNegativeInt
    mode: Literal["train", "evaluate", "audit"]
    name: Name
    output_dir: Name
    cache_dir: str
    data: SourceConfig
    trainer: TrainerConfig
    logger: dict[str, LoggerConfig]
    evaluate: EvaluateConfig

    def check(self) -> None:
        if Path(self.name).is_absolute() or ".." in Path(self.name).parts:
            raise ConfigError("name", self.name, "a folder below output_dir, as a/b is")

    @property
    def cache(self) -> Path:
        """`cache_dir`, with ``~`` resolved."""
        return Path(self.cache_dir).expanduser()


@config
class TrainSettings(Settings):
    """What only training is told."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    callbacks: dict[str, CallbackConfig]
    loader: LoaderConfig
    resume: str | None


@config
class EvaluationSettings(Settings):
    """What only evaluating is told: model and tokenizer are the checkpoint's."""

    checkpoint: str


def read_settings(cfg: Mapping[str, Any], kind: type[_S]) -> _S:
    """Check the part of a resolved configuration that `kind` is about.

    Args:
        cfg: plain data, as composed from ``conf/train.yaml``.
        kind: TrainSettings or EvaluationSettings.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, a broken constraint.
    """
    seed = cfg.get("seed", 0)  # before the parts that copy it and would be named in its place
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ConfigError("seed", seed, f"a whole number from 0 to {MAX_SEED}")
    known = {field.name for each in (TrainSettings, EvaluationSettings) for field in dataclasses.fields(each)}
    mine = {field.name for field in dataclasses.fields(kind)}
    return from_mapping(kind, {key: value for key, value in cfg.items() if key in mine or key not in known}, "")
