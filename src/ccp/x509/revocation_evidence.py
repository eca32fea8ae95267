"""Revocation evidence: the facts about certificates that a revocation decision is based on.

A certificate is identified by its issuer's name and key together with its serial number, so a CA certificate that is
reissued for the same key keeps the evidence of every certificate below it. Evidence is `GOOD`, `REVOKED` (final,
whatever arrives later; certificateHold counts as revoked) or `UNKNOWN` (decides nothing). A CRL that does not list a
certificate proves the status `GOOD`. Root certificates have no issuer and no evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from ccp.errors import Unavailable
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import VerifiedChain

CertificateKey: TypeAlias = tuple[str, int]
"""Key of a certificate's evidence: `Certificate.issuer_key_id` of its issuer, and the serial number."""


class EvidenceError(Unavailable):
    """The received bytes are no evidence: forged, stale, about another certificate. The known status stays as it is."""

    outcome = "evidence"


class RevocationStatus(StrEnum):
    """Certificate status as in OCSP (RFC 6960 clause 2.2)."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


class Evidence(NamedTuple):
    """A statement about one certificate. A tuple, because every delivery builds six (decision 0002).

    issuer: `Certificate.issuer_key_id` of its issuer. revoked_at: for REVOKED, None where it is not known. source: how
    and where it was obtained, such as "OCSP http://…".
    """

    issuer: str
    serial: int
    status: RevocationStatus
    this_update: datetime
    next_update: datetime
    revoked_at: datetime | None
    source: str


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A verified CRL.

    issuer: its `Certificate.issuer_key_id`. number: the CRL number, None where it has none. revoked: time of
    revocation by serial number.
    """

    issuer: str
    number: int | None
    this_update: datetime
    next_update: datetime
    revoked: Mapping[int, datetime]


class LoadedCRL(NamedTuple):
    """The newest CRL of an issuer from one URL. Its revoked serial numbers are stored as `Evidence`."""

    issuer: str
    url: str
    number: int | None
    this_update: datetime
    next_update: datetime


class CertificateRef(NamedTuple):
    """What a stored contract keeps of each certificate below its roots, so that every delivery can check it again.

    issuer: `Certificate.issuer_key_id` of its issuer. crls: CRL URLs in the certificate, possibly none; None where the
    certificate contains no OCSP or CRL address in any form. names: the issuer's fingerprint, common name and
    `Certificate.canonical_issuer_key_id`, by which settings identify it; older rows lack the last or all of them.
    """

    issuer: str
    serial: int
    crls: tuple[str, ...] | None
    names: tuple[str, ...] = ()


def certificate_key(certificate: Certificate, issuer: Certificate) -> CertificateKey:
    """The key of a certificate's evidence."""
    return issuer.issuer_key_id, certificate.serial_number


def certificate_ref(certificate: Certificate, issuer: Certificate) -> CertificateRef:
    """The reference of one certificate. Raises ChainError, but not for a certificate of a verified chain."""
    urls = certificate.status_urls
    return CertificateRef(
        issuer.issuer_key_id,
        certificate.serial_number,
        urls.crl if urls.present else None,
        (issuer.fingerprint, issuer.subject_cn, issuer.canonical_issuer_key_id),
    )


def issuer_pairs(chain: VerifiedChain) -> Iterator[tuple[Certificate, Certificate]]:
    """Every certificate of a chain except its root, leaf first, with its issuer."""
    return zip(chain.certificates, chain.certificates[1:], strict=False)


def certificate_refs(chains: Iterable[VerifiedChain]) -> tuple[CertificateRef, ...]:
    """References of every certificate below the roots, without duplicates, in the order of the chains."""
    return tuple(dict.fromkeys(certificate_ref(*pair) for chain in chains for pair in issuer_pairs(chain)))
