"""Members of the payload of an event. Pure.

Source: OPNC 1.0 and OPCP 1.0, webhook.payload; docs/spec-divergences.md lists the differences.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from ccp.errors import ChainError
from ccp.ids import Namespace
from ccp.server.domain.root_certificates import edition_of, key_curve, root_id
from ccp.x509.certificates import Certificate
from ccp.x509.names import parse_dn
from ccp.x509.profiles import ROOT_TYPES, AnchorRole

_PUBLISHED_ALGORITHMS: Final = ("secp256r1", "secp521r1")


def signature_algorithm(certificate: Certificate) -> str | None:
    """The curve of a certificate's key, if it has a published name for events; otherwise None."""
    curve = key_curve(certificate)
    return curve if curve in _PUBLISHED_ALGORITHMS else None


def contract_members(certificate: bytes, root_dn: str, root_fingerprint: str) -> dict[str, str]:
    """The members that describe a contract.

    certificate: of the contract, DER. root_dn, root_fingerprint: of the V2G root of its provisioning service.
    """
    members = {"contractCert": b64encode(certificate).decode(), "cpsSignerRootFingerprint": root_fingerprint}
    names = [value for kind, value in parse_dn(root_dn) if kind == "CN"]
    if names:
        members["cpsSignerRootCommonName"] = names[0]
    try:
        algorithm = signature_algorithm(Certificate.load(certificate))
    except ChainError:
        return members
    return members if algorithm is None else {**members, "signatureAlgorithm": algorithm}


def root_namespace(certificate: Certificate) -> Namespace | None:
    """The edition of ISO 15118 that determines a root's key; None for any other key."""
    return edition_of(key_curve(certificate))


def root_members(certificate: Certificate, role: AnchorRole) -> dict[str, str]:
    """The members that describe a trust anchor. `rootSerialNumber` and `fingerprintSHA256` are hexadecimal."""
    members = {
        "rootCertificateId": str(root_id(certificate.fingerprint, role)),
        "distinguishedName": certificate.subject_dn,
        "commonName": certificate.subject_cn,
        "rootType": ROOT_TYPES[role],
        "rootSerialNumber": f"{certificate.serial_number:x}",
        "fingerprintSHA256": certificate.fingerprint,
    }
    algorithm = signature_algorithm(certificate)
    return members if algorithm is None else {**members, "signatureAlgorithm": algorithm}
