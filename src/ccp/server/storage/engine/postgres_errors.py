"""Classification of PostgreSQL errors: conflicts to retry, outages, and defects."""

from __future__ import annotations

from typing import Final

import asyncpg

from ccp.errors import CCPError, DatabaseUnavailable, FieldError
from ccp.server.storage.engine import postgres_pooler
from ccp.server.storage.engine.postgres_hosts import Connection
from ccp.server.storage.engine.postgres_pool import LOST
from ccp.server.storage.engine.query import SerializationConflict
from ccp.server.storage.engine.time_limits import NOT_CONFIRMED

CONFLICTS: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,
    SerializationConflict,
)
"""Conflicts with another transaction or a migration: a retry is likely to succeed."""
OUTAGES: Final = (
    *LOST,
    *CONFLICTS,
    asyncpg.InsufficientResourcesError,  # Disk full, out of memory, too many connections.
    asyncpg.OperatorInterventionError,  # Shutting down, starting up, cancelled.
    asyncpg.PostgresSystemError,  # Input or output failed.
    asyncpg.TransactionRollbackError,
    asyncpg.InvalidTransactionStateError,  # Read-only, because the server became a standby; idle for too long.
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    *postgres_pooler.SIGNS,
)
"""Errors that pass, or that an operator resolves. Any other error is a defect."""


class UnconfirmedCommit(Exception):
    """The connection was lost between the commit request and its answer."""


def is_lost(connection: Connection, exc: BaseException) -> bool:
    """Whether the connection can no longer be used after an error."""
    return isinstance(exc, LOST) or connection.is_closed()


def translate(exc: BaseException, sentence: str, *, lost: bool) -> BaseException:
    """Translate an outage to Unavailable; return domain errors and defects unchanged.

    sentence: the message of the Unavailable. lost: whether the connection was lost.
    """
    translated: CCPError
    if isinstance(exc, UnconfirmedCommit):
        translated = DatabaseUnavailable(NOT_CONFIRMED)
        translated.__cause__ = exc.__cause__
        return translated
    if isinstance(exc, asyncpg.CharacterNotInRepertoireError):
        translated = FieldError("A text contains a character that cannot be stored (U+0000).")
    elif isinstance(exc, OUTAGES) or (lost and isinstance(exc, asyncpg.InterfaceError | asyncpg.PostgresError)):
        translated = DatabaseUnavailable(sentence)
    else:
        return exc
    translated.__cause__ = exc
    return translated
