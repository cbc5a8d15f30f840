"""Memory of tensors on the CPU, kept for the next step instead of given back to the system after each."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt's parameters, see malloc.h
_KEPT_BYTES = 2**31 - 1  # at the end of the heap, the most that mallopt can say


def keep_freed_memory() -> bool:
    """Have glibc keep 2 GiB of what is freed, large blocks too.

    Else every step maps, clears and unmaps its activations anew.

    Returns:
        Whether it will; other C libraries go on as they do.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))
