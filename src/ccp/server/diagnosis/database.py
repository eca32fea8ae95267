"""Checks of the database: reachable, schema, durability, replication, connections; free disk space."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from ccp.errors import CCPError, ConfigurationError
from ccp.server.diagnosis.context import Context, StoreClosed
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.settings import Settings
from ccp.server.storage.engine import schema, schema_version
from ccp.server.storage.engine.schema import is_postgres, sqlite_file
from ccp.server.storage.engine.secret_codec import MissingStorageKey
from ccp.server.storage.overview import overview
from ccp.server.storage.queries import storage_keys

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    ["nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "fuse.sshfs"]
)
_MAX_LAG_SECONDS: Final = 30
_MAX_LAG_BYTES: Final = 100_000_000
_MAX_SECRETS: Final = 50
_FULL: Final = 200_000_000, 0.01
_LOW: Final = 1_000_000_000, 0.05


async def check_database(context: Context, result: CheckResult) -> None:
    """The database answers, and keeps what it acknowledges."""
    settings = context.settings
    try:
        if is_postgres(settings.database):
            await _check_postgres(settings, result)
        else:
            await _check_sqlite(context, result)
    except ConfigurationError as exc:
        code = "database.encoding" if "encoding" in str(exc) else "database.unreachable"
        result.add(code, str(exc), subject="database")
        return
    if any(finding.code in ("database.unreachable", "database.schema") for finding in result.findings):
        return
    if not await _check_secrets(context, result):
        return
    held = await context.blocking(overview, settings.database)
    result.note(f"{held.parties} parties, {held.peers} peers, {sum(held.anchors.values())} trusted certificates")
    if not held.parties and not settings.issuers:
        result.add("parties.none", "There are no parties.")


async def _check_secrets(context: Context, result: CheckResult) -> bool:
    """The store opens, and its secrets can be decrypted. Returns whether it opens."""
    try:
        store = await context.store()
    except StoreClosed as exc:
        reason = str(exc.__cause__) if isinstance(exc.__cause__, CCPError) else "it does not open in time."
        if isinstance(exc.__cause__, MissingStorageKey):
            result.add("database.secrets-key-missing", reason, subject="secrets_key_file")
        else:
            result.add("database.unreachable", f"The database cannot be opened: {reason}", subject="database")
        return False
    found = await store.read(storage_keys.list_unreadable())
    for each in found[:_MAX_SECRETS]:
        action = f"A new secret: {each.advice}."
        result.add("database.secret-unreadable", each.reason, subject=f"{each.column.table} {each.row}", action=action)
    if len(found) > _MAX_SECRETS:
        result.note(f"{len(found) - _MAX_SECRETS} more secrets cannot be decrypted")
    return True


async def _check_sqlite(context: Context, result: CheckResult) -> None:
    path = sqlite_file(context.settings.database)
    result.note(f"SQLite: {path.absolute()}")
    if not await context.blocking(path.exists):
        message = f"There is no database at {path.absolute()}; `ccp serve` would create a new and empty one."
        action = "Correct the setting database, or run `ccp db upgrade` for a new pool."
        result.add("database.unreachable", message, subject="database", action=action)
        return
    found = await context.blocking(schema.revision, context.settings.database)
    _check_schema(found, result)
    kind = await context.blocking(_file_system, path)
    if kind in _NETWORK_FILE_SYSTEMS:
        message = f"{path} is on a file system of the type {kind}."
        result.add("database.network-file-system", message, subject="database")
    size = await context.blocking(lambda: path.stat().st_size)
    result.note(f"{size / 1e6:,.1f} MB")


def _check_schema(found: str | None, result: CheckResult) -> None:
    result.note(f"schema {found or 'none'}, needed {schema.head()}")
    if not schema_version.is_enough(found):
        message = f"The schema is {found or 'absent'}; this release needs {schema.head()}."
        result.add("database.schema", message, subject="database")
    elif found is not None and found > schema.head():
        message = f"The schema is {found}, and this release has {schema.head()}."
        result.add("database.schema-newer", message, subject="database")


def _file_system(path: Path) -> str:
    """The type of the file system of a file; empty if it is not known (not Linux)."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target, found = path.resolve(), ("", "")
    for line in lines:
        place, kind = line.split()[1:3]
        place = place.encode("latin-1", "replace").decode("unicode_escape")
        if target.is_relative_to(place) and len(place) >= len(found[0]):
            found = place, kind
    return found[1]


async def _check_postgres(settings: Settings, result: CheckResult) -> None:
    from ccp.server.storage.engine.postgres_inspection import inspect

    facts = await inspect(settings.database)
    result.note(f"PostgreSQL {facts.version}, {facts.settings['server_encoding']}, {facts.size / 1e6:,.0f} MB")
    _check_schema(facts.schema, result)
    commit = facts.settings["synchronous_commit"]
    result.note(f"synchronous_commit {commit}, fsync {facts.settings['fsync']}")
    if facts.settings["fsync"] == "off":
        result.add("database.fsync-off", "fsync is off on the database server.", subject="database")
    if commit == "off":
        message = "synchronous_commit is off for new connections of this user."
        result.add("database.synchronous-commit-off", message, subject="database")
    if facts.in_recovery:
        result.add("database.read-only", "The server that answers is a standby.", subject="database")
    elif facts.settings["default_transaction_read_only"] == "on":
        message = "default_transaction_read_only is on for new connections of this user."
        action = "Find out who set it: hosted servers do when their disk is full. Then set it to off."
        result.add("database.read-only", message, subject="database", action=action)
    names = facts.settings["synchronous_standby_names"]
    synchronous = [each for each in facts.standbys if each.sync_state in ("sync", "quorum")]
    hidden = any(each.state is None for each in facts.standbys)
    if names and not synchronous and not hidden and not facts.in_recovery:
        message = f"synchronous_standby_names is {names}, and none of these is connected."
        result.add("database.no-synchronous-standby", message, subject="database")
    for each in facts.standbys:
        if each.state is None:
            result.note(f"standby {each.name}: its state is visible to the role pg_monitor only")
            continue
        behind = f"{(each.lag_bytes or 0) / 1e6:.1f} MB and {each.lag_seconds or 0:.1f} s behind"
        result.note(f"standby {each.name}: {each.state}, {each.sync_state}, {behind}")
        if (each.lag_bytes or 0) > _MAX_LAG_BYTES or (each.lag_seconds or 0) > _MAX_LAG_SECONDS:
            result.add("database.standby-lags", f"The standby {each.name} is {behind}.", subject=each.name)
    if not facts.standbys and not facts.in_recovery:
        result.note("no standby is connected")
    wanted = settings.workers * settings.database_connections
    possible = int(facts.settings["max_connections"]) - int(facts.settings["superuser_reserved_connections"])
    result.note(f"{facts.own} connections of this user; the workers may have {wanted} of {possible}")
    if wanted > possible:
        message = (
            f"The workers may open {wanted} connections ({settings.workers} × {settings.database_connections}); "
            f"the server accepts {possible}."
        )
        result.add("database.connections", message, subject="database_connections")


async def check_disk(context: Context, result: CheckResult) -> None:
    """Free space where the pool writes. That of a database server is not visible from here."""
    settings, places = context.settings, {"temporary files": Path(tempfile.gettempdir())}
    if is_postgres(settings.database):
        result.note("the disk of the database server is not visible from here")
    elif settings.database.startswith("sqlite:///"):
        places["database"] = sqlite_file(settings.database).absolute().parent
    for what, folder in places.items():
        try:
            usage = await context.blocking(shutil.disk_usage, folder)
        except OSError as exc:
            result.note(f"{what}: {folder}: {exc.strerror}")
            continue
        share = usage.free / usage.total if usage.total else 1.0
        text = f"{usage.free / 1e9:,.1f} GB ({share:.0%}) are free in {folder}"
        result.note(f"{what}: {text}")
        for code, (size, least) in (("disk.full", _FULL), ("disk.low", _LOW)):
            if usage.free < size or (share < least and usage.free < 20 * size):
                result.add(code, f"Only {text} ({what}).", subject=str(folder))
                break
