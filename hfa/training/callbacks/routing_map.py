"""How SimpleMind's channels are used, over the whole validation set."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hfa.config import config
from hfa.metrics.plot_routing import plot_routing
from hfa.metrics.routing import Usage
from hfa.models.simplemind import RoutedChannels
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.loggers import media
from hfa.training.module import LMModule


@config
class RoutingMapConfig(CallbackConfig):
    """Nothing to choose."""

    def build(self, around: Surroundings) -> RoutingMap:
        return RoutingMap(around)


class RoutingMap(L.Callback):
    """Watches routed layers through every validation: numbers for the log, and a picture as plots/routing.png.

    Models without such layers are left alone.
    """

    def __init__(self, around: Surroundings) -> None:
        self._path = around.run_dir / "plots" / "routing.png"
        self.usages: dict[int, Usage] = {}  # of the newest validation, by layer
        self._hooks: list[RemovableHandle] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        self.usages = {}
        for layer, block in enumerate(pl_module.model.blocks):
            mixer = block.mixer
            if isinstance(mixer, RoutedChannels):
                usage = self.usages[layer] = Usage(mixer.num_heads, mixer.num_channels)
                self._hooks.append(mixer.register_forward_pre_hook(_watch(usage)))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        for usage in self.usages.values():
            usage.sums = trainer.strategy.reduce(usage.sums.to(pl_module.device), reduce_op="sum").cpu()
        if usages := list(self.usages.values()):
            total = sum(usage.reads.numel() for usage in usages)
            values = {
                "dead": sum(usage.dead for usage in usages) / total,
                "active": float(torch.stack([usage.active for usage in usages]).mean()),
                "entropy_bits": float(torch.stack([usage.entropy for usage in usages]).mean()),
            }
            pl_module.log_dict({f"val/routing/{name}": value for name, value in values.items()}, logger=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.usages or not trainer.is_global_zero:
            return
        step = trainer.global_step
        plot_routing(self.usages, self._path, f"Channels after {step} steps, over the validation set")
        for logger in media(trainer.loggers):
            logger.show_picture("routing", self._path, step)


def _watch(usage: Usage) -> Any:
    def watch(mixer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(mixer, RoutedChannels)
        with torch.no_grad():
            usage.update(*mixer.routes(*inputs[:2]))

    return watch
