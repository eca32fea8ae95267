"""PostgreSQL connections for commands and at start: connecting with clear errors, the schema revision, warnings."""

from __future__ import annotations

import ssl
from typing import Final

import asyncpg

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import postgres_tls, schema_version
from ccp.server.storage.engine.postgres_hosts import COMMAND_TIMEOUT, Connection, Hosts

OLDEST_SERVER: Final = 15
"""The oldest major version of PostgreSQL that is supported."""
CONNECT_TIMEOUT: Final = 5.0
"""Seconds for each host."""


async def connect(url: str, statement_timeout: float | None = COMMAND_TIMEOUT) -> Connection:
    """Connect for a command or at start.

    The connection prepares no named statements. A pooler may stand before the server, so every statement but `begin`
    and the like needs a transaction. statement_timeout: seconds; None for statements whose time grows with the
    database, such as those of a migration. Raises ConfigurationError with the reason, for the operator.
    """
    try:
        connection = await Hosts(url).connect(CONNECT_TIMEOUT, prepare=False, statement_timeout=statement_timeout)
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
        TimeoutError,
        ValueError,
    ) as exc:
        raise ConfigurationError(_explain(exc, url)) from exc
    server = connection.get_server_version()
    encoding = connection.get_settings().server_encoding
    problem = None
    if server.major < OLDEST_SERVER:
        problem = f"The database server is PostgreSQL {server.major}; {OLDEST_SERVER} or newer is needed."
    elif encoding.upper() != "UTF8":
        problem = f"The database's encoding is {encoding}; it has to be UTF8."
    if problem is not None:
        connection.terminate()
        raise ConfigurationError(problem)
    return connection


def _explain(exc: Exception, url: str) -> str:
    """Why a connection failed. The sentence never contains the URL, which may hold a password."""
    if isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
        return "None of the hosts in the database URL accepts writes now (target_session_attrs)."
    if isinstance(exc, asyncpg.PostgresError):
        return f"The database server refuses the connection: {exc}."
    if isinstance(exc, asyncpg.InterfaceError) and "certificate" in str(exc):
        return f"The database server's certificate cannot be verified: {exc}."
    if isinstance(exc, asyncpg.InterfaceError | ValueError) and not isinstance(exc, OSError):
        return "The database URL cannot be used; it has the form postgresql://USER:PASSWORD@HOST:PORT/NAME."
    if isinstance(exc, TimeoutError):
        return f"The database server does not answer within {CONNECT_TIMEOUT:.0f} seconds."
    if isinstance(exc, ssl.SSLCertVerificationError):
        reason = f"The database server's certificate is not accepted: {exc.verify_message}."
        if postgres_tls.uses_system_cas(url):
            reason += " Without sslrootcert=FILE in the URL the CAs of the system count."
        return reason
    if isinstance(exc, ssl.SSLError):
        return f"The database server's TLS is not accepted: {exc.reason or exc}."
    return f"The database server cannot be reached: {getattr(exc, 'strerror', None) or exc}."


async def revision(connection: Connection) -> str | None:
    """The schema revision of the database; None without a schema. Raises ConfigurationError."""
    if await connection.fetchval("select to_regclass('alembic_version')") is None:
        return None
    try:
        found = await connection.fetch("select version_num from alembic_version")
    except asyncpg.PostgresError as exc:
        raise ConfigurationError(f"The database cannot be read: {exc}.") from exc
    return schema_version.only_revision("The database", (row[0] for row in found))


async def revision_of(url: str) -> str | None:
    """As `revision`, on a new connection."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            return await revision(connection)
    finally:
        await connection.close()


async def warnings_of(url: str) -> tuple[str, ...]:
    """Warnings about the configuration of a working server. Raises ConfigurationError."""
    connection = await connect(url)
    try:
        async with connection.transaction():
            fsync = await connection.fetchval("show fsync")
        if fsync == "off":
            return ("fsync is off on the database server: a crash there loses contracts that were acknowledged.",)
        return ()
    finally:
        await connection.close()
