"""Any files and folders of UTF-8 text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hfa.config import PositiveInt, config
from hfa.data.texts.base import TextConfig
from hfa.errors import ConfigError, DataError


@config
class FilesConfig(TextConfig):
    """Files and folders.

    Args:
        paths: files are read whatever their name, folders are searched.
        suffixes: what a file found in a folder must end with.
        exclude: names of folders that are not searched.
        max_document_chars: a longer file is cut at line ends into documents of at most this; None keeps files whole.
    """

    paths: tuple[str, ...]
    suffixes: tuple[str, ...]
    exclude: tuple[str, ...]
    max_document_chars: PositiveInt | None

    def check(self) -> None:
        if not self.paths:
            raise ConfigError("paths", [], "at least one file or folder", "e.g. data.paths=[book.txt]")
        for path in self.paths:
            if not Path(path).exists():
                raise ConfigError("paths", path, "a file or folder that is there")

    def read(self) -> Iterator[str]:
        for path in self._files():
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file or leave it out.") from None
            yield from cut(text, self.max_document_chars) if self.max_document_chars else [text]

    def fingerprint(self) -> str:
        return f"{self.max_document_chars} {file_fingerprint(self._files())}"

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for path in map(Path, self.paths):
            found += [path] if path.is_file() else find_files(path, self.suffixes, self.exclude)
        if not found:
            raise DataError(f"no file that ends with {', '.join(self.suffixes)} in {', '.join(self.paths)}.")
        return list(dict.fromkeys(found))


def find_files(folder: Path, suffixes: tuple[str, ...], exclude: tuple[str, ...]) -> list[Path]:
    """The files below `folder` that end with one of `suffixes`, sorted; folders named in `exclude` are skipped."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in exclude]
        found += [Path(where, name) for name in names if name.endswith(suffixes)]
    return sorted(found)


def file_fingerprint(files: Iterable[Path]) -> str:
    """The files' names, sizes and times of change."""
    stats = [(path, path.stat()) for path in files]
    return " ".join(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)


def cut(text: str, limit: int) -> Iterator[str]:
    """`text` in pieces of at most `limit` characters that end at line ends where there are any."""
    start = 0
    while start < len(text):
        stop = start + limit
        if stop < len(text):
            stop = text.rfind("\n", start, stop) + 1 or stop
        yield text[start:stop]
        start = stop
