"""The schema's revision: reading it, bringing a database to it. Alembic runs the migrations, which are plain SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from ccp.errors import ConfigurationError

HEAD = "0001"
"""The revision that this release reads and writes; a test holds it against the migrations."""


def head() -> str:
    return HEAD


def revision(url: str) -> str | None:
    """The revision of the database, or None where there is no schema yet."""
    path = Path(url.removeprefix("sqlite:///"))
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            row = connection.execute("select version_num from alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as exc:
        raise ConfigurationError(f"{path} is not a database of ours.") from exc
    return None if row is None else str(row[0])


def upgrade(url: str) -> tuple[str | None, str]:
    """Run the migrations that are missing. Returns the revisions before and after."""
    from alembic import command
    from alembic.config import Config

    before = revision(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
    after = revision(url)
    assert after is not None, "an upgrade leaves a revision"
    return before, after
