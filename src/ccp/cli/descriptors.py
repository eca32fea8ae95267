"""File descriptors of a worker: one for each connection, and some for everything else."""

from __future__ import annotations

import sys
from typing import Final

from ccp.server.http.connection_limits import MAX_REFUSED
from ccp.server.settings import Settings

_OTHERS: Final = 256
"""For files, pipes, listening sockets and calls to other servers."""


def needed(config: Settings) -> int:
    """How many descriptors a worker may need at a time."""
    return config.max_connections + _besides(config)


def connections_possible(config: Settings, limit: int) -> int:
    """How many connections a limit of descriptors allows, `max_connections` at most."""
    return min(config.max_connections, max(limit - _besides(config), limit // 2))


def raise_limit(wanted: int) -> int | None:
    """Raise the soft limit of this process, which its workers inherit, as far as the hard limit lets.

    Returns the soft limit afterwards; None where there is none.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def _besides(config: Settings) -> int:
    return MAX_REFUSED + config.database_connections + _OTHERS
