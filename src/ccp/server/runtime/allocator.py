"""Settings of the C library's memory allocator (glibc) for long-running processes.

By default glibc maps a large block (mmap) and returns it to the system when it is freed, but only the first time: when
a block of up to 32 MiB is freed, glibc raises its threshold to the size of that block. From then on such blocks come
from the heap of the allocating thread, and twice their size may stay unused at the end of each heap. The pool frees
blocks of 19 MiB whenever it checks a client secret (Argon2id), and of up to 16 MiB for a CRL, in several threads. A
worker that has checked a few wrong secrets would keep 40 MiB and more.

An explicit threshold does not change. Source: mallopt(3); glibc manual, Malloc Tunable Parameters.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_MIB: Final = 1 << 20
# Parameter of mallopt and its value, by the environment variable that overrides it.
_OPTIONS: Final = {
    "MALLOC_MMAP_THRESHOLD_": (-3, _MIB),  # M_MMAP_THRESHOLD: larger blocks are mapped, and returned when freed.
    "MALLOC_TRIM_THRESHOLD_": (-1, 4 * _MIB),  # M_TRIM_THRESHOLD: unused memory at the end of a heap.
    "MALLOC_ARENA_MAX": (-8, 2),  # M_ARENA_MAX: number of heaps. The interpreter lock serialises threads anyway.
}


def configure() -> None:
    """Set the parameters that the environment does not set. No effect with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "GLIBC_TUNABLES" in os.environ:
        return
    for variable, (parameter, value) in _OPTIONS.items():
        if variable not in os.environ:
            mallopt(ctypes.c_int(parameter), ctypes.c_int(value))
