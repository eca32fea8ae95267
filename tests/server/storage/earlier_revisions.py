"""Databases of earlier schema revisions, filled with the rows of a database of the newest one."""

from __future__ import annotations

from typing import Any, TypeAlias

from alembic import command

from ccp.server.storage.engine import schema
from tests.databases import sql, tables

NOT_COPIED = {"alembic_version", "change_log"}
"""Tables that belong to a revision, and numbers of changes that the next refresh makes anew."""

Rows: TypeAlias = list[dict[str, Any]]


def rows_of_all_tables(url: str) -> dict[str, Rows]:
    """The rows of a database by table."""
    return {table: all_rows(url, table) for table in tables(url) if not table.startswith("sqlite_")}


def columns(url: str, table: str) -> list[str]:
    if schema.is_postgres(url):
        wanted = "select column_name::text from information_schema.columns where table_name = ?"
        return [name for (name,) in sql(url, wanted, table)]
    return [name for (name,) in sql(url, "select name from pragma_table_info(?)", table)]


def booleans(url: str, table: str) -> set[str]:
    if not schema.is_postgres(url):
        return set()
    wanted = "select column_name::text from information_schema.columns where table_name = ? and data_type = 'boolean'"
    return {name for (name,) in sql(url, wanted, table)}


def all_rows(url: str, table: str, wanted: list[str] | None = None) -> Rows:
    names = wanted or columns(url, table)
    return [dict(zip(names, row, strict=True)) for row in sql(url, f"select {', '.join(names)} from {table}")]


def copy_into_revision(url: str, revision: str, given: dict[str, Rows]) -> dict[str, Rows]:
    """Make a database of a revision and give it rows. Returns the rows by table, with the columns that exist there."""
    command.upgrade(schema.migrations(url), revision)
    stored: dict[str, Rows] = {}
    for table in sorted(set(tables(url)) & given.keys() - NOT_COPIED):
        names = [name for name in columns(url, table) if given[table] and name in given[table][0]]
        is_boolean = booleans(url, table)
        sql(url, f"delete from {table}")
        for row in given[table]:
            values = [bool(row[name]) if name in is_boolean and row[name] is not None else row[name] for name in names]
            sql(url, f"insert into {table} ({', '.join(names)}) values ({', '.join('?' * len(names))})", *values)
        stored[table] = all_rows(url, table, names) if names else []
    return stored
