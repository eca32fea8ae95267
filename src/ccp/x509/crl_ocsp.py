"""OCSP responses and CRLs: parsing and verification. Nothing here fetches.

request = build_ocsp_request(certificate, issuer)
evidence = read_ocsp(data, certificate, issuer, now, source=url)      # or raises EvidenceError
crl = read_crl(data, issuer, now, url=url)                            # or raises EvidenceError
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Collection
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from ccp.errors import ChainError
from ccp.x509 import der
from ccp.x509.canonical_names import canonical_name
from ccp.x509.certificates import Certificate
from ccp.x509.distribution_points import general_name_keys, url_key
from ccp.x509.parse_errors import is_parse_error
from ccp.x509.revocation_evidence import Evidence, EvidenceError, RevocationList, RevocationStatus

# Tolerance for differing clocks. It applies only to thisUpdate; after nextUpdate evidence is expired.
CLOCK_SKEW: Final = timedelta(minutes=5)
# RFC 6960 clause 4.2.2.1: without nextUpdate newer information is always available. Long enough for two refresh rounds
# and a short outage, short enough that a revocation is noticed within a day.
WITHOUT_NEXT_UPDATE: Final = timedelta(hours=4)
_MAX_CANDIDATES: Final = 8  # Certificates of a response with the responder's name; each is verified.
_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]*)-----END X509 CRL-----")

_ECDSA: Final = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,  # Not used in the certificate profiles, but by some OCSP signers.
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
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


def _is_unreadable(error: BaseException) -> bool:
    """Whether an error means that the bytes are invalid: parse errors of `cryptography`, and errors of certificates."""
    return is_parse_error(error) or isinstance(error, ChainError)


# --- OCSP ------------------------------------------------------------------------------------------------------------


def is_ocsp_response(data: bytes) -> bool:
    """Whether the bytes are an OCSPResponse (DER) of any content."""
    try:
        ocsp.load_der_ocsp_response(data)
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        return False
    return True


def build_ocsp_request(certificate: Certificate, issuer: Certificate, sha256: bool = False) -> bytes:
    """Build an OCSPRequest (DER) for one certificate, without a nonce, so that responders can use a cache.

    sha256: hash algorithm of the CertID. Most responders support only SHA-1, which is an index there and not a
    protection (RFC 5019).
    """
    return _request(certificate, issuer, hashes.SHA256() if sha256 else hashes.SHA1()).public_bytes(Encoding.DER)  # noqa: S303


def _request(certificate: Certificate, issuer: Certificate, algorithm: hashes.HashAlgorithm) -> ocsp.OCSPRequest:
    return ocsp.OCSPRequestBuilder().add_certificate(certificate.x509, issuer.x509, algorithm).build()


def read_ocsp(data: bytes, certificate: Certificate, issuer: Certificate, now: datetime, source: str) -> Evidence:
    """Verify an OCSPResponse and return its evidence about a certificate.

    data: DER, unverified. source: URL for the evidence. Raises EvidenceError.
    Source: RFC 6960 clauses 3.2 and 4.2; RFC 5019.
    """
    try:
        # 1. A successful response.
        response = ocsp.load_der_ocsp_response(data)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise EvidenceError(f"The OCSP responder answered {response.response_status.name}.")
        if der.signature_has_unused_bits(_basic_response(data)):
            raise EvidenceError("The signature of the OCSP response claims unused bits.")
        if any(one.critical and one.oid != x509.OCSPNonce.oid for one in response.extensions):
            raise EvidenceError("The OCSP response has a critical extension that is not known.")
        # 2. Signed by the issuer or an authorised responder.
        responder = _responder(response, issuer, now)
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
        # 4. Valid at this time.
        this_update = single.this_update_utc
        next_update = single.next_update_utc or this_update + WITHOUT_NEXT_UPDATE
        _check_window("OCSP response", this_update, next_update, now)
        status = _STATUS[single.certificate_status]
        revoked_at = single.revocation_time_utc if status is RevocationStatus.REVOKED else None
    except BaseException as exc:
        if not _is_unreadable(exc):
            raise
        raise EvidenceError("The OCSP response cannot be read.") from exc
    number = certificate.serial_number
    return Evidence(issuer.issuer_key_id, number, status, this_update, next_update, revoked_at, f"OCSP {source}")


_STATUS: Final = {
    ocsp.OCSPCertStatus.GOOD: RevocationStatus.GOOD,
    ocsp.OCSPCertStatus.REVOKED: RevocationStatus.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN: RevocationStatus.UNKNOWN,
}


def _basic_response(data: bytes) -> bytes:
    """The BasicOCSPResponse of an OCSPResponse that a parser has accepted. Raises DERError."""
    inside = der.read_children(data, der.read_element(data, 0))[1]
    kind_and_content = der.read_children(data, der.read_element(data, inside.start))
    return data[kind_and_content[1].start : kind_and_content[1].end]


class _ResponderID(NamedTuple):
    """The ResponderID of a response. name: canonical. key_hash: SHA-1 over the bits of the public key."""

    name: bytes | None
    key_hash: bytes | None

    @classmethod
    def of(cls, response: ocsp.OCSPResponse) -> _ResponderID:
        """Read it from a response. Raises DERError."""
        if response.responder_key_hash is not None:
            return cls(None, response.responder_key_hash)
        data = response.tbs_response_bytes
        members = der.read_children(data, der.read_element(data, 0))
        chosen = members[1] if members[0].tag == 0xA0 else members[0]  # The version is rarely present.
        name = der.read_element(data, chosen.start, chosen.end)
        return cls(canonical_name(data[name.start : name.end]), None)

    def names(self, certificate: Certificate) -> bool:
        """Whether it identifies a certificate. Raises ChainError if the certificate's name or key cannot be read."""
        if self.name is not None:
            return self.name == certificate.canonical_subject
        return self.key_hash == _key_hash(certificate)


def _responder(response: ocsp.OCSPResponse, issuer: Certificate, now: datetime) -> Certificate:
    """The certificate of the signer: the issuer, or a responder that it authorised. Raises EvidenceError.

    The responder's certificate may be at any position among those of the response (RFC 6960 clause 4.2.1).
    """
    named = _ResponderID.of(response)
    if named.names(issuer):
        return issuer
    problem = EvidenceError("The OCSP response is signed by a responder whose certificate is not in it.")
    candidates = 0
    for sent in response.certificates:
        try:
            # Parsed again: responder certificates need the same tolerance for extensions as leaves.
            candidate = Certificate.load(sent.public_bytes(Encoding.DER))
            if not named.names(candidate):
                continue
        except ChainError:
            continue
        candidates += 1
        if candidates > _MAX_CANDIDATES:
            break
        try:
            _check_delegated(candidate, issuer, now)
        except ChainError as exc:
            problem = EvidenceError(f"The OCSP responder is not authorised: {exc}")
            problem.__cause__ = exc
        else:
            return candidate
    raise problem


def _key_hash(certificate: Certificate) -> bytes:
    """SHA-1 over the bits of the public key, which cryptography computes for key identifiers. Raises ChainError."""
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key).digest


def _check_delegated(responder: Certificate, issuer: Certificate, now: datetime) -> None:
    """Check that the issuer authorised this responder to sign OCSP responses. Raises ChainError.

    The revocation of the responder is not checked, with or without ocsp-nocheck: that would be circular.
    Source: RFC 6960 clause 4.2.2.2.
    """
    purposes = responder.extension(x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.OCSP_SIGNING not in purposes:
        raise ChainError(f"Certificate {responder.display_name} is not for signing OCSP responses.")
    if not isinstance(responder.public_key, EllipticCurvePublicKey | Ed448PublicKey):
        kind = type(responder.public_key).__name__.removesuffix("PublicKey")
        raise ChainError(f"The key type of certificate {responder.display_name} is not supported ({kind}).")
    usage = responder.extension(x509.KeyUsage)
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        raise ChainError(f"The key usage of certificate {responder.display_name} does not allow to sign responses.")
    for extension in responder.extensions:
        if extension.critical and extension.oid not in _PROCESSED_OF_RESPONDERS:
            raise ChainError(f"Certificate {responder.display_name} has a critical extension that is not known.")
    if not responder.not_before <= now or now.replace(microsecond=0) > responder.not_after:
        raise ChainError(f"Certificate {responder.display_name} is not valid at this time.")
    if responder.authority_mismatch(issuer) is not None:
        raise ChainError(
            f"Certificate {responder.display_name} names another issuer certificate than {issuer.display_name}."
        )
    responder.verify_issued_by(issuer)


def _about(
    response: ocsp.OCSPResponse, certificate: Certificate, issuer: Certificate
) -> ocsp.OCSPResponse | ocsp.OCSPSingleResponse:
    """The single response about a certificate. Raises EvidenceError."""
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
    data: bytes,
    issuer: Certificate,
    now: datetime,
    last_number: int | None = None,
    url: str | None = None,
    names: Collection[str] = (),
) -> RevocationList:
    """Parse and verify a complete CRL of an issuer.

    data: DER, or PEM possibly preceded by text. last_number: CRL number of the previous list, None if it had none. url:
    the address in a certificate that the CRL came from; None if the operator configured the address and so vouches
    that the list is complete. names: keys (`ccp.x509.distribution_points`) of the other names of that distribution
    point. Raises EvidenceError, also for delta, indirect and partial CRLs. Source: RFC 5280 clauses 5 and 6.3.3.
    """
    try:
        # 1. A complete list of this issuer.
        data = _without_armour(data)
        crl = x509.load_der_x509_crl(data)
        if der.signature_has_unused_bits(data):
            raise EvidenceError("The signature of the CRL claims unused bits.")
        if _issuer_of(data) != issuer.canonical_subject:
            raise EvidenceError(f"The CRL is not of {issuer.display_name}.")
        number = _check_extensions(crl, issuer, None if url is None else {url_key(url), *names})
        # 2. Signed by the issuer.
        usage = issuer.extension(x509.KeyUsage)
        if usage is not None and not usage.crl_sign:
            raise EvidenceError(f"Certificate {issuer.display_name} may not sign CRLs.")
        key = issuer.public_key
        ec = isinstance(key, EllipticCurvePublicKey) and crl.signature_algorithm_oid in _ECDSA
        ed = isinstance(key, Ed448PublicKey) and crl.signature_algorithm_oid == SignatureAlgorithmOID.ED448
        if not (ec or ed) or not crl.is_signature_valid(key):  # type: ignore[arg-type]
            raise EvidenceError(f"The CRL is not signed by {issuer.display_name}.")
        # 3. Valid at this time, and not older than the last one.
        this_update = crl.last_update_utc
        next_update = crl.next_update_utc or this_update + WITHOUT_NEXT_UPDATE
        _check_window("CRL", this_update, next_update, now)
        if last_number is not None and (number is None or number < last_number):
            has = "no number" if number is None else f"the number {number}"
            raise EvidenceError(f"The CRL has {has}, the one before it had {last_number}.")
        # The reason of an entry does not matter: a hold is a revocation here, and removeFromCRL occurs only in delta
        # CRLs.
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in crl}
    except BaseException as exc:
        if not _is_unreadable(exc):
            raise
        why = der.explain_rejection(data, "a CRL").removeprefix("not a CRL").removeprefix(": ")
        raise EvidenceError(f"The CRL cannot be read: {why}." if why else "The CRL cannot be read.") from exc
    return RevocationList(issuer.issuer_key_id, number, this_update, next_update, MappingProxyType(revoked))


def _without_armour(data: bytes) -> bytes:
    """The DER of a CRL in DER or PEM. Before PEM may be a byte order mark, blank lines or text (RFC 7468 clause 2)."""
    found = None if _is_der(data) else _PEM.search(data)
    return data if found is None else binascii.a2b_base64(found[1])


def _is_der(data: bytes) -> bool:
    """Whether the bytes are exactly one SEQUENCE."""
    try:
        return data[:1] == b"\x30" and der.read_element(data, 0).end == len(data)
    except der.DERError:
        return False


def _issuer_of(crl: bytes) -> bytes:
    """The canonical issuer name of a CRL (DER) that a parser has accepted. Raises DERError."""
    whole = der.read_element(crl, 0)
    members = der.read_children(crl, der.read_element(crl, whole.start))
    name = members[2] if members[0].tag == 0x02 else members[1]  # The version is absent from version 1.
    return canonical_name(crl[name.start : name.end])


def _check_extensions(
    crl: x509.CertificateRevocationList, issuer: Certificate, place: Collection[str] | None
) -> int | None:
    """Check the extensions and return the CRL number. Raises EvidenceError if the CRL is not complete.

    place: keys of the names of its distribution point; None if the operator configured the address.
    """
    number = None
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
        elif isinstance(value, x509.AuthorityKeyIdentifier):
            has = issuer.key_identifier
            if value.key_identifier is not None and has is not None and value.key_identifier != has:
                raise EvidenceError(f"The CRL is signed with another key than that of {issuer.display_name}.")
        elif isinstance(value, x509.IssuingDistributionPoint):
            partial = (
                (value.only_contains_user_certs and not _issues_only_leaves(issuer))
                or value.only_contains_ca_certs
                or value.only_contains_attribute_certs
                or value.only_some_reasons
                or value.indirect_crl
                or value.relative_name
            )
            names = value.full_name
            if partial or (place is not None and names is not None and general_name_keys(names).isdisjoint(place)):
                raise EvidenceError("The CRL is only a part of the issuer's.")
        elif extension.oid == ExtensionOID.DELTA_CRL_INDICATOR:
            raise EvidenceError("The CRL is a delta CRL.")
        if extension.critical and extension.oid not in _PROCESSED_OF_CRLS:
            raise EvidenceError("The CRL has a critical extension that is not known.")
    return number


def _issues_only_leaves(issuer: Certificate) -> bool:
    """Whether a CA can issue only leaves, so that a CRL with onlyContainsUserCerts is complete."""
    basic = issuer.extension(x509.BasicConstraints)
    return basic is not None and basic.path_length == 0


def _signed(
    signer: Certificate,
    signature: bytes,
    data: bytes,
    algorithm: x509.ObjectIdentifier,
    digest: hashes.HashAlgorithm | None,
) -> bool:
    key = signer.public_key
    try:
        if isinstance(key, EllipticCurvePublicKey) and algorithm in _ECDSA and digest is not None:
            key.verify(signature, data, ECDSA(digest))
        elif isinstance(key, Ed448PublicKey) and algorithm == SignatureAlgorithmOID.ED448:
            key.verify(signature, data)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _check_window(what: str, this_update: datetime, next_update: datetime, now: datetime) -> None:
    if this_update > now + CLOCK_SKEW:
        raise EvidenceError(f"The {what} is from the future ({this_update:{_TIME}}).")
    if now > next_update:
        raise EvidenceError(f"The {what} is stale since {next_update:{_TIME}}.")
