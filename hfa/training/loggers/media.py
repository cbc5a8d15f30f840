"""What only some loggers can take: pictures, texts and folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from hfa.training.loggers.wandb import Wandb


def log_picture(loggers: Iterable[Logger], key: str, path: Path, step: int) -> None:
    """Show a PNG file."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_image(key, [str(path)], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, matplotlib.image.imread(path)[..., :3], step, dataformats="HWC")


def log_texts(
    loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    """Show a table of texts."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_text(key, list(columns), [list(row) for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            for number, row in enumerate(rows):
                cells = "\n\n".join(f"**{name}**\n\n```\n{cell}\n```" for name, cell in zip(columns, row, strict=True))
                logger.experiment.add_text(f"{key}/{number}", cells, step)


def log_table(
    loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int
) -> None:
    """Show a table of numbers; nothing where it has no rows."""
    if not rows:
        return
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_table(key, list(columns), [list(row) for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [" | ".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
            logger.experiment.add_text(key, "\n".join(f"| {line} |" for line in lines), step)


def log_folder(loggers: Iterable[Logger], folder: Path, *, name: str, metadata: dict[str, Any]) -> None:
    """Keep a model artifact."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.log_folder(folder, name=name, metadata=metadata)


def close(loggers: Iterable[Logger]) -> None:
    """Write what is left and let go."""
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.close()
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.close()
