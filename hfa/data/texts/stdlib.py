"""The source text of the Python standard library that runs the program: real text with nothing to download."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hfa.config import config
from hfa.data.texts.base import TextConfig
from hfa.data.texts.files import file_fingerprint, find_files
from hfa.errors import DataError


@config
class StdlibConfig(TextConfig):
    """Python files of the standard library, one document each; those in other encodings than UTF-8 are left out.

    Args:
        exclude: names of folders that are not searched.
    """

    exclude: tuple[str, ...]

    def read(self) -> Iterator[str]:
        for path in self._files():
            try:
                text = path.read_bytes().decode()
            except UnicodeDecodeError:  # the library's own tests of other encodings
                continue
            yield text

    def fingerprint(self) -> str:
        return file_fingerprint(self._files())

    def _files(self) -> list[Path]:
        folder = Path(sysconfig.get_path("stdlib"))
        found = find_files(folder, (".py",), self.exclude)
        if not found:
            raise DataError(f"{folder}: this Python comes without the source of its library; choose data=text.")
        return found
