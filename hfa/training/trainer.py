"""Where and how long a run trains."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only

from hfa.config import Config, PositiveFloat, PositiveInt, config
from hfa.errors import ConfigError

# What Lightning says about choices that are made on purpose here.
_CHATTER = (
    "The '.*_dataloader' does not have many workers",
    "Starting from v1.9.0, `tensorboardX` has been removed",
    "You're resuming from a checkpoint that ended before the epoch ended",
    "It is recommended to use `self.log",  # of metrics that are reduced before they are logged
    "FSDP2-wrapped module .* returned a view tensor",  # states are values here, never changed in place
    "`isinstance.treespec, LeafSpec.` is deprecated",
)

_THREADS = torch.get_num_threads()  # torch's own choice, which an earlier run of a sweep may have changed


def rank() -> int:
    """Which of the processes of a run this is; known before the trainer is built."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


def quieten() -> None:
    """Let Lightning warn of what is wrong, and no more."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _CHATTER:
        warnings.filterwarnings("ignore", message)


@config
class TrainerConfig(Config):
    """The machine, the length of the run and the size of a step."""

    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int  # -1 takes all there are
    num_nodes: PositiveInt
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"]
    max_steps: PositiveInt
    val_check_interval: PositiveInt
    log_every_n_steps: PositiveInt
    accumulate_grad_batches: PositiveInt
    gradient_clip_val: PositiveFloat | None
    loss_average: Literal["tokens", "examples"]
    compile: bool
    threads: PositiveInt | None
    deterministic: bool

    def check(self) -> None:
        if self.devices < 1 and self.devices != -1:
            raise ConfigError("devices", self.devices, "a number of devices, or -1 for all there are")
        if self.strategy == "auto" and (self.devices != 1 or self.num_nodes != 1):
            raise ConfigError("strategy", self.strategy, "ddp or fsdp for more than one device", "add trainer=ddp")

    def build(self, *, loggers: Sequence[Logger], callbacks: Sequence[L.Callback], run_dir: str) -> L.Trainer:
        """The Lightning trainer."""
        return L.Trainer(
            accelerator=self.device_kind,
            devices=self.num_devices,
            num_nodes=self.num_nodes,
            strategy=self._strategy(),
            precision=self._precision(),
            max_steps=self.max_steps,
            max_epochs=-1,
            val_check_interval=self.val_check_interval * self.accumulate_grad_batches,
            check_val_every_n_epoch=None,  # the stream has no epochs: validations are counted in batches
            log_every_n_steps=self.log_every_n_steps,
            accumulate_grad_batches=self.accumulate_grad_batches,
            gradient_clip_val=self.gradient_clip_val,
            deterministic="warn" if self.deterministic and self.device_kind == "gpu" else self.deterministic,
            logger=list(loggers),
            callbacks=list(callbacks),
            default_root_dir=run_dir,
            num_sanity_val_steps=0,
            enable_checkpointing=False,  # these three have callbacks of this package
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # the data module gives each process its share of the stream
        )

    def prepare(self) -> None:
        """Make `threads` so, and look whether the devices are there before anything expensive begins.

        Raises:
            ConfigError: this machine lacks the accelerator or the devices; or the run is not of as many processes as
                are there already, those of a sweep's first distributed job.
        """
        torch.set_num_threads(self.threads or _THREADS)
        quieten()
        processes = self.num_devices * self.num_nodes
        if self.strategy == "auto" and rank():
            raise ConfigError("trainer.strategy", self.strategy, f"ddp or fsdp in process {rank()} of several")
        there = dist.get_world_size() if dist.is_available() and dist.is_initialized() else processes
        if there != processes:
            remedy = "start one command for each number of processes"
            raise ConfigError("trainer.devices", self.devices, f"{there} in all, as in the sweep's first job", remedy)

    @property
    def device_kind(self) -> Literal["cpu", "gpu"]:
        """``auto`` decided.

        Raises:
            ConfigError: a GPU is asked for and there is none.
        """
        if self.accelerator == "auto":
            return "gpu" if torch.cuda.is_available() else "cpu"
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError("trainer.accelerator", "gpu", "a CUDA device on this machine", "use trainer=cpu")
        return self.accelerator

    @property
    def num_devices(self) -> int:
        """Devices of one node, with -1 resolved.

        Raises:
            ConfigError: more than there are, or all there are where there is no GPU.
        """
        if self.device_kind == "cpu":
            if self.devices == -1:
                raise ConfigError("trainer.devices", self.devices, "a number of processes on a machine without GPUs")
            return self.devices
        there = torch.cuda.device_count()
        if self.devices > there:
            raise ConfigError("trainer.devices", self.devices, f"at most the {there} GPUs of this machine")
        return there if self.devices == -1 else self.devices

    def _strategy(self) -> str | Strategy:
        if self.strategy == "ddp":
            return DDPStrategy()
        if self.strategy == "fsdp":
            return ModelParallelStrategy(
                data_parallel_size=self.num_devices * self.num_nodes,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
            )
        return "auto"

    def _precision(self) -> Any:
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if self.device_kind == "gpu" and torch.cuda.is_bf16_supported() else "32-true"
