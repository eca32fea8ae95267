"""The checkpoint of an import: its progress, in a small authenticated file that is replaced atomically.

A forged checkpoint could make an import skip lines or report false results. So the file has an HMAC under a key from
the database. The key also ties the checkpoint to this database: an import into another one does not skip lines.
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
from ccp.server.bulk.lines import InputOffset
from ccp.server.runtime.private_files import read_private, replace_private
from ccp.server.storage import Store
from ccp.server.storage.engine.schema import is_postgres, sqlite_file
from ccp.server.storage.queries import secrets as queries

_KIND: Final = "opnc-ccp import 2"


def default_path(source: str, database: str) -> Path:
    """The path of an input's checkpoint. It is not beside the input, where other users may be able to write.

    With SQLite it is beside the database; otherwise in the user's state directory (XDG Base Directory Specification),
    which is created. source: file or directory. database: URL. Raises ConfigurationError.
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


async def load_key(store: Store) -> bytes:
    """The key that authenticates checkpoints, from the database. The first import creates it. Raises Unavailable."""
    kept = await store.read(queries.find(queries.IMPORT_CHECKPOINT_KEY))
    if kept is None:
        kept = await store.write(queries.ensure(queries.IMPORT_CHECKPOINT_KEY, secrets.token_hex(32)))
    return bytes.fromhex(kept)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything before `offset` was stored or refused, durably.

    counts: lines by outcome. report: absolute path of the file of rejected lines, None without one. report_bytes: its
    length at that time.
    """

    offset: InputOffset
    counts: dict[str, int]
    report: str | None
    report_bytes: int

    def save(self, path: Path, key: bytes) -> None:
        """Write the file atomically. Raises OSError."""
        members = {"kind": _KIND, **asdict(self)}
        with replace_private(path) as file:
            file.write(orjson.dumps({**members, "mac": _mac(members, key)}, option=orjson.OPT_INDENT_2))

    @classmethod
    def load(cls, path: Path, key: bytes) -> Checkpoint | None:
        """Read the file. Returns None if there is none. Raises ConfigurationError if it does not authenticate."""
        try:
            found: Any = orjson.loads(read_private(path))
            mac = found.pop("mac")
            if found.pop("kind") != _KIND or not hmac.compare_digest(mac, _mac({"kind": _KIND, **found}, key)):
                raise ValueError("mac")
            return cls(InputOffset(**found.pop("offset")), **found)
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
