"""How far an import has come: a small file that is replaced as a whole and authenticated.

A forged checkpoint would make an import skip lines, or report what never happened. So the file carries an HMAC under a
key that the database keeps. That also ties it to this database: lines that are stored in one are not skipped for
another.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from ccp.errors import ConfigurationError
from ccp.server.bulk.lines import Mark
from ccp.server.runtime.private_files import read_private, replace_private
from ccp.server.storage import Store
from ccp.server.storage.engine.schema import is_postgres, sqlite_file
from ccp.server.storage.queries import secrets as queries

_KIND: Final = "opnc-ccp import 2"


def default_path(source: str, database: str) -> Path:
    """Where the checkpoint of an input lies: not beside the input, which others may write to.

    With SQLite beside the database; else in the user's state directory (XDG Base Directory Specification), which is
    made. source: file or directory. database: URL. Raises ConfigurationError.
    """
    resolved = Path(source).resolve()
    digest = hashlib.sha256(f"{database}\n{resolved}".encode(errors="surrogateescape")).hexdigest()[:12]
    name = f"import-{re.sub(r'[^0-9A-Za-z._-]', '_', resolved.name)[:64]}-{digest}.checkpoint"
    if not is_postgres(database):
        return sqlite_file(database).parent / name
    state = os.environ.get("XDG_STATE_HOME") or str(Path("~/.local/state").expanduser())
    directory = Path(state) / "opnc-ccp"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The directory {directory} for checkpoints cannot be made: {exc.strerror}. Name a file with --checkpoint."
        ) from exc
    return directory / name


async def key_of(store: Store) -> bytes:
    """The key that authenticates checkpoints of imports; the first import makes it. Raises Unavailable."""
    kept = await store.read(queries.find(queries.IMPORT_CHECKPOINT_KEY))
    if kept is None:
        kept = await store.write(queries.ensure(queries.IMPORT_CHECKPOINT_KEY, secrets.token_hex(32)))
    return bytes.fromhex(kept)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before `mark` is stored or refused, and durably so.

    counts: what became of it. report: the file of refused lines, resolved; None without one. report_bytes: its length
    at that time.
    """

    mark: Mark
    counts: dict[str, int]
    report: str | None
    report_bytes: int

    def save(self, path: Path, key: bytes) -> None:
        """Raises OSError."""
        members = {"kind": _KIND, **asdict(self)}
        with replace_private(path) as file:
            file.write(orjson.dumps({**members, "mac": _mac(members, key)}, option=orjson.OPT_INDENT_2))

    @classmethod
    def load(cls, path: Path, key: bytes) -> Checkpoint | None:
        """None where there is no file. Raises ConfigurationError for one that is not ours, or was changed."""
        try:
            found: Any = orjson.loads(read_private(path))
            mac = found.pop("mac")
            if found.pop("kind") != _KIND or not hmac.compare_digest(mac, _mac({"kind": _KIND, **found}, key)):
                raise ValueError("mac")
            return cls(Mark(**found.pop("mark")), **found)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ConfigurationError(
                f"{path} is no checkpoint of an import into this database, or it was changed. Delete it to start from "
                "the beginning; stored contracts stay."
            ) from exc


def _mac(members: dict[str, Any], key: bytes) -> str:
    """HMAC-SHA256 over the members as JSON with sorted names, hexadecimal."""
    return hmac.new(key, orjson.dumps(members, option=orjson.OPT_SORT_KEYS), hashlib.sha256).hexdigest()
