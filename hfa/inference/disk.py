"""Checkpoints on disk: one safetensors file each, found again after a restart."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from hfa.errors import ConfigError

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


class Stored(NamedTuple):
    """What a file has: the tensors of constant size, and of each exact memory those of the pages since the parent."""

    recurrent: list[Tensor]
    pages: list[list[Tensor]]


class Origin(NamedTuple):
    """Whose states they are; no other may go on from them."""

    model: str  # hash of the weights
    tokenizer: str  # fingerprint of the vocabulary


class CheckpointFolder:
    """A folder of checkpoints within a budget; the one unused for longest goes first.

        path / model-tokenizer / key.safetensors      models that share a path share no file

    Args:
        path: where the folder is made when it is not there.
        origin: the model and tokenizer in use, by which it is called.
        budget_bytes: for all of its files.
    """

    def __init__(self, path: Path, origin: Origin, budget_bytes: int) -> None:
        path = path / f"{origin.model}-{origin.tokenizer}"
        self.path, self.origin, self._budget = path, origin, budget_bytes
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "checkpoint_dir", str(path.parent), f"a folder that can be written ({error.strerror})"
            ) from None
        for torn in path.glob("*.new"):
            torn.unlink(missing_ok=True)
        self._sizes = {file.name: file.stat().st_size for file in path.glob(f"*{_SUFFIX}")}

    @property
    def num_bytes(self) -> int:
        return sum(self._sizes.values())

    def write(
        self, key: bytes, parent: bytes, position: int, recurrent: Sequence[Tensor], pages: Sequence[Sequence[Tensor]]
    ) -> None:
        """Write a checkpoint; a reader finds it whole or not at all. A disk that is full costs a warning."""
        tensors = {f"recurrent.{i}": x for i, x in enumerate(recurrent)}
        tensors |= {f"pages.{i}.{j}": x for i, store in enumerate(pages) for j, x in enumerate(store)}
        file = self._file(key)
        fresh = file.with_suffix(".new")
        facts = {"position": str(position), "parent": parent.hex()}  # for whoever looks at it
        try:
            contiguous = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
            safetensors.torch.save_file(contiguous, fresh, metadata=facts)
            fresh.replace(file)
            self._sizes[file.name] = file.stat().st_size
            self._make_room()
        except (OSError, safetensors.SafetensorError) as error:
            log.warning("A checkpoint could not be written to %s: %s", self.path, error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)

    def read(self, key: bytes) -> Stored | Literal["", "other model", "other tokenizer"]:
        """A checkpoint, or why there is none: nothing there, or another's."""
        file = self._file(key)
        if file.name not in self._sizes:
            return self._elsewhere(file.name)
        try:
            tensors = safetensors.torch.load_file(file)
        except (OSError, safetensors.SafetensorError) as error:
            log.warning("%s is torn and is removed (%s)", file, error)
            self.remove(key)
            return ""
        stores: list[list[Tensor]] = []
        while store := _numbered(tensors, f"pages.{len(stores)}"):
            stores.append(store)
        return Stored(_numbered(tensors, "recurrent"), stores)

    def use(self, keys: Sequence[bytes]) -> None:
        """Note that a path of checkpoints is used, its stem last: it outlives what cannot be found without it."""
        now = time.time_ns()
        for i, key in enumerate(reversed(keys)):
            with contextlib.suppress(OSError):
                os.utime(self._file(key), ns=(now + i, now + i))

    def remove(self, key: bytes) -> None:
        """Delete a checkpoint, if it is there."""
        self._remove(self._file(key).name)

    def _elsewhere(self, name: str) -> Literal["", "other model", "other tokenizer"]:
        owners = {file.parent.name.partition("-")[0] for file in self.path.parent.glob(f"*/{name}")}
        if self.origin.model in owners:
            return "other tokenizer"
        return "other model" if owners else ""

    def _file(self, key: bytes) -> Path:
        return self.path / f"{key.hex()}{_SUFFIX}"

    def _make_room(self) -> None:
        while self.num_bytes > self._budget and self._sizes:
            times = {name: (self.path / name).stat().st_mtime_ns for name in self._sizes if (self.path / name).exists()}
            oldest = min(self._sizes, key=lambda name: times.get(name, 0))
            self._remove(oldest)

    def _remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
        self._sizes.pop(name, None)


def _numbered(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """``name.0``, ``name.1`` and so on, as far as they go."""
    found: list[Tensor] = []
    while (tensor := tensors.get(f"{name}.{len(found)}")) is not None:
        found.append(tensor)
    return found
