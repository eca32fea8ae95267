"""ccp backup and ccp restore: copies of a SQLite database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ccp.cli.output import ConfigOption, JsonOption, YesOption, confirm, print_json, print_line
from ccp.errors import ConfigurationError
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.access import token_keys
from ccp.server.audit.actor import command_actor
from ccp.server.audit.export import read_export
from ccp.server.storage import backup as copies
from ccp.server.storage import retention
from ccp.server.storage.engine import schema, schema_version
from ccp.server.storage.engine.inspection import inspect
from ccp.server.storage.queries.audit import Action, AuditRow, Entry

_MAX_LISTED: Final = 1000
"""Rows that are printed; more than an operator repeats by hand."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(backup)
    app.command()(restore)


def backup(
    target: Annotated[
        Path, typer.Argument(help="File to write, replaced at the end if it exists; or an existing directory.")
    ],
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="With a directory: keep this number of its newest backups; remove older ones."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the SQLite database while the pool runs. The copy is checked and flushed to disk.

    In a directory its name is the time: ccp-2026-01-31T020000Z.db. The copy contains the keys that sign tokens and
    hashes of secrets. It is readable by its owner only; keep it so.
    """
    if keep is not None and not target.is_dir():
        raise ConfigurationError(f"--keep needs an existing directory, which {target} is not.")
    file = target / retention.name_of(datetime.now(UTC)) if target.is_dir() else target
    done = copies.backup(settings.load(config).database, file)
    refusal = None
    try:
        inspect(file)
    except ConfigurationError as exc:
        refusal = str(exc)
    removed = [] if keep is None or refusal is not None else retention.remove_old(file, keep)
    if as_json:
        members = {"file": str(file), "variants": done.contracts, "bytes": done.size, "schema": done.revision}
        print_json(members | ({} if keep is None else {"removed": [str(path) for path in removed]}))
    else:
        print_line(f"{file}: {done.contracts:,} variants, {done.size:,} bytes, schema {done.revision}, checked.")
        for path in removed:
            print_line(f"removed {path}")
    if refusal is not None:
        kept = "" if keep is None else " No older backup was removed."
        print_line(f"warning: {refusal} `ccp restore` will refuse it.{kept}", err=True)


def restore(
    file: Annotated[Path, typer.Argument(help="File written by `ccp backup`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing database, which is kept.")] = False,
    yes: YesOption = False,
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="Keep the token keys of the backup, also those revoked after it.")
    ] = False,
    audit_export: Annotated[
        Path | None, typer.Option(help="Audit export made after the backup, to list what the restore undoes.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore the SQLite database from a backup. The pool must be stopped; the old database is kept.

    Replaces every key that signs access tokens, and lists what was disabled, rotated or revoked after the backup.
    """
    effective, now = settings.load(config), datetime.now(UTC)
    url = effective.database
    if replace:
        confirm(f"Replace the database by {file}, which undoes every change made after the backup", yes=yes)
    key = None if keep_keys else token_keys.new_key(now)

    def entry(revoked: Sequence[str]) -> Entry:
        keys = {"keys": "kept"} if key is None else {"keys_revoked": list(revoked), "kid": key.kid}
        return Entry(now, command_actor(), Action.DATABASE_RESTORED, {"file": file.name, **keys})

    with ExitStack() as stack:
        export: Iterator[AuditRow] | None = None
        if audit_export is not None:
            lines = stack.enter_context(audit_export.open(encoding="utf-8", errors="surrogateescape"))
            export = (part for part in read_export(lines) if isinstance(part, AuditRow))
        done = copies.restore(
            url, file, now, entry=entry, key=key, replace=replace, export=export,
            secrets_key_file=effective.secrets_key_file,
        )  # fmt: skip
    checked = done.checked
    if done.problem is not None:
        print_line(f"warning: {done.problem}.", err=True)
    if as_json:
        print_json(_members(schema.sqlite_file(url), done))
        return
    print_line(f"{schema.sqlite_file(url)}: {checked.contracts:,} variants, schema {checked.revision}, checked.")
    if done.aside is not None:
        print_line(f"The old database is kept as {done.aside}.")
    if done.keys is None:
        print_line("The keys that sign access tokens are those of the backup; repeat revocations made after it.")
    else:
        print_line(f"The keys that signed access tokens are revoked ({len(done.keys)}): callers need new tokens.")
    _print_undone(done)
    if not schema_version.is_enough(checked.revision):
        print_line(f"This release needs schema {schema.head()}: run 'ccp db upgrade' next.")


def _print_undone(done: copies.Restored) -> None:
    """Print the changes that the operator may have to repeat."""
    undone = done.undone
    if undone is None:
        print_line(
            "What was disabled, rotated or revoked after the backup is unknown: only a replaced "
            "database or --audit-export shows it."
        )
        return
    if undone.diverged:
        print_line("warning: the trail does not continue that of the backup; compare both manually.", err=True)
    if not undone.rows:
        print_line("According to the trail, nothing was disabled, rotated or revoked after the backup.")
    else:
        print_line(f"Changes after the backup, undone by it ({len(undone.rows)}); repeat what still applies:")
        for row in sorted(undone.rows, key=lambda row: (row.at, row.lane, row.number))[:_MAX_LISTED]:
            print_line(f"  {_line(row)}")
        if len(undone.rows) > _MAX_LISTED:
            print_line(f"  and {len(undone.rows) - _MAX_LISTED} more")
    if undone.counted:
        print_line(f"Also: {', '.join(f'{number:,} {action}' for action, number in sorted(undone.counted.items()))}.")


def _members(database: Path, done: copies.Restored) -> dict[str, Any]:
    undone = done.undone
    return {
        "file": str(database),
        "variants": done.checked.contracts,
        "schema": done.checked.revision,
        "needs_upgrade": not schema_version.is_enough(done.checked.revision),
        "old_database": None if done.aside is None else str(done.aside),
        "keys_revoked": done.keys,
        "undone": None
        if undone is None
        else {
            "diverged": undone.diverged,
            "rows": [
                {"at": rfc3339(row.when), "actor": row.actor, "action": row.action, "subject": row.subject}
                for row in sorted(undone.rows, key=lambda row: (row.at, row.lane, row.number))
            ],
            "counted": dict(undone.counted),
        },
    }


def _line(row: AuditRow) -> str:
    """A row in one line, with control characters escaped."""
    subject = row.subject if row.subject is not None else "erased"
    texts = (row.action, subject, f"by {row.actor}")
    return "  ".join(
        (f"{row.when:%Y-%m-%dT%H:%M:%SZ}", *(json.dumps(text)[1:-1].replace('\\"', '"') for text in texts))
    )
