"""Files of JSON lines that several processes add to, any of which may be killed."""

from __future__ import annotations

import fcntl
import json
import os
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
        file.truncate(_whole(file.seek(0, os.SEEK_END), path))
        file.write(line.encode())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, oldest first; none when there is no file. A line without an end is not one yet."""
    if not path.exists():
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        text = file.read()
    yield from map(json.loads, text[: text.rfind(b"\n") + 1].splitlines())


def _whole(size: int, path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        step = 1 << 16
        for start in range(size - size % step, -1, -step):
            file.seek(start)
            if (end := file.read(min(step, size - start)).rfind(b"\n")) >= 0:
                return start + end + 1
    return 0
