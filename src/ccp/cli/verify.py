"""ccp verify: every check on a message, told one by one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ccp import exi, installation
from ccp.checks import Checks, Verdict
from ccp.cli.inputs import message_octets, read_input
from ccp.cli.show import ConfigOption, JsonOption, console, print_json, with_store
from ccp.errors import ConfigurationError, VerificationError
from ccp.exi import iso2, iso20
from ccp.ids import Namespace
from ccp.pki.evidence import Unchecked
from ccp.pki.paths import TrustAnchors
from ccp.store import Store
from ccp.trust import Trust, from_directory

_MARKS = {Verdict.PASSED: "[green]✓[/]", Verdict.FAILED: "[red]✗[/]", Verdict.NOT_APPLICABLE: "[dim]–[/]"}


def register(app: typer.Typer) -> None:
    app.command()(verify)


def verify(
    file: Annotated[str, typer.Argument(help="A message as EXI, Base64, hex or a JSON body of the API; - for stdin.")],
    at: Annotated[str | None, typer.Option(help="Time of the check, RFC 3339; now if not given.")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="Directory of anchors: *.pem for every role, v2g/ emsp/ oem/ for one; else the pool's."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk every check on a CertificateInstallationRes or -Req and say what came of it. Exit status 0 or 1."""
    moment = _moment(at)
    anchors = from_directory(trust) if trust else _pool_anchors(config)
    checks = Checks(tell=True)
    kind = _run(checks, message_octets(read_input(file)), anchors, moment)
    if as_json:
        print_json(
            {
                "message": kind,
                "at": moment.isoformat(),
                "passed": checks.passed,
                "checks": [
                    {
                        "number": check.number,
                        "subject": check.subject,
                        "verdict": check.verdict,
                        "reason": check.reason,
                        "evidence": list(check.evidence),
                    }
                    for check in checks.report
                ],
            }
        )
    else:
        console.print(f"{kind}, checked at {moment:%Y-%m-%dT%H:%M:%SZ}", highlight=False, soft_wrap=True)
        for check in checks.report:
            console.print(f"{check.number:2} {_MARKS[check.verdict]} {check.subject}", highlight=False)
            for line in ((check.reason,) if check.reason else ()) + check.evidence:
                console.print(f"       {line}", highlight=False, markup=False, soft_wrap=True, style="dim")
        console.print("[green]verified[/]" if checks.passed else "[red]NOT verified[/]")
    if not checks.passed:
        raise typer.Exit(1)


def _run(checks: Checks, octets: bytes, anchors: TrustAnchors, at: datetime) -> str:
    """Run the checks that fit the message. Returns what it is."""
    message = checks.run("EXI message", lambda: exi.decode(octets))
    if message is None:
        return "no message"
    namespace = Namespace(exi.namespace_of(message))
    inner = message.Body if isinstance(message, iso2.V2G_Message) else message
    is_request = isinstance(inner, iso2.CertificateInstallationReq | iso20.CertificateInstallationReq)
    try:
        if is_request:
            request = installation.read_request(octets, namespace)
            installation.verify_request(request, anchors=anchors, revocation=Unchecked(), at=at, checks=checks)
        else:
            response = installation.read_response(octets, namespace)
            installation.verify_response(
                response, emaid=None, root=None, anchors=anchors, revocation=Unchecked(), at=at, checks=checks
            )
    except VerificationError:
        assert not checks.passed, "only a failed check ends the walk"
    return f"{type(inner).__name__} ({namespace})"


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"--at {text} is no RFC 3339 time, such as 2025-01-01T00:00:00Z.") from exc
    if moment.tzinfo is None:
        raise ConfigurationError("--at needs a time zone, such as 2025-01-01T00:00:00Z.")
    return moment.astimezone(UTC)


def _pool_anchors(config: Path | None) -> TrustAnchors:
    async def read(store: Store) -> TrustAnchors:
        trust = Trust(store)
        await trust.refresh()
        return trust.anchors

    return with_store(config, read)
