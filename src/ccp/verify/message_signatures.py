"""XML signatures over EXI: verification of messages, and creation for the test kit.

A digest covers an element fragment. The fragment is cut out of the received bits and never re-encoded, so a sender with
another valid encoding verifies. Two deviations of senders in the field are accepted: SignedInfo under the combined
grammar of the message instead of the stand-alone one, and the typed form of the ISO-2 eMAID instead of the relaxed one.
Both change only which bytes are hashed, not what is covered.
Source: ISO 15118-2 clause 7.9.2.4.2; ISO 15118-20 [V2G20-2473] to [V2G20-2476]; W3C XML Signature, core validation.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from ccp import exi
from ccp.errors import EXIError, SignatureError
from ccp.exi import iso2, xmldsig
from ccp.x509.parse_errors import parse_errors_as

SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey

_CANONICAL_EXI: Final = "http://www.w3.org/TR/canonical-exi/"
_ECDSA_SHA256: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256"
_ECDSA_SHA512: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512"
_ED448: Final = "urn:iso:std:iso:15118:-20:Security:xmldsig#Ed448"
_SHA256: Final = "http://www.w3.org/2001/04/xmlenc#sha256"
_SHA512: Final = "http://www.w3.org/2001/04/xmlenc#sha512"
_SHAKE256: Final = "urn:iso:std:iso:15118:-20:Security:xmlenc#SHAKE256"

_DIGESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    _SHA256: lambda data: hashlib.sha256(data).digest(),
    _SHA512: lambda data: hashlib.sha512(data).digest(),
    # The standard does not specify the output length; 64 bytes match the strength of Ed448.
    _SHAKE256: lambda data: hashlib.shake_256(data).digest(64),
}
# By signature method: curve name, algorithm, and length of r and of s in bytes.
_ECDSA: Final[dict[str, tuple[str, ec.ECDSA, int]]] = {
    _ECDSA_SHA256: ("secp256r1", ec.ECDSA(hashes.SHA256()), 32),
    _ECDSA_SHA512: ("secp521r1", ec.ECDSA(hashes.SHA512()), 66),
}
# By edition: signature and digest methods. -20 adds two suites; some of its senders still use the first.
_ALLOWED: Final = {
    exi.ISO2: ({_ECDSA_SHA256}, {_SHA256}),
    exi.ISO20: ({_ECDSA_SHA256, _ECDSA_SHA512, _ED448}, {_SHA256, _SHA512, _SHAKE256}),
}


@dataclass(frozen=True, slots=True)
class CoveredElement:
    """A signed element whose digest matches. digest: URI of the algorithm."""

    id: str
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class SignatureEvidence:
    """What was verified. method: URI. grammar: of SignedInfo. elements: every element that the signature covers."""

    method: str
    grammar: str
    elements: tuple[CoveredElement, ...]


def signature_of(message: exi.Message) -> xmldsig.Signature | None:
    """The signature in the header of a message."""
    return message.Header.Signature


def verify_signature(
    parsed: exi.ParsedMessage, key: CertificatePublicKeyTypes, mandatory: Collection[str]
) -> SignatureEvidence:
    """Verify the signature of a message: the digest of every reference, then SignatureValue.

    mandatory: names of the elements that must be covered, each of which occurs once in the message.
    Raises SignatureError, with a sentence for every reference that fails.
    """
    signature = signature_of(parsed.message)
    if signature is None:
        raise SignatureError("The message is not signed.")
    methods, digests = _ALLOWED[exi.namespace_of(parsed.message)]
    covered = _verify_references(parsed, signature.SignedInfo, digests)
    missing = [name for name in mandatory if all(part.name != name for part in covered)]
    if missing:
        raise SignatureError(*(f"The signature does not cover {name}." for name in missing))
    method = signature.SignedInfo.SignatureMethod.Algorithm
    if method not in methods:
        raise SignatureError(f"The signature method {_quoted(method)} is not allowed here.")
    value = signature.SignatureValue.value
    try:
        verify_signature_value(value, exi.signed_info_fragment(parsed, "xmldsig"), method, key)
    except SignatureError:
        verify_signature_value(value, exi.signed_info_fragment(parsed, "combined"), method, key)
        return SignatureEvidence(method, "combined", covered)
    return SignatureEvidence(method, "xmldsig", covered)


def _verify_references(
    parsed: exi.ParsedMessage, signed_info: xmldsig.SignedInfo, allowed: Collection[str]
) -> tuple[CoveredElement, ...]:
    """The elements whose digests match. Raises SignatureError naming all that do not."""
    canonical = [signed_info.CanonicalizationMethod.Algorithm]
    canonical += [t.Algorithm for reference in signed_info.Reference for t in reference.Transforms or ()]
    for algorithm in canonical:
        if algorithm.rstrip("/") != _CANONICAL_EXI.rstrip("/"):
            raise SignatureError(f"The canonicalisation {_quoted(algorithm)} is not canonical EXI.")
    parts: dict[str, list[exi.SignedElement]] = {}
    for part in parsed.elements:
        parts.setdefault(part.id, []).append(part)
    covered, failures = [], []
    for reference in signed_info.Reference:
        uri = reference.URI or ""
        named = parts.get(uri[1:], []) if uri.startswith("#") else []
        digest = reference.DigestMethod.Algorithm
        if len(named) != 1:
            count = "more than one part" if named else "no part"
            failures.append(f"The reference {_quoted(uri)} names {count} of the message.")
        elif digest not in allowed:
            failures.append(f"The digest method {_quoted(digest)} of {named[0].name} is not allowed here.")
        elif not any(
            hmac.compare_digest(_DIGESTS[digest](data), reference.DigestValue)
            for data in _digest_inputs(parsed, named[0])
        ):
            failures.append(f"The digest of {named[0].name} does not match.")
        else:
            covered.append(CoveredElement(named[0].id, named[0].name, digest))
    if failures:
        raise SignatureError(*dict.fromkeys(failures))
    return tuple(covered)


def _digest_inputs(parsed: exi.ParsedMessage, part: exi.SignedElement) -> Iterable[bytes]:
    """The encodings that a sender may have hashed for an element, the standard one first."""
    if part.name == "eMAID":
        message = parsed.message
        assert isinstance(message, iso2.V2G_Message), "only ISO-2 has this element"
        assert isinstance(message.Body, iso2.CertificateInstallationRes), "only the response has it"
        yield exi.emaid_fragment(message.Body.eMAID, "relaxed")
    try:
        yield exi.fragment(parsed, part)
    except EXIError as exc:  # In ISO-2 the chain of the provisioning service may have an Id, but is never signed.
        raise SignatureError(f"The reference to {part.name} names a part that is not for signing.") from exc


def verify_signature_value(value: bytes, signed_info: bytes, method: str, key: CertificatePublicKeyTypes) -> None:
    """Verify one signature value.

    value: raw r‖s, big endian, exactly 64 bytes (P-256) or 132 (P-521), not DER; for Ed448 its 114 bytes.
    signed_info: EXI fragment of SignedInfo. method: URI of the algorithm, which must fit the key.
    Raises SignatureError.
    """
    with parse_errors_as(lambda: SignatureError("The signature value does not match the certificate's key.")):
        if method in _ECDSA:
            curve, algorithm, half = _ECDSA[method]
            if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve:
                raise SignatureError("The certificate's key does not fit the signature method.")
            if len(value) != 2 * half:
                raise SignatureError(f"The signature value has {len(value)} bytes where {2 * half} are expected.")
            r, s = int.from_bytes(value[:half], "big"), int.from_bytes(value[half:], "big")
            key.verify(encode_dss_signature(r, s), signed_info, algorithm)
        elif method == _ED448:
            if not isinstance(key, ed448.Ed448PublicKey):
                raise SignatureError("The certificate's key does not fit the signature method.")
            key.verify(value, signed_info)
        else:
            raise SignatureError(f"The signature method {_quoted(method)} is unknown.")


def create_signature(references: Iterable[tuple[str, bytes]], key: SigningKey) -> xmldsig.Signature:
    """Sign elements of a message.

    references: Id and fragment (`exi.encode_fragment`) of each element. The key decides the algorithms: P-256 with
    SHA-256, P-521 with SHA-512, Ed448 with SHAKE256. Raises SignatureError for another key.
    """
    method, digest = _suite_of(key)
    signed_info = xmldsig.SignedInfo(
        None,
        xmldsig.CanonicalizationMethod(_CANONICAL_EXI),
        xmldsig.SignatureMethod(method),
        tuple(
            xmldsig.Reference(
                None,
                None,
                f"#{identifier}",
                (xmldsig.Transform(_CANONICAL_EXI),),
                xmldsig.DigestMethod(digest),
                _DIGESTS[digest](fragment),
            )
            for identifier, fragment in references
        ),
    )
    data = exi.encode_signed_info(signed_info)
    if isinstance(key, ed448.Ed448PrivateKey):
        value = key.sign(data)
    else:
        _, algorithm, half = _ECDSA[method]
        r, s = decode_dss_signature(key.sign(data, algorithm))
        value = r.to_bytes(half, "big") + s.to_bytes(half, "big")
    return xmldsig.Signature(None, signed_info, xmldsig.SignatureValue(None, value))


def _suite_of(key: SigningKey) -> tuple[str, str]:
    if isinstance(key, ed448.Ed448PrivateKey):
        return _ED448, _SHAKE256
    if isinstance(key, ec.EllipticCurvePrivateKey):
        suites = {"secp256r1": (_ECDSA_SHA256, _SHA256), "secp521r1": (_ECDSA_SHA512, _SHA512)}
        if key.curve.name in suites:
            return suites[key.curve.name]
        raise SignatureError(f"Keys on the curve {key.curve.name} do not sign messages.")
    assert_never(key)


def _quoted(text: str) -> str:
    """Text of a sender in an error sentence: quoted, printable and short."""
    return ascii(text if len(text) <= 100 else text[:100] + "…")
