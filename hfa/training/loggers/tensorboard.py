"""TensorBoard, an extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from hfa.config import config
from hfa.errors import ConfigError
from hfa.training.loggers.base import LoggerConfig, RunInfo
from hfa.training.loggers.media import Media


@config
class TensorBoardConfig(LoggerConfig):
    """Event files below ``tensorboard/`` in the run directory."""

    def build(self, run: RunInfo) -> Logger:
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("logger", "tensorboard", "TensorBoard to be installed", "pip install 'hfa[tensorboard]'")
        return TensorBoard(run.run_dir, name="tensorboard", version="", default_hp_metric=False)


class TensorBoard(TensorBoardLogger, Media):
    """Lightning's, with pictures and texts."""

    def show_picture(self, key: str, path: Path, step: int) -> None:
        self.experiment.add_image(key, matplotlib.image.imread(path)[..., :3], step, dataformats="HWC")

    def show_texts(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        for number, row in enumerate(rows):
            cells = "\n\n".join(f"**{name}**\n\n```\n{cell}\n```" for name, cell in zip(columns, row, strict=True))
            self.experiment.add_text(f"{key}/{number}", cells, step)

    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        lines = [" | ".join(map(str, row)) for row in (columns, ["---"] * len(columns), *rows)]
        self.experiment.add_text(key, "\n".join(f"| {line} |" for line in lines), step)

    def keep_folder(self, folder: Path, *, name: str, metadata: dict[str, Any]) -> None:
        """Event files keep none."""

    def close(self) -> None:
        self.experiment.close()
