"""A subnet in one JSON file: registrations, permits, stakes and endpoints, for machines without a chain."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from hfa.config import Config, Name, NonNegativeFloat, NonNegativeInt, config, from_mapping
from hfa.errors import ConfigError, NetworkError
from hfa.network.base import Neuron

_FORMAT = 1
_LOCK_TIMEOUT_S = 30.0


@config
class Registration(Config):
    """One neuron of the file.

    Args:
        uid: its number, the lowest that was free.
        hotkey: ss58.
        stake_tao: TAO at stake.
        validator_permit: whether it may query miners.
        endpoint: ``host:port``, or null when it serves nothing.
        registered_block: the change of the file that registered it.
        registered_at: UTC, ISO 8601.
    """

    uid: NonNegativeInt
    hotkey: Name
    stake_tao: NonNegativeFloat
    validator_permit: bool
    endpoint: str | None
    registered_block: NonNegativeInt
    registered_at: Name

    def neuron(self) -> Neuron:
        return Neuron(self.uid, self.hotkey, self.stake_tao, self.validator_permit, self.endpoint)


class SubnetFile:
    """Reads and changes the file of one subnet; safe between processes.

    Every change is made under a lock and replaces the file as a whole, so that a reader sees the file before or
    after it and never between, and needs no lock.

        {"format": 1, "netuid": 1, "block": 2, "neurons": [{"uid": 0, "hotkey": "5F..", "stake_tao": 1000.0, ...}]}

    Args:
        folder: one file a subnet, ``<netuid>.json``.
        netuid: the subnet.
    """

    def __init__(self, folder: Path, netuid: int) -> None:
        self.path, self.netuid = folder / f"{netuid}.json", netuid

    def stamp(self) -> tuple[int, int, int] | None:
        """Something that differs after every change; None when there is no file to see."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def read(self) -> list[Registration]:
        """All registrations by uid, none when there is no file. Raises NetworkError for a torn or foreign file."""
        return self._read()[1]

    def register(self, hotkey: str, *, stake_tao: float, validator_permit: bool) -> Registration:
        """Give `hotkey` a uid, or change the stake and permit of the one it has."""
        with self._change() as (block, registrations):
            old = registrations.get(hotkey)
            registrations[hotkey] = Registration(
                uid=old.uid if old else _free_uid(registrations.values()),
                hotkey=hotkey,
                stake_tao=float(stake_tao),
                validator_permit=validator_permit,
                endpoint=old.endpoint if old else None,
                registered_block=old.registered_block if old else block,
                registered_at=old.registered_at if old else datetime.datetime.now(datetime.UTC).isoformat(),
            )
            return registrations[hotkey]

    def deregister(self, hotkey: str) -> None:
        """Take the uid from `hotkey`. Raises NetworkError when it has none."""
        with self._change() as (_, registrations):
            self._of(hotkey, registrations)
            del registrations[hotkey]

    def publish(self, hotkey: str, endpoint: str | None) -> Registration:
        """Show `endpoint` for `hotkey`. Raises NetworkError when it is not registered."""
        with self._change() as (_, registrations):
            values = {**self._of(hotkey, registrations).to_dict(), "endpoint": endpoint}
            registrations[hotkey] = Registration(**values)
            return registrations[hotkey]

    def _of(self, hotkey: str, registrations: dict[str, Registration]) -> Registration:
        try:
            return registrations[hotkey]
        except KeyError:
            raise NetworkError(f"Hotkey {hotkey} is not registered on netuid {self.netuid} in {self.path}.") from None

    @contextlib.contextmanager
    def _change(self) -> Iterator[tuple[int, dict[str, Registration]]]:
        """The number of this change and the registrations to change; written when the block ends without an error."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(f"{self.path}.lock", timeout=_LOCK_TIMEOUT_S):
                block, old = self._read()
                registrations = {registration.hotkey: registration for registration in old}
                yield block + 1, registrations
                neurons = sorted(registrations.values(), key=lambda registration: registration.uid)
                self._write({"block": block + 1, "neurons": [registration.to_dict() for registration in neurons]})
        except filelock.Timeout:
            remedy = "end the process that holds it"
            raise NetworkError(f"{self.path}.lock is held for more than {_LOCK_TIMEOUT_S:g} s; {remedy}.") from None
        except OSError as error:
            remedy = "set network.folder to one that can be written"
            raise NetworkError(f"{self.path} cannot be written ({error}); {remedy}.") from error

    def _read(self) -> tuple[int, list[Registration]]:
        try:
            document = json.loads(self.path.read_bytes())
            if document["format"] != _FORMAT or document["netuid"] != self.netuid:
                raise ValueError(f"format {_FORMAT} of netuid {self.netuid} was expected")
            registrations = [
                from_mapping(Registration, values, f"neurons[{index}]")
                for index, values in enumerate(document["neurons"])
            ]
            return int(document["block"]), registrations
        except FileNotFoundError:
            return 0, []
        except OSError as error:
            raise NetworkError(f"{self.path} cannot be read ({error}).") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
            what = str(error).rstrip(".") or type(error).__name__
            remedy = "delete it and register again"
            raise NetworkError(f"{self.path} is not a whole subnet file ({what}); {remedy}.") from error

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps({"format": _FORMAT, "netuid": self.netuid, **content}, indent=1)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink()
            raise


def _free_uid(registrations: Iterable[Registration]) -> int:
    taken = {registration.uid for registration in registrations}
    return next(uid for uid in range(len(taken) + 1) if uid not in taken)
