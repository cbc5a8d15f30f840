"""The track record of each architecture, kept across restarts."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pydantic

from hfa.inference import FinishReason, Timing
from hfa.serving.schemas import LastError, ModelStatistics
from hfa.serving.selection import Track

log = logging.getLogger(__name__)

FORMAT = 1
_RECENT = 1000  # requests that percentiles are taken of
_READ = 1 / 16  # of what a token of an answer counts, one that is read: prompts are read many tokens at once
_OUTCOMES: dict[FinishReason, Literal["succeeded", "failed", "cancelled", "expired"]] = {
    "stop": "succeeded",
    "length": "succeeded",
    "error": "failed",
    "cancelled": "cancelled",
    "deadline": "expired",
    "displaced": "expired",
    "shutdown": "expired",
}


@dataclass
class Record:
    """What is kept of one architecture."""

    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # of the requests that succeeded, from submission to the last token
    prefill_s: float = 0.0
    decode_s: float = 0.0  # of answers of more than one token, from the first
    decode_tokens: int = 0  # that came in those seconds
    last_used: float = 0.0  # unix time
    cached_tokens: int = 0  # of the prompts, found in checkpoints
    misses: dict[str, int] = field(default_factory=dict)  # why no more was found: how often
    error_at: float = 0.0  # unix time
    error: str = ""  # "RuntimeError: ..."; the text may name files, so only its type is public
    recent: list[float | None] = field(default_factory=list)  # seconds of the latest requests; None for a failed one
    paces: list[float | None] = field(default_factory=list)  # and seconds a token, of those the model had them for


@dataclass
class _File:
    format: Literal[1]
    architectures: dict[str, Record]


_FILE = pydantic.TypeAdapter(_File)


class Statistics:
    """Counts what happens to requests, from any thread, and writes it down.

    Args:
        path: a JSON file. One that cannot be read is set aside with a warning, and counting begins anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records = _read(path)
        self._changed = False
        self._unwritable = False

    def begin(self, name: str) -> None:
        """A request is given to `name`."""
        with self._lock:
            self._record(name).last_used = time.time()

    def end(
        self,
        name: str,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        timing: Timing,
        cached_tokens: int = 0,
        miss: str = "",
        error: str = "",
    ) -> None:
        """A request to `name` has ended."""
        with self._lock:
            record = self._record(name)
            outcome = _OUTCOMES[reason]
            record.requests += 1
            setattr(record, outcome, getattr(record, outcome) + 1)
            record.prompt_tokens += prompt_tokens
            record.completion_tokens += completion_tokens
            record.cached_tokens += cached_tokens
            if miss:
                record.misses[miss] = record.misses.get(miss, 0) + 1
            record.prefill_s += timing.prefill_s
            if completion_tokens > 1 and timing.decode_s > 0:
                record.decode_s += timing.decode_s
                record.decode_tokens += completion_tokens - 1
            if outcome == "succeeded":
                record.seconds += sum(timing)
                record.recent.append(sum(timing))
                tokens = completion_tokens + _READ * (prompt_tokens - cached_tokens)
                record.paces.append((timing.prefill_s + timing.decode_s) / max(1.0, tokens))
            elif outcome == "failed":
                record.recent.append(None)
                record.paces.append(None)
                record.error_at, record.error = time.time(), error
            del record.recent[:-_RECENT], record.paces[:-_RECENT]
            self._changed = True

    def track(self, name: str, window: int) -> Track:
        """How `name` did in its latest `window` requests."""
        with self._lock:
            record = self._records.get(name) or Record()
            recent, paces = record.recent[-window:], record.paces[-window:]
            idle_s = max(0.0, time.time() - record.last_used)
        if not recent:
            return Track(idle_s=idle_s)
        succeeded = sum(seconds is not None for seconds in recent)
        slowest = percentile([pace for pace in paces if pace is not None], 0.95)
        return Track(len(recent), succeeded / len(recent), slowest or 0.0, idle_s)

    def report(self) -> dict[str, ModelStatistics]:
        """All records as anybody may see them."""
        return {name: _report(record) for name, record in self.totals().items()}  # sorts copies, without the lock

    def totals(self) -> dict[str, Record]:
        """A copy of all records."""
        with self._lock:
            return {
                name: replace(record, misses=dict(record.misses), recent=list(record.recent), paces=list(record.paces))
                for name, record in sorted(self._records.items())
            }

    def save(self) -> None:
        """Write the file if anything has changed: the old one or the new one, never half of one.

        A disk that cannot be written is a warning, once until it can be again; every call tries.
        """
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            content = json.dumps(
                {"format": FORMAT, "architectures": {name: asdict(record) for name, record in self._records.items()}}
            )
        try:
            _replace(self._path, content)
            self._unwritable = False
        except OSError as error:
            if not self._unwritable:
                log.warning("Statistics cannot be written to %s (%s); counting goes on", self._path, error)
            self._unwritable = True
            with self._lock:
                self._changed = True

    def _record(self, name: str) -> Record:
        return self._records.setdefault(name, Record())


def percentile(values: Sequence[float], fraction: float) -> float | None:
    """The smallest of `values` that at least `fraction` of them do not exceed; None of nothing."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(fraction * len(ranked)) - 1)] if ranked else None


def _report(record: Record) -> ModelStatistics:
    times = [seconds for seconds in record.recent if seconds is not None]
    judged, read = record.succeeded + record.failed, record.prompt_tokens - record.cached_tokens
    return ModelStatistics(
        requests=record.requests,
        succeeded=record.succeeded,
        failed=record.failed,
        cancelled=record.cancelled,
        expired=record.expired,
        success_rate=record.succeeded / judged if judged else None,
        mean_s=record.seconds / record.succeeded if record.succeeded else None,
        p50_s=percentile(times, 0.50),
        p95_s=percentile(times, 0.95),
        p99_s=percentile(times, 0.99),
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        cached_tokens=record.cached_tokens,
        cache_misses=record.misses,
        prefill_tokens_per_s=read / record.prefill_s if record.prefill_s else None,
        tokens_per_s=record.decode_tokens / record.decode_s if record.decode_s else None,
        last_error=LastError(at=when(record.error_at), error=record.error.partition(":")[0]) if record.error else None,
    )


def when(unix_s: float) -> str:
    """A moment as people and programs read it: UTC, ISO 8601."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat()


def _read(path: Path) -> dict[str, Record]:
    try:
        records = _FILE.validate_json(path.read_bytes()).architectures
    except FileNotFoundError:
        return {}
    except OSError as error:
        log.warning("Statistics in %s cannot be read (%s); counting begins anew", path, error)
        return {}
    except pydantic.ValidationError as error:
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        log.warning(
            "%s is torn or no statistics of this program (%s); it is set aside as %s and counting begins anew",
            path,
            error.errors()[0]["msg"],
            aside.name,
        )
        with contextlib.suppress(OSError):
            path.rename(aside)
        return {}
    for record in records.values():
        if not record.decode_tokens:  # of before they were counted
            record.decode_s = 0.0
    return records


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
