"""Verification of one message from its bytes: the public entry points.

`verify_…` raises after the first stage with a failed check; `explain_…` runs every check and reports. Both use the
checks of `request` and `response`, which the pool calls with its own revocation state.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ccp import exi
from ccp.errors import VerificationError
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, Fingerprint
from ccp.verify import lint
from ccp.verify.report import CheckList
from ccp.verify.request import VerifiedInstallationRequest, check_request, read_request
from ccp.verify.response import VerifiedInstallationResponse, check_response, read_response
from ccp.verify.trust_folder import load_trust_directory
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.revocation_policy import RevocationChecker


@dataclass(frozen=True, slots=True)
class Trust:
    """What a verification trusts.

    anchors: roots and known intermediates by role. revocation: decides about revoked certificates. It has no
    default, because the caller has to fetch the evidence; `NoRevocationCheck()` skips the check explicitly.
    """

    anchors: TrustAnchors
    revocation: RevocationChecker

    @classmethod
    def from_directory(cls, path: Path | str, *, revocation: RevocationChecker) -> Trust:
        """Read anchors and intermediates from a directory, see `trust_folder`. Raises ConfigurationError."""
        return cls(load_trust_directory(Path(path)), revocation)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Report on one message.

    title: what the message is. checks: every check with its result. warnings: what fails no check but needs attention.
    """

    title: str
    checks: CheckList
    now: datetime
    warnings: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check has passed."""
        return self.checks.passed

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return self.checks.to_json(self.title, self.now, self.warnings)

    def __str__(self) -> str:
        lines = [self.title]
        for result in self.checks.results:
            lines.append(f"{result.number:2} {result.status}: {result.subject}")
            lines += [f"     {line}" for line in ((result.reason,) if result.reason else ()) + result.evidence]
        lines += [f"   ! {warning}" for warning in self.warnings]
        return "\n".join((*lines, "verified" if self.passed else "NOT verified"))


def verify_request(data: bytes, *, trust: Trust, now: datetime) -> VerifiedInstallationRequest:
    """Verify a vehicle's CertificateInstallationReq (EXI). now: aware.

    Raises EXIError; ChainError, SignatureError, RevokedError (all VerificationError).
    """
    request = read_request(data, None)
    return check_request(request, anchors=trust.anchors, revocation=trust.revocation, now=now)


def verify_response(
    data: bytes,
    *,
    trust: Trust,
    now: datetime,
    emaid: EMAID | None = None,
    root: Fingerprint | None = None,
) -> VerifiedInstallationResponse:
    """Verify a provisioning service's CertificateInstallationRes (EXI). now: aware.

    emaid: the contract that it has to be for. root: the V2G root that the provisioning service's chain has to end in.
    None accepts any.
    Raises EXIError, MismatchError; ChainError, SignatureError, KeyMaterialError, RevokedError (all VerificationError).
    """
    response = read_response(data, None)
    return check_response(response, emaid=emaid, root=root, anchors=trust.anchors, revocation=trust.revocation, now=now)


def explain_request(data: bytes, *, trust: Trust, now: datetime) -> Explanation:
    """Report every check on a CertificateInstallationReq. Raises EXIError if it is a response."""
    message, opened = open_message(data, now)
    if message is None:
        return opened
    checks = opened.checks
    request = read_request(data, None)
    warnings = lint.lint_request(request, trust.anchors)
    try:
        check_request(request, anchors=trust.anchors, revocation=trust.revocation, now=now, checks=checks)
    except VerificationError:
        if checks.passed:  # The report would call the message verified.
            raise
    return Explanation(opened.title, checks, now, warnings)


def explain_response(data: bytes, *, trust: Trust, now: datetime) -> Explanation:
    """Report every check on a CertificateInstallationRes. Raises EXIError if it is a request."""
    message, opened = open_message(data, now)
    if message is None:
        return opened
    checks = opened.checks
    response = read_response(data, None)
    warnings = lint.lint_response(response, trust.anchors, now)
    try:
        check_response(
            response,
            emaid=None,
            root=None,
            anchors=trust.anchors,
            revocation=trust.revocation,
            now=now,
            checks=checks,
        )
    except VerificationError:
        if checks.passed:  # The report would call the message verified.
            raise
    return Explanation(opened.title, checks, now, warnings)


def explain(data: bytes, *, trust: Trust, now: datetime) -> Explanation:
    """Report every check on a message of either kind."""
    message, opened = open_message(data, now)
    if message is None:
        return opened
    return (explain_request if is_request(message) else explain_response)(data, trust=trust, now=now)


def open_message(data: bytes, now: datetime) -> tuple[exi.Message | None, Explanation]:
    """Decode a message as the first check of a report. The message is None if that failed."""
    checks = CheckList(collect=True)
    message = checks.run("EXI message", lambda: exi.decode(data))
    if message is None:
        return None, Explanation("no message", checks, now)
    return message, Explanation(f"{type(_inner(message)).__name__} ({exi.namespace_of(message)})", checks, now)


def is_request(message: exi.Message) -> bool:
    """Whether a message is a CertificateInstallationReq."""
    return isinstance(_inner(message), iso2.CertificateInstallationReq | iso20.CertificateInstallationReq)


def _inner(message: exi.Message) -> object:
    return message.Body if isinstance(message, iso2.V2G_Message) else message
