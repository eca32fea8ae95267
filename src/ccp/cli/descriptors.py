"""File descriptors of a worker: one per connection, and a reserve for everything else."""

from __future__ import annotations

import sys
from typing import Final

from ccp.server.http.connection_limits import MAX_REFUSED
from ccp.server.settings import Settings

_RESERVE: Final = 256
"""For files, pipes, listening sockets and outbound connections."""


def needed(config: Settings) -> int:
    """Number of descriptors that a worker may need at a time."""
    return config.max_connections + _needed_beside_connections(config)


def connections_possible(config: Settings, limit: int) -> int:
    """Number of connections that a limit on descriptors allows, at most `max_connections`."""
    return min(config.max_connections, max(limit - _needed_beside_connections(config), limit // 2))


def raise_limit(wanted: int) -> int | None:
    """Raise the soft limit of this process, which its workers inherit, as far as the hard limit allows.

    Returns the resulting soft limit; None if there is no limit.
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


def _needed_beside_connections(config: Settings) -> int:
    return MAX_REFUSED + config.database_connections + _RESERVE
