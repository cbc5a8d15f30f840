"""run.json: what a run is, and how it ended."""

from __future__ import annotations

import fcntl
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from hfa.errors import ConfigError, HFAError
from hfa.training.callbacks import Interrupted
from hfa.training.provenance import provenance
from hfa.training.runs import CONFIG, RUN
from hfa.training.trainer import rank


@contextmanager
def recorded(run_dir: Path, cfg: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Keep run.json and config.yaml in `run_dir` while a run is made.

    What the body adds to the yielded dictionary (``metrics``, say) is written when it ends; ``status`` goes from
    ``running`` to ``finished`` unless the body sets another (``diverged``), to ``interrupted`` (Ctrl-C, SIGTERM) or to
    ``failed``; after a SIGKILL it stays ``running``.

    Raises:
        ConfigError: `run_dir` holds the checkpoints of a run already, or another process is making one there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with _claimed(run_dir), _terminable():
        yield from _recorded(run_dir, cfg)


def _recorded(run_dir: Path, cfg: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if (run_dir / "checkpoints").exists() and not rank():
        expected = "a directory without checkpoints of another run"
        raise ConfigError("hydra.run.dir", str(run_dir), expected, "name another one, or delete it")
    record: dict[str, Any] = {"status": "running", **provenance(cfg)}
    record.pop("config")  # it is in config.yaml
    _write(run_dir / RUN, json.dumps(record, indent=2))
    _write(run_dir / CONFIG, yaml.safe_dump(dict(cfg), sort_keys=False))
    try:
        yield record
        if record["status"] == "running":
            record["status"] = "finished"
    except Interrupted as interrupted:
        record |= {"status": "interrupted"} | ({} if interrupted.step is None else {"step": interrupted.step})
        raise
    except KeyboardInterrupt:
        record["status"] = "interrupted"
        raise
    except BaseException as error:
        sentence = str(error) if isinstance(error, HFAError) else f"{type(error).__name__}: {error}"
        record |= {"status": "failed", "error": sentence}
        raise
    finally:
        _write(run_dir / RUN, json.dumps(record, indent=2))


@contextmanager
def _claimed(run_dir: Path) -> Iterator[None]:
    """Keep other runs out of a directory, for as long as this process lives; its own other ranks may come in."""
    if rank():
        yield
        return
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            expected = "a directory of this run alone, and another one is being made there"
            raise ConfigError("hydra.run.dir", str(run_dir), expected, "name another one") from None
        except OSError:  # a file system without locks
            pass
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run where it is, and is recorded, unless steps are made: those end by themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only that one handle signals
        return

    def stop(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum, None)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@rank_zero_only
def _write(path: Path, text: str) -> None:
    """The old text or the new, whole, however full the disk is."""
    fresh = path.with_suffix(f"{path.suffix}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
