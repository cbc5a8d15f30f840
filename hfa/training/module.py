"""A language model, its loss and its optimizer, as Lightning wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from hfa.metrics.group import is_right, right_nats
from hfa.metrics.recall import Recall
from hfa.models import LanguageModel
from hfa.models.state import State
from hfa.training import randomness
from hfa.training.meter import LossAverage, Meter, Scored
from hfa.training.optimizer import OptimizerConfig
from hfa.training.scheduler import SchedulerConfig
from hfa.types import IGNORE, NOWHERE, Batch

log = logging.getLogger(__name__)


class LMModule(L.LightningModule):
    """Next-token training of `model`.

    The loss is the cross entropy over labels that are not IGNORE (of those in a group, that of all that is right),
    averaged as `loss_average` says, plus what the model's ``auxiliary_loss()`` returns if it has one.

    Args:
        model: what is trained; under ``module.model`` it stays the plain model, whatever wraps it.
        kinds: name of each source to ``text`` or ``recall``, in the order that `Batch.source` counts.
        byte_lengths: bytes of text per token id, int64 [vocab_size].
        material: fingerprints of what it is trained with, for who goes on from a checkpoint.
        optimizer: its config.
        scheduler: its config.
        max_steps: optimizer steps of the whole run.
        loss_average: over ``tokens``, or over ``examples``.
        depth_bins: of the validation's `recall`.
        compile: run the model through torch.compile.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        kinds: Mapping[str, str],
        byte_lengths: Tensor,
        material: Mapping[str, str],
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
        max_steps: int,
        loss_average: LossAverage,
        depth_bins: int,
        compile: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.kinds = dict(kinds)
        self.byte_lengths, self.material = byte_lengths, dict(material)
        self.optimizer_config, self.scheduler_config, self.max_steps = optimizer, scheduler, max_steps
        self.loss_average, self.depth_bins = loss_average, depth_bins
        self.recall = Recall(depth_bins)  # what the newest validation found
        self.examples_seen = 0  # by all processes together: where the stream goes on
        self.tokens_seen = 0
        self.gradient_norm: Tensor | None = None
        self._compile = compile
        self._features: Callable[[Tensor], tuple[Tensor, State]] | None = None
        self._meters: dict[str, Meter] = {}
        self._resumed: dict[str, Any] = {}

    def score(self, batch: Batch) -> Scored:
        """Predict the labels of a batch; the vocabulary head runs only where there are any."""
        if self._features is None:  # not before configure_model, which may put sharding around it
            self._features = torch.compile(self.model.hidden) if self._compile else self.model.hidden
        features, _ = self._features(batch.tokens)
        row, column = (batch.labels != IGNORE).nonzero(as_tuple=True)
        label = batch.labels[row, column]
        logits = self.model.head(features[row, column]).float()  # [N, vocabulary]
        nats = right_nats(logits, row, column, batch.labels, batch.group)
        recalled = batch.gold[row, column] != NOWHERE
        correct = is_right(logits.argmax(-1), row, column, batch.labels, batch.group)
        return Scored(nats, correct, label, recalled, row, column)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        scored = self.score(batch)
        weights = scored.weights(len(batch.tokens), self.loss_average)
        loss = (scored.nats * weights).sum() / weights.sum().clamp(min=1)
        auxiliary = self.model.auxiliary_loss()
        self.meter("train").add(batch, scored, weights, auxiliary)
        self.examples_seen += len(batch.tokens) * self.trainer.world_size
        self.tokens_seen += batch.tokens.numel() * self.trainer.world_size
        return loss if auxiliary is None else loss + auxiliary

    def on_validation_start(self) -> None:
        self.meter("val").reset()
        self.recall = Recall(self.depth_bins)

    def validation_step(self, batch: Batch, _: int) -> None:
        scored = self.score(batch)
        self.meter("val").add(batch, scored, scored.weights(len(batch.tokens), self.loss_average))
        correct = torch.zeros_like(batch.tokens, dtype=torch.bool)
        correct[scored.row, scored.column] = scored.correct
        for place, (name, kind) in enumerate(self.kinds.items()):
            if kind == "recall":
                rows = batch.source == place
                self.recall.update(name, correct[rows], batch.gold[rows])

    def on_validation_epoch_end(self) -> None:
        for other in self._from_others(self.recall.to_json()):
            self.recall.merge(Recall.from_json(other))
        values = self.totals("val")
        for task in self.recall.tasks():
            counts = [self.recall.at(task, length) for length in self.recall.lengths(task)]
            values[f"recall/{task}"] = sum(counts[1:], counts[0]).accuracy
        self.log_dict({f"val/{name}": value for name, value in values.items()}, logger=False)

    def meter(self, stage: str) -> Meter:
        """The sums of the current window of ``train`` or ``val``."""
        if stage not in self._meters:
            self._meters[stage] = Meter(self.kinds, self.byte_lengths, self.device)
        return self._meters[stage]

    def totals(self, stage: str) -> dict[str, float]:
        """The means of a window over all processes; the next window begins."""
        meter = self.meter(stage)
        values = meter.read(self._over_processes(meter.sums))
        meter.reset()
        return values

    def on_train_batch_start(self, batch: Batch, _: int) -> None:
        if self._resumed:  # as late as can be, so that nothing draws a number in between
            states = self._resumed["random"]
            if self.global_rank < len(states):
                randomness.restore(states[self.global_rank])
            if self.global_rank == 0:
                self.meter("train").sums.copy_(self._resumed["window"])
            self._resumed = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = randomness.capture()
        checkpoint["hfa"] = {
            "examples_seen": self.examples_seen,
            "tokens_seen": self.tokens_seen,
            "window": self._over_processes(self.meter("train").sums).cpu(),
            "random": self._from_all(state),
            "material": self.material,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint["hfa"]
        if (before := len(self._resumed["random"])) != (now := self.trainer.world_size):
            log.warning("Going on with %d processes after %d: a step has as many times the examples", now, before)
        self.examples_seen, self.tokens_seen = self._resumed["examples_seen"], self._resumed["tokens_seen"]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by norm, and keep the norm for the log; it comes for free."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or float("inf"))
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a shard has only its part

    def configure_model(self) -> None:
        """Shard the parameters over the processes when the strategy asks for it (``trainer.strategy=fsdp``)."""
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

            mesh = self.device_mesh["data_parallel"]
            for block in self.model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
            for method in ("hidden", "head"):  # called in place of forward
                register_fsdp_forward_method(self.model, method)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_config.build(self.model)
        schedule = self.scheduler_config.build(optimizer, self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return sums
        total: Tensor = self.trainer.strategy.reduce(sums.clone(), reduce_op="sum")
        return total

    def _from_all(self, value: Any) -> list[Any]:
        """What every process has, by rank."""
        values = [value] * self.trainer.world_size
        if len(values) > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def _from_others(self, value: Any) -> list[Any]:
        return [other for rank, other in enumerate(self._from_all(value)) if rank != self.global_rank]
