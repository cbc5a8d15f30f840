"""Optimizers, and which parameters they decay."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from hfa.config import Config, Fraction, NonNegativeFloat, PositiveFloat, config
from hfa.errors import ConfigError


@config
class OptimizerConfig(Config, ABC):
    """What the scheduler needs to know of every optimizer."""

    lr: PositiveFloat

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the parameters of `model` that want a gradient."""


@config
class AdamWConfig(OptimizerConfig):
    """AdamW. Source: Decoupled Weight Decay Regularization, arXiv 1711.05101.

    Args:
        embedding_lr_factor: embeddings learn at `lr` times this: most of their rows see few tokens a step.
    """

    betas: tuple[Fraction, Fraction]
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    embedding_lr_factor: PositiveFloat

    def check(self) -> None:
        if max(self.betas) >= 1:
            raise ConfigError("betas", self.betas, "two numbers below 1: at 1 an average forgets nothing")

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        groups = parameter_groups(model, self.weight_decay)
        if self.embedding_lr_factor != 1:
            groups = apart(embeddings(model), groups, lr=self.lr * self.embedding_lr_factor)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that are decayed, and those that are not.

    Matrices are decayed; embeddings, norms, biases and all other vectors and scalars are not, for nothing
    multiplies them and shrinking them only fights the data.
    """
    looked_up = embeddings(model)
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (kept if parameter.dim() < 2 or id(parameter) in looked_up else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def embeddings(model: nn.Module) -> set[int]:
    """The ids of the weights that are looked up."""
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def apart(chosen: set[int], groups: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The groups with the parameters `chosen` by id in groups of their own, with further options."""
    split = []
    for group in groups:
        for inside, more in ((False, {}), (True, options)):
            params = [parameter for parameter in group["params"] if (id(parameter) in chosen) == inside]
            split += [{**group, **more, "params": params}] if params else []
    return split
