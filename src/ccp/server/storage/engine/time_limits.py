"""Time limits of database access, and the errors when they pass. The same for every engine.

A vehicle waits 5 seconds for its contract and its charging station 4.5; the pool answers within 4. A limit covers a
whole read or write: the wait for a connection, a batch or the write lock, every statement, and the commit. After it
the caller gets Unavailable (503). All values are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READ_TIMEOUT: Final = 2.0
WRITE_TIMEOUT: Final = 5.0
LONG_READ_TIMEOUT: Final = 60.0
"""For a query marked `long_read`: no vehicle waits for it."""
LONG_WRITE_TIMEOUT: Final = 60.0
"""For a write marked `long_write`."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a store allows for each kind of query. connect: for each host of a database server.

    refuse_while_silent: refuse queries without a wait while the circuit to a database server is open.
    """

    read: float = READ_TIMEOUT
    write: float = WRITE_TIMEOUT
    long_read: float = LONG_READ_TIMEOUT
    long_write: float = LONG_WRITE_TIMEOUT
    connect: float = 2.0
    refuse_while_silent: bool = True


REQUESTS: Final = TimeLimits()
"""For a server: partners and vehicles wait."""
COMMANDS: Final = TimeLimits(60.0, 60.0, 600.0, 600.0, connect=10.0, refuse_while_silent=False)
"""For a command: an operator waits, and can interrupt it."""

NOT_READ: Final = "The database does not answer now; try again."
NOT_WRITTEN: Final = "The database cannot write now; nothing was changed, try again."
NOT_CONFIRMED: Final = "The database did not confirm the change, which may have been made or not; try again."
