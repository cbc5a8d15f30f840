"""What is compared: a model, what it is trained with, and what is changed when it is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hfa.config import from_node
from hfa.models import ModelConfig

CONF = Path(__file__).parents[2] / "conf"
_COMPOSING = Lock()  # Hydra composes one configuration at a time
D_FF_STEP = 4  # of the feed-forward width: less than 0.6% of the parameters of four layers


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison.

    Args:
        title: in tables and plots.
        overrides: of ``train.py``, beyond the experiment.
        trained_as: another variant, whose checkpoints this one measures; None for its own.
        edits: of the checkpoint's model configuration, before it is measured.
        evaluation: overrides of ``mode=evaluate``, beyond the experiment.
    """

    title: str
    overrides: tuple[str, ...] = ()
    trained_as: str | None = None
    edits: Mapping[str, Any] = field(default_factory=dict)
    evaluation: tuple[str, ...] = ()


def model_config(experiment: str, overrides: Sequence[str]) -> ModelConfig:
    """The model that ``train.py experiment=... OVERRIDES`` composes."""
    return from_node(composed(experiment, overrides)["model"], "model", ModelConfig)  # type: ignore[type-abstract]


def composed(experiment: str, overrides: Sequence[str]) -> dict[str, Any]:
    """All that ``train.py experiment=... OVERRIDES`` composes."""
    with _COMPOSING, initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"experiment={experiment}", "name=study", *overrides])
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return plain


def num_parameters(model: ModelConfig) -> int:
    """Parameters of a model, counted without allocating any."""
    with torch.device("meta"):
        return model.build().num_parameters


@cache
def equal_size(experiment: str, overrides: tuple[str, ...], parameters: int) -> str:
    """The override with which the model comes closest to `parameters`, in which it is linear.

    That is ``model.d_ff=...``, and where a model has no feed-forward (Mamba-2) ``model.num_layers=...``.
    """
    model = model_config(experiment, overrides)
    for key, step in (("d_ff", D_FF_STEP), ("num_layers", 1)):
        one, two = (num_parameters(dataclasses.replace(model, **{key: n * step})) for n in (1, 2))  # type: ignore[arg-type]
        if two > one:
            steps = max(1, 1 + round((parameters - one) / (two - one)))
            return f"model.{key}={steps * step}"
    raise ValueError(f"{overrides}: neither d_ff nor num_layers changes the number of parameters")
