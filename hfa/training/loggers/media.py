"""What some loggers take besides numbers: pictures, texts, tables and folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger


class Media(ABC):
    """A logger that takes more than numbers, and is closed when a run ends, as Lightning closes none."""

    @abstractmethod
    def show_picture(self, key: str, path: Path, step: int) -> None:
        """Show a PNG file."""

    @abstractmethod
    def show_texts(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
        """Show a table of texts."""

    @abstractmethod
    def show_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Show a table of numbers, of one row at least."""

    @abstractmethod
    def keep_folder(self, folder: Path, *, name: str, metadata: dict[str, Any]) -> None:
        """Keep a model artifact, if the logger keeps any."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and let go."""


def media(loggers: Iterable[Logger]) -> list[Media]:
    """Those that take more than numbers."""
    return [logger for logger in loggers if isinstance(logger, Media)]
