"""Certificates as this ecosystem really sends them, read once and kept cheap.

`cryptography` does the parsing. Around it stand three things it does not offer: one narrow tolerance for leaves that
are not valid DER but are everywhere in the field, names and algorithms without the cost of whole objects, and the
addresses at which a certificate says that its revocation can be asked for.

A vehicle waits while three certificates are read, so what is cut out of the octets by the few lines at the end of this
module is cut only after cryptography's parser has accepted all of them as a certificate.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, NameOID, SignatureAlgorithmOID

from ccp.errors import ChainError
from ccp.x509 import der as encoding
from ccp.x509.authority_key_id import AuthorityKeyId, read_authority_key_id
from ccp.x509.canonical_names import canonical_name
from ccp.x509.http_urls import is_http_url
from ccp.x509.names import format_dn, names_match
from ccp.x509.parse_errors import is_parse_error, parse_errors_as
from ccp.x509.subjects import simple_subject_values

# An explicit `cA FALSE`. DER forbids to encode a default value (X.690 clause 11.5), so cryptography refuses it; most
# contract and CPS leaves in the field carry it. Drop this when those issuers have changed their profiles.
_EXPLICIT_FALSE: Final = bytes.fromhex("3003010100")
_EMPTY_SEQUENCE: Final = bytes.fromhex("3000")

_ECDSA: Final = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ECDSA(hashes.SHA512()),
}
# Of each kind, from one certificate; the field has one of one kind. More would let a certificate choose our traffic.
MAX_STATUS_URLS: Final = 3
_MAX_URL_LENGTH: Final = 512
_EXPLICIT_0: Final = 0xA0  # The tag of the version, which is absent in version 1.
_EXPLICIT_3: Final = 0xA3  # The tag of the extensions, which come last.
_KEY_IDENTIFIER: Final = bytes.fromhex("0603551d0e04")  # SubjectKeyIdentifier, not critical, and its OCTET STRING
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_E = TypeVar("_E", bound=x509.ExtensionType)
_T = TypeVar("_T")


class cached_property(Generic[_T]):
    """A property that is worked out once. functools.cached_property takes a lock for it until Python 3.12."""

    def __init__(self, work: Callable[[Any], _T]) -> None:
        self._work = work
        self.__doc__ = work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> _T:
        value = instance.__dict__[self._name] = self._work(instance)
        return value


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
    """The outer structure (RFC 5280 clause 4.1), for making a copy that differs in one extension."""

    tbs: _TBSCertificate
    algorithm: asn1.TLV
    signature: asn1.BitString


@dataclass(frozen=True, slots=True)
class StatusURLs:
    """Where a certificate says its status can be asked for: those we can call, in its order.

    present: whether it says so at all, in whatever form. A certificate that names only an LDAP directory still asks its
    verifier to look.
    """

    ocsp: tuple[str, ...]
    crl: tuple[str, ...]
    present: bool


_NO_STATUS_URLS: Final = StatusURLs((), (), False)


class _Extensions(NamedTuple):
    """What the extensions of a certificate say but for its own key identifier.

    values: by type, of which each extension that cryptography knows has its own. listed: which there are, and which of
    them are critical.
    """

    values: Mapping[type[x509.ExtensionType], x509.ExtensionType]
    listed: tuple[tuple[x509.ObjectIdentifier, bool], ...]
    status_urls: StatusURLs
    authority: AuthorityKeyId | None


# By their octets without the key identifier: an issuer writes the same into every certificate of a profile, and reading
# them takes longer than everything else about a leaf but its signature.
_KNOWN_EXTENSIONS: Final[dict[bytes, _Extensions]] = {}
_MOST_KNOWN: Final = 512
_LONGEST_KNOWN: Final = 512  # Bytes; the field's profiles have 100 to 350. In memory they take up to 50 times as many.


class Certificate:
    """One X.509 certificate. Made by `load`; equal when the octets are equal; never changes.

    What is asked for once is kept. `public_key` and `extensions` are read on demand and may then raise ChainError.
    issuer_name, subject_name: DER contents as they were received; names are compared by `canonical_issuer` and
    `canonical_subject`. public_key_algorithm: the key's AlgorithmIdentifier as it is encoded, which tells a named curve
    from explicit parameters.
    """

    def __init__(self, parsed: x509.Certificate, der: bytes) -> None:
        """For `load` only: der is what `parsed` was read from."""
        self.der: Final = der
        self.x509: Final = parsed
        signed, algorithm, signature = _elements(der, *_content(der, 0))
        parts = _elements(der, signed[1], signed[2])
        if der[signed[1]] == _EXPLICIT_0:
            del parts[0]
        serial, repeated, issuer, _, subject, key = parts[:6]
        self._signed_octets: Final = der[signed[0] : signed[2]]  # The TBSCertificate as it was received.
        self._algorithms_agree: Final = der[algorithm[1] : algorithm[2]] == der[repeated[1] : repeated[2]]
        self.not_before: Final[datetime] = parsed.not_valid_before_utc
        self.not_after: Final[datetime] = parsed.not_valid_after_utc
        self.serial_number: Final = int.from_bytes(der[serial[1] : serial[2]], "big", signed=True)
        self.issuer_name: Final = der[issuer[1] : issuer[2]]
        self.subject_name: Final = der[subject[1] : subject[2]]
        bits = _content(der, key[1])[1]
        self.public_key_algorithm: Final = der[key[1] : bits]
        # The first byte of a BIT STRING counts bits at its end that are none of it. See `load`.
        unused = bits + 2 + (der[bits + 1] & 0x7F if der[bits + 1] & 0x80 else 0)
        self._unused_bits: Final = der[signature[1]] or der[unused]
        self._extensions_at: Final = parts[-1] if der[parts[-1][0]] == _EXPLICIT_3 else None

    @classmethod
    def load(cls, der: bytes) -> Certificate:
        """Read one certificate.

        der: the whole certificate and nothing after it. Signature and public key are whole bytes: a BIT STRING that
        claims unused bits is a second encoding of the same certificate, which OpenSSL refuses.
        Raises ChainError.
        """
        with parse_errors_as(
            lambda: ChainError(
                f"These {len(der)} octets are {encoding.explain_rejection(der, 'an X.509 certificate')}."
            )
        ):
            found = cls(x509.load_der_x509_certificate(der), der)
        if found._unused_bits:
            raise ChainError(f"The signature or public key of certificate {found.display_name} claims unused bits.")
        return found

    @classmethod
    def load_pem(cls, pem: bytes) -> tuple[Certificate, ...]:
        """Read every certificate of a PEM file, in its order. Raises ChainError, also when there is none."""
        with parse_errors_as(lambda: cls._why_no_pem(pem)):
            # cryptography writes a parsed certificate back octet by octet, so nothing is re-encoded here.
            encoded = [one.public_bytes(serialization.Encoding.DER) for one in x509.load_pem_x509_certificates(pem)]
        return tuple(map(cls.load, encoded))

    @classmethod
    def _why_no_pem(cls, pem: bytes) -> ChainError:
        """Names the certificate that is refused, and why, as far as it can be seen."""
        unreadable = ChainError("This is not a PEM file with X.509 certificates.")
        try:
            for block in _PEM.findall(pem):
                cls.load(binascii.a2b_base64(block))
        except ChainError as exc:
            return exc
        except ValueError:
            pass
        return unreadable

    def pem(self) -> bytes:
        return self.x509.public_bytes(serialization.Encoding.PEM)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.display_name} {self.fingerprint[:16]}>"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the octets, 64 lower-case hex digits."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def subject_cn(self) -> str:
        """The subject's common name as it is written; empty when there is none, several, or none that can be read.

        Several are refused because readers disagree on which of them counts, and this one is an identity.
        """
        values = self._subject_values[0]
        return values[0] if len(values) == 1 else ""

    @cached_property
    def display_name(self) -> str:
        """How an error message names this certificate: the quoted common name, short and printable."""
        name = "".join(c if c.isprintable() else "?" for c in self.subject_cn[:64])
        return f'"{name}"' if name else f"without a common name (SHA-256 {self.fingerprint[:16]}…)"

    @cached_property
    def subject_dn(self) -> str:
        """The subject as `CN=…, DC=…, O=…, OU=…, C=…`, absent parts left out, escaped as in RFC 4514."""
        subject = _subject(self.x509)
        return format_dn(subject) if subject else ""

    @cached_property
    def issuer_dn(self) -> str:
        """The issuer as RFC 4514 writes it, for people. Raises ChainError when it cannot be read."""
        with parse_errors_as(lambda: ChainError(f"The issuer of certificate {self.display_name} cannot be read.")):
            return self.x509.issuer.rfc4514_string()

    def subject_matches(self, text: str) -> bool:
        """Whether free text can mean the subject; see `ccp.x509.names.names_match`. False where it cannot be read."""
        subject = _subject(self.x509)
        return subject is not None and names_match(text, subject)

    @cached_property
    def public_key(self) -> CertificatePublicKeyTypes:
        """Raises ChainError when the key is malformed or of a kind nobody here can use."""
        with parse_errors_as(lambda: ChainError(f"The public key of certificate {self.display_name} cannot be read.")):
            return self.x509.public_key()

    @cached_property
    def extensions(self) -> x509.Extensions:
        """Read with the one tolerance of this module; a signature is always checked over the octets received.

        Raises ChainError when they cannot be read or one occurs twice.
        """
        with parse_errors_as(self._unreadable_extensions):
            try:
                return self.x509.extensions
            except ValueError:
                tolerant = self._without_explicit_false()
                if tolerant is None:
                    raise
                return tolerant.extensions

    def _unreadable_extensions(self) -> ChainError:
        return ChainError(f"The extensions of certificate {self.display_name} cannot be read.")

    @property
    def listed_extensions(self) -> tuple[tuple[x509.ObjectIdentifier, bool], ...]:
        """Which extensions there are, and which of them are critical. Raises ChainError."""
        return self._extensions.listed

    def extension(self, kind: type[_E]) -> _E | None:
        """One extension's value, or None when it is absent; `key_identifier` is not among them. Raises ChainError."""
        value = self._extensions.values.get(kind)
        return value if type(value) is kind else None

    @property
    def status_urls(self) -> StatusURLs:
        """Raises ChainError when the extensions cannot be read, which no certificate of a verified chain does."""
        return self._extensions.status_urls

    @property
    def key_identifier(self) -> bytes | None:
        """SubjectKeyIdentifier, opaque: in this ecosystem it is rarely a hash of the key. Raises ChainError."""
        identifier = self._split_extensions[1]
        if identifier is not None:
            return identifier
        value = self.extension(x509.SubjectKeyIdentifier)
        return value.digest if value else None

    @property
    def authority_key_identifier(self) -> bytes | None:
        """The keyIdentifier of AuthorityKeyIdentifier, opaque. Raises ChainError."""
        authority = self._extensions.authority
        return authority.key_identifier if authority else None

    def authority_mismatch(self, issuer: Certificate) -> str | None:
        """What of the AuthorityKeyIdentifier does not name this issuer certificate: a noun, or None.

        Key identifiers count where both certificates have one. Issuer and serial number, where they are given, name one
        certificate of the issuer. Raises ChainError. Source: RFC 5280 clause 4.2.1.1; what OpenSSL checks.
        """
        authority = self._extensions.authority
        if authority is None:
            return None
        wanted, serial_number, named = authority
        if wanted is not None and wanted != issuer.key_identifier and issuer.key_identifier is not None:
            return "key identifier"
        if serial_number is not None and serial_number != issuer.serial_number:
            return "serial number"
        return "issuer" if named is not None and named != issuer.canonical_issuer else None

    @cached_property
    def canonical_issuer(self) -> bytes:
        """The issuer's name for comparison with a subject. Raises ChainError when it cannot be read."""
        return self._canonical(self.issuer_name, "issuer")

    @cached_property
    def canonical_subject(self) -> bytes:
        """The subject's name for comparison with an issuer. Raises ChainError when it cannot be read."""
        return self._canonical(self.subject_name, "subject")

    @property
    def is_self_issued(self) -> bool:
        """Whether issuer and subject are the same name. Raises ChainError when one cannot be read."""
        return self.issuer_name == self.subject_name or self.canonical_issuer == self.canonical_subject

    def _canonical(self, name: bytes, which: str) -> bytes:
        try:
            return canonical_name(name)
        except encoding.DERError as exc:
            raise ChainError(f"The {which} of certificate {self.display_name} cannot be read.") from exc

    @cached_property
    def _extensions(self) -> _Extensions:
        octets, identifier = self._split_extensions
        known = _KNOWN_EXTENSIONS.get(octets)
        if known is None:
            extensions = self.extensions
            with parse_errors_as(self._unreadable_extensions):
                values = {type(one.value): one.value for one in extensions}
                status_urls = _status_urls(values)
                listed = tuple((one.oid, one.critical) for one in extensions)
            with parse_errors_as(
                lambda: ChainError(f"The authority key identifier of certificate {self.display_name} cannot be read.")
            ):
                key = values.get(x509.AuthorityKeyIdentifier)
                authority = read_authority_key_id(key) if isinstance(key, x509.AuthorityKeyIdentifier) else None
            if identifier is not None:
                del values[x509.SubjectKeyIdentifier]
            known = _Extensions(values, listed, status_urls, authority)
            if len(octets) <= _LONGEST_KNOWN:
                if len(_KNOWN_EXTENSIONS) >= _MOST_KNOWN:
                    _KNOWN_EXTENSIONS.clear()
                _KNOWN_EXTENSIONS[octets] = known
        return known

    @cached_property
    def _split_extensions(self) -> tuple[bytes, bytes | None]:
        """The octets of all extensions without those of the key identifier, and these, where it has its usual form.

        All that is left out of the former is as long as they say and stands where they say, so that whatever is read
        of two certificates that agree in them agrees too.
        """
        if self._extensions_at is None:
            return b"", None
        der = self.der
        first, content, last = self._extensions_at
        for _, start, end in _elements(der, *_content(der, content)):
            if der.startswith(_KEY_IDENTIFIER, start):
                at, length = start + 9, end - start - 9
                if 0 < length < 126 and der[at - 3 : at] == bytes((length + 2, 4, length)):
                    return der[first:at] + der[end:last], der[at:end]
                break
        return der[first:last], None

    @cached_property
    def issuer_key_id(self) -> str:
        """Who this is as an issuer, however often its certificate is issued again for the same key.

        SHA-256 (hex) over the subject's name (DER contents) and the SubjectPublicKeyInfo (DER). Raises ChainError.
        """
        return hashlib.sha256(self.subject_name + self._public_key_info()).hexdigest()

    @cached_property
    def canonical_issuer_key_id(self) -> str:
        """Who this is as an issuer, also when its name is written in other string types or letter case.

        SHA-256 (hex) over the canonical subject and the SubjectPublicKeyInfo (DER). Settings go by it; `issuer_key_id`
        is what rows of the store have. Raises ChainError.
        """
        return hashlib.sha256(self.canonical_subject + self._public_key_info()).hexdigest()

    def _public_key_info(self) -> bytes:
        public, info = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        with parse_errors_as(lambda: ChainError(f"The public key of certificate {self.display_name} cannot be read.")):
            return self.public_key.public_bytes(public, info)

    def verify_issued_by(self, issuer: Certificate) -> None:
        """Check that `issuer` signed this certificate: its name and its signature, nothing else.

        The steps of cryptography's verify_directly_issued_by, but the issuer's key is not read anew each time, which
        costs almost as much as the check. Raises ChainError.
        Source: RFC 5280 clauses 4.1.1.2 and 6.1.3.
        """
        key = issuer.public_key
        with parse_errors_as(
            lambda: ChainError(f"Certificate {self.display_name} was not signed by {issuer.display_name}.")
        ):
            signature, algorithm = self.x509.signature, self.x509.signature_algorithm_oid
            named = self.issuer_name == issuer.subject_name or self.canonical_issuer == issuer.canonical_subject
            if not named or not self._algorithms_agree:
                raise ValueError("issuer name or signature algorithm differ")
            if isinstance(key, EllipticCurvePublicKey) and algorithm in _ECDSA:
                key.verify(signature, self._signed_octets, _ECDSA[algorithm])
            elif isinstance(key, Ed448PublicKey) and algorithm == SignatureAlgorithmOID.ED448:
                key.verify(signature, self._signed_octets)
            else:
                raise ValueError("key and signature algorithm differ")

    @cached_property
    def self_signature_error(self) -> str | None:
        """What is wrong with a root's signature over itself. Both ends are these octets, so the answer is kept."""
        try:
            self.verify_issued_by(self)
        except ChainError as exc:
            return str(exc)
        return None

    def domain_components(self) -> frozenset[str]:
        """The subject's DC values in upper case, such as {"CPS"}."""
        return frozenset(value.upper() for value in self._subject_values[1])

    def validate_subject(self) -> None:
        """Refuse a subject that cannot be compared or whose values cannot be read. Raises ChainError."""
        if self._usual_subject is None and (not self.canonical_subject or _subject(self.x509) is None):
            raise ChainError(f"The subject of certificate {self.display_name} cannot be read.")

    @cached_property
    def _usual_subject(self) -> tuple[list[str], list[str]] | None:
        return simple_subject_values(self.subject_name)

    @cached_property
    def _subject_values(self) -> tuple[list[str], list[str]]:
        """The values of the subject's CN and of its DC."""
        if self._usual_subject is not None:
            return self._usual_subject
        subject = _subject(self.x509)
        if subject is None:
            return [], []
        common, domain = (
            [str(one.value) for one in subject.get_attributes_for_oid(oid)]
            for oid in (NameOID.COMMON_NAME, NameOID.DOMAIN_COMPONENT)
        )
        return common, domain

    def _without_explicit_false(self) -> x509.Certificate | None:
        """A throw-away copy for reading extensions, or None if the known defect is not what is wrong."""
        copy = asn1.decode_der(_SignedCertificate, self.der)
        basic = [one for one in copy.tbs.extensions or () if one.oid == ExtensionOID.BASIC_CONSTRAINTS]
        if len(basic) != 1 or basic[0].value != _EXPLICIT_FALSE:
            return None
        basic[0].value = _EMPTY_SEQUENCE
        return x509.load_der_x509_certificate(asn1.encode_der(copy))


def _status_urls(extensions: Mapping[type[x509.ExtensionType], Any]) -> StatusURLs:
    access = extensions.get(x509.AuthorityInformationAccess, ())
    points = extensions.get(x509.CRLDistributionPoints, ())
    if not access and not points:
        return _NO_STATUS_URLS
    responders = [one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
    # A list for some reasons only, or signed by someone else, says nothing about the rest (RFC 5280 clause 4.2.1.13).
    lists = [name for one in points if not one.reasons and not one.crl_issuer for name in one.full_name or ()]
    return StatusURLs(_callable(responders), _callable(lists), bool(responders) or any(True for _ in points))


def _callable(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    """Those that can be called at all, the first few, each once and without blanks around it."""
    found = (name.value.strip(" \t\r\n") for name in names if isinstance(name, x509.UniformResourceIdentifier))
    return tuple(dict.fromkeys(url for url in found if len(url) <= _MAX_URL_LENGTH and is_http_url(url)))[
        :MAX_STATUS_URLS
    ]


def _subject(certificate: x509.Certificate) -> x509.Name | None:
    try:
        return certificate.subject
    except BaseException as exc:  # Not in its own character set, or of a type such as BIT STRING.
        if not is_parse_error(exc):
            raise
        return None


def _content(octets: bytes, at: int) -> tuple[int, int]:
    """Start and end of the content of the DER element at `at`. Only for octets that a real parser has accepted."""
    length, start = octets[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(octets[start : start + count], "big"), start + count
    return start, start + length


def _elements(octets: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """The DER elements from `at` to `end`: where each starts, and where its content starts and ends.

    Only for octets that a real parser has accepted.
    """
    found = []
    while at < end:
        length, start = octets[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, start = int.from_bytes(octets[start : start + count], "big"), start + count
        found.append((at, start, start + length))
        at = start + length
    return found
