"""Data sets of the Hugging Face hub, or in its format on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hfa.config import PositiveInt, config
from hfa.data.texts.base import TextConfig
from hfa.data.texts.files import file_fingerprint, find_files
from hfa.errors import ConfigError, DataError


@config
class HubConfig(TextConfig):
    """One column of a data set, each row a document.

    Args:
        name: a folder that `save_to_disk` wrote, a folder of data files, or a data set's name on the hub.
        subset: which configuration of the data set; None for its only one.
        revision: commit, tag or branch on the hub; None for its newest.
        split: which of the data set's splits to read; val and test are held out of it.
        column: holds the text.
        streaming: read rows as they come in place of downloading everything first.
        max_documents: read no more rows than this; None reads all.
    """

    subset: str | None
    revision: str | None
    split: str
    column: str
    streaming: bool
    max_documents: PositiveInt | None

    def check(self) -> None:
        if not self.name:
            raise ConfigError("name", self.name, "a data set's name on the hub or a folder", "set data.name")

    def read(self) -> Iterator[str]:
        try:
            for row in itertools.islice(self._rows(), self.max_documents):
                text = row.get(self.column)
                if not isinstance(text, str):
                    columns = ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
                    raise DataError(f"{self.name}: column {self.column!r} holds no text; columns that do: {columns}.")
                yield text
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise DataError(f"{self.name}: the data set cannot be read ({reason}); check name and network.") from None

    def fingerprint(self) -> str:
        files = find_files(Path(self.name), ("",), ()) if Path(self.name).is_dir() else []
        chosen = (self.name, self.subset, self.revision, self.split, self.column, self.max_documents)
        return f"{chosen} {file_fingerprint(files)}"

    def _rows(self) -> Any:
        """Rows, as mappings from column to value."""
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError("data=hub needs the `datasets` package: pip install 'hfa[hub]'.") from None
        if any((Path(self.name) / saved).is_file() for saved in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(self.name)
            if not isinstance(found, datasets.DatasetDict):
                return found
            if self.split not in found:
                raise ValueError(f"its splits are {', '.join(found)}, not {self.split!r}")
            return found[self.split]
        return datasets.load_dataset(
            self.name, self.subset, revision=self.revision, split=self.split, streaming=self.streaming
        )
