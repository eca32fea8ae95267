"""Schema version check: the revision that this release needs, and which other revisions it accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ccp.errors import ConfigurationError

HEAD = "0023"
"""The revision that this release reads and writes; a test compares it with the migrations."""


def only_revision(place: str, found: Iterable[str]) -> str | None:
    """The revision in the rows of `alembic_version`; None without rows. Raises ConfigurationError for a foreign one.

    place: names the database in the error.
    """
    revisions = list(map(str, found))
    if len(revisions) > 1 or not all(re.fullmatch("[0-9]{4}", revision) for revision in revisions):
        raise ConfigurationError(f"{place} is not an opnc-ccp database: its schema is {', '.join(revisions)}.")
    return revisions[0] if revisions else None


def is_enough(found: str | None) -> bool:
    """Whether this release can use a schema. A newer one is accepted: during an upgrade both releases run."""
    return found is not None and found >= HEAD


def check_revision(found: str | None) -> None:
    """Raise ConfigurationError if the schema is missing or older than this release needs."""
    if not is_enough(found):
        raise ConfigurationError(
            f"The database schema is {found or 'absent'}, this release needs {HEAD}; run 'ccp db upgrade'."
        )
