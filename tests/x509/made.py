"""Builders of valid and invalid certificate chains, always with real signatures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from ccp.testing.pki import (
    CONTRACT,
    CPS,
    OEM_PROVISIONING,
    ROOT,
    SUB_CA1,
    SUB_CA2,
    Algorithm,
    Credential,
    SigningKey,
    Template,
    build_root,
)
from ccp.x509.certificate_extensions import _Extension, _SignedCertificate
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import AnchorRole, Profile, Usage

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LEAVES = {Usage.CPS: CPS, Usage.CONTRACT: CONTRACT, Usage.OEM_PROVISIONING: OEM_PROVISIONING}
ROLES = {Usage.CPS: AnchorRole.V2G, Usage.CONTRACT: AnchorRole.EMSP, Usage.OEM_PROVISIONING: AnchorRole.OEM}

ECDSA_SHA1 = "06072a8648ce3d0401"
ECDSA_SHA256 = "06082a8648ce3d040302"
ECDSA_SHA384 = "06082a8648ce3d040303"
ECDSA_SHA512 = "06082a8648ce3d040304"

Validity = tuple[datetime, datetime]


@dataclass
class Chain:
    """Three credentials and a leaf, and what is passed to the verifier. Parts may be exchanged one by one."""

    root: Credential
    sub1: Credential
    sub2: Credential
    leaf: Certificate
    leaf_key: SigningKey
    usage: Usage
    offered: list[Certificate]

    def anchors(self, known: Sequence[Certificate] = (), role: AnchorRole | None = None) -> TrustAnchors:
        role = role or ROLES[self.usage]
        return TrustAnchors.build([(role, self.root.certificate)], [(role, one) for one in known])

    def verify(
        self,
        anchors: TrustAnchors | None = None,
        *,
        now: datetime = AT,
        profile: Profile = Profile.ISO2,
        usage: Usage | None = None,
    ) -> VerifiedChain:
        return (anchors or self.anchors()).verify(
            self.leaf, self.offered, usage=usage or self.usage, now=now, profile=profile
        )


def chain(
    usage: Usage = Usage.CONTRACT,
    *,
    algorithm: Algorithm = "P-256",
    root: Template = ROOT,
    sub1: Template = SUB_CA1,
    sub2: Template = SUB_CA2,
    leaf: Template | None = None,
    valid: Mapping[str, Validity] | None = None,
    leaf_algorithm: Algorithm | None = None,
) -> Chain:
    """valid: by level ("root", "sub1", "sub2", "leaf"), in place of the template's lifetime."""
    times = valid or {}
    anchor = build_root("Root", now=AT, algorithm=algorithm, template=root, valid=times.get("root"))
    first = anchor.issue("Sub1", sub1, now=AT, valid=times.get("sub1"))
    second = first.issue("Sub2", sub2, now=AT, valid=times.get("sub2"))
    end = second.issue(
        "DEABCC00000001", leaf or LEAVES[usage], now=AT, valid=times.get("leaf"), algorithm=leaf_algorithm
    )
    offered = [second.certificate, first.certificate]
    return Chain(anchor, first, second, end.certificate, end.key, usage, offered)


def forge(
    certificate: Certificate,
    signer: SigningKey,
    edit: Callable[[Any], None] = lambda tbs: None,
    *,
    algorithm: str | None = None,
    inner_algorithm: str | None = None,
    digest: hashes.HashAlgorithm | None = None,
) -> Certificate:
    """Change fields that no builder lets one change, and sign again.

    algorithm: contents of both AlgorithmIdentifiers, hex; inner_algorithm: of the signed one alone.
    """
    signed = asn1.decode_der(_SignedCertificate, certificate.der)
    if algorithm is not None:
        signed.algorithm = signed.tbs.signature = tlv(0x30, bytes.fromhex(algorithm))
    if inner_algorithm is not None:
        signed.tbs.signature = tlv(0x30, bytes.fromhex(inner_algorithm))
    edit(signed.tbs)
    encoded = asn1.encode_der(signed.tbs)
    if isinstance(signer, Ed448PrivateKey):
        signature = signer.sign(encoded)
    else:
        default = hashes.SHA256() if signer.curve.name == "secp256r1" else hashes.SHA512()
        signature = signer.sign(encoded, ECDSA(digest or default))
    signed.signature = asn1.BitString(signature, 0)
    return Certificate.load(asn1.encode_der(signed))


def der(tag: int, content: bytes) -> bytes:
    length = bytes((len(content),)) if len(content) < 128 else b"\x82" + len(content).to_bytes(2, "big")
    if 128 <= len(content) < 256:
        length = bytes((0x81, len(content)))
    return bytes((tag,)) + length + content


def tlv(tag: int, content: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, der(tag, content))


def without(tbs: Any, oid: object) -> None:
    tbs.extensions = [one for one in tbs.extensions if one.oid != oid]


def replaced(tbs: Any, oid: object, value: bytes) -> None:
    for one in tbs.extensions:
        if one.oid == oid:
            one.value = value


def added(tbs: Any, oid: Any, value: bytes, critical: bool = False) -> None:
    tbs.extensions = [*tbs.extensions, _Extension(oid=oid, critical=critical, value=value)]


def tampered(certificate: Certificate) -> Certificate:
    """One bit of the signature's last byte turned over."""
    return Certificate.load(certificate.der[:-1] + bytes((certificate.der[-1] ^ 1,)))


def content(value: asn1.TLV) -> bytes:
    """The content of an element; `forge` hands a certificate's fields to its edit as such."""
    return bytes(value.data)


def twin(certificate: Certificate) -> Certificate:
    """Another certificate with the same content, made without any key: (r, n - s) in place of (r, s)."""
    signed = asn1.decode_der(_SignedCertificate, certificate.der)
    r, s = decode_dss_signature(certificate.x509.signature)
    order = _ORDERS[certificate.x509.signature_algorithm_oid.dotted_string]
    signed.signature = asn1.BitString(encode_dss_signature(r, order - s), 0)
    return Certificate.load(asn1.encode_der(signed))


# Of P-256 and P-521 (SEC 2), by the signature algorithm that goes with each.
_ORDERS = {
    "1.2.840.10045.4.3.2": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "1.2.840.10045.4.3.4": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA"
        "51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}


def unused_bit(certificate: Certificate, signer: SigningKey) -> bytes:
    """The certificate signed anew until its last bit is zero, then with a BIT STRING that claims that bit is unused."""
    while certificate.der[-1] & 1:
        certificate = forge(certificate, signer)
    encoded = bytearray(certificate.der)
    encoded[len(encoded) - len(certificate.x509.signature) - 1] = 1
    return bytes(encoded)


def respelled(name: bytes) -> bytes:
    """A name's DER contents with the same value: BMPString, the other letter case, and more blanks."""
    found = b""
    for kind, value in _attributes(name):
        text = value.decode().swapcase().replace(" ", "  ")
        found += der(0x31, der(0x30, kind + der(0x1E, f" {text}".encode("utf-16-be"))))
    return found


def _attributes(name: bytes) -> list[tuple[bytes, bytes]]:
    """Type (DER) and value of each attribute of a name of the simulator: short, and one in each set."""
    found = []
    at = 0
    while at < len(name):
        end = at + 2 + name[at + 1]
        value_at = at + 6 + name[at + 5]
        found.append((name[at + 4 : value_at], name[value_at + 2 : end]))
        at = end
    return found
