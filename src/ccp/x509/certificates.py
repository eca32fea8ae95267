"""X.509 certificates of the ISO 15118 ecosystem: parsed once, with lazily computed and cached properties.

`cryptography` does the parsing. This module adds what it does not offer: a tolerance for leaves that are not valid DER
but common in the field (`certificate_extensions`), names and algorithms without building complete objects, and the URLs
of the revocation status.

A vehicle waits while three certificates are read, so some fields are cut out of the DER encoding directly. This happens
only after cryptography's parser has accepted the certificate.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from ccp.errors import ChainError
from ccp.x509 import der as encoding
from ccp.x509.authority_key_id import read_authority_key_id
from ccp.x509.cached_property import cached_property
from ccp.x509.canonical_names import canonical_name
from ccp.x509.certificate_extensions import ExtensionValues, StatusURLs, read_status_urls, without_explicit_false
from ccp.x509.der import child_bounds, content_bounds
from ccp.x509.names import format_dn, names_match
from ccp.x509.parse_errors import is_parse_error, parse_errors_as
from ccp.x509.subjects import simple_subject_values

_ECDSA: Final = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: ECDSA(hashes.SHA256()),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: ECDSA(hashes.SHA512()),
}
_EXPLICIT_0: Final = 0xA0  # Tag of the version, which is absent in version 1.
_EXPLICIT_3: Final = 0xA3  # Tag of the extensions, which come last.
_KEY_IDENTIFIER: Final = bytes.fromhex(
    "0603551d0e04"
)  # SubjectKeyIdentifier, not critical, and the tag of its OCTET STRING.
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----")
_E = TypeVar("_E", bound=x509.ExtensionType)
_T = TypeVar("_T")


# By encoding without the subject key identifier.
_KNOWN_EXTENSIONS: Final[dict[bytes, ExtensionValues]] = {}
_MAX_KNOWN: Final = 512
_MAX_KNOWN_BYTES: Final = 512  # The field's profiles have 100 to 350. In memory they take up to 50 times as many.


class Certificate:
    """An immutable X.509 certificate, created by `load`. Two are equal if their encodings are.

    Properties are computed on first use and kept; `public_key` and `extensions` may then raise ChainError.
    issuer_name, subject_name: DER contents as received; compare `canonical_issuer` and `canonical_subject` instead.
    public_key_algorithm: the key's AlgorithmIdentifier as encoded, which distinguishes a named curve from explicit
    parameters.
    """

    def __init__(self, parsed: x509.Certificate, der: bytes) -> None:
        """For `load` only. der: what `parsed` was read from."""
        self.der: Final = der
        self.x509: Final = parsed
        signed, algorithm, signature = child_bounds(der, *content_bounds(der, 0))
        parts = child_bounds(der, signed[1], signed[2])
        if der[signed[1]] == _EXPLICIT_0:
            del parts[0]
        serial, repeated, issuer, _, subject, key = parts[:6]
        self._tbs_bytes: Final = der[signed[0] : signed[2]]  # As received.
        self._algorithms_agree: Final = der[algorithm[1] : algorithm[2]] == der[repeated[1] : repeated[2]]
        self.not_before: Final[datetime] = parsed.not_valid_before_utc
        self.not_after: Final[datetime] = parsed.not_valid_after_utc
        self.serial_number: Final = int.from_bytes(der[serial[1] : serial[2]], "big", signed=True)
        self.issuer_name: Final = der[issuer[1] : issuer[2]]
        self.subject_name: Final = der[subject[1] : subject[2]]
        bits = content_bounds(der, key[1])[1]
        self.public_key_algorithm: Final = der[key[1] : bits]
        # The first byte of a BIT STRING is the number of unused bits at its end. See `load`.
        unused = bits + 2 + (der[bits + 1] & 0x7F if der[bits + 1] & 0x80 else 0)
        self._unused_bits: Final = der[signature[1]] or der[unused]
        self._extensions_at: Final = parts[-1] if der[parts[-1][0]] == _EXPLICIT_3 else None

    @classmethod
    def load(cls, der: bytes) -> Certificate:
        """Read one certificate in DER, without trailing bytes.

        Signature and public key must be whole bytes: a BIT STRING with unused bits is a second encoding of the same
        certificate, which OpenSSL refuses. Raises ChainError.
        """
        with parse_errors_as(
            lambda: ChainError(f"These {len(der)} bytes are {encoding.explain_rejection(der, 'an X.509 certificate')}.")
        ):
            found = cls(x509.load_der_x509_certificate(der), der)
        if found._unused_bits:
            raise ChainError(f"The signature or public key of certificate {found.display_name} claims unused bits.")
        return found

    @classmethod
    def load_pem(cls, pem: bytes) -> tuple[Certificate, ...]:
        """Read all certificates of a PEM file, in its order. Raises ChainError, also if it contains none."""
        with parse_errors_as(lambda: cls._why_no_pem(pem)):
            # cryptography keeps the received encoding, so this does not re-encode.
            encoded = [found.public_bytes(serialization.Encoding.DER) for found in x509.load_pem_x509_certificates(pem)]
        return tuple(map(cls.load, encoded))

    @classmethod
    def _why_no_pem(cls, pem: bytes) -> ChainError:
        """The error of the first certificate that is refused, as far as it can be determined."""
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
        """The certificate in PEM."""
        return self.x509.public_bytes(serialization.Encoding.PEM)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, Certificate) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.display_name} {self.fingerprint[:16]}>"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the DER encoding: 64 lower-case hexadecimal digits."""
        return hashlib.sha256(self.der).hexdigest()

    @cached_property
    def subject_cn(self) -> str:
        """The subject's common name as encoded; empty if there is none, several, or none that can be read.

        Several are refused because implementations disagree on which one counts, and this name is an identity.
        """
        values = self._subject_values[0]
        return values[0] if len(values) == 1 else ""

    @cached_property
    def display_name(self) -> str:
        """The certificate's name in error messages: its common name, quoted, shortened and printable."""
        name = "".join(c if c.isprintable() else "?" for c in self.subject_cn[:64])
        return f'"{name}"' if name else f"without a common name (SHA-256 {self.fingerprint[:16]}…)"

    @cached_property
    def subject_dn(self) -> str:
        """The subject as `CN=…, DC=…, O=…, OU=…, C=…` without absent parts, escaped as in RFC 4514."""
        subject = _subject(self.x509)
        return format_dn(subject) if subject else ""

    @cached_property
    def issuer_dn(self) -> str:
        """The issuer in RFC 4514 form, for display. Raises ChainError if it cannot be read."""
        with parse_errors_as(lambda: ChainError(f"The issuer of certificate {self.display_name} cannot be read.")):
            return self.x509.issuer.rfc4514_string()

    def subject_matches(self, text: str) -> bool:
        """Whether a text can mean the subject; see `ccp.x509.names.names_match`. False if the subject cannot be
        read."""
        subject = _subject(self.x509)
        return subject is not None and names_match(text, subject)

    @cached_property
    def public_key(self) -> CertificatePublicKeyTypes:
        """The public key. Raises ChainError if it is malformed or not supported by cryptography."""
        with parse_errors_as(lambda: ChainError(f"The public key of certificate {self.display_name} cannot be read.")):
            return self.x509.public_key()

    @cached_property
    def extensions(self) -> x509.Extensions:
        """The extensions, read with the tolerance described in `certificate_extensions`.

        Signatures are always verified over the received bytes. Raises ChainError if an extension cannot be read or
        occurs twice.
        """
        with parse_errors_as(self._unreadable_extensions):
            try:
                return self.x509.extensions
            except ValueError:
                tolerant = without_explicit_false(self.der)
                if tolerant is None:
                    raise
                return tolerant.extensions

    def _unreadable_extensions(self) -> ChainError:
        return ChainError(f"The extensions of certificate {self.display_name} cannot be read.")

    @property
    def listed_extensions(self) -> tuple[tuple[x509.ObjectIdentifier, bool], ...]:
        """OID and critical flag of all extensions. Raises ChainError."""
        return self._extensions.listed

    def extension(self, kind: type[_E]) -> _E | None:
        """The value of an extension, None if absent. For SubjectKeyIdentifier use `key_identifier`. Raises
        ChainError."""
        value = self._extensions.values.get(kind)
        return value if type(value) is kind else None

    @property
    def status_urls(self) -> StatusURLs:
        """OCSP and CRL URLs. Raises ChainError if the extensions cannot be read (never for a verified chain)."""
        return self._extensions.status_urls

    @property
    def key_identifier(self) -> bytes | None:
        """SubjectKeyIdentifier. Opaque: in this ecosystem it is rarely a hash of the key. Raises ChainError."""
        identifier = self._split_extensions[1]
        if identifier is not None:
            return identifier
        value = self.extension(x509.SubjectKeyIdentifier)
        return value.digest if value else None

    @property
    def authority_key_identifier(self) -> bytes | None:
        """keyIdentifier of the AuthorityKeyIdentifier. Opaque. Raises ChainError."""
        authority = self._extensions.authority
        return authority.key_identifier if authority else None

    def authority_mismatch(self, issuer: Certificate) -> str | None:
        """The part of the AuthorityKeyIdentifier that does not match an issuer certificate, as a noun; None if all do.

        Key identifiers are compared if both certificates have one. Issuer and serial number, if present, identify one
        certificate of the issuer. Raises ChainError. Source: RFC 5280 clause 4.2.1.1; OpenSSL checks the same.
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
        """The issuer's name in canonical form, for comparison. Raises ChainError if it cannot be read."""
        return self._canonical(self.issuer_name, "issuer")

    @cached_property
    def canonical_subject(self) -> bytes:
        """The subject's name in canonical form, for comparison. Raises ChainError if it cannot be read."""
        return self._canonical(self.subject_name, "subject")

    @property
    def is_self_issued(self) -> bool:
        """Whether issuer and subject are the same name. Raises ChainError if one cannot be read."""
        return self.issuer_name == self.subject_name or self.canonical_issuer == self.canonical_subject

    def _canonical(self, name: bytes, which: str) -> bytes:
        try:
            return canonical_name(name)
        except encoding.DERError as exc:
            raise ChainError(f"The {which} of certificate {self.display_name} cannot be read.") from exc

    @cached_property
    def _extensions(self) -> ExtensionValues:
        encoded, identifier = self._split_extensions
        known = _KNOWN_EXTENSIONS.get(encoded)
        if known is None:
            extensions = self.extensions
            with parse_errors_as(self._unreadable_extensions):
                values = {type(entry.value): entry.value for entry in extensions}
                status_urls = read_status_urls(values)
                listed = tuple((entry.oid, entry.critical) for entry in extensions)
            with parse_errors_as(
                lambda: ChainError(f"The authority key identifier of certificate {self.display_name} cannot be read.")
            ):
                key = values.get(x509.AuthorityKeyIdentifier)
                authority = read_authority_key_id(key) if isinstance(key, x509.AuthorityKeyIdentifier) else None
            if identifier is not None:
                del values[x509.SubjectKeyIdentifier]
            known = ExtensionValues(values, listed, status_urls, authority)
            if len(encoded) <= _MAX_KNOWN_BYTES:
                if len(_KNOWN_EXTENSIONS) >= _MAX_KNOWN:
                    _KNOWN_EXTENSIONS.clear()
                _KNOWN_EXTENSIONS[encoded] = known
        return known

    @cached_property
    def _split_extensions(self) -> tuple[bytes, bytes | None]:
        """The encoding of all extensions without the value of the subject key identifier, and that value.

        The value is cut out only if it has its usual form (not critical, short), else it is None. The remaining bytes
        determine position and length of what was cut out, so two certificates that agree in them have the same
        extensions except for that value.
        """
        if self._extensions_at is None:
            return b"", None
        der = self.der
        first, content, last = self._extensions_at
        for _, start, end in child_bounds(der, *content_bounds(der, content)):
            if der.startswith(_KEY_IDENTIFIER, start):
                at, length = start + 9, end - start - 9
                if 0 < length < 126 and der[at - 3 : at] == bytes((length + 2, 4, length)):
                    return der[first:at] + der[end:last], der[at:end]
                break
        return der[first:last], None

    @cached_property
    def issuer_key_id(self) -> str:
        """Identifies an issuer by name and key, so a reissued certificate for the same key has the same id.

        SHA-256 (hexadecimal) over the subject's name (DER contents) and the SubjectPublicKeyInfo (DER). Stored rows use
        it. Raises ChainError.
        """
        return hashlib.sha256(self.subject_name + self._public_key_info()).hexdigest()

    @cached_property
    def canonical_issuer_key_id(self) -> str:
        """Like `issuer_key_id`, but independent of string types and letter case in the name.

        SHA-256 (hexadecimal) over the canonical subject and the SubjectPublicKeyInfo (DER). Settings are matched by it.
        Raises ChainError.
        """
        return hashlib.sha256(self.canonical_subject + self._public_key_info()).hexdigest()

    def _public_key_info(self) -> bytes:
        public, info = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        with parse_errors_as(lambda: ChainError(f"The public key of certificate {self.display_name} cannot be read.")):
            return self.public_key.public_bytes(public, info)

    def verify_issued_by(self, issuer: Certificate) -> None:
        """Verify that `issuer` issued this certificate: its name and its signature, nothing else.

        The same checks as cryptography's verify_directly_issued_by, but with the cached key of the issuer; reading the
        key again costs almost as much as the verification. Raises ChainError.
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
                key.verify(signature, self._tbs_bytes, _ECDSA[algorithm])
            elif isinstance(key, Ed448PublicKey) and algorithm == SignatureAlgorithmOID.ED448:
                key.verify(signature, self._tbs_bytes)
            else:
                raise ValueError("key and signature algorithm differ")

    @cached_property
    def self_signature_error(self) -> str | None:
        """What is wrong with the self-signature of a root; None if it is valid."""
        try:
            self.verify_issued_by(self)
        except ChainError as exc:
            return str(exc)
        return None

    def domain_components(self) -> frozenset[str]:
        """The domain components (DC) of the subject in upper case, such as {"CPS"}."""
        return frozenset(value.upper() for value in self._subject_values[1])

    def validate_subject(self) -> None:
        """Check that the subject can be compared and its values can be read. Raises ChainError."""
        if self._simple_subject is None and (not self.canonical_subject or _subject(self.x509) is None):
            raise ChainError(f"The subject of certificate {self.display_name} cannot be read.")

    @cached_property
    def _simple_subject(self) -> tuple[list[str], list[str]] | None:
        return simple_subject_values(self.subject_name)

    @cached_property
    def _subject_values(self) -> tuple[list[str], list[str]]:
        """The values of CN and of DC of the subject."""
        if self._simple_subject is not None:
            return self._simple_subject
        subject = _subject(self.x509)
        if subject is None:
            return [], []
        common, domain = (
            [str(attribute.value) for attribute in subject.get_attributes_for_oid(oid)]
            for oid in (NameOID.COMMON_NAME, NameOID.DOMAIN_COMPONENT)
        )
        return common, domain


def _subject(certificate: x509.Certificate) -> x509.Name | None:
    try:
        return certificate.subject
    except BaseException as exc:  # Invalid for its string type, or of a type such as BIT STRING.
        if not is_parse_error(exc):
            raise
        return None
