"""``mode=train``: data, model, trainer, and what is left of a run."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from hfa.errors import ConfigError, DataError
from hfa.models import LanguageModel
from hfa.training.callbacks import Checkpoints, Interrupted, Interruption, Surroundings, Telemetry, ValidateLast
from hfa.training.datamodule import DataModule, said_by_worker
from hfa.training.loggers import MetricsCSV, RunInfo, media
from hfa.training.module import LMModule
from hfa.training.randomness import seed_everything
from hfa.training.record import recorded
from hfa.training.resume import Resumed, find_resumed, material
from hfa.training.settings import Settings, TrainSettings, read_settings
from hfa.training.trainer import rank
from hfa.types import Source, Tokenizer

log = logging.getLogger(__name__)


def train(cfg: Mapping[str, Any], run_dir: Path, *, interactive: bool = False) -> dict[str, float]:
    """Train a model as `cfg` says.

    Args:
        cfg: the resolved configuration, plain data.
        run_dir: gets run.json, config.yaml, metrics.csv, samples.txt, plots/ and checkpoints/.
        interactive: whether a person may be looking at the terminal; a bar is drawn then.

    Returns:
        The newest value of every metric, the best of the monitored one (``best/val/loss``), ``parameters``, and
        ``tokens_per_s`` over the whole run.

    Raises:
        HFAError: what the user has to change.
        Interrupted: a signal came; the checkpoints are written.
    """
    settings = read_settings(cfg, TrainSettings)
    settings.trainer.prepare()
    with recorded(run_dir, cfg) as record:
        resumed = find_resumed(settings.resume, cfg) if settings.resume else None
        tokenizer, source = build_data(settings)
        model = build_model(settings, tokenizer, source)
        if resumed:
            resumed.check(model, tokenizer, source)
        telemetry = Telemetry(settings.trainer.log_every_n_steps)
        with started_loggers(settings, cfg, run_dir, resumed) as loggers:
            around = Surroundings(cfg, run_dir, tokenizer, source, telemetry, interactive)
            chosen = [callback.build(around) for callback in settings.callbacks.values()]
            chosen.sort(key=lambda callback: isinstance(callback, Checkpoints))
            # A step is first logged, then shown, then saved with what all callbacks know, then perhaps the last.
            callbacks = [telemetry, *chosen, ValidateLast(), Interruption(), telemetry.clock]
            trainer = settings.trainer.build(loggers=loggers, callbacks=callbacks, run_dir=str(run_dir))
            module = build_module(settings, model, tokenizer, source)
            _announce(settings, model, source, trainer.world_size, run_dir, resumed)
            began, worked = time.monotonic(), time.process_time()
            try:
                fit(trainer, module, DataModule(source, settings.loader), resumed)
            finally:
                metrics = {
                    **telemetry.latest,
                    "tokens_per_s": telemetry.tokens_per_s,
                    "parameters": float(model.num_parameters),
                    "step": float(trainer.global_step),
                    "seconds": time.monotonic() - began,
                    "cpu_seconds": time.process_time() - worked,  # of the first process, on however busy a machine
                }
                for checkpoints in chosen:
                    if isinstance(checkpoints, Checkpoints) and checkpoints.best is not None:
                        metrics[f"best/{checkpoints.monitor}"] = checkpoints.best
                record["metrics"] = metrics
            if lost := [name for name in ("train/loss", "val/loss") if not math.isfinite(metrics.get(name, 0.0))]:
                record["status"] = "diverged"
                if trainer.is_global_zero:
                    log.warning("Diverged: the last %s is %g; try a lower optimizer.lr", lost[-1], metrics[lost[-1]])
            best = run_dir / "checkpoints" / "best"
            if trainer.is_global_zero and not best.is_dir():
                log.warning("Done in %.0f s, without a best checkpoint", metrics["seconds"])
            elif trainer.is_global_zero:
                log.info("Done in %.0f s. The best checkpoint: %s", metrics["seconds"], best)
                for logger in media(loggers):
                    logger.keep_folder(best, name=settings.name, metadata=metrics)
    return metrics


def build_data(settings: TrainSettings) -> tuple[Tokenizer, Source]:
    """The tokenizer, trained first if it is one that is, and the source."""
    tokenizer = settings.tokenizer.build(settings.data.documents, settings.cache)
    return tokenizer, settings.data.build(tokenizer, settings.cache)


def build_model(settings: TrainSettings, tokenizer: Tokenizer, source: Source) -> LanguageModel:
    """The model with fresh weights, which depend on the seed alone.

    Raises:
        ConfigError: the data has token ids that the model lacks.
    """
    needed = max(tokenizer.vocab_size, source.vocab_size)
    there = settings.model.vocab_size
    if there < needed:
        expected = f"at least {needed}, the ids of the tokenizer and the data"
        raise ConfigError("model.vocab_size", there, expected, f"set model.vocab_size={needed}")
    if there > 2 * needed:
        log.info("model.vocab_size=%d, and the tokenizer and the data use %d ids.", there, needed)
    seed_everything(settings.seed)
    model = settings.model.build()
    seed_everything(settings.seed + rank())  # each process has its own dropout
    return model


def build_module(settings: TrainSettings, model: LanguageModel, tokenizer: Tokenizer, source: Source) -> LMModule:
    """The model with what trains it."""
    byte_lengths = torch.zeros(settings.model.vocab_size, dtype=torch.long)
    byte_lengths[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.byte_lengths())
    return LMModule(
        model,
        kinds={name: part.kind for name, part in source.parts().items()},
        byte_lengths=byte_lengths,
        material=material(tokenizer, source),
        optimizer=settings.optimizer,
        scheduler=settings.scheduler,
        max_steps=settings.trainer.max_steps,
        loss_average=settings.trainer.loss_average,
        depth_bins=settings.evaluate.depth_bins,
        compile=settings.trainer.compile,
    )


def fit(trainer: L.Trainer, module: LMModule, data: DataModule, resumed: Resumed | None) -> None:
    """Train, and say why it stopped before its last step; how to go on where a signal stopped it."""
    checkpoint = str(resumed.checkpoint) if resumed else None
    for part in data.source.parts().values():
        part.example(0, "train")
        if part.kind == "recall":  # what is wrong is said here, before any step is made
            part.example(0, "val")
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        for stopping in trainer.early_stopping_callbacks:
            if stopping.stopping_reason_message and trainer.global_step < trainer.max_steps and trainer.is_global_zero:
                why, _, _ = stopping.stopping_reason_message.partition(" Signaling")
                log.info("Stopped after step %d of %d: %s", trainer.global_step, trainer.max_steps, why)
    except (DataError, RuntimeError) as error:
        if said := said_by_worker(error):
            raise DataError(said) from None
        raise
    except Interrupted as interrupted:
        if trainer.is_global_zero and interrupted.step is not None:
            log.info("Stopped by %s. Go on with the same command and resume=%s", interrupted, trainer.default_root_dir)
        raise
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # a second Ctrl-C, which Lightning exits after with 1
            raise KeyboardInterrupt from None
        raise


@contextmanager
def started_loggers(
    settings: Settings, cfg: Mapping[str, Any], run_dir: Path, resumed: Resumed | None
) -> Iterator[list[Logger]]:
    """metrics.csv and the configured loggers, closed at the end whatever happens."""
    old_metrics = resumed.run_dir / "metrics.csv" if resumed else None
    metrics = MetricsCSV(run_dir / "metrics.csv", resumed_from=old_metrics, resumed_step=resumed.step if resumed else 0)
    run = RunInfo(cfg["name"], run_dir, cfg, resumed.run_dir if resumed else None)
    loggers: list[Logger] = [metrics]
    try:
        for logger in settings.logger.values():
            loggers.append(logger.build(run))
        yield loggers
    finally:
        for started in media(loggers):
            started.close()


@rank_zero_only
def _announce(
    settings: TrainSettings,
    model: LanguageModel,
    source: Source,
    processes: int,
    run_dir: Path,
    resumed: Resumed | None,
) -> None:
    log.info(
        "Training %s (%s parameters) on %s, %d steps of %d x %d tokens, into %s",
        settings.model.title,
        f"{model.num_parameters:,}",
        " + ".join(source.parts()),
        settings.trainer.max_steps,
        settings.loader.batch_size * settings.trainer.accumulate_grad_batches * processes,
        source.seq_len,
        run_dir,
    )
    if resumed:
        log.info("Going on after step %d of %s", resumed.step, resumed.run_dir)
