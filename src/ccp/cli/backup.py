"""ccp backup and ccp restore: copies of a SQLite database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from ccp.cli.output import ConfigOption, print_line
from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.access import token_keys
from ccp.server.audit.actor import command_actor
from ccp.server.audit.export import read_export
from ccp.server.storage import backup as copies
from ccp.server.storage.engine import schema, schema_version
from ccp.server.storage.engine.inspection import inspect
from ccp.server.storage.queries.audit import Action, AuditRow, Entry

_LISTED: Final = 1000  # Rows; more than an operator repeats by hand.


def register(app: typer.Typer) -> None:
    app.command()(backup)
    app.command()(restore)


def backup(
    file: Annotated[Path, typer.Argument(help="Where the copy goes; a file that is there is replaced in the end.")],
    config: ConfigOption = None,
) -> None:
    """Copy the SQLite database while the pool runs. The copy is checked and flushed to disk.

    Keys that sign tokens and hashes of secrets are in it: it is readable by its owner alone, and has to stay so.
    """
    done = copies.backup(settings.load(config).database, file)
    print_line(f"{file}: {done.contracts:,} variants, {done.size:,} bytes, schema {done.revision}, checked.")
    try:
        inspect(file)
    except ConfigurationError as exc:
        print_line(f"warning: {exc} `ccp restore` will refuse it.", err=True)


def restore(
    file: Annotated[Path, typer.Argument(help="What `ccp backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put a database that is there aside.")] = False,
    keep_keys: Annotated[
        bool, typer.Option("--keep-keys", help="Keep the token keys of the backup, including keys revoked after it.")
    ] = False,
    audit_export: Annotated[
        Path | None, typer.Option(help="Audit export made after the backup, to list what the restore undoes.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Restore the SQLite database from a backup. The pool must be stopped; the old database is kept.

    Every key that signs access tokens is replaced. Prints what was disabled, rotated or revoked after the backup.
    """
    url, at = settings.load(config).database, datetime.now(UTC)
    key = None if keep_keys else token_keys.new_key(at)

    def entry(gone: Sequence[str]) -> Entry:
        keys = {"keys": "kept"} if key is None else {"keys_revoked": list(gone), "kid": key.kid}
        return Entry(at, command_actor(), Action.DATABASE_RESTORED, {"file": file.name, **keys})

    with ExitStack() as stack:
        export: Iterator[AuditRow] | None = None
        if audit_export is not None:
            lines = stack.enter_context(audit_export.open(encoding="utf-8", errors="surrogateescape"))
            export = (part for part in read_export(lines) if isinstance(part, AuditRow))
        done = copies.restore(url, file, at, entry=entry, key=key, replace=replace, export=export)
    checked = done.checked
    print_line(f"{schema.sqlite_file(url)}: {checked.contracts:,} variants, schema {checked.revision}, checked.")
    if done.aside is not None:
        print_line(f"The database that was there is {done.aside}.")
    if done.keys is None:
        print_line("The keys that sign access tokens are those of the backup; revoke again what was revoked since.")
    else:
        print_line(f"Keys that signed access tokens are revoked ({len(done.keys)}): callers need new tokens.")
    _tell(done)
    if not schema_version.is_enough(checked.revision):
        print_line(f"This release needs schema {schema.head()}: run 'ccp db upgrade' next.")


def _tell(done: copies.Restored) -> None:
    """Print what has to be repeated."""
    if done.problem is not None:
        print_line(f"warning: {done.problem}.", err=True)
    undone = done.undone
    if undone is None:
        print_line(
            "What was disabled, rotated or revoked after the backup is not known: "
            "only a replaced database or --audit-export shows it."
        )
        return
    if undone.diverged:
        print_line("warning: this trail does not continue that of the backup; compare both by hand.", err=True)
    if not undone.rows:
        print_line("As far as the trail shows, nothing was disabled, rotated or revoked after the backup.")
    else:
        print_line(f"Done after the backup and undone by it ({len(undone.rows)}); repeat what still applies:")
        for row in sorted(undone.rows, key=lambda row: (row.at, row.lane, row.number))[:_LISTED]:
            print_line(f"  {_line(row)}")
        if len(undone.rows) > _LISTED:
            print_line(f"  and {len(undone.rows) - _LISTED} more")
    if undone.counted:
        print_line(
            f"Besides: {', '.join(f'{number:,} {action}' for action, number in sorted(undone.counted.items()))}."
        )


def _line(row: AuditRow) -> str:
    """A row in one line, with everything escaped that a terminal could take for more than text."""
    subject = row.subject if row.subject is not None else "erased"
    texts = (row.action, subject, f"by {row.actor}")
    return "  ".join(
        (f"{row.when:%Y-%m-%dT%H:%M:%SZ}", *(json.dumps(text)[1:-1].replace('\\"', '"') for text in texts))
    )
