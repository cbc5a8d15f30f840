"""Files of JSON lines that several processes add to, any of which may be killed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a line, whole and by itself; what a killed process left of one is cut off first.

    Raises:
        ValueError: a number that is not finite.
    """
    line = json.dumps(record, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = _whole(file.read())
        file.truncate(len(whole))
        file.write((line if whole.endswith(b"\n") or not whole else "\n" + line).encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, oldest first; none when there is no file. The beginning of a line is not one yet."""
    if not path.exists():
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        text = file.read()
    yield from map(json.loads, _whole(text).splitlines())


def _whole(text: bytes) -> bytes:
    """What there is without the beginning of a line; a whole one may lack its end, as editors leave it."""
    end = text.rfind(b"\n") + 1
    try:
        json.loads(text[end:])
    except ValueError:
        return text[:end]
    return text
