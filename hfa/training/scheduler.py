"""Learning rate schedules, as a factor of ``optimizer.lr`` per optimizer step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch.optim.lr_scheduler import LambdaLR

from hfa.config import Config, Fraction, NonNegativeInt, config


@config
class SchedulerConfig(Config, ABC):
    """A linear warm-up, then what a subclass says."""

    warmup_steps: NonNegativeInt

    def build(self, optimizer: torch.optim.Optimizer, max_steps: int) -> LambdaLR:
        """The schedule of a run of `max_steps` optimizer steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, max_steps))

    def factor(self, step: int, max_steps: int) -> float:
        """What the learning rate is multiplied with in optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step - self.warmup_steps, max(1, max_steps - self.warmup_steps))

    @abstractmethod
    def after_warmup(self, step: int, max_steps: int) -> float:
        """The factor `step` steps after the warm-up, of `max_steps`."""


@config
class CosineConfig(SchedulerConfig):
    """Half a cosine from 1 down to `final_fraction`. Source: SGDR, arXiv 1608.03983, section 3."""

    final_fraction: Fraction

    def after_warmup(self, step: int, max_steps: int) -> float:
        height = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max_steps)))
        return self.final_fraction + (1 - self.final_fraction) * height


@config
class ConstantConfig(SchedulerConfig):
    """The full learning rate to the end."""

    def after_warmup(self, step: int, max_steps: int) -> float:
        return 1.0
