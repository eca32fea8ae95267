"""ccp keys: the keys that sign access tokens, and the key that encrypts the secrets in the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from ccp.cli.output import (
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    print_json,
    print_line,
    print_table,
    with_services,
    with_store,
)
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.access import token_keys
from ccp.server.audit.actor import command_actor
from ccp.server.storage import Store, storage_key_rotation
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.scrubbing import scrub_texts
from ccp.server.storage.engine.stored_secrets import SECRET_COLUMNS
from ccp.server.storage.queries import signing_keys, storage_keys
from ccp.server.storage.queries.signing_keys import TokenKey
from ccp.server.storage.queries.storage_keys import Unreadable
from ccp.server.storage.storage_key_rotation import StorageKeyRotation

if TYPE_CHECKING:
    from ccp.server.app import Services

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_keys(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the keys, newest first. One whose value in the database is damaged neither signs nor verifies."""
    at = datetime.now(UTC)

    async def read(store: Store) -> tuple[list[TokenKey], list[TokenKey]]:
        return await store.read(signing_keys.list_all()), await store.read(signing_keys.list_damaged())

    usable, damaged = with_store(config, read)
    signing = signing_keys.current_key(usable, at)
    states = [(key, _state(key, signing, at)) for key in usable] + [(key, "damaged") for key in damaged]
    states.sort(key=lambda each: each[0].created_at, reverse=True)
    if as_json:
        print_json([{"kid": key.kid, "state": state, **_times(key)} for key, state in states])
        return
    print_table(
        ["key", "state", "created", "signs from", "verifies until"],
        [[key.kid, state, *(time or "" for time in _times(key).values())] for key, state in states],
    )


@app.command()
def rotate(
    signs_in: Annotated[
        int,
        typer.Option(min=3, help="Seconds until the key signs; verifiers can fetch it at once."),
    ] = int(token_keys.KEY_ACTIVATION_DELAY.total_seconds()),
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a new key. The older keys verify until the last token that they have signed has expired.

    Keys whose tokens have all expired are removed, so the clock must agree with the database server's.
    """

    async def change(built: Services) -> TokenKey:
        at = await built.guard.checked()
        return await token_keys.rotate(built.store, command_actor(), at, timedelta(seconds=signs_in))

    made = with_services(config, change)
    if as_json:
        print_json({"kid": made.kid, **_times(made)})
    else:
        print_line(f"{made.kid} signs from {rfc3339(made.starts_at)}.")


@app.command("rotate-storage")
def rotate_storage(
    clear_text: Annotated[
        bool, typer.Option("--clear-text", help="Decrypt the secrets instead; secrets_key_file can then be removed.")
    ] = False,
    discard_unreadable: Annotated[
        bool,
        typer.Option("--discard-unreadable", help="Discard secrets that no key of the file decrypts."),
    ] = False,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum/--no-vacuum",
            help="SQLite: rebuild the file if it still contains former values. Blocks publishing meanwhile.",
        ),
    ] = True,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encrypt all secrets in the database with the newest key of secrets_key_file.

    Workers may run meanwhile, if their key file has the new key. Repeat the command if it was interrupted. Older keys
    may be removed from the file afterwards. Exit status 1: the secrets are stored anew, but a file still has to be
    cleared.

    If a key is lost, put a new one into the file and use --discard-unreadable. It lists what cannot be decrypted, asks,
    and says which peers, webhooks and subscriptions then need new secrets.
    """
    effective = settings.load(config)
    unreadable: list[Unreadable] = []
    if discard_unreadable:
        unreadable = with_store(config, _unreadable, may_lack_keys=True)
        if unreadable and not yes:
            for each in unreadable:
                print_line(f"{each.column.table}.{each.column.column}  {each.row}  {each.reason}", err=True)
        if unreadable:
            confirm(f"Discard {len(unreadable)} secrets that cannot be decrypted", yes=yes)

    async def change(store: Store) -> StorageKeyRotation:
        return await storage_key_rotation.rotate(
            store, command_actor(), datetime.now(UTC), clear_text=clear_text, discard=discard_unreadable
        )

    done = with_store(config, change, may_lack_keys=discard_unreadable)
    scrubbed = None
    if not schema.is_postgres(effective.database) and (done.former is None or done.total):
        scrubbed = scrub_texts(schema.sqlite_file(effective.database), done.former, vacuum=vacuum)
    cleared = scrubbed is None or (scrubbed.log_emptied and not scrubbed.found)
    if as_json:
        print_json(
            {
                "before": done.before,
                "after": done.after,
                "secrets": done.changed,
                "discarded": done.discarded,
                "files": {"cleared": cleared},
            }
        )
    else:
        how = "decrypted" if clear_text else f"encrypted with the key {done.after}"
        print_line(f"{done.total} secrets are now {how}." if done.total else f"All secrets were {how} already.")
        for column, number in done.changed.items():
            print_line(f"  {column}: {number}")
        if done.discarded:
            print_line(f"{len(done.discarded)} of them could not be decrypted and are discarded. For new ones:")
        for each in unreadable:
            if f"{each.column.table}.{each.column.column} {each.row}" in done.discarded:
                print_line(f"  {each.column.table}.{each.column.column}  {each.row}  {each.advice}")
        if done.total and schema.is_postgres(effective.database):
            tables = ", ".join(sorted({column.table for column in SECRET_COLUMNS}))
            print_line(f"Former values stay in the server's files until `vacuum full {tables}`, and in backups.")
    if not cleared:
        print_line("warning: former values may still be in the database's files; run the command again.", err=True)
        raise typer.Exit(1)


@app.command()
def revoke(
    kid: Annotated[str, typer.Argument(help="Key id from the list; after -- if it begins with a hyphen.")],
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key at once, and with it every token that it has signed. Running workers follow within seconds."""
    confirm(f"Revoke the key {kid} and every token that it has signed", yes=yes)

    async def change(store: Store) -> TokenKey | None:
        return await token_keys.revoke(store, kid, command_actor(), datetime.now(UTC))

    made = with_store(config, change)
    if as_json:
        print_json({"revoked": kid, "made": made.kid if made else None})
        return
    print_line(f"{kid} is revoked.")
    if made is not None:
        print_line(f"{made.kid} signs in its place.")


async def _unreadable(store: Store) -> list[Unreadable]:
    return await store.read(storage_keys.list_unreadable())


def _state(key: TokenKey, signing: TokenKey | None, at: datetime) -> str:
    if key == signing:
        return "signs"
    if not key.verifies(at):
        return "retired"
    return "published" if key.starts_at > at else "verifies"


def _times(key: TokenKey) -> dict[str, str | None]:
    return {
        "created_at": rfc3339(key.created_at),
        "signs_from": rfc3339(key.starts_at),
        "retired_at": rfc3339(key.retired_at) if key.retired_at else None,
    }
