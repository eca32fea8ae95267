"""ccp verify: verifies a message and reports every check."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccp import exi
from ccp import verify as installation
from ccp.cli.inputs import exi_bytes, read_input
from ccp.cli.output import ConfigOption, JsonOption, print_json, print_styled, with_pool
from ccp.errors import ConfigurationError, NotFound, VerificationError
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Namespace
from ccp.verify import lint
from ccp.verify.report import CheckList, CheckStatus
from ccp.verify.trust_folder import load_trust_directory
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_policy import NoRevocationCheck

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


@dataclass(frozen=True, slots=True)
class _Result:
    """The checks on one message, with their verdicts."""

    title: str
    checks: CheckList
    warnings: tuple[str, ...] = ()


def verify(
    file: Annotated[
        str | None, typer.Argument(help="Message as EXI, Base64, hex or a JSON body of the API; - for stdin.")
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
            _verify_with_trust(data, load_trust_directory(trust), moment)
            if trust
            else _verify_with_pool(data, moment, config)
        ]
    if as_json:
        reports = [one.checks.to_json(one.title, moment, one.warnings) for one in results]
        print_json(reports[0] if file is not None else reports)
    else:
        for one in results:
            _print(one, moment)
    if not all(one.checks.passed for one in results):
        raise typer.Exit(1)


def _print(result: _Result, at: datetime) -> None:
    print_styled((f"{result.title}, checked at {at:%Y-%m-%dT%H:%M:%SZ}", ""))
    for check in result.checks.results:
        print_styled((f"{check.number:2} ", ""), _MARKS[check.status], (f" {check.subject}", ""))
        for line in ((check.reason,) if check.reason else ()) + check.evidence:
            print_styled((f"       {line}", "dim"))
    for warning in result.warnings:
        print_styled((f"   ! {warning}", "yellow"))
    print_styled(("verified", "green") if result.checks.passed else ("NOT verified", "red"))


def _stored(emaid: str | None, pcid: str | None, at: datetime, config: Path | None) -> list[_Result]:
    """Verify every stored message of a contract or a vehicle. Raises NotFound."""
    contract = EMAID.parse(emaid) if emaid is not None else None
    vehicle = PCID.parse(pcid) if pcid is not None else None

    async def run(pool: Pool) -> list[_Result]:
        results = []
        for held in await pool.stored(contract, vehicle):
            response = installation.read_response(held.response, held.namespace)
            checks, warnings = await pool.explain_response(response, emaid=held.emaid, root=None, now=at, fetch=False)
            results.append(_Result(f"{held.emaid} for {held.pcid} ({held.namespace})", checks, warnings))
        return results

    results = with_pool(config, run)
    if not results:
        raise NotFound("The pool stores no such message.")
    return results


def _verify_with_pool(data: bytes, at: datetime, config: Path | None) -> _Result:
    """Verify a file as the pool would: with its anchors, its policy and its revocation evidence."""

    async def run(pool: Pool) -> _Result:
        message, result = _decoded(data)
        if message is None:
            return result
        namespace = Namespace(exi.namespace_of(message))
        if _is_request(message):
            checks, warnings = await pool.explain_request(installation.read_request(data, namespace), at)
        else:
            response = installation.read_response(data, namespace)
            checks, warnings = await pool.explain_response(response, emaid=None, root=None, now=at, fetch=False)
        return _Result(result.title, checks, warnings)

    return with_pool(config, run)


def _verify_with_trust(data: bytes, anchors: TrustAnchors, at: datetime) -> _Result:
    """Verify a message with given anchors, without revocation: only a pool has evidence."""
    message, result = _decoded(data)
    if message is None:
        return result
    namespace, checks = Namespace(exi.namespace_of(message)), result.checks
    warnings: tuple[str, ...] = ()
    try:
        if _is_request(message):
            request = installation.read_request(data, namespace)
            warnings = lint.lint_request(request, anchors)
            installation.check_request(request, anchors=anchors, revocation=NoRevocationCheck(), now=at, checks=checks)
        else:
            response = installation.read_response(data, namespace)
            warnings = lint.lint_response(response, anchors, at)
            installation.check_response(
                response, emaid=None, root=None, anchors=anchors, revocation=NoRevocationCheck(), now=at, checks=checks
            )
    except VerificationError:
        assert not checks.passed, "only a failed check ends verification"
    return _Result(result.title, checks, warnings)


def _decoded(data: bytes) -> tuple[exi.Message | None, _Result]:
    """Decode a message. Returns it with an empty report, or None with the report of the failed check."""
    checks = CheckList(collect=True)
    message = checks.run("EXI message", lambda: exi.decode(data))
    if message is None:
        return None, _Result("no message", checks)
    return message, _Result(f"{type(_inner(message)).__name__} ({exi.namespace_of(message)})", checks)


def _inner(message: exi.Message) -> object:
    return message.Body if isinstance(message, iso2.V2G_Message) else message


def _is_request(message: exi.Message) -> bool:
    return isinstance(_inner(message), iso2.CertificateInstallationReq | iso20.CertificateInstallationReq)


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
