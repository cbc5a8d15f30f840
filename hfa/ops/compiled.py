"""Where compiled kernels are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba

_OPS = Path(__file__).parent


def keep_by_source() -> None:
    """Keep kernels in a folder for each state of the sources of all of them.

    A kernel holds those that it calls, and numba looks at the file of the outermost alone: after a change to another,
    it would go on with the old.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_OPS.rglob("*.py")))).hexdigest()[:16]
    asked = numba.config.CACHE_DIR  # of NUMBA_CACHE_DIR
    beside = _OPS / "__pycache__"
    writable = os.access(beside if beside.exists() else _OPS, os.W_OK)
    folder = Path(asked) if asked else beside if writable else Path.home() / ".cache" / "hfa"
    numba.config.CACHE_DIR = str(folder / f"kernels-{digest}")
