"""Inspection of an untrusted SQLite file before its first query: does its schema match ours, object by object?

A foreign file can contain code: triggers, views, virtual tables, and expressions in indexes, columns and checks. So a
file that is to become the database is opened read-only, with an untrusted schema, and its schema is compared with the
one that our migrations create for its revision. Any difference rejects the file.
Source: https://www.sqlite.org/security.html.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.schema_version import only_revision

_MAGIC: Final = b"SQLite format 3\0"

# Objects by type, name and table, with the statement that created them; None if SQLite created them.
Objects: TypeAlias = dict[tuple[str, str, str], str | None]

# Statistics of the query planner, created by an operator's `analyze`.
_STATISTICS: Final[Objects] = {
    ("table", "sqlite_stat1", "sqlite_stat1"): "create table sqlite_stat1(tbl,idx,stat)",
    ("table", "sqlite_stat4", "sqlite_stat4"): "create table sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)",
}
_STORED: Final = (("varchar|text", "text"), ("bytea|blob", "blob"))
"""Storage class by the declared type of a column; integer for all others."""
_REVISION: Final = ("table", "alembic_version", "alembic_version")
_REVISION_SQL: Final = (
    "create table alembic_version(version_num varchar(32)not null,"
    "constraint alembic_version_pkc primary key(version_num))"
)


def careful(file: Path) -> sqlite3.Connection:
    """Open a file read-only, with an untrusted schema and without a log beside it."""
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cell_size_check = on")
    return connection


def inspect(file: Path) -> str:
    """The revision of an opnc-ccp database. Raises ConfigurationError for any other file."""
    not_ours = ConfigurationError(f"{file} is not an opnc-ccp database.")
    try:
        with file.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise not_ours
        with closing(careful(file)) as connection:
            found = _objects(connection)
            if strange := _executable(found):
                raise ConfigurationError(
                    f"{file} is refused: it contains {strange}, which no opnc-ccp database has. Nothing was run."
                )
            if found.get(_REVISION) != _REVISION_SQL:
                raise not_ours
            rows = connection.execute("select version_num from alembic_version").fetchall()
    except OSError as exc:
        raise not_ours from exc
    except sqlite3.DatabaseError as exc:
        raise not_ours from exc
    revision = only_revision(str(file), (row[0] for row in rows))
    if revision is None:
        raise not_ours
    if revision > schema.head():
        raise ConfigurationError(f"The schema of {file} is {revision}, newer than this release's {schema.head()}.")
    if problem := _difference(found, expected(revision)):
        raise ConfigurationError(f"{file} is refused: {problem}, unlike the schema {revision}.")
    return revision


def misfit(connection: sqlite3.Connection) -> str | None:
    """The first column ("table.column") with a value of a wrong storage class, which SQLite permits."""
    tables = connection.execute(
        "select name from sqlite_master where type = 'table' and name not like 'sqlite~_%' escape '~'"
    )
    for (table,) in tables.fetchall():
        for _, column, declared, *_ in connection.execute(f"pragma table_info({table})").fetchall():
            kind = next((kind for pattern, kind in _STORED if re.match(pattern, declared.lower())), "integer")
            found = f"select 1 from {table} where typeof({column}) not in ('null', '{kind}') limit 1"  # noqa: S608  constants
            if connection.execute(found).fetchone() is not None:
                return f"{table}.{column}"
    return None


@cache
def expected(revision: str) -> Objects:
    """The objects that the migrations up to a revision create. Raises ConfigurationError for an unknown revision."""
    from alembic import command
    from alembic.util import CommandError

    with TemporaryDirectory(prefix="opnc-ccp-") as folder:
        file = Path(folder) / "expected.db"
        try:
            command.upgrade(schema.migrations(f"sqlite:///{file}"), revision)
        except CommandError as exc:
            raise ConfigurationError(f"There is no schema {revision}.") from exc
        with closing(sqlite3.connect(file)) as connection:
            return _objects(connection)


def _objects(connection: sqlite3.Connection) -> Objects:
    rows = connection.execute("select type, name, tbl_name, sql from sqlite_master").fetchall()
    return {(str(kind), str(name), str(table)): _normal(sql) for kind, name, table, sql in rows}


def _normal(sql: str | None) -> str | None:
    """A statement with normalised white space and letter case; our schema has neither in quotes."""
    if sql is None:
        return None
    return re.sub(r"\s*([(),])\s*", r"\1", " ".join(str(sql).split())).lower()


def _executable(found: Objects) -> str | None:
    """A description of the first object that could run code."""
    for (kind, name, _), sql in sorted(found.items()):
        if kind not in ("table", "index"):
            return f"the {_printable(kind)} {_printable(name)}"
        if sql is not None and not re.match(r"create (table|index|unique index) ", sql):
            return f"the virtual table {_printable(name)}"
    return None


def _difference(found: Objects, wanted: Objects) -> str | None:
    """A description of the first difference."""
    for key in sorted(found.keys() - wanted.keys()):
        if found[key] != _STATISTICS.get(key, ""):
            return f"it has the {key[0]} {_printable(key[1])}"
    for key in sorted(wanted.keys() - found.keys()):
        return f"it lacks the {key[0]} {key[1]}"
    for key in sorted(wanted):
        if found[key] != wanted[key]:
            return f"its {key[0]} {key[1]} is defined differently"
    return None


def _printable(text: str) -> str:
    return text[:80].encode("unicode_escape").decode("ascii")
