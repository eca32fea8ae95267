"""Token bucket that all workers of a machine share, after the generic cell rate algorithm (GCRA).

GCRA keeps one number for each key, the *theoretical arrival time*: when the key's next call would come if it came
exactly at its rate. A call conforms as long as that time is no further ahead than the burst allows. A time in the past
carries no information, so its slot in the table can be reused without a clean-up.

Source: ATM Forum Traffic Management 4.0, annex C.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias

from ccp.errors import ConfigurationError
from ccp.server.runtime.private_files import create_private, reopen_private

_SECRET: Final = 32
_HEADER: Final = 64
# 65,536 keys of 16 bytes are one MiB. A machine that more addresses call within a few seconds drops the keys whose
# arrival times are closest to expiry.
_SLOTS: Final = 1 << 16
_MAX_CACHED_KEY: Final = 80
_PROBES: Final = 8
"""Slots of the table that a key may occupy."""

Clock: TypeAlias = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with a burst.

    emission_interval: nanoseconds between two calls. burst: calls that are allowed at once after an idle period.
    """

    emission_interval: int
    burst: int

    @staticmethod
    def of(per_second: float, burst: int) -> Rate | None:
        """The rate for a number of calls per second; None, no limit, for 0."""
        return Rate(round(1e9 / per_second), burst) if per_second else None


_FLAG: Final = Rate(0, 1)


class SharedTokenBucket:
    """A table of theoretical arrival times in memory that processes share.

    Aligned 64-bit writes are atomic; there is no other lock. Two workers that count the same key in the same
    microsecond may count once: a limit is then exceeded by one call, which is cheaper than a lock for every call. The
    hash key is random and created with the file, so that a caller cannot choose keys that collide.
    """

    def __init__(self, memory: mmap.mmap, clock: Clock = time.monotonic_ns) -> None:
        """clock: nanoseconds, the same for all processes of the machine."""
        self._memory = memory
        self._secret = memory[:_SECRET]
        self._cells = memoryview(memory)[_HEADER:].cast("Q")
        self._clock = clock
        self._places = lru_cache(4096)(self._hashed)

    @classmethod
    def private(cls, clock: Clock = time.monotonic_ns) -> SharedTokenBucket:
        """A table for this process only."""
        memory = mmap.mmap(-1, _HEADER + _SLOTS * 16)
        memory[:_SECRET] = os.urandom(_SECRET)
        return cls(memory, clock)

    @classmethod
    def shared(cls, file: Path) -> SharedTokenBucket:
        """A table for every process that opens the file. Raises ConfigurationError."""
        try:
            with reopen_private(file) as opened:
                memory = mmap.mmap(opened.fileno(), _HEADER + _SLOTS * 16)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"The rate limit file {file} cannot be used: {exc}.") from exc
        return cls(memory)

    @classmethod
    def prepare(cls, file: Path) -> None:
        """Create the file of a shared table, readable by its owner only, or keep the existing one.

        A file from before the machine started is replaced, because its times belong to another monotonic clock.
        Raises ConfigurationError.
        """
        try:
            if os.path.lexists(file):
                if file.lstat().st_mtime >= time.time() - time.monotonic():
                    cls.shared(file)
                    return
                file.unlink()
            with create_private(file) as opened:
                opened.write(os.urandom(_SECRET))
                opened.truncate(_HEADER + _SLOTS * 16)
        except OSError as exc:
            raise ConfigurationError(f"The rate limit file {file} cannot be created: {exc.strerror}.") from exc

    def acquire(self, key: bytes, rate: Rate) -> float:
        """Count a call if it conforms to the rate. Returns 0.0, or the seconds until a call would conform."""
        now = self._clock()
        place, due = self._find(key, now)
        wait = due - now - rate.emission_interval * (rate.burst - 1)
        if wait > 0:
            return wait / 1e9
        self._cells[place] = due + rate.emission_interval
        return 0.0

    def peek(self, key: bytes, rate: Rate) -> float:
        """Return what `acquire` would return, without counting a call."""
        now = self._clock()
        tag, place = self._place(key)
        cells = self._cells
        for probe in range(place, place + 2 * _PROBES, 2):
            if cells[probe] == tag:
                return max(0, cells[probe + 1] - now - rate.emission_interval * (rate.burst - 1)) / 1e9
        return 0.0

    def debit(self, key: bytes, rate: Rate) -> None:
        """Count a call unconditionally; the balance may go negative, by one burst at most.

        The bound keeps the lockout short for a key that was counted too often.
        """
        now = self._clock()
        place, due = self._find(key, now)
        self._cells[place] = min(due, now + rate.emission_interval * (2 * rate.burst - 1)) + rate.emission_interval

    def set_flag(self, key: bytes, lifetime: int) -> None:
        """Flag a key for a number of seconds. Other keys do not evict it."""
        now = self._clock()
        place, _ = self._find(key, now)
        self._cells[place] = now + lifetime * 1_000_000_000

    def has_flag(self, key: bytes) -> bool:
        """Whether the key is flagged now."""
        return self.peek(key, _FLAG) > 0

    def clear_flag(self, key: bytes) -> None:
        """Remove the flag of a key, if it has one."""
        if self.has_flag(key):
            place, _ = self._find(key, self._clock())
            self._cells[place] = 0

    def _place(self, key: bytes) -> tuple[int, int]:
        """The tag of a key and its first cell. Short keys are cached."""
        return self._places(key) if len(key) <= _MAX_CACHED_KEY else self._hashed(key)

    def _hashed(self, key: bytes) -> tuple[int, int]:
        digest = hashlib.blake2b(key, digest_size=16, key=self._secret).digest()
        tag = int.from_bytes(digest[:8], "little") | 1
        return tag, 2 * (int.from_bytes(digest[8:12], "little") % (_SLOTS - _PROBES))

    def _find(self, key: bytes, now: int) -> tuple[int, int]:
        """The cell of the key's arrival time and that time, `now` or later. Inserts the key if it is new."""
        tag, first = self._place(key)
        cells = self._cells
        oldest, earliest = first, None
        for probe in range(first, first + 2 * _PROBES, 2):
            due = cells[probe + 1]
            if cells[probe] == tag:
                return probe + 1, max(due, now)
            if earliest is None or due < earliest:
                oldest, earliest = probe, due
        cells[oldest] = tag
        return oldest + 1, now
