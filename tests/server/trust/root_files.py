"""Root certificates, valid and damaged, for tests of trust anchors."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ccp.testing.pki import ROOT as ROOT_TEMPLATE
from ccp.testing.pki import build_certificate, build_root, generate_key, subject_name
from ccp.x509.certificates import Certificate
from tests.world import AT


def root(cn: str = "Root CA", valid: tuple[datetime, datetime] | None = None) -> Certificate:
    return build_root(cn, now=AT, valid=valid).certificate


def damaged(certificate: Certificate) -> Certificate:
    """The certificate with one bit of its signature turned."""
    return Certificate.load(certificate.der[:-1] + bytes((certificate.der[-1] ^ 1,)))


def signed_by_another(cn: str = "Impostor") -> Certificate:
    """It names itself as its issuer, but another key signed it; the key identifiers do not tell."""
    key, other = generate_key("P-256"), generate_key("P-256")
    pretended = build_root(cn, now=AT)
    return build_certificate(
        key.public_key(),
        subject=subject_name(cn),
        issuer=pretended.certificate,
        signer=other,
        template=ROOT_TEMPLATE,
        valid=(AT, AT + ROOT_TEMPLATE.lifetime),
    )


def rsa_root(cn: str = "RSA Root") -> Certificate:
    key = rsa.generate_private_key(65537, 2048)
    name = subject_name(cn)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, AT, AT + ROOT_TEMPLATE.lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    return Certificate.load(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


def leaf_that_names_itself(cn: str = "No CA") -> Certificate:
    key = generate_key("P-256")
    from ccp.testing.pki import CONTRACT

    return build_certificate(
        key.public_key(),
        subject=subject_name(cn),
        issuer=None,
        signer=key,
        template=CONTRACT,
        valid=(AT, AT + CONTRACT.lifetime),
    )
