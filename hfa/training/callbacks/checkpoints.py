"""The last and the best checkpoint, each to go on from and to deploy."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from hfa import checkpoint
from hfa.config import PositiveInt, config
from hfa.models import LanguageModel
from hfa.training.callbacks.base import CallbackConfig, Surroundings
from hfa.training.callbacks.interruption import Interrupted
from hfa.training.callbacks.validation import validation_follows
from hfa.training.module import LMModule
from hfa.training.monitor import better, check_monitor
from hfa.training.provenance import provenance


@config
class CheckpointsConfig(CallbackConfig):
    """`monitor` is a validated metric, see :mod:`hfa.training.monitor`."""

    monitor: str
    every_n_steps: PositiveInt

    def build(self, around: Surroundings) -> Checkpoints:
        check_monitor("callbacks.checkpoints.monitor", self.monitor, around.source)
        return Checkpoints(self, around)


class Checkpoints(L.Callback):
    """Keeps four things up to date in ``checkpoints/``, each replaced in one go.

        last.ckpt  best.ckpt     everything a run needs to go on, read without executing anything
        last/      best/         the artifact: what is deployed

    `last` is written every `every_n_steps`, after every validation and when training is interrupted. It holds what the
    other callbacks know of that step, so it comes after them.
    """

    def __init__(self, settings: CheckpointsConfig, around: Surroundings) -> None:
        self.folder, self.monitor = around.run_dir / "checkpoints", settings.monitor
        self.best: float | None = None
        self._settings, self._around = settings, around
        self._step = self._saved = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        same = state_dict.get("monitor", self.monitor) == self.monitor
        self.best = state_dict["best"] if same else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = self._saved = trainer.global_step
        if trainer.ckpt_path and self.best is not None and trainer.is_global_zero:
            self._take_over_best(Path(trainer.ckpt_path).parent)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and self._step % self._settings.every_n_steps == 0 and not validation_follows(trainer):
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        improved = self._improved(float(trainer.callback_metrics[self.monitor]))
        # The last one holds the value of the best, so it comes after it: cut off in between, the best is found anew.
        self._save(trainer, pl_module, ("best", "last") if improved else ("last",))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted) and exception.step is not None and self._saved != trainer.global_step:
            self._save(trainer, pl_module)

    def _take_over_best(self, earlier: Path) -> None:
        """The best checkpoint of the run that this one goes on from is this one's until a better one comes."""
        if not (earlier / "best.ckpt").is_file() or not (earlier / "best").is_dir():
            self.best = None
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(earlier / "best.ckpt", self.folder / "best.ckpt")
        shutil.copytree(earlier / "best", self.folder / "best", dirs_exist_ok=True)

    def _improved(self, value: float) -> bool:
        if math.isnan(value) or (self.best is not None and not better(self.monitor, value, self.best)):
            return False
        self.best = value
        return True

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, names: tuple[str, ...] = ("last",)) -> None:
        assert isinstance(pl_module, LMModule)
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / ".new.ckpt"
        trainer.save_checkpoint(fresh, weights_only=False)  # every process takes part
        self._saved = trainer.global_step
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        facts = provenance(self._around.cfg, step=trainer.global_step, metrics=metrics, material=pl_module.material)
        model = _whole(trainer, pl_module.model, fresh)
        for name in names:
            copy = self.folder / f".{name}.ckpt"
            shutil.copyfile(fresh, copy)
            copy.replace(self.folder / f"{name}.ckpt")
            checkpoint.save(self.folder / name, model=model, tokenizer=self._around.tokenizer, provenance=facts)
        fresh.unlink()


def _whole(trainer: L.Trainer, model: LanguageModel, path: Path) -> LanguageModel:
    """The model with all its weights, which sharded training has only in the checkpoint just written."""
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        return model
    weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    with torch.device("meta"):
        whole = model.config.build()
    whole.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()}, assign=True)
    return whole
