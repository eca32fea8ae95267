"""Files with storage keys, and what a database holds of its secrets."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ccp.server.storage.engine.secret_codec import key_of
from ccp.server.storage.engine.stored_secrets import SECRET_COLUMNS
from tests.databases import sql


def key(number: int) -> str:
    """The text of a storage key, the same for the same number."""
    return base64.b64encode(hashlib.sha256(f"storage key {number}".encode()).digest()).decode()


def write_keys(path: Path, *numbers: int) -> Path:
    """Write a file with keys, the newest first."""
    path.write_text("# storage keys\n" + "".join(f"{key(number)}\n" for number in numbers))
    path.chmod(0o600)
    return path


def stored_values(url: str) -> dict[str, list[str]]:
    """The stored values of every column with secrets, without empty lists of previous secrets."""
    found = {}
    for table, _, column in SECRET_COLUMNS:
        rows = sql(url, f"select {column} from {table} where {column} is not null and {column} <> '[]'")
        found[f"{table}.{column}"] = [str(row[0]) for row in rows]
    return found


def keys_in_use(url: str) -> set[str]:
    """Ids of the keys under which values are stored; "none" for clear text."""
    return {key_of(value) for values in stored_values(url).values() for value in values}
