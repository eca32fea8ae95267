"""The schema's revision: reading it, bringing a database to it. Alembic runs the migrations, which are plain SQL.

These functions are for commands and for a server's start: an event loop that calls them waits.
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
"""What a downgrade to nothing is called."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, whether the caller is within an event loop or not."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(asyncio.run, work).result()


def head() -> str:
    return HEAD


def is_postgres(url: str) -> bool:
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
    """A URL's scheme with its colon; empty for any other text, which may be a connection string with a password."""
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
    return "" if found is None else found[0]


def revision(url: str) -> str | None:
    """The revision of the database, or None where there is no schema yet. Raises ConfigurationError."""
    if is_postgres(url):
        from ccp.server.storage.engine import postgres

        return finish(postgres.revision_of(url))
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
        raise ConfigurationError(f"{path} is not a database of ours.") from exc
    return only_revision(str(path), (row[0] for row in rows))


def warnings(url: str) -> tuple[str, ...]:
    """What an operator should know of a database that works all the same. Raises ConfigurationError."""
    if not is_postgres(url):
        return ()
    from ccp.server.storage.engine import postgres

    return finish(postgres.warnings_of(url))


def check(url: str) -> None:
    """As `check_revision`, for a database. Raises ConfigurationError."""
    if not is_postgres(url) and not (path := sqlite_file(url)).exists():
        raise ConfigurationError(f"There is no database at {path}; 'ccp db upgrade' makes one.")
    check_revision(revision(url))


def upgrade(url: str) -> tuple[str | None, str]:
    """Run the migrations that are missing. Returns the revisions before and after. Raises ConfigurationError."""
    from alembic import command

    before = revision(url)
    if before is not None and before > HEAD:
        raise ConfigurationError(f"The database schema is {before}, newer than this release's {HEAD}.")
    if not is_postgres(url):
        path = sqlite_file(url)
        try:
            # For the owner alone: the keys that sign tokens are in it. SQLite gives the files beside it the same mode.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        except OSError as exc:
            raise ConfigurationError(f"The database {path} cannot be created: {exc.strerror}.") from exc
    _run(url, "upgraded", lambda config: command.upgrade(config, "head"))
    after = revision(url)
    assert after is not None, "an upgrade leaves a revision"
    return before, after


def downgrade(url: str, to: str) -> tuple[str, str | None]:
    """Take migrations back, and what is in their tables and columns with them.

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
        older = ", ".join((BASE, *(each for each in known if each < before)))
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
    """What the database said, without the driver's names around it."""
    cause = exc.orig.__cause__ if exc.orig is not None and exc.orig.__cause__ is not None else exc.orig
    return str(cause)


def migrations(url: str) -> Config:
    """Alembic's configuration for a database."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations").replace("%", "%%"))
    config.attributes["url"] = url
    return config
