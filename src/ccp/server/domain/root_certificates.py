"""Published type, id and key of a trust anchor. Pure."""

from __future__ import annotations

import uuid
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey

from ccp.errors import ChainError
from ccp.ids import Fingerprint, Namespace
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import ROOT_TYPES, AnchorRole

_EDITIONS: Final = {"secp256r1": Namespace.ISO2, "secp521r1": Namespace.ISO20, "ed448": Namespace.ISO20}


def root_id(fingerprint: str, role: AnchorRole) -> uuid.UUID:
    """The id of a root in a role, the same in every pool. fingerprint: `Certificate.fingerprint`."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{Fingerprint(fingerprint)}:{ROOT_TYPES[role]}")


def is_own_issuer(certificate: Certificate) -> bool:
    """Whether a trust anchor names itself as its issuer; otherwise another root has issued it, and it is not listed.

    Its signature is not verified, which would take a millisecond.
    """
    try:
        return certificate.is_self_issued and certificate.authority_mismatch(certificate) is None
    except ChainError:
        return False


def key_curve(certificate: Certificate) -> str | None:
    """The curve of a certificate's key, `secp256r1`, `secp521r1` or `ed448`; None for another key."""
    try:
        key = certificate.public_key
    except ChainError:
        return None
    if isinstance(key, Ed448PublicKey):
        return "ed448"
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _EDITIONS:
        return key.curve.name
    return None


def edition_of(curve: str | None) -> Namespace | None:
    """The edition of ISO 15118 that determines a curve. curve: from `key_curve`."""
    return None if curve is None else _EDITIONS[curve]
