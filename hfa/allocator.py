"""What glibc's malloc does with memory that is freed: it is kept for the next step of a training, or goes back."""

from __future__ import annotations

import ctypes
import gc
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # names of mallopt's parameters, see malloc.h
_NEVER = -1  # switches trimming off, see mallopt(3)
_ARENAS = 2


def keep_freed_memory() -> bool:
    """Have what is freed kept, large blocks too, until `give_back`.

    Else every step of a training maps, clears and unmaps its activations anew.

    Returns:
        Whether it will; other C libraries go on as they do.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, _NEVER))


def share_arenas() -> None:
    """Have all threads allocate from two arenas: one for each of them keeps what it has freed for ever."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free to the system, after something large was let go."""
    gc.collect()  # models, engines and their parts refer to each other
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "malloc_trim") else None
