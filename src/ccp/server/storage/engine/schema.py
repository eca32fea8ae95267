"""Schema revision of a database: read, check, upgrade, downgrade. Alembic runs the migrations, which are plain SQL.

These functions are for commands and the start of a server: they block, also when called within an event loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccp.errors import ConfigurationError
from ccp.server.storage.engine.query import T
from ccp.server.storage.engine.schema_version import HEAD, check_revision, only_revision

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy.exc import DBAPIError

BASE = "base"
"""The revision before the first migration."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, within an event loop or outside of one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def head() -> str:
    """The revision that this release needs."""
    return HEAD


def is_postgres(url: str) -> bool:
    """Whether a database URL names a PostgreSQL server."""
    return url.startswith(("postgresql://", "postgres://"))


def sqlite_file(url: str) -> Path:
    """The file that a database URL names. Raises ConfigurationError."""
    if not url.startswith("sqlite:///"):
        raise ConfigurationError(
            f"No storage engine for the database URL {_scheme(url)}… "
            "(known: sqlite:///FILE, postgresql://USER@HOST/NAME)."
        )
    return Path(url.removeprefix("sqlite:///"))


def _scheme(url: str) -> str:
    """The scheme of a URL with its colon; empty for any other text, because it may contain a password."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
    return "" if found is None else found[0]


def revision(url: str) -> str | None:
    """The schema revision of a database; None without a schema. Raises ConfigurationError."""
    if is_postgres(url):
        from ccp.server.storage.engine import postgres_commands

        return finish(postgres_commands.revision_of(url))
    path = sqlite_file(url)
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if not connection.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchall():
                return None
            rows = connection.execute("select version_num from alembic_version").fetchall()
    except sqlite3.OperationalError as exc:
        raise ConfigurationError(f"The database {path} cannot be read: {exc}.") from exc
    except sqlite3.DatabaseError as exc:
        raise ConfigurationError(f"{path} is not an opnc-ccp database.") from exc
    return only_revision(str(path), (row[0] for row in rows))


def warnings(url: str) -> tuple[str, ...]:
    """Warnings about the configuration of a working database. Raises ConfigurationError."""
    if not is_postgres(url):
        return ()
    from ccp.server.storage.engine import postgres_commands

    return finish(postgres_commands.warnings_of(url))


def check(url: str) -> None:
    """Check that a database exists and its schema is recent enough. Raises ConfigurationError."""
    if not is_postgres(url) and not (path := sqlite_file(url)).exists():
        raise ConfigurationError(f"There is no database at {path}; 'ccp db upgrade' makes one.")
    check_revision(revision(url))


def upgrade(url: str) -> tuple[str | None, str]:
    """Run the pending migrations. Returns the revisions before and after. Raises ConfigurationError."""
    from alembic import command

    before = revision(url)
    if before is not None and before > HEAD:
        raise ConfigurationError(f"The database schema is {before}, newer than this release's {HEAD}.")
    if not is_postgres(url):
        path = sqlite_file(url)
        try:
            # Readable by the owner only, because it contains the token signing keys. SQLite creates the files beside it
            # with the same mode.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        except OSError as exc:
            raise ConfigurationError(f"The database {path} cannot be created: {exc.strerror}.") from exc
    _run(url, "upgraded", lambda config: command.upgrade(config, "head"))
    after = revision(url)
    assert after is not None, "an upgrade leaves a revision"
    return before, after


def downgrade(url: str, to: str) -> tuple[str, str | None]:
    """Revert migrations. The contents of their tables and columns are lost.

    to: a revision, or BASE. Returns the revisions before and after. Raises ConfigurationError.
    """
    from alembic import command
    from alembic.script import ScriptDirectory

    before = revision(url)
    if before is None:
        raise ConfigurationError("There is no schema to take back.")
    known = sorted(script.revision for script in ScriptDirectory.from_config(migrations(url)).walk_revisions())
    if before not in known:
        raise ConfigurationError(f"The database schema is {before}, which this release does not know how to take back.")
    if to != BASE and (to not in known or to > before):
        older = ", ".join((BASE, *(revision for revision in known if revision < before)))
        raise ConfigurationError(f"The database schema is {before}; it can be taken back to: {older}.")
    _run(url, "downgraded", lambda config: command.downgrade(config, to))
    return before, revision(url)


def _run(url: str, what: str, command: Callable[[Config], None]) -> None:
    from sqlalchemy.exc import DBAPIError

    place = "The database" if is_postgres(url) else f"The database {sqlite_file(url)}"
    try:
        command(migrations(url))
    except DBAPIError as exc:
        raise ConfigurationError(f"{place} cannot be {what}: {_reason(exc)}.") from exc


def _reason(exc: DBAPIError) -> str:
    """The database's own message, without the driver's names."""
    cause = exc.orig.__cause__ if exc.orig is not None and exc.orig.__cause__ is not None else exc.orig
    return str(cause)


def migrations(url: str) -> Config:
    """Alembic's configuration for a database URL."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    config.attributes["url"] = url
    return config
