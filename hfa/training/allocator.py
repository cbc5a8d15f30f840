"""Memory of tensors on the CPU, kept for the next step instead of given back to the system after each."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt's parameters, see malloc.h
_NEVER = -1  # switches trimming off, see mallopt(3)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed, large blocks too.

    Else every step maps, clears and unmaps its activations anew.

    Returns:
        Whether it will; other C libraries go on as they do.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
