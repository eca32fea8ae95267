"""The schema's revision: reading it, bringing a database to it. Alembic runs the migrations, which are plain SQL."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ccp.errors import ConfigurationError

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0004"
"""The revision that this release reads and writes; a test holds it against the migrations."""


def head() -> str:
    return HEAD


def sqlite_file(url: str) -> Path:
    """The file that a database URL names. Raises ConfigurationError."""
    if not url.startswith("sqlite:///"):
        raise ConfigurationError(
            f"No storage engine for the database URL {url.split(':', 1)[0]}:… (known: sqlite:///FILE)."
        )
    return Path(url.removeprefix("sqlite:///"))


def revision(url: str) -> str | None:
    """The revision of the database, or None where there is no schema yet. Raises ConfigurationError."""
    path = sqlite_file(url)
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if not connection.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchall():
                return None
            row = connection.execute("select version_num from alembic_version").fetchone()
    except sqlite3.OperationalError as exc:
        raise ConfigurationError(f"The database {path} cannot be read: {exc}.") from exc
    except sqlite3.DatabaseError as exc:
        raise ConfigurationError(f"{path} is not a database of ours.") from exc
    return None if row is None else str(row[0])


def is_enough(found: str | None) -> bool:
    """Whether this release can work with a schema. A newer one will do: during an upgrade both releases run."""
    return found is not None and found >= HEAD


def check(url: str) -> None:
    """Raises ConfigurationError where the schema is missing or older than this release needs."""
    path = sqlite_file(url)
    if not path.exists():
        raise ConfigurationError(f"There is no database at {path}; 'ccp db upgrade' makes one.")
    found = revision(url)
    if not is_enough(found):
        raise ConfigurationError(
            f"The database schema is {found or 'absent'}, this release needs {HEAD}; run 'ccp db upgrade'."
        )


def upgrade(url: str) -> tuple[str | None, str]:
    """Run the migrations that are missing. Returns the revisions before and after. Raises ConfigurationError."""
    from alembic import command
    from sqlalchemy.exc import DBAPIError

    path = sqlite_file(url)
    before = revision(url)
    if before is not None and before > HEAD:
        raise ConfigurationError(f"The database schema is {before}, newer than this release's {HEAD}.")
    try:
        # For the owner alone: the keys that sign tokens are in it. SQLite gives the files beside it the same mode.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        command.upgrade(migrations(url), "head")
    except OSError as exc:
        raise ConfigurationError(f"The database {path} cannot be created: {exc.strerror}.") from exc
    except DBAPIError as exc:
        raise ConfigurationError(f"The database {path} cannot be upgraded: {exc.orig}.") from exc
    after = revision(url)
    assert after is not None, "an upgrade leaves a revision"
    return before, after


def migrations(url: str) -> Config:
    """Alembic's configuration for a database."""
    from alembic.config import Config
    from sqlalchemy import URL

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["url"] = URL.create("sqlite", database=str(sqlite_file(url)))
    return config
