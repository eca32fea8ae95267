"""Certificate profiles of ISO 15118: what leaves are used for, what anchors are trusted for, allowed algorithms."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from cryptography.x509.oid import SignatureAlgorithmOID


class Usage(Enum):
    """What a leaf certificate is used for."""

    CPS = "CPS"
    CONTRACT = "contract"
    OEM_PROVISIONING = "OEM provisioning"


class AnchorRole(Enum):
    """What a trust anchor is trusted for."""

    V2G = "v2g"
    EMSP = "emsp"
    OEM = "oem"


ROOT_TYPES: Final = {AnchorRole.V2G: "V2G", AnchorRole.EMSP: "MO", AnchorRole.OEM: "OEM"}
"""The name of an anchor's role in OPCP and OPNC."""


class Profile(Enum):
    """The edition whose algorithms are allowed."""

    ISO2 = "ISO 15118-2"
    ISO20 = "ISO 15118-20"


# A contract chain may end in a root of the eMSP or in a V2G root.
# Source: ISO 15118-2 clause 7.9.1, ISO 15118-20 clause 7.3.
TRUSTED_FOR: Final[Mapping[Usage, tuple[AnchorRole, ...]]] = {
    Usage.CPS: (AnchorRole.V2G,),
    Usage.CONTRACT: (AnchorRole.EMSP, AnchorRole.V2G),
    Usage.OEM_PROVISIONING: (AnchorRole.OEM,),
}

# Complete AlgorithmIdentifiers of keys (DER), so that explicit curve parameters never match.
# Source: RFC 5480 clause 2.1.1, RFC 8410.
P256: Final = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
P521: Final = bytes.fromhex("301006072a8648ce3d020106052b81040023")
ED448: Final = bytes.fromhex("300506032b6571")
SIGNATURE_OF_KEY: Final = {
    P256: SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    P521: SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    ED448: SignatureAlgorithmOID.ED448,
}
# Some senders of -20 messages still use P-256. Drop it from ISO20 when they have migrated.
KEYS: Final[Mapping[Profile, frozenset[bytes]]] = {
    Profile.ISO2: frozenset({P256}),
    Profile.ISO20: frozenset({P256, P521, ED448}),
}
SIGNATURES: Final = {profile: frozenset(SIGNATURE_OF_KEY[key] for key in keys) for profile, keys in KEYS.items()}

# The subject's domain component (DC) states the role. CPS leaves must have it; that of another role is refused.
DOMAIN_COMPONENT: Final = {Usage.CPS: "CPS", Usage.CONTRACT: "MO", Usage.OEM_PROVISIONING: "OEM"}
ROLE_DOMAIN_COMPONENTS: Final = frozenset({"CPS", "MO", "OEM", "V2G", "CPO"})
