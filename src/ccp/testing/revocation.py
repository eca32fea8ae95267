"""Signs CRLs and OCSP responses for the certificates of a test PKI.

crl = sign_crl(pki.emsp_sub2, {serial_number: now}, this_update=now, next_update=now + timedelta(days=1))
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ccp.testing.pki import Credential, signature_hash
from ccp.x509.certificates import Certificate


def sign_crl(
    issuer: Credential,
    revoked: Mapping[int, datetime],
    *,
    this_update: datetime,
    next_update: datetime,
    number: int | None = 1,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> bytes:
    """Sign a CRL. Returns DER.

    revoked: time of revocation by serial number. extra: further extensions, and whether each is critical.
    """
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.x509.subject, this_update, next_update)
    numbered = () if number is None else ((x509.CRLNumber(number), False),)
    for extension, critical in (*numbered, *extra):
        builder = builder.add_extension(extension, critical)
    for serial, when in revoked.items():
        entry = x509.RevokedCertificateBuilder(serial, when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, signature_hash(issuer.key)).public_bytes(Encoding.DER)


def sign_ocsp_response(
    certificate: Certificate,
    issuer: Credential,
    *,
    this_update: datetime,
    next_update: datetime | None,
    revoked_at: datetime | None = None,
    unknown: bool = False,
    responder: Credential | None = None,
    sha256: bool = False,
) -> bytes:
    """Sign an OCSPResponse about a certificate. Returns DER.

    responder: signs instead of the issuer; its certificate is part of the response.
    """
    signer = responder or issuer
    status = ocsp.OCSPCertStatus.GOOD if revoked_at is None else ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        certificate.x509,
        issuer.certificate.x509,
        hashes.SHA256() if sha256 else hashes.SHA1(),  # noqa: S303  what OCSP clients use
        ocsp.OCSPCertStatus.UNKNOWN if unknown else status,
        this_update,
        next_update,
        revoked_at,
        None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, signer.certificate.x509)
    if responder is not None:
        builder = builder.certificates([responder.certificate.x509])
    return builder.sign(signer.key, signature_hash(signer.key)).public_bytes(Encoding.DER)
