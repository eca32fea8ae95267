"""ccp why: why a vehicle got nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccp.cli.output import ConfigOption, JsonOption, print_json, print_line, with_services
from ccp.errors import ConfigurationError

if TYPE_CHECKING:
    from ccp.server.app import Services
    from ccp.server.storage.queries.refusals import Refusal


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="TRACE_ID|PCID|EMAID", help="Trace id of a response, a vehicle's PCID, or a contract's EMAID."
        ),
    ],
    limit: Annotated[int, typer.Option(min=1, max=100, help="Records to show, at most.")] = 5,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a vehicle got no contract, and who has to do what. Exit status 1 without a record."""
    from ccp.server.pool import refusal_reports
    from ccp.server.storage.queries import refusals

    trace_id, ids = refusal_reports.parse_trace_id(wanted), refusal_reports.parse_ids(wanted)
    if trace_id is None and not ids:
        raise ConfigurationError(
            "Give a trace id (as in X-Trace-Id), a PCID (17 or 18 letters and digits), or an EMAID."
        )

    async def run(built: Services) -> list[dict[str, Any]]:
        found: list[Refusal]
        if trace_id is not None:
            found = await built.store.read(refusals.search(refusals.RefusalFilter(id=trace_id), limit))
        else:
            found = (await refusal_reports.latest(built.store, ids, limit))[1].found
        stories = []
        for each in found:
            now = None
            if each.request is not None:
                now = (await refusal_reports.answer_now(built.pool, each.request, datetime.now(UTC))).to_json()
            stories.append({**refusal_reports.shown(each), "now": now})
        return stories

    stories = with_services(config, run)
    if as_json:
        print_json(stories)
    for number, story in enumerate([] if as_json else stories):
        if number:
            print_line("")
        _print(story)
    if not stories:
        if not as_json:
            print_line(
                f"No refused delivery of {wanted} is on record: it was answered, is older than refusal_retention, or "
                "never reached the delivery (see the audit trail and the log)."
            )
        raise typer.Exit(1)


def _print(story: dict[str, Any]) -> None:
    lines = (
        ("when", story["at"]),
        ("trace id", story["trace_id"]),
        ("vehicle", story["pcid"] or "not readable"),
        ("contracts", ", ".join(story["emaids"]) or story["emaid"]),
        ("asked by", f"{story['client_id']} ({story['dialect']} {story['operation']}, status {story['status']})"),
        ("edition", story["edition"]),
        ("message", story["digest"] and f"SHA-256 {story['digest']}"),
        ("refused", story["code"]),
        ("check", story["check"]),
        ("reason", story["reason"]),
        ("means", story["meaning"]),
        ("to do", f"{story['responsible']}: {story['action']}"),
    )
    for name, value in lines:
        if value:
            print_line(f"{name:<10} {value}")
    now = story["now"]
    if now is None:
        print_line("now        not known: the request was not kept (keep_refused_requests)")
        return
    print_line(f"now        {'contract ' + ', '.join(now['emaids']) if now['emaids'] else now['code']}")
    if now["reason"]:
        print_line(f"           {now['reason']}")
    for check in now["checks"]["checks"]:
        reason = f": {check['reason']}" if check["reason"] else ""
        print_line(f"           {check['number']:2} {check['verdict']}  {check['subject']}{reason}")
