"""How much of its database connections a process uses, for metrics."""

from __future__ import annotations

from typing import NamedTuple


class DatabaseUse(NamedTuple):
    """Connections to a database server, or threads with an SQLite file, of this process.

    in_use, idle: now. limit: most that may be in use. waiting: queries that wait for one.
    """

    in_use: int
    idle: int
    limit: int
    waiting: int
