"""How long callers wait for the database, and what they are told when it takes longer. The same for every engine.

A vehicle waits 5 seconds for its contract and its charging station 4.5; the pool answers within 4. A limit covers all
of a read or a write: the wait for a connection, for a batch or for a turn, every statement, and the commit. Behind it
the caller gets Unavailable (503). All values are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READ_TIMEOUT: Final = 2.0
WRITE_TIMEOUT: Final = 5.0
LONG_READ_TIMEOUT: Final = 60.0
"""For a question marked `long_running`: no vehicle waits for it."""
LONG_WRITE_TIMEOUT: Final = 60.0
"""For a change marked `long_change`."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """What a store allows, by the kind of the question. connect: for each host of a database server.

    refuse_while_silent: whether questions are refused without a wait as long as a database server does not answer.
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
"""For a command: an operator waits, who can end it."""

NOT_READ: Final = "The database does not answer now; try again."
NOT_WRITTEN: Final = "The database cannot write now; nothing was changed, try again."
NOT_CONFIRMED: Final = "The database did not confirm the change, which may have been made or not; try again."
