"""Certificates as this ecosystem really sends them, read once and kept cheap.

`cryptography` does the parsing. Around it stand three things it does not offer: one narrow tolerance for leaves that
are not valid DER but are everywhere in the field, a common name without the cost of a whole name object, and the
comparison of distinguished names that cars send as free text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from functools import cached_property
from typing import Annotated, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from ccp.errors import ChainError

# An explicit `cA FALSE`. DER forbids to encode a default value (X.690 clause 11.5), so cryptography refuses it; most
# contract and CPS leaves in the field carry it. Drop this when those issuers have changed their profiles.
_EXPLICIT_FALSE: Final = bytes.fromhex("3003010100")
_EMPTY_SEQUENCE: Final = bytes.fromhex("3000")

_ECDSA: Final = frozenset({SignatureAlgorithmOID.ECDSA_WITH_SHA256, SignatureAlgorithmOID.ECDSA_WITH_SHA512})
_CN: Final = bytes.fromhex("0603550403")
_DC: Final = bytes.fromhex("060a0992268993f22c640119")
_CHARSETS: Final = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii"}  # UTF8String, PrintableString, IA5String
_E = TypeVar("_E", bound=x509.ExtensionType)


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
    """The outer structure (RFC 5280 clause 4.1), with the parts we do not look into left as octets."""

    tbs: _TBSCertificate
    algorithm: asn1.TLV
    signature: asn1.BitString


class Certificate:
    """One X.509 certificate. Made by `load`; equal when the octets are equal; never changes.

    What is asked for once is kept. `public_key` and `extensions` are read on demand and may then raise ChainError.
    `issuer_name` and `subject_name` are DER contents, for exact comparison.
    """

    def __init__(self, der: bytes, parsed: x509.Certificate, structure: _SignedCertificate) -> None:
        """For `load` only."""
        self.der: Final = der
        self.x509: Final = parsed
        self._structure: Final = structure

    @classmethod
    def load(cls, der: bytes) -> Certificate:
        """Read one certificate.

        der: the whole certificate and nothing after it.
        Raises ChainError.
        """
        try:
            parsed = x509.load_der_x509_certificate(der)
            structure = asn1.decode_der(_SignedCertificate, der)
        except (ValueError, TypeError, x509.InvalidVersion) as exc:
            raise ChainError(f"These {len(der)} octets are not an X.509 certificate.") from exc
        return cls(der, parsed, structure)

    @classmethod
    def load_pem(cls, pem: bytes) -> tuple[Certificate, ...]:
        """Read every certificate of a PEM file, in its order. Raises ChainError, also when there is none."""
        try:
            found = x509.load_pem_x509_certificates(pem)
        except (ValueError, x509.InvalidVersion) as exc:
            raise ChainError("This is not a PEM file with X.509 certificates.") from exc
        # cryptography writes a parsed certificate back octet by octet, so nothing is re-encoded here.
        return tuple(cls.load(one.public_bytes(serialization.Encoding.DER)) for one in found)

    def pem(self) -> bytes:
        return self.x509.public_bytes(serialization.Encoding.PEM)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.label} {self.fingerprint[:16]}>"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the octets, 64 lower-case hex digits."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def subject_cn(self) -> str:
        """The subject's common name as it is written; empty when there is none, several, or none that can be read.

        Several are refused because readers disagree on which of them counts, and this one is an identity.
        """
        values = self._subject_values(_CN, NameOID.COMMON_NAME)
        return values[0] if len(values) == 1 else ""

    @cached_property
    def label(self) -> str:
        """How an error message names this certificate: the quoted common name, short and printable."""
        name = "".join(c if c.isprintable() else "?" for c in self.subject_cn[:64])
        return f'"{name}"' if name else f"without a common name (SHA-256 {self.fingerprint[:16]}…)"

    @cached_property
    def dn(self) -> str:
        """The subject as `CN=…, DC=…, O=…, OU=…, C=…`, absent parts left out, escaped as in RFC 4514."""
        subject = _subject(self.x509)
        parts = [
            f"{short}={_escape(str(attribute.value))}"
            for short, oid in _DN_ORDER
            for attribute in (subject.get_attributes_for_oid(oid) if subject else ())
        ]
        return ", ".join(parts)

    @cached_property
    def not_before(self) -> datetime:
        return self.x509.not_valid_before_utc

    @cached_property
    def not_after(self) -> datetime:
        return self.x509.not_valid_after_utc

    @property
    def serial_number(self) -> int:
        return self._structure.tbs.serial_number

    @cached_property
    def subject_name(self) -> bytes:
        return bytes(self._structure.tbs.subject.data)

    @cached_property
    def issuer_name(self) -> bytes:
        return bytes(self._structure.tbs.issuer.data)

    @cached_property
    def public_key_algorithm(self) -> bytes:
        """The AlgorithmIdentifier of the key, as it is encoded: it tells a named curve from explicit parameters."""
        content = bytes(self._structure.tbs.subject_public_key_info.data)
        return content[: 2 + content[1]]  # Those that are allowed are all short.

    @cached_property
    def public_key(self) -> CertificatePublicKeyTypes:
        """Raises ChainError when the key is malformed or of a kind nobody here can use."""
        try:
            return self.x509.public_key()
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ChainError(f"The public key of certificate {self.label} cannot be read.") from exc

    @cached_property
    def extensions(self) -> x509.Extensions:
        """Read with the one tolerance of this module; a signature is always checked over the octets received.

        Raises ChainError when they cannot be read or one occurs twice.
        """
        try:
            try:
                return self.x509.extensions
            except ValueError:
                tolerant = self._without_explicit_false()
                if tolerant is None:
                    raise
                return tolerant.extensions
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
            raise ChainError(f"The extensions of certificate {self.label} cannot be read.") from exc

    def extension(self, kind: type[_E]) -> _E | None:
        """One extension's value, or None when it is absent. Raises ChainError."""
        value = self._extension_values.get(kind.oid)
        return value if isinstance(value, kind) else None

    @cached_property
    def _extension_values(self) -> dict[x509.ObjectIdentifier, x509.ExtensionType]:
        return {one.oid: one.value for one in self.extensions}

    @property
    def key_identifier(self) -> bytes | None:
        """SubjectKeyIdentifier, opaque: in this ecosystem it is rarely a hash of the key. Raises ChainError."""
        value = self.extension(x509.SubjectKeyIdentifier)
        return value.digest if value else None

    @property
    def authority_key_identifier(self) -> bytes | None:
        """The keyIdentifier of AuthorityKeyIdentifier, opaque. Raises ChainError."""
        value = self.extension(x509.AuthorityKeyIdentifier)
        return value.key_identifier if value else None

    def check_signature(self, issuer: Certificate) -> None:
        """Check that `issuer` signed this certificate: its name and its signature, nothing else.

        The steps of cryptography's verify_directly_issued_by, but the issuer's key is not read anew each time, which
        costs almost as much as the check. Raises ChainError.
        Source: RFC 5280 clauses 4.1.1.2 and 6.1.3.
        """
        key, signature = issuer.public_key, self.x509.signature
        algorithm, repeated = self._structure.algorithm, self._structure.tbs.signature
        try:
            if self.issuer_name != issuer.subject_name or bytes(algorithm.data) != bytes(repeated.data):
                raise ValueError("issuer name or signature algorithm differ")
            if isinstance(key, EllipticCurvePublicKey):
                hash_algorithm = self.x509.signature_hash_algorithm
                if hash_algorithm is None or self.x509.signature_algorithm_oid not in _ECDSA:
                    raise ValueError("not an ECDSA signature")
                key.verify(signature, self._signed_octets(), ECDSA(hash_algorithm))
            elif isinstance(key, Ed448PublicKey) and self.x509.signature_algorithm_oid == SignatureAlgorithmOID.ED448:
                key.verify(signature, self._signed_octets())
            else:
                raise ValueError("key and signature algorithm differ")
        except (InvalidSignature, ValueError, UnsupportedAlgorithm) as exc:
            raise ChainError(f"Certificate {self.label} was not signed by {issuer.label}.") from exc

    @cached_property
    def self_signature_failure(self) -> str | None:
        """What is wrong with a root's signature over itself. Both ends are these octets, so the answer is kept."""
        try:
            self.check_signature(self)
        except ChainError as exc:
            return str(exc)
        return None

    def _signed_octets(self) -> bytes:
        """The TBSCertificate exactly as it was received."""
        start = _content(self.der, 0)[0]
        return self.der[start : _content(self.der, start)[1]]

    def domain_components(self) -> frozenset[str]:
        """The subject's DC values in upper case, such as {"CPS"}."""
        return frozenset(value.upper() for value in self._subject_values(_DC, NameOID.DOMAIN_COMPONENT))

    def _subject_values(self, encoded: bytes, oid: x509.ObjectIdentifier) -> list[str]:
        """The values of one attribute type of the subject; encoded: `oid` as DER."""
        values = _values(self.subject_name, encoded)
        if values is None:
            subject = _subject(self.x509)
            return [str(one.value) for one in subject.get_attributes_for_oid(oid)] if subject else []
        return values

    def _without_explicit_false(self) -> x509.Certificate | None:
        """A throw-away copy for reading extensions, or None if the known defect is not what is wrong."""
        copy = asn1.decode_der(_SignedCertificate, self.der)
        basic = [one for one in copy.tbs.extensions or () if one.oid == ExtensionOID.BASIC_CONSTRAINTS]
        if len(basic) != 1 or basic[0].value != _EXPLICIT_FALSE:
            return None
        basic[0].value = _EMPTY_SEQUENCE
        return x509.load_der_x509_certificate(asn1.encode_der(copy))


def _subject(certificate: x509.Certificate) -> x509.Name | None:
    try:
        return certificate.subject
    except ValueError:  # an attribute that is not in its own character set
        return None


def _content(octets: bytes, at: int) -> tuple[int, int]:
    """Start and end of the content of the DER element at `at`. Only for octets that a real parser has accepted."""
    length, start = octets[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(octets[start : start + count], "big"), start + count
    return start, start + length


def _values(name: bytes, oid: bytes) -> list[str] | None:
    """The values of one attribute type, or None if the name is unusual and cryptography has to read it.

    name: the content of a Name that cryptography's parser has accepted as a sequence of sets of attributes.
    Building its name object costs more than the rest of reading a leaf. This walk over the usual case is cheap: one
    short attribute in each set, and the wanted ones in UTF-8 or ASCII.
    """
    found = []
    at = 0
    while at < len(name):
        length = name[at + 1]
        if not 7 <= length <= 0x7F or name[at + 3] != length - 2:
            return None
        if name.startswith(oid, at + 4):
            value_at = at + 4 + len(oid)
            value = name[value_at + 2 : at + 2 + length]
            charset = _CHARSETS.get(name[value_at])
            if charset is None or name[value_at + 1] != len(value):
                return None
            try:
                found.append(value.decode(charset))
            except UnicodeDecodeError:
                return None
        at += 2 + length
    return found


# --- Distinguished names as text ---

_DN_ORDER: Final = (
    ("CN", NameOID.COMMON_NAME),
    ("DC", NameOID.DOMAIN_COMPONENT),
    ("O", NameOID.ORGANIZATION_NAME),
    ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME),
    ("C", NameOID.COUNTRY_NAME),
)
_TYPE_OF_OID: Final = {
    **{oid.dotted_string: short for short, oid in _DN_ORDER},
    NameOID.STATE_OR_PROVINCE_NAME.dotted_string: "ST",
    NameOID.LOCALITY_NAME.dotted_string: "L",
    NameOID.EMAIL_ADDRESS.dotted_string: "EMAIL",
    NameOID.SERIAL_NUMBER.dotted_string: "SERIALNUMBER",
}
_LONG_NAMES: Final = (
    "COMMONNAME=CN DOMAINCOMPONENT=DC ORGANIZATION=O ORGANIZATIONNAME=O ORGANIZATIONALUNIT=OU COUNTRY=C COUNTRYNAME=C "
    "ORGANIZATIONALUNITNAME=OU STATEORPROVINCENAME=ST S=ST SP=ST LOCALITYNAME=L E=EMAIL EMAILADDRESS=EMAIL"
)
_TYPE_OF_NAME: Final = {
    **_TYPE_OF_OID,
    **{short: short for short in _TYPE_OF_OID.values()},
    **dict(pair.split("=") for pair in _LONG_NAMES.split()),
}
# An attribute type and its "=", at the start or behind a separator that is not escaped. Splitting here and not at the
# separators keeps a value whole that contains one ("O=Example, Inc.").
_ASSIGNMENT: Final = re.compile(
    r"(?:^|(?<!\\)[,;+/])\s*(?:OID\.)?([A-Z][A-Z0-9]*|[0-9]+(?:\.[0-9]+)+)\s*=", re.IGNORECASE | re.ASCII
)
_REPR: Final = re.compile(r"\s*<Name\((.*)\)>\s*", re.DOTALL)
_LONGEST_DN: Final = 1024  # The reader of root lists takes no longer name; a regular expression should not either.


def parse_dn(text: str) -> frozenset[tuple[str, str]]:
    """The attributes of a name that somebody wrote as text, for matching only: never a proof of anything.

    Takes what cars are known to send: RFC 4514 in any order with or without blanks, the one-line forms of OpenSSL and a
    Python repr. Types come back in their usual capitals, values with escapes removed and blanks collapsed. Types that
    are not known are left out. Never raises; what is not recognised gives the empty set.
    """
    text = text[:_LONGEST_DN]
    if inside := _REPR.fullmatch(text):
        text = inside[1]
    found = list(_ASSIGNMENT.finditer(text))
    pairs = set()
    ends = [*(following.start() for following in found[1:]), len(text)]
    for assignment, end in zip(found, ends, strict=False):
        kind = _TYPE_OF_NAME.get(assignment[1].upper())
        value = _unescape(text[assignment.end() : end].strip())
        if kind and value:
            pairs.add((kind, value))
    return frozenset(pairs)


def names_match(text: str, name: x509.Name) -> bool:
    """Whether free text such as a car's X509IssuerName can mean this name: a help to find it, never a proof.

    Every attribute that was recognised in the text must be in the name, a common name among them if the name has one.
    Case and blanks do not count (RFC 5280 clause 7.1).
    """
    sent = _folded(parse_dn(text))
    known = _folded(
        (_TYPE_OF_OID[attribute.oid.dotted_string], " ".join(str(attribute.value).split()))
        for attribute in name
        if attribute.oid.dotted_string in _TYPE_OF_OID
    )
    needed = {pair for pair in known if pair[0] == "CN"}
    return bool(sent) and needed <= sent <= known


def _folded(pairs: Iterable[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    return frozenset((kind, value.casefold()) for kind, value in pairs)


def _escape(value: str) -> str:
    return re.sub(r'([,+"\\<>;])', r"\\\1", value)


def _unescape(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    octets = re.compile(r"(?:\\[0-9A-Fa-f]{2})+")
    value = octets.sub(lambda run: bytes.fromhex(run[0].replace("\\", "")).decode("utf-8", "replace"), value)
    return " ".join(re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL).split())
