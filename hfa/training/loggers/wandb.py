"""Weights & Biases, which may be far away, locked or down: a run goes on without it."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning.pytorch.loggers import Logger, WandbLogger

from hfa.config import PositiveFloat, config
from hfa.errors import CheckpointError, HFAError, PassingError, first_line
from hfa.training.loggers.base import LoggerConfig, RunInfo
from hfa.training.loggers.media import Media
from hfa.training.trainer import rank

log = logging.getLogger(__name__)


@config
class WandbConfig(LoggerConfig):
    """Where runs are sent. `mode=auto` is online with credentials and offline without."""

    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    mode: Literal["auto", "online", "offline"]
    init_timeout_s: PositiveFloat
    finish_timeout_s: PositiveFloat
    log_artifact: bool

    def build(self, run: RunInfo) -> Logger:
        if rank():
            return Wandb(None, log_artifact=False)
        wandb.setup(wandb.Settings(silent=True))  # what matters of what it says is said here
        mode: Any = os.environ.get("WANDB_MODE", "auto") if self.mode == "auto" else self.mode
        why = f"mode={mode}"
        if mode == "auto":
            mode, why = (
                ("online", "") if has_credentials() else ("offline", "no credentials; `wandb login` stores some")
            )
        try:
            return self._begin(run, mode, why)
        except (wandb.Error, ValueError) as error:  # nothing is far away now: it is a name or a tag that wandb refuses
            said = " ".join(str(error).split()).rstrip(".")
            raise HFAError(f"logger.wandb: {said}; change what it names, or leave it out.") from None

    def _begin(self, run: RunInfo, mode: Any, why: str) -> Wandb:
        """Start as `mode` says, or offline where that is online and cannot be."""
        if mode == "online":
            try:
                return self._start(run, "online")
            except wandb.Error as error:
                mode, why = "offline", first_line(error)
        log.info("wandb: %s (%s).", mode, why)
        return self._start(run, mode)

    def _start(self, run: RunInfo, mode: Literal["online", "offline", "disabled"]) -> Wandb:
        previous = run_id(run.resumed_from) if run.resumed_from else None
        started = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags),
            name="/".join((run.name, *_distinct(run.run_dir))),
            dir=run.run_dir,
            config=dict(run.cfg),
            mode=mode,
            id=previous,
            resume="allow" if previous and mode == "online" else None,
            settings=wandb.Settings(
                init_timeout=self.init_timeout_s,
                finish_timeout=self.finish_timeout_s,
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )
        started.define_metric("*", step_metric="trainer/global_step")
        if mode == "online":
            log.info("wandb: %s", started.url)
        return Wandb(started, log_artifact=self.log_artifact)


class Wandb(WandbLogger, Media):
    """A started wandb run. What goes wrong in it is logged once, and then it is left alone.

    Args:
        run: from ``wandb.init``; None in processes that do not log.
        log_artifact: whether :meth:`keep_folder` does anything.
    """

    def __init__(self, run: wandb.Run | None, *, log_artifact: bool) -> None:
        super().__init__(project=run.project if run else None, experiment=run)
        self._run, self._log_artifact, self._broken = run, log_artifact, False

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self._broken:  # numbers are only written down; tables and pictures would wait for an answer
            metrics = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        if metrics:
            self._attempt(lambda: super(Wandb, self).log_metrics(metrics, step))

    def show_picture(self, key: str, path: Path, step: int) -> None:
        self.log_image(key, [str(path)], step)

    def show_texts(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        self.show_table(key, columns, rows, step)

    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        self.log_table(key, list(columns), [list(row) for row in rows], step=step)

    def keep_folder(self, folder: Path, *, name: str, metadata: dict[str, Any]) -> None:
        """Upload a model artifact, under the aliases ``latest`` and ``best``."""
        if not self._log_artifact or self._run is None or self._broken:
            return
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model", metadata=metadata)
        artifact.add_dir(str(folder))
        run = self._run
        self._attempt(lambda: run.log_artifact(artifact, aliases=["latest", "best"]))

    def close(self) -> None:
        """End the run, waiting for uploads no longer than configured, and say how to sync what is left."""
        if self._run is None:
            return
        run, self._run = self._run, None
        folder, offline = Path(run.dir).parent, run.offline
        failed = sys.exc_info()[0] is not None  # this is on the way out of a run that ends early
        sent = self._attempt(lambda: run.finish(exit_code=1 if failed else 0))
        if offline or not sent or self._broken:
            log.info("wandb: send this run with `wandb sync %s`", folder)

    def _attempt(self, action: Callable[[], Any]) -> bool:
        """Whether it worked."""
        try:
            action()
        except (wandb.Error, OSError) as error:  # a TimeoutError is an OSError
            if not self._broken:
                reason = first_line(error)
                log.warning("wandb: %s; what it did not get is kept in the run directory.", reason)
            self._broken = True
            return False
        return True


def _distinct(run_dir: Path) -> tuple[str, ...]:
    """The folder's name; of a sweep's job, which is a number, that of the sweep as well."""
    return (run_dir.parent.name, run_dir.name) if run_dir.name.isdigit() else (run_dir.name,)


def has_credentials() -> bool:
    """Whether wandb finds credentials without asking anybody for them."""
    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        log.warning("wandb: the credentials cannot be used (%s).", error)
        return False


def run_id(run_dir: Path) -> str | None:
    """The id of the wandb run that `run_dir` was logged to, if it was."""
    folders = sorted((run_dir / "wandb").glob("*run-*-*"))
    return folders[-1].name.rpartition("-")[2] if folders else None


def download(spec: str, root: Path) -> Path:
    """Fetch the artifact that ``wandb:entity/project/name:alias`` means, once, into a folder below `root`.

    Raises:
        PassingError: wandb does not answer.
        CheckpointError: it does not exist, or cannot be read.
    """
    name = spec.removeprefix("wandb:")
    if not has_credentials():
        raise CheckpointError(f"checkpoint={spec}: wandb has no credentials here; run `wandb login` first.")
    try:
        artifact = wandb.Api(timeout=30).artifact(name, type="model")
        where = (artifact.source_entity, artifact.source_project, artifact.source_name.replace(":", "-"))
        return Path(artifact.download(root=str(root.joinpath("wandb", *where))))
    except (wandb.Error, OSError, ValueError) as error:
        reason = first_line(error)
        if _is_away(error):
            raise PassingError(f"checkpoint={spec}: wandb does not answer ({reason}).") from None
        raise CheckpointError(f"checkpoint={spec}: wandb gave no such artifact ({reason}).") from None


def _is_away(error: BaseException | None) -> bool:
    """Whether it began with a connection: wandb has one error for that and for credentials that are refused."""
    while error is not None:
        if isinstance(error, TimeoutError | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False
