"""ccp verify: every check on a message, told one by one."""

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
    app.command()(verify)


@dataclass(frozen=True, slots=True)
class _Told:
    """What came of the checks on one message."""

    title: str
    checks: CheckList
    warnings: tuple[str, ...] = ()


def verify(
    file: Annotated[
        str | None, typer.Argument(help="A message as EXI, Base64, hex or a JSON body of the API; - for stdin.")
    ] = None,
    emaid: Annotated[str | None, typer.Option(help="Instead of a file: what the pool holds of this contract.")] = None,
    pcid: Annotated[str | None, typer.Option(help="Instead of a file: what the pool holds for this vehicle.")] = None,
    at: Annotated[str | None, typer.Option(help="Time of the check, RFC 3339; now if not given.")] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="Directory of anchors: *.pem for every role, v2g/ emsp/ oem/ for one; else the pool's."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a CertificateInstallationRes or -Req and report every check. Exit status 0 or 1.

    With the pool's own anchors, its policy and its revocation evidence count too; nothing is fetched.
    """
    moment = _moment(at)
    if [file, emaid, pcid].count(None) != 2:
        raise ConfigurationError("Give a file, or --emaid, or --pcid: one of them.")
    if file is None:
        if trust is not None:
            raise ConfigurationError("What the pool holds is checked against the pool's anchors; --trust is for files.")
        told = _held(emaid, pcid, moment, config)
    else:
        octets = exi_bytes(read_input(file))
        told = [_given(octets, load_trust_directory(trust), moment) if trust else _known(octets, moment, config)]
    if as_json:
        reports = [one.checks.to_json(one.title, moment, one.warnings) for one in told]
        print_json(reports[0] if file is not None else reports)
    else:
        for one in told:
            _print(one, moment)
    if not all(one.checks.passed for one in told):
        raise typer.Exit(1)


def _print(told: _Told, at: datetime) -> None:
    print_styled((f"{told.title}, checked at {at:%Y-%m-%dT%H:%M:%SZ}", ""))
    for check in told.checks.results:
        print_styled((f"{check.number:2} ", ""), _MARKS[check.status], (f" {check.subject}", ""))
        for line in ((check.reason,) if check.reason else ()) + check.evidence:
            print_styled((f"       {line}", "dim"))
    for warning in told.warnings:
        print_styled((f"   ! {warning}", "yellow"))
    print_styled(("verified", "green") if told.checks.passed else ("NOT verified", "red"))


def _held(emaid: str | None, pcid: str | None, at: datetime, config: Path | None) -> list[_Told]:
    """The checks on everything that the pool holds of a contract or a vehicle. Raises NotFound."""
    contract = EMAID.parse(emaid) if emaid is not None else None
    vehicle = PCID.parse(pcid) if pcid is not None else None

    async def run(pool: Pool) -> list[_Told]:
        told = []
        for held in await pool.stored(contract, vehicle):
            response = installation.read_response(held.response, held.namespace)
            checks, warnings = await pool.explain_response(response, emaid=held.emaid, root=None, now=at, fetch=False)
            told.append(_Told(f"{held.emaid} for {held.pcid} ({held.namespace})", checks, warnings))
        return told

    told = with_pool(config, run)
    if not told:
        raise NotFound("The pool holds nothing of it.")
    return told


def _known(octets: bytes, at: datetime, config: Path | None) -> _Told:
    """The checks on a file as the pool would make them: against its anchors, its policy and its evidence."""

    async def run(pool: Pool) -> _Told:
        message, told = _decoded(octets)
        if message is None:
            return told
        namespace = Namespace(exi.namespace_of(message))
        if _is_request(message):
            checks, warnings = await pool.explain_request(installation.read_request(octets, namespace), at)
        else:
            response = installation.read_response(octets, namespace)
            checks, warnings = await pool.explain_response(response, emaid=None, root=None, now=at, fetch=False)
        return _Told(told.title, checks, warnings)

    return with_pool(config, run)


def _given(octets: bytes, anchors: TrustAnchors, at: datetime) -> _Told:
    """The checks on a message by itself. There is no evidence of revocation but in a pool."""
    message, told = _decoded(octets)
    if message is None:
        return told
    namespace, checks = Namespace(exi.namespace_of(message)), told.checks
    warnings: tuple[str, ...] = ()
    try:
        if _is_request(message):
            request = installation.read_request(octets, namespace)
            warnings = lint.lint_request(request, anchors)
            installation.check_request(request, anchors=anchors, revocation=NoRevocationCheck(), now=at, checks=checks)
        else:
            response = installation.read_response(octets, namespace)
            warnings = lint.lint_response(response, anchors, at)
            installation.check_response(
                response, emaid=None, root=None, anchors=anchors, revocation=NoRevocationCheck(), now=at, checks=checks
            )
    except VerificationError:
        assert not checks.passed, "only a failed check ends the walk"
    return _Told(told.title, checks, warnings)


def _decoded(octets: bytes) -> tuple[exi.Message | None, _Told]:
    """The message, and what is told of it by its name; where there is none, that this check failed."""
    checks = CheckList(collect=True)
    message = checks.run("EXI message", lambda: exi.decode(octets))
    if message is None:
        return None, _Told("no message", checks)
    return message, _Told(f"{type(_inner(message)).__name__} ({exi.namespace_of(message)})", checks)


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
        raise ConfigurationError(f"--at {text} is no RFC 3339 time, such as 2025-01-01T00:00:00Z.") from exc
    if moment.tzinfo is None:
        raise ConfigurationError("--at needs a time zone, such as 2025-01-01T00:00:00Z.")
    return moment.astimezone(UTC)
