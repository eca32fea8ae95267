"""Revocation evidence: what it is, and judging a chain by what is known. Nothing here fetches.

    StoredEvidence(known, rules).check(chain, at)       # publishing: RevokedError, Unavailable, or a sentence
    check_keys(keys, known, rules, at)                  # delivery: the same from what was noted on publishing

A certificate is known by its issuer's name and key together with its serial number, so a CA certificate that is issued
again for the same key keeps the evidence of everything below it. Evidence is `GOOD`, `REVOKED` (final, whatever comes
later; a certificateHold counts as revoked) or `UNKNOWN` (no help). A CRL that does not list a certificate is good
evidence for it. Roots have no issuer and are never asked about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import orjson

from ccp.errors import RevokedError, Unavailable, VerificationError
from ccp.x509.certificates import Certificate
from ccp.x509.issuer_map import IssuerMap
from ccp.x509.path_validation import VerifiedChain

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


class EvidenceError(Unavailable):
    """What was received is no evidence: forged, stale, for another certificate, … The status stays what it was."""

    code = "evidence"


class Status(StrEnum):
    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


class Evidence(NamedTuple):
    """What was said of one certificate. A tuple, since every delivery makes six (decision 0002).

    issuer: its `Certificate.issuer_id`. revoked_at: for REVOKED. source: how and where it was learnt, such as "OCSP http://…".
    """

    issuer: str
    serial: int
    status: Status
    this_update: datetime
    next_update: datetime
    revoked_at: datetime | None
    source: str


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL that was verified. number: None where it has none. revoked: serial number to the time of revocation."""

    issuer: str
    number: int | None
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, datetime]


class LoadedCRL(NamedTuple):
    """The newest CRL of an issuer from one address, whose serial numbers are in the store."""

    issuer: str
    url: str
    number: int | None
    this_update: datetime
    next_update: datetime


class Key(NamedTuple):
    """What a contract keeps of each certificate below its roots, so that a delivery can ask again.

    crls: addresses of CRLs that the certificate names, perhaps none; None where it names no address of any kind.
    names: the issuer's fingerprint, common name and `Certificate.identity`, by which an operator configures a CRL; no
    identity, or none of them, in older rows.
    """

    issuer: str
    serial: int
    crls: tuple[str, ...] | None
    names: tuple[str, ...] = ()


def key_of(certificate: Certificate, issuer: Certificate) -> Key:
    """Raises ChainError, which no certificate of a verified chain does."""
    addresses = certificate.addresses
    return Key(
        issuer.issuer_id,
        certificate.serial_number,
        addresses.crl if addresses.named else None,
        (issuer.fingerprint, issuer.subject_cn, issuer.identity),
    )


def below_root(chain: VerifiedChain) -> Iterator[tuple[Certificate, Certificate]]:
    """Every certificate of a chain that has an issuer, leaf first, with that issuer."""
    return zip(chain.certificates, chain.certificates[1:], strict=False)


def keys_of(chains: Iterable[VerifiedChain]) -> tuple[Key, ...]:
    """Of every certificate below the roots, each once, in the order of the chains."""
    return tuple(dict.fromkeys(key_of(*pair) for chain in chains for pair in below_root(chain)))


def dump_keys(keys: Iterable[Key]) -> str:
    """Keys as JSON, for a contract's row.

    `[[issuer, serial in hex, [CRL address, …] or null, names of the issuer], …]`, each once.
    """
    each = [[key.issuer, f"{key.serial:x}", key.crls, key.names] for key in dict.fromkeys(keys)]
    return orjson.dumps(each).decode()


def load_keys(text: str) -> tuple[Key, ...]:
    return tuple(
        [
            Key(issuer, int(serial, 16), None if crls is None else tuple(crls), tuple(names[0]) if names else ())
            for issuer, serial, crls, *names in orjson.loads(text)
        ]
    )


# --- Judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's policy.

    checked: False in laboratories only. required: a certificate that names no address, and whose issuer has no
    configured CRL, is refused. crl_urls: by the issuer's fingerprint or common name, matched on its name and key.
    stale_grace: how long evidence that has run out still serves a delivery.
    """

    checked: bool = True
    required: bool = False
    crl_urls: Mapping[str, str] = field(default_factory=dict)
    stale_grace: timedelta = timedelta(0)
    issuers: IssuerMap[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "issuers", IssuerMap(self.crl_urls))

    def crl_of(self, issuer: Certificate) -> str | None:
        """The address that the operator configured for the CRL of an issuer."""
        return self.issuers.of(issuer) if self.crl_urls else None

    def configured(self, key: Key) -> str | None:
        """The same for the issuer of a certificate."""
        return self.issuers.find(key.issuer, key.names) if self.crl_urls else None

    def lists(self, key: Key) -> tuple[str, ...]:
        """The addresses of the CRLs that count for a certificate, the operator's first."""
        configured = self.configured(key)
        return (key.crls or ()) if configured is None else (configured, *(key.crls or ()))


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows about some certificates: evidence by issuer and serial number, CRLs by issuer."""

    evidence: Mapping[tuple[str, int], Evidence]
    crls: Mapping[str, Sequence[LoadedCRL]]

    def revocation(self, key: Key) -> Evidence | None:
        """The evidence that a certificate is revoked; it does not run out."""
        found = self.evidence.get((key.issuer, key.serial))
        return found if found is not None and found.status is Status.REVOKED else None

    def good(
        self, key: Key, rules: Rules, at: datetime, grace: timedelta = timedelta(0)
    ) -> Evidence | LoadedCRL | None:
        """Evidence that a certificate was good and that has not run out for longer than `grace`."""
        for crl in self.crls.get(key.issuer, ()):
            if crl.url in rules.lists(key) and at - crl.next_update <= grace:
                return crl
        found = self.evidence.get((key.issuer, key.serial))
        if found is not None and found.status is Status.GOOD and at - found.next_update <= grace:
            return found
        return None

    def has_loaded(self, key: Key, url: str | None) -> bool:
        """Whether there has ever been a list of a certificate's issuer from an address."""
        return url is not None and any(crl.url == url for crl in self.crls.get(key.issuer, ()))


class Revocation(Protocol):
    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """What is known about the chain at that time: one sentence for each certificate, in lines.

        Raises RevokedError for a revoked certificate (final), Unavailable when needed evidence cannot be had.
        """


class Unchecked:
    """Knows nothing and refuses nothing."""

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        return "Revocation is not checked."


class AskedLater:
    """Notes the chains, for whoever asks about them when everything else in the message is known to be good."""

    def __init__(self) -> None:
        self.chains: list[VerifiedChain] = []

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        self.chains.append(chain)
        return "Asked for when everything else holds."


class StoredEvidence:
    """Judges chains by what is known. For one request: it remembers what it missed.

    missing: certificates that need evidence and have none that is fresh, with their issuers. warnings: a sentence for
    each certificate that names no address.
    """

    def __init__(
        self,
        known: Known,
        rules: Rules,
        failures: Mapping[tuple[str, int], Unavailable] = MappingProxyType({}),
        grace: timedelta = timedelta(0),
    ) -> None:
        """failures: why evidence could not be fetched, where that was tried. grace: for evidence that has run out."""
        self._known = known
        self._rules = rules
        self._failures = failures
        self._grace = grace
        self.missing: list[tuple[Certificate, Certificate]] = []
        self.warnings: list[str] = []

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """One sentence for each certificate below the root, with the source and the age of its evidence.

        Raises RevokedError, Unavailable; VerificationError where a certificate names no address but has to, or none
        that could ever be called.
        """
        if not self._rules.checked:
            return "Revocation is not checked, by configuration."
        said: list[str] = []
        problems: list[str] = []
        unanswerable: list[str] = []
        causes: list[Unavailable] = []
        pairs = [(certificate, issuer, key_of(certificate, issuer)) for certificate, issuer in below_root(chain)]
        # What is revoked stays revoked, so it is told even if something else is not known now.
        revoked = [(certificate, found) for certificate, _, key in pairs if (found := self._known.revocation(key))]
        if revoked:
            raise RevokedError(*(_revoked(certificate.label, found) for certificate, found in revoked))
        for certificate, issuer, key in pairs:
            configured = self._rules.configured(key)
            if good := self._known.good(key, self._rules, at, self._grace):
                said.append(_good(certificate, good, at))
            elif key.crls is None and configured is None and self._rules.issuers.unresolved:
                # Its issuer may be the very one that is configured, under another certificate.
                problems.append(
                    f"The revocation status of certificate {certificate.label} cannot be established now. "
                    "The pool does not know yet which CA a fingerprint in its configuration means."
                )
            elif key.crls is None and configured is None and not self._rules.required:
                warning = f"Certificate {certificate.label} names no OCSP or CRL address; its revocation is not known."
                self.warnings.append(warning)
                said.append(warning)
            elif key.crls is None and configured is None:
                unanswerable.append(
                    f"Certificate {certificate.label} names no OCSP or CRL address, which this pool requires."
                )
            elif configured is None and self._can_never_be_asked(certificate):
                unanswerable.append(
                    f"Certificate {certificate.label} names only addresses that cannot be called (http and https "
                    "without credentials can); its revocation can never be checked."
                )
            else:
                self.missing.append((certificate, issuer))
                failure = self._failures.get((key.issuer, key.serial))
                found = self._known.evidence.get((key.issuer, key.serial))
                if failure is not None:
                    causes.append(failure)
                    why = f" {failure}"
                elif found is not None and found.status is Status.UNKNOWN:
                    why = " Its OCSP responder does not know it."
                else:
                    why = ""
                problems.append(
                    f"The revocation status of certificate {certificate.label} cannot be established now.{why}"
                )
        if unanswerable:
            raise VerificationError(*unanswerable)
        if problems:
            raise Unavailable(*problems, retry_after=longest(causes)) from next(iter(causes), None)
        return "\n".join(said)

    def _can_never_be_asked(self, certificate: Certificate) -> bool:
        """Whether trying again cannot help: the certificate is refused permanently."""
        addresses = certificate.addresses
        return addresses.named and not addresses.ocsp and not addresses.crl


class ForVehicles(StoredEvidence):
    """The same for a vehicle that waits: what is not known is told, and held against it only by `require`.

    A pool meets a vehicle for the first time when that asks. What is missing is fetched behind its back.
    """

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """As in StoredEvidence, but Unavailable only where the policy requires evidence."""
        try:
            return super().check(chain, at)
        except Unavailable as exc:
            if self._rules.required:
                raise
            self.warnings += exc.messages
            return "\n".join((*exc.messages, "A delivery does not wait for it."))

    def _can_never_be_asked(self, certificate: Certificate) -> bool:
        return self._rules.required and super()._can_never_be_asked(certificate)


def longest(failures: Iterable[Unavailable]) -> int | None:
    """Seconds until all of them are worth another try, as far as that is known."""
    return max((failure.retry_after for failure in failures if failure.retry_after is not None), default=None)


def check_keys(keys: Iterable[Key], known: Known, rules: Rules, at: datetime) -> None:
    """Whether what was noted on publishing may still be delivered.

    A CRL that was configured later counts from its first loading: until then nobody could have fetched it.
    Raises RevokedError when a certificate is revoked, Unavailable when evidence that is needed has run out.
    """
    if not rules.checked:
        return
    unknown = None
    for key in keys:
        if known.evidence and (found := known.revocation(key)):
            raise RevokedError(_revoked(f"with the serial number {key.serial:x}", found))
        needed = key.crls is not None or rules.required
        needed = needed or (bool(rules.crl_urls) and known.has_loaded(key, rules.configured(key)))
        if needed and unknown is None and not known.good(key, rules, at, rules.stale_grace):
            unknown = key
    if unknown is not None:
        raise Unavailable(
            f"The revocation status of the certificate with the serial number {unknown.serial:x} is not known now."
        )


def _revoked(name: str, evidence: Evidence) -> str:
    since = f" at {evidence.revoked_at:{_TIME}}" if evidence.revoked_at else ""
    return f"Certificate {name} was revoked{since}."


def _good(certificate: Certificate, evidence: Evidence | LoadedCRL, at: datetime) -> str:
    source = f"CRL {evidence.url}" if isinstance(evidence, LoadedCRL) else evidence.source
    minutes = max(0, int((at - evidence.this_update).total_seconds() // 60))
    age = f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
    return f"Certificate {certificate.label} is not revoked ({source}, {age} old)."
