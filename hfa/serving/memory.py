"""Memory of a process that serves for months: what is freed goes back to the system."""

from __future__ import annotations

import ctypes
import gc
import sys

_ARENA_MAX = -8  # the name of mallopt's parameter, see malloc.h
_ARENAS = 2


def share_arenas() -> None:
    """Have all threads allocate from two arenas of glibc: one for each of them keeps what it has freed for ever."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free to the system, after something large was let go."""
    gc.collect()  # an engine and its parts refer to each other
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None
