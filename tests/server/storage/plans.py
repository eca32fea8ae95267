"""Query plans of the statements of a query."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any, TypeVar

from ccp.server.storage.engine import schema
from ccp.server.storage.engine.query import Query, Row
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.sqlite_connection import _dialect
from ccp.server.storage.engine.stored_secrets import CODEC
from tests.databases import aside, sql

T = TypeVar("T")


def asked(url: str, query: Query[Any]) -> list[tuple[str, Row]]:
    """The statements that a query yields on a database, with their parameters."""
    seen: list[tuple[str, Row]] = []
    running = iter(query)
    try:
        statement, parameters = next(running)
        while True:
            if statement is CODEC[0]:
                statement, parameters = running.send([(SecretCodec(),)])
                continue
            seen.append((statement, parameters))
            statement, parameters = running.send(_rows(url, statement, parameters))
    except StopIteration:
        return seen


def _rows(url: str, statement: str, parameters: Row) -> list[Row]:
    if schema.is_postgres(url):
        return aside().run(aside().fetch(url, statement, parameters))
    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection:
        return connection.execute(_dialect(statement), parameters).fetchall()


def plan(url: str, statement: str, parameters: Row) -> str:
    """The plan of a statement, as text."""
    if schema.is_postgres(url):
        return "\n".join(row[0] for row in aside().run(aside().fetch(url, f"explain {statement}", parameters)))
    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection:
        rows = connection.execute(f"explain query plan {_dialect(statement)}", parameters)
        return "\n".join(row[3] for row in rows)


def plans(url: str, query: Query[Any]) -> str:
    """The plans of all statements of a query."""
    return "\n".join(plan(url, statement, parameters) for statement, parameters in asked(url, query))


def as_if_large(url: str) -> None:
    """Make a server plan as for tables that are too large for a sequential scan."""
    if schema.is_postgres(url):
        sql(url, "analyze")
        sql(url, "set enable_seqscan = off")
