"""XML signatures over EXI: checking what was received, and making what a simulator sends.

A digest covers an element fragment; the fragment is cut out of the received bits, never encoded anew, so a sender that
writes EXI in another way than ours is judged by what it sent. Two senders' habits are known and accepted, each because
partners in the field use it: SignedInfo under the message's combined grammar instead of the stand-alone one, and the
typed form of the ISO-2 eMAID instead of the relaxed one. Both only change which octets are hashed, not what is covered.
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
    _SHA256: lambda octets: hashlib.sha256(octets).digest(),
    _SHA512: lambda octets: hashlib.sha512(octets).digest(),
    # The standard leaves the length of the output open; 64 octets match the strength of Ed448.
    _SHAKE256: lambda octets: hashlib.shake_256(octets).digest(64),
}
# Curve name, algorithm, and octets of one half of the signature, by signature method.
_ECDSA: Final[dict[str, tuple[str, ec.ECDSA, int]]] = {
    _ECDSA_SHA256: ("secp256r1", ec.ECDSA(hashes.SHA256()), 32),
    _ECDSA_SHA512: ("secp521r1", ec.ECDSA(hashes.SHA512()), 66),
}
# ISO 15118-2 knows one suite; -20 adds two, and some of its senders still use the first.
_ALLOWED: Final = {
    exi.ISO2: ({_ECDSA_SHA256}, {_SHA256}),
    exi.ISO20: ({_ECDSA_SHA256, _ECDSA_SHA512, _ED448}, {_SHA256, _SHA512, _SHAKE256}),
}


@dataclass(frozen=True, slots=True)
class CoveredElement:
    """A part whose digest holds. digest: the algorithm's URI."""

    id: str
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class SignatureEvidence:
    """What was checked: the signature method's URI, the grammar of SignedInfo, and every part that is covered."""

    method: str
    grammar: str
    elements: tuple[CoveredElement, ...]


def signature_of(message: exi.Message) -> xmldsig.Signature | None:
    return message.Header.Signature


def verify_signature(
    parsed: exi.ParsedMessage, key: CertificatePublicKeyTypes, mandatory: Collection[str]
) -> SignatureEvidence:
    """Check a message's signature: every reference's digest, then SignatureValue.

    mandatory: names of the elements that have to be covered, each of which is in the message once.
    Raises SignatureError, with a sentence for every reference that does not hold.
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
    """The parts whose digests hold. Raises SignatureError naming all that do not."""
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
            hmac.compare_digest(_DIGESTS[digest](octets), reference.DigestValue)
            for octets in _digest_inputs(parsed, named[0])
        ):
            failures.append(f"The digest of {named[0].name} does not match.")
        else:
            covered.append(CoveredElement(named[0].id, named[0].name, digest))
    if failures:
        raise SignatureError(*dict.fromkeys(failures))
    return tuple(covered)


def _digest_inputs(parsed: exi.ParsedMessage, part: exi.SignedElement) -> Iterable[bytes]:
    """The octets that a sender may have hashed for a part, the standard's own first."""
    if part.name == "eMAID":
        message = parsed.message
        assert isinstance(message, iso2.V2G_Message), "only ISO-2 has this element"
        assert isinstance(message.Body, iso2.CertificateInstallationRes), "only the response has it"
        yield exi.emaid_fragment(message.Body.eMAID, "relaxed")
    try:
        yield exi.fragment(parsed, part)
    except EXIError as exc:  # The chain of the provisioning service may have an Id in ISO-2, but nobody signs it.
        raise SignatureError(f"The reference to {part.name} names a part that is not for signing.") from exc


def verify_signature_value(value: bytes, signed_info: bytes, method: str, key: CertificatePublicKeyTypes) -> None:
    """Check one signature value.

    value: raw r‖s, big endian, exactly 64 octets (P-256) or 132 (P-521), not DER; for Ed448 its 114 octets.
    signed_info: EXI fragment of SignedInfo. method: the algorithm's URI, which the key has to fit.
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
    """Sign parts of a message that is being made.

    references: Id and element fragment (`exi.encode_fragment`) of each part. The algorithms follow the key: P-256 with
    SHA-256, P-521 with SHA-512, Ed448 with SHAKE256.
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
    octets = exi.encode_signed_info(signed_info)
    if isinstance(key, ed448.Ed448PrivateKey):
        value = key.sign(octets)
    else:
        _, algorithm, half = _ECDSA[method]
        r, s = decode_dss_signature(key.sign(octets, algorithm))
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
    """Foreign text in a sentence: printable and short."""
    return ascii(text if len(text) <= 100 else text[:100] + "…")
