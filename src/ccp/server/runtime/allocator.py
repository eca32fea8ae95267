"""Settings of the C library's memory allocator (glibc), for processes that serve for weeks.

By default glibc takes a large block from the system (mmap) and gives it back when it is freed, but only the first time:
when a block of up to 32 MiB is freed, it raises its threshold to the size of that block. From then on such blocks come
from the heap of the thread that asks, and twice as much as that may stay unused at each heap's end. The pool frees
blocks of 19 MiB whenever it checks a client's secret (Argon2id), and of up to 16 MiB for a CRL, in several threads. So
a worker that has seen a few wrong secrets keeps 40 MiB and more for nothing.

A threshold that is set does not move. Source: mallopt(3); glibc manual, Malloc Tunable Parameters.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_MIB: Final = 1 << 20
# Parameter of mallopt and value by the environment variable that an operator may have set instead.
_OPTIONS: Final = {
    "MALLOC_MMAP_THRESHOLD_": (-3, _MIB),  # M_MMAP_THRESHOLD: larger blocks are mapped, and go back when freed.
    "MALLOC_TRIM_THRESHOLD_": (-1, 4 * _MIB),  # M_TRIM_THRESHOLD: what may stay unused at the end of a heap.
    "MALLOC_ARENA_MAX": (-8, 2),  # M_ARENA_MAX: heaps. Threads take turns anyway, by the interpreter lock.
}


def configure() -> None:
    """Set what the environment does not set. Does nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "GLIBC_TUNABLES" in os.environ:
        return
    for variable, (parameter, value) in _OPTIONS.items():
        if variable not in os.environ:
            mallopt(ctypes.c_int(parameter), ctypes.c_int(value))
