"""Extensions of a certificate: status URLs, authority key identifier, and one tolerance for invalid DER.

Reading extensions with `cryptography` takes longer than everything else about a leaf except its signature, and an
issuer writes the same extensions into every certificate of a profile. They are therefore cached by their encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID

from ccp.x509.authority_key_id import AuthorityKeyId
from ccp.x509.http_urls import is_http_url

# An explicit `cA FALSE`. DER forbids encoding a default value (X.690 clause 11.5), so cryptography refuses it, but most
# contract and CPS leaves in the field contain it. Remove this when their issuers have changed their profiles.
_EXPLICIT_FALSE: Final = bytes.fromhex("3003010100")
_EMPTY_SEQUENCE: Final = bytes.fromhex("3000")

# Of each kind, from one certificate; the field has one URL of one kind. More would let a certificate multiply our
# outbound requests.
MAX_STATUS_URLS: Final = 3
_MAX_URL_LENGTH: Final = 512


@asn1.sequence
class _Extension:
    oid: x509.ObjectIdentifier
    critical: Annotated[bool, asn1.Default(False)]
    value: bytes


@asn1.sequence
class _TBSCertificate:
    version: Annotated[int, asn1.Explicit(0), asn1.Default(0)]
    serial_number: int
    signature: asn1.TLV
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    subject_public_key_info: asn1.TLV
    issuer_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(1)]
    subject_unique_id: Annotated[asn1.BitString | None, asn1.Implicit(2)]
    extensions: Annotated[list[_Extension] | None, asn1.Explicit(3)]


@asn1.sequence
class _SignedCertificate:
    """The outer structure (RFC 5280 clause 4.1), to build a copy that differs in one extension."""

    tbs: _TBSCertificate
    algorithm: asn1.TLV
    signature: asn1.BitString


@dataclass(frozen=True, slots=True)
class StatusURLs:
    """Where the revocation status of a certificate can be obtained: usable URLs, in the order of the certificate.

    present: whether the certificate contains an address in any form. One that contains only an LDAP address still
    requires its verifier to check.
    """

    ocsp: tuple[str, ...]
    crl: tuple[str, ...]
    present: bool


_NO_STATUS_URLS: Final = StatusURLs((), (), False)


class ExtensionValues(NamedTuple):
    """The extensions of a certificate without its subject key identifier.

    values: by type; each extension that cryptography knows has its own. listed: OID and critical flag of all.
    """

    values: Mapping[type[x509.ExtensionType], x509.ExtensionType]
    listed: tuple[tuple[x509.ObjectIdentifier, bool], ...]
    status_urls: StatusURLs
    authority: AuthorityKeyId | None


def read_status_urls(extensions: Mapping[type[x509.ExtensionType], Any]) -> StatusURLs:
    """OCSP and CRL URLs of a certificate's extensions (by type)."""
    access = extensions.get(x509.AuthorityInformationAccess, ())
    points = extensions.get(x509.CRLDistributionPoints, ())
    if not access and not points:
        return _NO_STATUS_URLS
    responders = [
        entry.access_location for entry in access if entry.access_method == AuthorityInformationAccessOID.OCSP
    ]
    # A CRL for some reasons only, or with another issuer, does not decide the status (RFC 5280 clause 4.2.1.13).
    lists = [name for point in points if not point.reasons and not point.crl_issuer for name in point.full_name or ()]
    return StatusURLs(_usable(responders), _usable(lists), bool(responders) or any(True for _ in points))


def _usable(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    """The first URLs that can be called over HTTP, without duplicates and surrounding blanks."""
    found = (name.value.strip(" \t\r\n") for name in names if isinstance(name, x509.UniformResourceIdentifier))
    urls = dict.fromkeys(url for url in found if len(url) <= _MAX_URL_LENGTH and is_http_url(url))
    return tuple(urls)[:MAX_STATUS_URLS]


def without_explicit_false(der: bytes) -> x509.Certificate | None:
    """A copy of a certificate, only for reading its extensions, without the explicit `cA FALSE`.

    None if that is not what is wrong with it.
    """
    copy = asn1.decode_der(_SignedCertificate, der)
    basic = [entry for entry in copy.tbs.extensions or () if entry.oid == ExtensionOID.BASIC_CONSTRAINTS]
    if len(basic) != 1 or basic[0].value != _EXPLICIT_FALSE:
        return None
    basic[0].value = _EMPTY_SEQUENCE
    return x509.load_der_x509_certificate(asn1.encode_der(copy))
