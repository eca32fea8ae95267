"""ccp verify: verifies a message and reports every check."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccp import verify as installation
from ccp.cli.inputs import read_input
from ccp.cli.output import ConfigOption, JsonOption, print_json, print_styled, with_pool
from ccp.errors import ConfigurationError, NotFound
from ccp.exi.message_input import exi_bytes
from ccp.ids import EMAID, PCID
from ccp.verify import Explanation, NoRevocationCheck, Trust
from ccp.verify.report import CheckStatus

if TYPE_CHECKING:
    from ccp.server.pool.operations import Pool

_MARKS = {
    CheckStatus.PASSED: ("✓", "green"),
    CheckStatus.FAILED: ("✗", "red"),
    CheckStatus.NOT_APPLICABLE: ("–", "dim"),
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    file: Annotated[
        str | None, typer.Argument(help="Message as EXI, XML, Base64, hex or a JSON body; - for stdin.")
    ] = None,
    emaid: Annotated[str | None, typer.Option(help="Instead of a file: the stored messages of this contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="Instead of a file: the stored messages for this vehicle.")] = None,
    at: Annotated[str | None, typer.Option(help="Time of the verification, RFC 3339. Default: now.")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="Directory of anchors: *.pem for every role, v2g/ emsp/ oem/ for one. Default: the pool's."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a CertificateInstallationRes or -Req and report every check. Exit status 0 or 1.

    Without --trust, the pool's anchors, policy and stored revocation evidence apply; nothing is fetched.
    """
    moment = _moment(at)
    if [file, emaid, pcid].count(None) != 2:
        raise ConfigurationError("Give a file, --emaid or --pcid, and only one of them.")
    if file is None:
        if trust is not None:
            raise ConfigurationError("Stored messages are verified against the pool's anchors; --trust is for files.")
        results = _stored(emaid, pcid, moment, config)
    else:
        data = exi_bytes(read_input(file))
        results = [
            installation.explain(data, trust=Trust.from_directory(trust, revocation=NoRevocationCheck()), now=moment)
            if trust
            else _verify_with_pool(data, moment, config)
        ]
    if as_json:
        reports = [result.to_json() for result in results]
        print_json(reports[0] if file is not None else reports)
    else:
        for result in results:
            _print(result)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _print(result: Explanation) -> None:
    print_styled((f"{result.title}, checked at {result.now:%Y-%m-%dT%H:%M:%SZ}", ""))
    for check in result.checks.results:
        print_styled((f"{check.number:2} ", ""), _MARKS[check.status], (f" {check.subject}", ""))
        for line in ((check.reason,) if check.reason else ()) + check.evidence:
            print_styled((f"       {line}", "dim"))
    for warning in result.warnings:
        print_styled((f"   ! {warning}", "yellow"))
    print_styled(("verified", "green") if result.passed else ("NOT verified", "red"))


def _stored(emaid: str | None, pcid: str | None, at: datetime, config: Path | None) -> list[Explanation]:
    """Verify every stored message of a contract or a vehicle. Raises NotFound."""
    contract = EMAID.parse(emaid) if emaid is not None else None
    vehicle = PCID.parse(pcid) if pcid is not None else None

    async def run(pool: Pool) -> list[Explanation]:
        results = []
        for held in await pool.stored(contract, vehicle):
            response = installation.read_response(held.response, held.namespace)
            checks, warnings = await pool.explain_response(response, emaid=held.emaid, root=None, now=at, fetch=False)
            results.append(Explanation(f"{held.emaid} for {held.pcid} ({held.namespace})", checks, at, warnings))
        return results

    results = with_pool(config, run)
    if not results:
        raise NotFound("The pool stores no such message.")
    return results


def _verify_with_pool(data: bytes, at: datetime, config: Path | None) -> Explanation:
    """Verify a file as the pool would: with its anchors, its policy and its revocation evidence."""

    async def run(pool: Pool) -> Explanation:
        return (await pool.examine(data, at, with_contracts=False)).explanation

    return with_pool(config, run)


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigurationError(f"--at {text} is not an RFC 3339 time, such as 2025-01-01T00:00:00Z.") from exc
    if moment.tzinfo is None:
        raise ConfigurationError("--at needs a time zone, such as 2025-01-01T00:00:00Z.")
    return moment.astimezone(UTC)
