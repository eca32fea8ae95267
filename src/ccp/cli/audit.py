"""ccp audit: who did what, and whether the trail is whole."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from ccp import audit, settings
from ccp.audit import Verdict, Verifier
from ccp.cli.show import ConfigOption, JsonOption, print_json, print_table, with_store
from ccp.errors import CCPError, ConfigurationError, FieldError
from ccp.ids import EMAID, PCID
from ccp.pseudonyms import Pseudonyms
from ccp.store import Store, connect
from ccp.store import audit as questions
from ccp.store.audit import Filter, Head, Recorded

app = typer.Typer(help="Look into the audit trail.", no_args_is_help=True)


@app.command("list")
def list_rows(
    since: Annotated[str | None, typer.Option(help="From this time on: 2026-03-01 or 2026-03-01T12:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time.")] = None,
    actor: Annotated[str | None, typer.Option(help="A client id, pool, pcp, unknown, or cli:USER.")] = None,
    action: Annotated[str | None, typer.Option(help="Such as contract.published or access.refused.")] = None,
    emaid: Annotated[str | None, typer.Option(help="Rows that name this contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="Rows that name this vehicle.")] = None,
    outcome: Annotated[str | None, typer.Option(help="ok, refused, or exactly what the row says.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many rows, the newest.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print rows, the newest first."""
    ids: list[str] = [EMAID.parse(emaid)] if emaid is not None else []
    if pcid is not None:
        ids.append(PCID.parse(pcid))
    wanted = Filter(_time(since, "since"), _time(until, "until"), actor, action, outcome, tuple(ids))

    async def read(store: Store) -> list[Recorded]:
        return await store.read(questions.found(wanted, limit))

    found = with_store(config, read)
    if as_json:
        print_json([_shown(row) for row in found])
        return
    print_table(
        ["at", "actor", "action", "outcome", "subject", "trace id"],
        [
            [_printable(text) for text in (_at(row), row.actor, row.action, row.outcome, _about(row))]
            + [row.trace_id or ""]
            for row in found
        ],
    )


@app.command()
def verify(
    file: Annotated[Path | None, typer.Argument(help="An export to verify; without it the database.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="An earlier export, kept elsewhere: the trail has to be its continuation.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold every row against its chain. Ends with status 1 where one was changed, removed or moved.

    A trail that somebody with the database's password wrote anew as a whole is only noticed with --against.
    """
    verifier = Verifier(_ends(against) if against is not None else None)
    if file is not None:
        with _open(file) as lines:
            for part in audit.read_export(lines):
                if isinstance(part, Recorded):
                    verifier.take(part)
                else:
                    verifier.end(part)
    else:

        async def read(store: Store) -> None:
            async for _ in audit.walk(store, verifier):
                pass

        with_store(config, read)
    _tell(verifier.verdict(), as_json=as_json)


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="New file; without it standard output.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write the whole trail as JSON Lines with its hashes, for `ccp audit verify FILE` or anybody's own program."""

    async def write(store: Store, out: IO[str]) -> Verdict:
        verifier = Verifier()
        print(json.dumps(audit.first_line(datetime.now(UTC))), file=out)
        async for part in audit.walk(store, verifier):
            line = audit.line_of(part)
            if line is not None:
                print(json.dumps(line), file=out)
        return verifier.verdict()

    if file is None:
        verdict = with_store(config, lambda store: write(store, sys.stdout))
    else:
        try:
            with open(file, "x", encoding="ascii") as out:
                verdict = with_store(config, lambda store: write(store, out))
        except FileExistsError as exc:
            raise ConfigurationError(f"{file} is there already.") from exc
    # What is broken is exported as it is: whoever gets the file has to see it too.
    for broken in verdict.broken:
        typer.echo(f"warning: lane {broken.lane}, row {broken.number}: {broken.why}.", err=True)


@app.command()
def pseudonym(
    named: Annotated[str, typer.Argument(metavar="ID", help="An EMAID or a PCID.")], config: ConfigOption = None
) -> None:
    """Print what stands for an EMAID or a PCID in the log, to search for it there."""

    async def run() -> str:
        effective = settings.load(config)
        pseudonyms = Pseudonyms(effective)
        store = connect(effective.database)
        await store.open()
        try:
            await pseudonyms.open(store)
        finally:
            await store.close()
        return pseudonyms.of(_id(named))

    typer.echo(asyncio.run(run()))


def _id(text: str) -> EMAID | PCID:
    """The two kinds overlap, and where they do their canonical forms are the same. Raises FieldError."""
    try:
        return PCID.parse(text)
    except FieldError:
        return EMAID.parse(text, "ID")


def _tell(verdict: Verdict, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "rows": verdict.rows,
                "erased": verdict.erased,
                "broken": [{"lane": each.lane, "number": each.number, "why": each.why} for each in verdict.broken],
            }
        )
    else:
        erased = f", {verdict.erased} of them erased" if verdict.erased else ""
        typer.echo(f"{verdict.rows} row(s){erased}.")
        for each in verdict.broken:
            typer.echo(f"lane {each.lane}, row {each.number}: {each.why}.")
        typer.echo("The trail is broken." if verdict.broken else "The trail is whole.")
    if verdict.broken:
        raise typer.Exit(1)


@contextmanager
def _open(file: Path) -> Iterator[Iterator[str]]:
    try:
        with open(file, encoding="utf-8") as lines:
            yield lines
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{file} is no audit export.") from exc
    except CCPError as exc:
        raise ConfigurationError(*(f"{file}: {message}" for message in exc.messages)) from exc


def _ends(file: Path) -> dict[int, Head]:
    """Where an earlier export ends; it has to be whole itself. Raises ConfigurationError."""
    verifier = Verifier()
    ends: dict[int, Head] = {}
    with _open(file) as lines:
        for part in audit.read_export(lines):
            if isinstance(part, Recorded):
                verifier.take(part)
            else:
                verifier.end(part)
                if part.head is not None:
                    ends[part.lane] = part.head
    if verifier.verdict().broken:
        raise ConfigurationError(f"{file} is broken itself; see ccp audit verify {file}.")
    return ends


def _time(text: str | None, option: str) -> datetime | None:
    """A time as people write it; without a zone it is UTC. Raises ConfigurationError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise ConfigurationError(f"--{option} is a date or a time, such as 2026-03-01 or 2026-03-01T12:00Z.") from exc


def _at(row: Recorded) -> str:
    return row.when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _about(row: Recorded) -> str:
    if row.subject is None:
        return "(erased)"
    return " ".join(f"{name}={_value(value)}" for name, value in json.loads(row.subject).items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(row: Recorded) -> dict[str, Any]:
    return {
        "at": _at(row),
        "actor": row.actor,
        "action": row.action,
        "outcome": row.outcome,
        "subject": None if row.subject is None else json.loads(row.subject),
        "trace_id": row.trace_id,
        "lane": row.lane,
        "number": row.number,
    }


def _printable(text: str) -> str:
    """What a caller claimed to be must not write to the terminal by itself."""
    return "".join(character if character.isprintable() else "?" for character in text)
