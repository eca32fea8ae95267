"""Revocation evidence: reading it, and judging a chain by what is known. Nothing here fetches.

    request = build_ocsp_request(certificate, issuer)
    evidence = read_ocsp(octets, certificate, issuer, at, source=url)      # or raises EvidenceError
    crl = read_crl(octets, issuer, at, url=url)                             # or raises EvidenceError

    StoredEvidence(known, rules).check(chain, at)       # publishing: RevokedError, Unavailable, or a sentence
    check_keys(keys, known, rules, at)                  # delivery: the same from what was noted on publishing

A certificate is known by its issuer's name and key together with its serial number, so a CA certificate that is issued
again for the same key keeps the evidence of everything below it. Evidence is `GOOD`, `REVOKED` (final, whatever comes
later; a certificateHold counts as revoked) or `UNKNOWN` (no help). A CRL that does not list a certificate is good
evidence for it. Roots have no issuer and are never asked about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import (
    AuthorityInformationAccessOID,
    ExtendedKeyUsageOID,
    ExtensionOID,
    SignatureAlgorithmOID,
)

from ccp.errors import ChainError, RevokedError, Unavailable, VerificationError
from ccp.pki.certificates import Certificate
from ccp.pki.paths import VerifiedChain

# Clocks of responders and of this machine differ. Only for thisUpdate: past nextUpdate nothing is fresh.
CLOCK_SKEW: Final = timedelta(minutes=5)
# RFC 6960 clause 4.2.2.1: without nextUpdate newer information is always available. Long enough for the sweep to come
# round twice and to outlast a short outage, short enough that a revocation is not missed for a day.
WITHOUT_NEXT_UPDATE: Final = timedelta(hours=4)
# Of each kind, from one certificate; the field has one of one kind. More would let a certificate choose our traffic.
MAX_ADDRESSES: Final = 3
_LONGEST_ADDRESS: Final = 512
_MAX_RESPONDER_CERTIFICATES: Final = 4  # A responder sends its own, some its issuers besides.

_ECDSA: Final = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,  # no certificate of the profiles has it, but OCSP signers choose it
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_CERT_ID_HASHES: Final = (hashes.SHA1, hashes.SHA256)
_PROCESSED_OF_RESPONDERS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.OCSP_NO_CHECK,
    }
)
_PROCESSED_OF_CRLS: Final = frozenset(
    {ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.ISSUING_DISTRIBUTION_POINT}
)
# What cryptography raises for octets that are not what they should be.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ChainError,
)
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

    issuer: see `issuer_id`. revoked_at: for REVOKED. source: how and where it was learnt, such as "OCSP http://…".
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

    crls: addresses of the CRLs that count for it, perhaps none; None for a certificate that needs no evidence.
    """

    issuer: str
    serial: int
    crls: tuple[str, ...] | None


# --- Who and where ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def issuer_id(issuer: Certificate) -> str:
    """SHA-256 (hex) over the subject's name (DER contents) and the SubjectPublicKeyInfo (DER). Raises ChainError."""
    spki = issuer.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(issuer.subject_name + spki).hexdigest()


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a certificate says its status can be asked for: those we can call, in its order.

    named: whether it says so at all, in whatever form. A certificate that names only an LDAP directory still asks its
    verifier to look.
    """

    ocsp: tuple[str, ...]
    crl: tuple[str, ...]
    named: bool


def addresses_of(certificate: Certificate) -> Addresses:
    """Raises ChainError when the extensions cannot be read, which no certificate of a verified chain does."""
    access = certificate.extension(x509.AuthorityInformationAccess) or ()
    points = certificate.extension(x509.CRLDistributionPoints) or ()
    responders = [one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
    # A list for some reasons only, or signed by someone else, says nothing about the rest (RFC 5280 clause 4.2.1.13).
    lists = [name for one in points if not one.reasons and not one.crl_issuer for name in one.full_name or ()]
    return Addresses(_callable(responders), _callable(lists), bool(responders) or any(True for _ in points))


def _callable(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    found = (
        name.value
        for name in names
        if isinstance(name, x509.UniformResourceIdentifier)
        and name.value.lower().startswith(("http://", "https://"))
        and len(name.value) <= _LONGEST_ADDRESS
    )
    return tuple(dict.fromkeys(found))[:MAX_ADDRESSES]


# --- OCSP ------------------------------------------------------------------------------------------------------------


def build_ocsp_request(certificate: Certificate, issuer: Certificate, sha256: bool = False) -> bytes:
    """An OCSPRequest (DER) for one certificate, without a nonce, so that responders can answer from a cache.

    sha256: of the CertID; most responders know SHA-1 alone, which is an index there and no protection (RFC 5019).
    """
    return _request(certificate, issuer, hashes.SHA256() if sha256 else hashes.SHA1()).public_bytes(Encoding.DER)  # noqa: S303


def _request(certificate: Certificate, issuer: Certificate, algorithm: hashes.HashAlgorithm) -> ocsp.OCSPRequest:
    return ocsp.OCSPRequestBuilder().add_certificate(certificate.x509, issuer.x509, algorithm).build()


def read_ocsp(octets: bytes, certificate: Certificate, issuer: Certificate, at: datetime, source: str) -> Evidence:
    """What an OCSPResponse says about a certificate.

    octets: DER, unverified. source: kept in the evidence. Raises EvidenceError.
    Source: RFC 6960 clauses 3.2 and 4.2; RFC 5019.
    """
    try:
        # 1. An answer at all.
        response = ocsp.load_der_ocsp_response(octets)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise EvidenceError(f"The OCSP responder answered {response.response_status.name}.")
        if any(one.critical and one.oid != x509.OCSPNonce.oid for one in response.extensions):
            raise EvidenceError("The OCSP response has a critical extension that is not known.")
        # 2. Signed by someone who may speak for the issuer.
        responder = _responder(response, issuer, at)
        if not _signed(
            responder,
            response.signature,
            response.tbs_response_bytes,
            response.signature_algorithm_oid,
            response.signature_hash_algorithm,
        ):
            raise EvidenceError("The signature of the OCSP response does not hold.")
        # 3. About this certificate.
        single = _about(response, certificate, issuer)
        # 4. Now.
        this_update = single.this_update_utc
        next_update = single.next_update_utc or this_update + WITHOUT_NEXT_UPDATE
        _check_window("OCSP response", this_update, next_update, at)
        status = _STATUS[single.certificate_status]
        revoked_at = single.revocation_time_utc if status is Status.REVOKED else None
    except _UNREADABLE as exc:
        raise EvidenceError("The OCSP response cannot be read.") from exc
    number = certificate.serial_number
    return Evidence(issuer_id(issuer), number, status, this_update, next_update, revoked_at, f"OCSP {source}")


_STATUS: Final = {
    ocsp.OCSPCertStatus.GOOD: Status.GOOD,
    ocsp.OCSPCertStatus.REVOKED: Status.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN: Status.UNKNOWN,
}


def _responder(response: ocsp.OCSPResponse, issuer: Certificate, at: datetime) -> Certificate:
    """Who has to have signed: the issuer itself, or one that it certified for this. Raises EvidenceError."""
    if _is_named(response, issuer):
        return issuer
    problem = EvidenceError("The OCSP response is signed by a responder whose certificate is not in it.")
    for sent in response.certificates[:_MAX_RESPONDER_CERTIFICATES]:
        # Loaded anew: responder certificates need the same tolerance for extensions as leaves.
        candidate = Certificate.load(sent.public_bytes(Encoding.DER))
        if not _is_named(response, candidate):
            continue
        try:
            _check_delegated(candidate, issuer, at)
        except ChainError as exc:
            problem = EvidenceError(f"The OCSP responder is not authorised: {exc}")
            problem.__cause__ = exc
        else:
            return candidate
    raise problem


def _is_named(response: ocsp.OCSPResponse, certificate: Certificate) -> bool:
    """Whether the ResponderID is this certificate's: its name, or the SHA-1 of its key."""
    if response.responder_name is not None:
        return response.responder_name == certificate.x509.subject
    return response.responder_key_hash == _key_hash(certificate)


@lru_cache(maxsize=256)
def _key_hash(certificate: Certificate) -> bytes:
    """SHA-1 over the public key's bits, which is what this method of cryptography makes."""
    key = certificate.public_key
    if not isinstance(key, EllipticCurvePublicKey | Ed448PublicKey):
        raise ChainError(f"The key of certificate {certificate.label} is not of a kind that may sign evidence.")
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def _check_delegated(responder: Certificate, issuer: Certificate, at: datetime) -> None:
    """That the issuer itself certified this responder to sign OCSP responses. Raises ChainError.

    Its own revocation is not looked at, ocsp-nocheck or not: asking would lead in a circle, and a CA that has to take
    such a certificate back renews its own responses, too. Source: RFC 6960 clause 4.2.2.2.
    """
    purposes = responder.extension(x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.OCSP_SIGNING not in purposes:
        raise ChainError(f"Certificate {responder.label} is not for signing OCSP responses.")
    usage = responder.extension(x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        raise ChainError(f"The key usage of certificate {responder.label} does not allow to sign responses.")
    for extension in responder.extensions:
        if extension.critical and extension.oid not in _PROCESSED_OF_RESPONDERS:
            raise ChainError(f"Certificate {responder.label} has a critical extension that is not known.")
    if not responder.not_before <= at or at.replace(microsecond=0) > responder.not_after:
        raise ChainError(f"Certificate {responder.label} is not valid at this time.")
    responder.check_signature(issuer)


def _about(
    response: ocsp.OCSPResponse, certificate: Certificate, issuer: Certificate
) -> ocsp.OCSPResponse | ocsp.OCSPSingleResponse:
    """The part about this certificate of this issuer. Raises EvidenceError."""
    for single in response.responses:
        if not isinstance(single.hash_algorithm, _CERT_ID_HASHES):
            continue
        wanted = _request(certificate, issuer, single.hash_algorithm)
        if (single.serial_number, single.issuer_name_hash, single.issuer_key_hash) == (
            wanted.serial_number,
            wanted.issuer_name_hash,
            wanted.issuer_key_hash,
        ):
            return single
    raise EvidenceError("The OCSP response is about another certificate.")


# --- CRLs ------------------------------------------------------------------------------------------------------------


def read_crl(
    octets: bytes, issuer: Certificate, at: datetime, last_number: int | None = None, url: str | None = None
) -> RevocationList:
    """Read and verify a complete CRL of an issuer.

    octets: DER or PEM. last_number: of the list before, None where there is none or it had none. url: where it came
    from when a certificate named the place; None when the operator did, who vouches that the list is complete.
    Raises EvidenceError. Source: RFC 5280 clauses 5 and 6.3.3; delta, indirect and partial lists are not taken.
    """
    try:
        # 1. A list of this issuer, and a complete one.
        load = x509.load_pem_x509_crl if octets.startswith(b"-----BEGIN") else x509.load_der_x509_crl
        crl = load(octets)
        if crl.issuer != issuer.x509.subject:
            raise EvidenceError(f"The CRL is not of {issuer.label}.")
        number = _check_extensions(crl, issuer, url)
        # 2. Signed by it.
        usage = issuer.extension(x509.KeyUsage)
        if usage is not None and not usage.crl_sign:
            raise EvidenceError(f"Certificate {issuer.label} may not sign CRLs.")
        key = issuer.public_key
        ec = isinstance(key, EllipticCurvePublicKey) and crl.signature_algorithm_oid in _ECDSA
        ed = isinstance(key, Ed448PublicKey) and crl.signature_algorithm_oid == SignatureAlgorithmOID.ED448
        if not (ec or ed) or not crl.is_signature_valid(key):  # type: ignore[arg-type]
            raise EvidenceError(f"The CRL is not signed by {issuer.label}.")
        # 3. Now, and not from before the last one.
        this_update = crl.last_update_utc
        next_update = crl.next_update_utc or this_update + WITHOUT_NEXT_UPDATE
        _check_window("CRL", this_update, next_update, at)
        if last_number is not None and (number is None or number < last_number):
            raise EvidenceError(f"The CRL has the number {number}, the one before it had {last_number}.")
        # An entry's reason is not looked at: a hold is a revocation here, and removeFromCRL is for delta lists.
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in crl}
    except _UNREADABLE as exc:
        raise EvidenceError("The CRL cannot be read.") from exc
    return RevocationList(issuer_id(issuer), number, this_update, next_update, MappingProxyType(revoked))


def _check_extensions(crl: x509.CertificateRevocationList, issuer: Certificate, url: str | None) -> int | None:
    """The CRL's number. Raises EvidenceError where the list is not the whole one."""
    number = None
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            has = issuer.key_identifier
            if value.key_identifier is not None and has is not None and value.key_identifier != has:
                raise EvidenceError(f"The CRL is signed with another key than that of {issuer.label}.")
        elif isinstance(value, x509.IssuingDistributionPoint):
            partial = (
                value.only_contains_user_certs
                or value.only_contains_ca_certs
                or value.only_contains_attribute_certs
                or value.only_some_reasons
                or value.indirect_crl
                or value.relative_name
            )
            names = {name.value for name in value.full_name or ()}
            if partial or (url is not None and names and url not in names):
                raise EvidenceError("The CRL is only a part of the issuer's.")
        elif extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise EvidenceError("The CRL is a delta CRL.")
        if extension.critical and extension.oid not in _PROCESSED_OF_CRLS:
            raise EvidenceError("The CRL has a critical extension that is not known.")
    return number


def _signed(
    signer: Certificate,
    signature: bytes,
    octets: bytes,
    algorithm: x509.ObjectIdentifier,
    digest: hashes.HashAlgorithm | None,
) -> bool:
    key = signer.public_key
    try:
        if isinstance(key, EllipticCurvePublicKey) and algorithm in _ECDSA and digest is not None:
            key.verify(signature, octets, ECDSA(digest))
        elif isinstance(key, Ed448PublicKey) and algorithm == SignatureAlgorithmOID.ED448:
            key.verify(signature, octets)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _check_window(what: str, this_update: datetime, next_update: datetime, at: datetime) -> None:
    if this_update > at + CLOCK_SKEW:
        raise EvidenceError(f"The {what} is from the future ({this_update:{_TIME}}).")
    if at > next_update:
        raise EvidenceError(f"The {what} is stale since {next_update:{_TIME}}.")


# --- Judging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """The operator's policy.

    checked: False in laboratories only. required: a certificate that names no address, and whose issuer has no
    configured CRL, is refused. crl_urls: by the issuer's fingerprint or common name. stale_grace: how long evidence
    that has run out still serves a delivery.
    """

    checked: bool = True
    required: bool = False
    crl_urls: Mapping[str, str] = field(default_factory=dict)
    stale_grace: timedelta = timedelta(0)

    def crl_of(self, issuer: Certificate) -> str | None:
        """The address that the operator configured for the CRL of an issuer."""
        if not self.crl_urls:
            return None
        return self.crl_urls.get(issuer.fingerprint) or self.crl_urls.get(issuer.subject_cn)

    def key(self, certificate: Certificate, issuer: Certificate) -> Key:
        configured = self.crl_of(issuer)
        addresses = addresses_of(certificate)
        own = (configured,) if configured else ()
        needs = bool(configured) or addresses.named or self.required
        return Key(
            issuer_id(issuer), certificate.serial_number, tuple(dict.fromkeys(own + addresses.crl)) if needs else None
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What the store knows about some certificates: evidence by issuer and serial number, CRLs by issuer."""

    evidence: Mapping[tuple[str, int], Evidence]
    crls: Mapping[str, Sequence[LoadedCRL]]

    def revocation(self, key: Key) -> Evidence | None:
        """The evidence that a certificate is revoked; it does not run out."""
        found = self.evidence.get((key.issuer, key.serial))
        return found if found is not None and found.status is Status.REVOKED else None

    def good(self, key: Key, at: datetime, grace: timedelta = timedelta(0)) -> Evidence | LoadedCRL | None:
        """Evidence that a certificate was good and that has not run out for longer than `grace`."""
        for crl in self.crls.get(key.issuer, ()):
            if crl.url in (key.crls or ()) and at - crl.next_update <= grace:
                return crl
        found = self.evidence.get((key.issuer, key.serial))
        if found is not None and found.status is Status.GOOD and at - found.next_update <= grace:
            return found
        return None


NOTHING_KNOWN: Final = Known(MappingProxyType({}), MappingProxyType({}))


def below_root(chain: VerifiedChain) -> Iterator[tuple[Certificate, Certificate]]:
    """Every certificate of a chain that has an issuer, leaf first, with that issuer."""
    return zip(chain.certificates, chain.certificates[1:], strict=False)


class Revocation(Protocol):
    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """What is known about the chain at that time, in one sentence.

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
    each certificate that names no address. keys: of every certificate asked about.
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
        self.keys: list[Key] = []

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        """One sentence for each certificate below the root, with the source and the age of its evidence.

        Raises RevokedError, Unavailable; VerificationError where a certificate names no address but has to.
        """
        if not self._rules.checked:
            return "Revocation is not checked, by configuration."
        said: list[str] = []
        problems: list[str] = []
        unanswerable: list[str] = []
        cause: Unavailable | None = None
        pairs = [
            (certificate, issuer, self._rules.key(certificate, issuer)) for certificate, issuer in below_root(chain)
        ]
        self.keys += [key for _, _, key in pairs]
        # What is revoked stays revoked, so it is told even if something else is not known now.
        revoked = [(certificate, found) for certificate, _, key in pairs if (found := self._known.revocation(key))]
        if revoked:
            raise RevokedError(*(_revoked(certificate.label, found) for certificate, found in revoked))
        for certificate, issuer, key in pairs:
            if good := self._known.good(key, at, self._grace):
                said.append(_good(certificate, good, at))
            elif key.crls is None:
                warning = f"Certificate {certificate.label} names no OCSP or CRL address; its revocation is not known."
                self.warnings.append(warning)
                said.append(warning)
            elif not self._rules.crl_of(issuer) and not addresses_of(certificate).named:
                unanswerable.append(
                    f"Certificate {certificate.label} names no OCSP or CRL address, which this pool requires."
                )
            else:
                self.missing.append((certificate, issuer))
                failure = self._failures.get((key.issuer, key.serial))
                cause = cause or failure
                found = self._known.evidence.get((key.issuer, key.serial))
                if failure is not None:
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
            raise Unavailable(*problems) from cause
        return " ".join(said)


def check_keys(keys: Iterable[Key], known: Known, rules: Rules, at: datetime) -> None:
    """Whether what was noted on publishing may still be delivered.

    Raises RevokedError when a certificate is revoked, Unavailable when evidence that is needed has run out.
    """
    if not rules.checked:
        return
    keys = list(keys)
    for key in keys:
        if found := known.revocation(key):
            raise RevokedError(_revoked(f"with the serial number {key.serial:x}", found))
    for key in keys:
        if (key.crls is not None or rules.required) and not known.good(key, at, rules.stale_grace):
            raise Unavailable(
                f"The revocation status of the certificate with the serial number {key.serial:x} is not known now."
            )


def dump_keys(keys: Iterable[Key]) -> str:
    """Keys as JSON, for a contract's row: `[[issuer, serial in hex, [CRL address, …] or null], …]`, each once."""
    return json.dumps([[key.issuer, f"{key.serial:x}", key.crls] for key in dict.fromkeys(keys)], separators=(",", ":"))


def load_keys(text: str) -> tuple[Key, ...]:
    return tuple(
        Key(issuer, int(serial, 16), None if crls is None else tuple(crls)) for issuer, serial, crls in json.loads(text)
    )


def _revoked(name: str, evidence: Evidence) -> str:
    since = f" at {evidence.revoked_at:{_TIME}}" if evidence.revoked_at else ""
    return f"Certificate {name} was revoked{since}."


def _good(certificate: Certificate, evidence: Evidence | LoadedCRL, at: datetime) -> str:
    source = f"CRL {evidence.url}" if isinstance(evidence, LoadedCRL) else evidence.source
    minutes = max(0, int((at - evidence.this_update).total_seconds() // 60))
    age = f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} hours"
    return f"Certificate {certificate.label} is not revoked ({source}, {age} old)."
