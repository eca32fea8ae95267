"""Revocation policy: decides from known evidence whether a chain is acceptable. Nothing here fetches evidence.

    HardFailRevocation(state, policy).check(chain, now)   # publication: RevokedError, Unavailable, or a description
    check_refs(refs, state, policy, now)                  # delivery: the same, from references kept at publication

Hard fail and soft fail have their usual meaning: whether missing evidence refuses a certificate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, Protocol

from ccp.errors import C, RevokedError, Unavailable, VerificationError
from ccp.errors.codes import ErrorCode
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.profiles import Usage
from ccp.x509.revocation_evidence import (
    CertificateKey,
    CertificateRef,
    Evidence,
    LoadedCRL,
    RevocationStatus,
    certificate_ref,
    issuer_pairs,
)

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class RevocationPolicy:
    """The operator's revocation policy.

    enabled: False only in laboratories. required: refuse a certificate that contains no OCSP or CRL address and whose
    issuer has no configured CRL. crl_urls: CRL URL by the issuer's fingerprint or common name; it applies to every
    certificate with that issuer's name and key. grace: how long deliveries accept expired evidence.
    """

    enabled: bool = True
    required: bool = False
    crl_urls: Mapping[str, str] = field(default_factory=dict)
    grace: timedelta = timedelta(0)
    issuers: IssuerMap[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "issuers", IssuerMap(self.crl_urls))

    def configured_crl_of(self, issuer: Certificate) -> str | None:
        """The CRL URL that the operator configured for an issuer. Raises ChainError."""
        return self.issuers.of(issuer) if self.crl_urls else None

    def configured_crl(self, ref: CertificateRef) -> str | None:
        """The CRL URL that the operator configured for the issuer of a certificate."""
        return self.issuers.find(ref.issuer, ref.names) if self.crl_urls else None

    def crls_for(self, ref: CertificateRef) -> tuple[str, ...]:
        """URLs of the CRLs that count for a certificate, the configured one first."""
        configured = self.configured_crl(ref)
        return (ref.crls or ()) if configured is None else (configured, *(ref.crls or ()))


@dataclass(frozen=True, slots=True)
class RevocationState:
    """Stored evidence about some certificates: statements by issuer and serial number, CRLs by issuer."""

    evidence: Mapping[CertificateKey, Evidence]
    crls: Mapping[str, Sequence[LoadedCRL]]

    def find_revoked(self, ref: CertificateRef) -> Evidence | None:
        """Evidence that a certificate is revoked; it never expires."""
        found = self.evidence.get((ref.issuer, ref.serial))
        return found if found is not None and found.status is RevocationStatus.REVOKED else None

    def find_good(
        self, ref: CertificateRef, policy: RevocationPolicy, now: datetime, grace: timedelta = timedelta(0)
    ) -> Evidence | LoadedCRL | None:
        """Return evidence of the status good. It is expired for no longer than `grace`."""
        for crl in self.crls.get(ref.issuer, ()):
            if crl.url in policy.crls_for(ref) and now - crl.next_update <= grace:
                return crl
        found = self.evidence.get((ref.issuer, ref.serial))
        if found is not None and found.status is RevocationStatus.GOOD and now - found.next_update <= grace:
            return found
        return None

    def has_crl_from(self, ref: CertificateRef, url: str | None) -> bool:
        """Whether a CRL of a certificate's issuer was ever loaded from a URL."""
        return url is not None and any(crl.url == url for crl in self.crls.get(ref.issuer, ()))


class RevocationChecker(Protocol):
    """Decides whether a verified path is acceptable with respect to revocation."""

    def check(self, chain: VerifiedChain, now: datetime) -> str:
        """Describe the revocation status of a chain: one line for each certificate below the root.

        Raises RevokedError for a revoked certificate (final), Unavailable when required evidence cannot be had.
        """


class NoRevocationCheck:
    """Accepts every chain: revocation is not checked."""

    def check(self, chain: VerifiedChain, now: datetime) -> str:
        """Return a fixed sentence."""
        return "Revocation is not checked."


class DeferredRevocation:
    """Accepts and collects chains. The caller checks them after everything else in the message has passed.

    chains: in the order of the checks. See decision 0005.
    """

    def __init__(self) -> None:
        self.chains: list[VerifiedChain] = []

    def check(self, chain: VerifiedChain, now: datetime) -> str:
        """Collect the chain."""
        self.chains.append(chain)
        return "Checked after everything else has passed."


class HardFailRevocation:
    """Checks chains against stored evidence; missing evidence refuses them. Use one object per request.

    missing: certificates without fresh evidence that need it, with their issuers. warnings: a sentence for each
    certificate that contains no OCSP or CRL address.
    """

    def __init__(
        self,
        state: RevocationState,
        policy: RevocationPolicy,
        failures: Mapping[CertificateKey, Unavailable] = MappingProxyType({}),
        grace: timedelta = timedelta(0),
    ) -> None:
        """failures: by issuer and serial number, why evidence could not be fetched. grace: for expired evidence."""
        self._state = state
        self._policy = policy
        self._failures = failures
        self._grace = grace
        self.missing: list[tuple[Certificate, Certificate]] = []
        self.warnings: list[str] = []

    def check(self, chain: VerifiedChain, now: datetime) -> str:
        """Describe each certificate below the root: one line with the source and the age of its evidence.

        Raises RevokedError; Unavailable where evidence is missing; VerificationError where a certificate contains no
        address although the policy requires one, or only addresses that can never be called.
        """
        if not self._policy.enabled:
            return "Revocation is not checked, by configuration."
        lines: list[str] = []
        problems: list[str] = []
        permanent: list[str] = []
        causes: list[Unavailable] = []
        pairs = [
            (certificate, issuer, certificate_ref(certificate, issuer)) for certificate, issuer in issuer_pairs(chain)
        ]
        # A revocation is final, so it is reported even where the status of other certificates is unknown.
        revoked = [(certificate, found) for certificate, _, ref in pairs if (found := self._state.find_revoked(ref))]
        if revoked:
            sentences = (_revoked(certificate.display_name, found) for certificate, found in revoked)
            raise _at_chain(chain, RevokedError(*sentences, code=_REVOKED_CODES[chain.usage]))
        for certificate, issuer, ref in pairs:
            configured = self._policy.configured_crl(ref)
            if good := self._state.find_good(ref, self._policy, now, self._grace):
                lines.append(_good(certificate, good, now))
            elif ref.crls is None and configured is None and self._policy.issuers.unresolved:
                # An unresolved fingerprint in the settings may mean this very issuer, under another certificate.
                problems.append(
                    f"The revocation status of certificate {certificate.display_name} cannot be established now. "
                    "The pool does not know yet which CA a fingerprint in its configuration means."
                )
            elif ref.crls is None and configured is None and not self._policy.required:
                name = certificate.display_name
                warning = f"Certificate {name} names no OCSP or CRL address; its revocation is not known."
                self.warnings.append(warning)
                lines.append(warning)
            elif ref.crls is None and configured is None:
                permanent.append(
                    f"Certificate {certificate.display_name} names no OCSP or CRL address, which this pool requires."
                )
            elif configured is None and self._can_never_be_checked(certificate):
                permanent.append(
                    f"Certificate {certificate.display_name} names only addresses that cannot be called (http and "
                    "https without credentials can); its revocation can never be checked."
                )
            else:
                self.missing.append((certificate, issuer))
                failure = self._failures.get((ref.issuer, ref.serial))
                found = self._state.evidence.get((ref.issuer, ref.serial))
                if failure is not None:
                    causes.append(failure)
                    why = f" {failure}"
                elif found is not None and found.status is RevocationStatus.UNKNOWN:
                    why = " Its OCSP responder does not know it."
                else:
                    why = ""
                problems.append(
                    f"The revocation status of certificate {certificate.display_name} cannot be established now.{why}"
                )
        if permanent:
            raise _at_chain(chain, VerificationError(*permanent))
        if problems:
            unknown = Unavailable(
                *problems, retry_after=max_retry_after(causes), code=ErrorCode.REVOCATION_STATUS_UNKNOWN
            )
            raise _at_chain(chain, unknown) from next(iter(causes), None)
        return "\n".join(lines)

    def _can_never_be_checked(self, certificate: Certificate) -> bool:
        """Whether a retry cannot help, so that the certificate is refused permanently."""
        urls = certificate.status_urls
        return urls.present and not urls.ocsp and not urls.crl


class SoftFailRevocation(HardFailRevocation):
    """The same for a vehicle's chain: missing evidence is a warning, and an error only if the policy requires it.

    A pool first meets a vehicle when the vehicle asks for a contract, and the vehicle cannot wait. Missing evidence is
    fetched afterwards.
    """

    def check(self, chain: VerifiedChain, now: datetime) -> str:
        """As in HardFailRevocation, but raises Unavailable only where the policy requires evidence."""
        try:
            return super().check(chain, now)
        except Unavailable as exc:
            if self._policy.required:
                raise
            self.warnings += exc.messages
            return "\n".join((*exc.messages, "A delivery does not wait for it."))

    def _can_never_be_checked(self, certificate: Certificate) -> bool:
        return self._policy.required and super()._can_never_be_checked(certificate)


def max_retry_after(failures: Iterable[Unavailable]) -> int | None:
    """Seconds until every failure is worth a retry; None where no failure says so."""
    return max((failure.retry_after for failure in failures if failure.retry_after is not None), default=None)


def check_refs(refs: Iterable[CertificateRef], state: RevocationState, policy: RevocationPolicy, now: datetime) -> None:
    """Check that a contract may be delivered, by the references that were kept at its publication.

    A CRL that was configured after publication counts from its first download; before that, evidence could not exist.
    Raises RevokedError when a certificate is revoked, Unavailable when required evidence has expired.
    """
    if not policy.enabled:
        return
    unknown = None
    for ref in refs:
        if state.evidence and (found := state.find_revoked(ref)):
            raise RevokedError(_revoked(f"with the serial number {ref.serial:x}", found))
        needed = ref.crls is not None or policy.required
        needed = needed or (bool(policy.crl_urls) and state.has_crl_from(ref, policy.configured_crl(ref)))
        if needed and unknown is None and not state.find_good(ref, policy, now, policy.grace):
            unknown = ref
    if unknown is not None:
        raise Unavailable(
            f"The revocation status of the certificate with the serial number {unknown.serial:x} is not known now.",
            code=ErrorCode.REVOCATION_STATUS_UNKNOWN,
        )


_REVOKED_CODES: Final = {
    Usage.CPS: ErrorCode.CPS_CERTIFICATE_REVOKED,
    Usage.CONTRACT: ErrorCode.CONTRACT_CERTIFICATE_REVOKED,
    Usage.OEM_PROVISIONING: ErrorCode.PROVISIONING_CERTIFICATE_REVOKED,
}
_CHECKS: Final = {
    Usage.CPS: "revocation of the provisioning service chain",
    Usage.CONTRACT: "revocation of the contract chain",
    Usage.OEM_PROVISIONING: "revocation of the provisioning chain",
}


def _at_chain(chain: VerifiedChain, error: C) -> C:
    error.at_check(_CHECKS[chain.usage])
    return error


def _revoked(name: str, evidence: Evidence) -> str:
    since = f" at {evidence.revoked_at:{_TIME}}" if evidence.revoked_at else ""
    return f"Certificate {name} was revoked{since}."


def _good(certificate: Certificate, evidence: Evidence | LoadedCRL, now: datetime) -> str:
    source = f"CRL {evidence.url}" if isinstance(evidence, LoadedCRL) else evidence.source
    minutes = max(0, int((now - evidence.this_update).total_seconds() // 60))
    age = f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
    return f"Certificate {certificate.display_name} is not revoked ({source}, {age} old)."
