"""Names of backups in a directory, and the removal of old ones."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ccp.errors import ConfigurationError

_NAME: Final = re.compile(r"ccp-\d{4}-\d\d-\d\dT\d{6}Z\.db", re.ASCII)


def name_of(at: datetime) -> str:
    """Return the file name of a backup. at: time of the backup; the name has it in UTC, so names sort by time."""
    return f"ccp-{at.astimezone(UTC):%Y-%m-%dT%H%M%SZ}.db"


def remove_old(newest: Path, keep: int) -> list[Path]:
    """Remove all but the newest backups beside a new one. Returns the removed files.

    newest: the backup that was just written; it stays even if the clock was set back and others have later names.
    keep: at least 1. Only regular files with the exact name of a backup count; everything else in the directory stays.
    Raises ConfigurationError.
    """
    try:
        others = sorted(
            path
            for path in newest.parent.iterdir()
            if path != newest and _NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink()
        )
        removed = others[: max(0, len(others) - (keep - 1))]
        for path in removed:
            path.unlink()
    except OSError as exc:
        raise ConfigurationError(f"Old backups in {newest.parent} cannot be removed: {exc.strerror}.") from exc
    return removed
