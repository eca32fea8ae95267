"""What a CA says about revocation: OCSP responses and CRLs, read and verified. Nothing here fetches.

request = build_ocsp_request(certificate, issuer)
evidence = read_ocsp(octets, certificate, issuer, at, source=url)      # or raises EvidenceError
crl = read_crl(octets, issuer, at, url=url)                             # or raises EvidenceError
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

# Clocks of responders and of this machine differ. Only for thisUpdate: past nextUpdate nothing is fresh.
CLOCK_SKEW: Final = timedelta(minutes=5)
# RFC 6960 clause 4.2.2.1: without nextUpdate newer information is always available. Long enough for the sweep to come
# round twice and to outlast a short outage, short enough that a revocation is not missed for a day.
WITHOUT_NEXT_UPDATE: Final = timedelta(hours=4)
_MAX_CANDIDATES: Final = 8  # Certificates of a response that bear the responder's name, each of which is verified.
_PEM: Final = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]*)-----END X509 CRL-----")

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
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


def _is_unreadable(error: BaseException) -> bool:
    """Whether the bytes are to blame: what `cryptography` raises, and what a certificate in them raises."""
    return is_parse_error(error) or isinstance(error, ChainError)


# --- OCSP ------------------------------------------------------------------------------------------------------------


def is_ocsp_response(octets: bytes) -> bool:
    """Whether the bytes are an OCSPResponse (DER), whatever it says."""
    try:
        ocsp.load_der_ocsp_response(octets)
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        return False
    return True


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
        if der.signature_has_unused_bits(_basic_response(octets)):
            raise EvidenceError("The signature of the OCSP response claims unused bits.")
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


def _basic_response(octets: bytes) -> bytes:
    """The BasicOCSPResponse inside of an OCSPResponse that a parser has accepted. Raises DERError."""
    inside = der.read_children(octets, der.read_element(octets, 0))[1]
    kind_and_content = der.read_children(octets, der.read_element(octets, inside.start))
    return octets[kind_and_content[1].start : kind_and_content[1].end]


class _ResponderID(NamedTuple):
    """Whom a response names as its signer. name: canonical; key_hash: SHA-1 over the bits of the public key."""

    name: bytes | None
    key_hash: bytes | None

    @classmethod
    def of(cls, response: ocsp.OCSPResponse) -> _ResponderID:
        """Raises DERError."""
        if response.responder_key_hash is not None:
            return cls(None, response.responder_key_hash)
        data = response.tbs_response_bytes
        members = der.read_children(data, der.read_element(data, 0))
        chosen = members[1] if members[0].tag == 0xA0 else members[0]  # The version is rarely there.
        name = der.read_element(data, chosen.start, chosen.end)
        return cls(canonical_name(data[name.start : name.end]), None)

    def names(self, certificate: Certificate) -> bool:
        """Raises ChainError when the certificate's name or key cannot be read."""
        if self.name is not None:
            return self.name == certificate.canonical_subject
        return self.key_hash == _key_hash(certificate)


def _responder(response: ocsp.OCSPResponse, issuer: Certificate, at: datetime) -> Certificate:
    """Who has to have signed: the issuer itself, or one that it certified for this. Raises EvidenceError.

    The responder's certificate may stand anywhere among those of the response (RFC 6960 clause 4.2.1).
    """
    named = _ResponderID.of(response)
    if named.names(issuer):
        return issuer
    problem = EvidenceError("The OCSP response is signed by a responder whose certificate is not in it.")
    candidates = 0
    for sent in response.certificates:
        try:
            # Loaded anew: responder certificates need the same tolerance for extensions as leaves.
            candidate = Certificate.load(sent.public_bytes(Encoding.DER))
            if not named.names(candidate):
                continue
        except ChainError:
            continue
        candidates += 1
        if candidates > _MAX_CANDIDATES:
            break
        try:
            _check_delegated(candidate, issuer, at)
        except ChainError as exc:
            problem = EvidenceError(f"The OCSP responder is not authorised: {exc}")
            problem.__cause__ = exc
        else:
            return candidate
    raise problem


def _key_hash(certificate: Certificate) -> bytes:
    """SHA-1 over the public key's bits, which is what this method of cryptography makes. Raises ChainError."""
    return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key).digest


def _check_delegated(responder: Certificate, issuer: Certificate, at: datetime) -> None:
    """That the issuer itself certified this responder to sign OCSP responses. Raises ChainError.

    Its own revocation is not looked at, ocsp-nocheck or not: asking would lead in a circle, and a CA that has to take
    such a certificate back renews its own responses, too. Source: RFC 6960 clause 4.2.2.2.
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
    if not responder.not_before <= at or at.replace(microsecond=0) > responder.not_after:
        raise ChainError(f"Certificate {responder.display_name} is not valid at this time.")
    if responder.authority_mismatch(issuer) is not None:
        raise ChainError(
            f"Certificate {responder.display_name} names another issuer certificate than {issuer.display_name}."
        )
    responder.verify_issued_by(issuer)


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
    octets: bytes,
    issuer: Certificate,
    at: datetime,
    last_number: int | None = None,
    url: str | None = None,
    names: Collection[str] = (),
) -> RevocationList:
    """Read and verify a complete CRL of an issuer.

    octets: DER or PEM, which may stand behind text. last_number: of the list before, None where there is none or it had
    none. url: where it came from when a certificate named the place; None when the operator did, who vouches that the
    list is complete. names: keys (`ccp.x509.distribution_points`) of the other names that the certificate has for that
    place. Raises EvidenceError. Source: RFC 5280 clauses 5 and 6.3.3; delta, indirect and partial lists are not taken.
    """
    try:
        # 1. A list of this issuer, and a complete one.
        octets = _without_armour(octets)
        crl = x509.load_der_x509_crl(octets)
        if der.signature_has_unused_bits(octets):
            raise EvidenceError("The signature of the CRL claims unused bits.")
        if _issuer_of(octets) != issuer.canonical_subject:
            raise EvidenceError(f"The CRL is not of {issuer.display_name}.")
        number = _check_extensions(crl, issuer, None if url is None else {url_key(url), *names})
        # 2. Signed by it.
        usage = issuer.extension(x509.KeyUsage)
        if usage is not None and not usage.crl_sign:
            raise EvidenceError(f"Certificate {issuer.display_name} may not sign CRLs.")
        key = issuer.public_key
        ec = isinstance(key, EllipticCurvePublicKey) and crl.signature_algorithm_oid in _ECDSA
        ed = isinstance(key, Ed448PublicKey) and crl.signature_algorithm_oid == SignatureAlgorithmOID.ED448
        if not (ec or ed) or not crl.is_signature_valid(key):  # type: ignore[arg-type]
            raise EvidenceError(f"The CRL is not signed by {issuer.display_name}.")
        # 3. Now, and not from before the last one.
        this_update = crl.last_update_utc
        next_update = crl.next_update_utc or this_update + WITHOUT_NEXT_UPDATE
        _check_window("CRL", this_update, next_update, at)
        if last_number is not None and (number is None or number < last_number):
            has = "no number" if number is None else f"the number {number}"
            raise EvidenceError(f"The CRL has {has}, the one before it had {last_number}.")
        # An entry's reason is not looked at: a hold is a revocation here, and removeFromCRL is for delta lists.
        revoked = {entry.serial_number: entry.revocation_date_utc for entry in crl}
    except BaseException as exc:
        if not _is_unreadable(exc):
            raise
        why = der.explain_rejection(octets, "a CRL").removeprefix("not a CRL").removeprefix(": ")
        raise EvidenceError(f"The CRL cannot be read: {why}." if why else "The CRL cannot be read.") from exc
    return RevocationList(issuer.issuer_key_id, number, this_update, next_update, MappingProxyType(revoked))


def _without_armour(octets: bytes) -> bytes:
    """DER as it is; out of PEM, which may stand behind a byte order mark, blank lines or text (RFC 7468 clause 2)."""
    found = None if _is_der(octets) else _PEM.search(octets)
    return octets if found is None else binascii.a2b_base64(found[1])


def _is_der(octets: bytes) -> bool:
    """Whether the bytes are one SEQUENCE and nothing else, whatever text may stand in it."""
    try:
        return octets[:1] == b"\x30" and der.read_element(octets, 0).end == len(octets)
    except der.DERError:
        return False


def _issuer_of(crl: bytes) -> bytes:
    """The issuer's name of a CRL that a parser has accepted, in canonical form. crl: DER. Raises DERError."""
    whole = der.read_element(crl, 0)
    members = der.read_children(crl, der.read_element(crl, whole.start))
    name = members[2] if members[0].tag == 0x02 else members[1]  # The version is absent from version 1.
    return canonical_name(crl[name.start : name.end])


def _check_extensions(
    crl: x509.CertificateRevocationList, issuer: Certificate, place: Collection[str] | None
) -> int | None:
    """The CRL's number. Raises EvidenceError where the list is not the whole one.

    place: keys of the names of the distribution point that it came from; None where the operator named the address.
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
                (value.only_contains_user_certs and not _issues_leaves_alone(issuer))
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


def _issues_leaves_alone(issuer: Certificate) -> bool:
    """Whether a CA can issue no certificates of CAs, so that a list of its users' certificates is its whole list."""
    basic = issuer.extension(x509.BasicConstraints)
    return basic is not None and basic.path_length == 0


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
