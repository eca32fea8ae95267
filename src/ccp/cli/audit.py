"""ccp audit: queries, verifies and exports the audit trail."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, print_table, with_store
from ccp.errors import CCPError, ConfigurationError, FieldError
from ccp.ids import EMAID, PCID
from ccp.schemas.timestamps import rfc3339
from ccp.server import settings
from ccp.server.audit import export_comparison
from ccp.server.audit.export import export_header, export_line, read_export
from ccp.server.audit.export_comparison import BlankedRow
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.verification import ChainVerification, ChainVerifier, verify_trail
from ccp.server.runtime.private_files import create_private
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.time_limits import COMMANDS
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries import audit_stream
from ccp.server.storage.queries.audit import AuditRow, ChainHead, Filter
from ccp.server.storage.queries.contracts import instant, microseconds

app = typer.Typer(no_args_is_help=True)

_EXIT_BLANKED = 3
"""Exit status: intact, but rows lost their subject. 2 is click's status for usage errors."""


@app.command("list")
def list_rows(
    since: Annotated[str | None, typer.Option(help="Start, inclusive: 2026-03-01 or 2026-03-01T12:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="End, exclusive.")] = None,
    actor: Annotated[str | None, typer.Option(help="Actor: a client id, pool, pcp, unknown, or cli:USER.")] = None,
    action: Annotated[str | None, typer.Option(help="Action, such as contract.published or access.refused.")] = None,
    emaid: Annotated[str | None, typer.Option(help="Only rows that name this contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="Only rows that name this vehicle.")] = None,
    outcome: Annotated[str | None, typer.Option(help="ok, refused, or the exact outcome.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List rows, newest first."""
    ids: list[str] = [EMAID.parse(emaid)] if emaid is not None else []
    if pcid is not None:
        ids.append(PCID.parse(pcid))
    wanted = Filter(_time(since, "since"), _time(until, "until"), actor, action, outcome, tuple(ids))

    async def read(store: Store) -> list[AuditRow]:
        return await store.read(queries.search(wanted, limit))

    found = with_store(config, read)
    if as_json:
        print_json([_shown(row) for row in found])
        return
    print_table(
        ["at", "actor", "action", "outcome", "subject", "trace id"],
        [[_at(row), row.actor, row.action, row.outcome, _about(row), row.trace_id or ""] for row in found],
    )


@app.command()
def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE…",
            help="Export to verify, or the files of a stream in the order of their writing. Default: the database.",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Earlier export, kept elsewhere, that the trail must continue; or a file of the stream (repeat the "
            "option for several, in the order of their writing).",
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify every row against its hash chain. Exit status 1: a row was changed, removed or moved.

    Only --against detects a trail that was rewritten completely, or a row that was blanked under an invented erasure.
    It lists every row that has lost its subject since the export: compare them with the erasures that you have
    carried out. Exit status 3: there are such rows, and everything else is intact.
    """
    verifier = ChainVerifier(_ends(against) if against else None)
    streamed = False
    if files:
        with _open(files) as lines:
            for part in read_export(lines):
                if isinstance(part, AuditRow):
                    verifier.feed(part)
                else:
                    verifier.feed_head(part)
                    streamed = part.of_stream
    else:

        async def read(store: Store) -> None:
            async for _ in verify_trail(store, verifier):
                pass

        with_store(config, read)
    verdict = verifier.result()
    if not against:
        _print_verdict(verdict, None, as_json=as_json, streamed=streamed)
        return
    with _open(against) as lines:
        blanked = export_comparison.blanked_since(read_export(lines), verifier)
    _print_verdict(
        verdict.with_broken(export_comparison.contradictions(blanked)), blanked, as_json=as_json, streamed=streamed
    )


@app.command()
def stream(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show how far the stream of the trail has got: rows that the receiver has, and rows that wait."""
    effective = settings.load(config)
    kind = effective.audit_stream
    if kind is None:
        raise ConfigurationError("The audit trail is not streamed: audit_stream is not set.")

    async def read(store: Store) -> tuple[audit_stream.StreamState, datetime]:
        return await store.read(audit_stream.state(kind)), await store.time() or datetime.now(UTC)

    state, now = with_store(config, read)
    waiting = state.rows - state.confirmed
    age = max(0.0, (now - instant(state.oldest_at)).total_seconds()) if state.oldest_at is not None else 0.0
    sends = state.lease_until > microseconds(now)
    if as_json:
        print_json(
            {
                "kind": kind,
                "rows": state.rows,
                "confirmed": state.confirmed,
                "waiting": waiting,
                "oldest_waiting_seconds": round(age, 1),
                "sender": state.holder if sends else None,
            }
        )
        return
    print_line(f"{kind}: the receiver has {state.confirmed} of {state.rows} row(s).")
    if waiting:
        print_line(f"{waiting} row(s) wait; the oldest was written {age:.0f} second(s) ago.")
    print_line(f"{state.holder} sends." if sends else "No process sends now: the pool does not run, or it is starting.")


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="File to create. Default: standard output.")] = None,
    config: ConfigOption = None,
) -> None:
    """Write the trail with its hashes as JSON Lines, for `ccp audit verify FILE` or other programs."""

    async def write(store: Store, out: IO[bytes]) -> ChainVerification:
        verifier = ChainVerifier()
        out.write(_line(export_header(datetime.now(UTC))))
        async for part in verify_trail(store, verifier):
            line = export_line(part)
            if line is not None:
                out.write(_line(line))
        out.flush()
        return verifier.result()

    if file is None:
        verdict = with_store(config, lambda store: write(store, sys.stdout.buffer))
    else:
        try:
            out = create_private(file)
        except FileExistsError as exc:
            raise ConfigurationError(f"{file} exists already.") from exc
        try:
            with out:
                verdict = with_store(config, lambda store: write(store, out))
        except BaseException:
            file.unlink()  # An incomplete export would look like a truncated trail.
            raise
    # Broken rows are exported unchanged, so that the recipient can see them too.
    for broken in verdict.broken:
        print_line(f"warning: lane {broken.lane}, row {broken.number}: {broken.why}.", err=True)


@app.command()
def pseudonym(
    named: Annotated[str, typer.Argument(metavar="ID", help="An EMAID or a PCID.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the pseudonym of an EMAID or a PCID in the log."""

    async def run() -> str:
        effective = settings.load(config)
        pseudonyms = Pseudonyms(effective)
        store = connect(effective.database, limits=COMMANDS, secrets_key_file=effective.secrets_key_file)
        await store.open()
        try:
            await pseudonyms.open(store)
        finally:
            await store.close()
        return pseudonyms.pseudonym(_id(named))

    found = asyncio.run(run())
    if as_json:
        print_json({"pseudonym": found})
    else:
        print_line(found)


def _id(text: str) -> EMAID | PCID:
    """Parse either kind of id. The kinds overlap; in the overlap their canonical forms are equal. Raises FieldError."""
    try:
        return PCID.parse(text)
    except FieldError:
        return EMAID.parse(text, "ID")


def _line(members: dict[str, Any]) -> bytes:
    return json.dumps(members).encode("ascii") + b"\n"


def _print_verdict(
    verdict: ChainVerification, blanked: list[BlankedRow] | None, *, as_json: bool, streamed: bool
) -> None:
    """Print a verdict and exit.

    blanked: rows that lost their subject since an earlier export; None without one. streamed: of files of a stream.
    """
    if as_json:
        shown: dict[str, Any] = {
            "rows": verdict.rows,
            "erased": verdict.erased,
            "broken": [{"lane": each.lane, "number": each.number, "why": each.why} for each in verdict.broken],
        }
        if blanked is not None:
            shown["blanked"] = [_blanked(row) for row in blanked]
        print_json(shown)
    else:
        erased = f", {verdict.erased} of them erased" if verdict.erased else ""
        print_line(f"{verdict.rows} row(s){erased}.")
        for each in verdict.broken:
            print_line(f"lane {each.lane}, row {each.number}: {each.why}.")
        for row in blanked or ():
            print_line(_blanked_line(row))
        print_line(_summary(verdict, blanked))
        if streamed and not verdict.broken:
            print_line(
                "Rows after the last one of each lane may be missing: `ccp audit verify --against` compares both."
            )
    if verdict.broken:
        raise typer.Exit(1)
    if blanked:
        raise typer.Exit(_EXIT_BLANKED)


def _summary(verdict: ChainVerification, blanked: list[BlankedRow] | None) -> str:
    if verdict.broken:
        return "The trail is broken."
    if blanked:
        return (
            f"The chains are intact. {len(blanked)} row(s) lost their subject since the export: compare them with the "
            "erasures that you have carried out."
        )
    if verdict.erased and blanked is None:
        return (
            "The trail is whole. Only an earlier export can show whether its erasures were carried out by `ccp erase` "
            "(--against)."
        )
    return "The trail is whole."


def _blanked(row: BlankedRow) -> dict[str, Any]:
    erasure = row.erasure
    members = None
    if erasure is not None:
        at = _instant(erasure.at)
        members = {"lane": erasure.lane, "number": erasure.number, "at": at, "actor": erasure.actor}
    return {**_shown(row.earlier), "erasure": members}


def _blanked_line(row: BlankedRow) -> str:
    earlier, erasure = row.earlier, row.erasure
    by = "no erasure lists it"
    if erasure is not None:
        at = _instant(erasure.at)
        by = f"erased at {at} by {erasure.actor} (lane {erasure.lane}, row {erasure.number})"
    what = f"{_at(earlier)} {earlier.action} by {earlier.actor}"
    return f"lane {earlier.lane}, row {earlier.number}: {what}: {by}; the export has {_about(earlier)}."


@contextmanager
def _open(files: Sequence[Path]) -> Iterator[Iterator[str]]:
    """The lines of files, one after the other."""
    named = ", ".join(map(str, files))
    try:
        with ExitStack() as opened:
            yield chain.from_iterable([opened.enter_context(open(file, encoding="utf-8")) for file in files])
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{named} is not an audit export.") from exc
    except CCPError as exc:
        raise ConfigurationError(*(f"{named}: {message}" for message in exc.messages)) from exc


def _ends(files: Sequence[Path]) -> dict[int, ChainHead]:
    """The last row of each lane in an earlier export, which must be intact. Raises ConfigurationError."""
    verifier = ChainVerifier()
    ends: dict[int, ChainHead] = {}
    with _open(files) as lines:
        for part in read_export(lines):
            if isinstance(part, AuditRow):
                verifier.feed(part)
            else:
                verifier.feed_head(part)
                if part.head is not None:
                    ends[part.lane] = part.head
    named = " ".join(map(str, files))
    if verifier.result().broken:
        raise ConfigurationError(f"{named} is broken; see ccp audit verify {named}.")
    return ends


def _time(text: str | None, option: str) -> datetime | None:
    """Parse an ISO 8601 time; UTC if it has no zone. Raises ConfigurationError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise ConfigurationError(
            f"--{option} must be a date or a time, such as 2026-03-01 or 2026-03-01T12:00Z."
        ) from exc


def _at(row: AuditRow) -> str:
    return _instant(row.at)


def _instant(at: int) -> str:
    """at: microseconds since 1970."""
    return rfc3339(instant(at), "milliseconds")


def _about(row: AuditRow) -> str:
    if row.subject is None:
        return "(erased)"
    subject = _subject(row)
    if not isinstance(subject, dict):
        return row.subject
    return " ".join(f"{name}={_value(value)}" for name, value in subject.items())


def _subject(row: AuditRow) -> Any:
    """The subject as JSON; as a string if it is not JSON, which the pool never writes."""
    try:
        return None if row.subject is None else json.loads(row.subject)
    except (ValueError, RecursionError):
        return row.subject


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(row: AuditRow) -> dict[str, Any]:
    return {
        "at": _at(row),
        "actor": row.actor,
        "action": row.action,
        "outcome": row.outcome,
        "subject": _subject(row),
        "trace_id": row.trace_id,
        "lane": row.lane,
        "number": row.number,
    }
