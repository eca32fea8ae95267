"""X.509 certificates, path validation and revocation for the profiles of ISO 15118, on top of `cryptography`. No I/O.

    >>> from ccp.x509 import AnchorRole, Certificate, Profile, TrustAnchors, Usage
    >>> anchors = TrustAnchors.build([(AnchorRole.V2G, root)])
    >>> chain = anchors.verify(leaf, sub_cas, usage=Usage.CPS, now=now, profile=Profile.ISO2)
    >>> chain.root == root
    True
    >>> anchors.verify(leaf, [], usage=Usage.CPS, now=now, profile=Profile.ISO2)
    Traceback (most recent call last):
    ccp.errors.ChainError: The issuer of certificate "CPS SIM" is neither trusted, known nor sent.

`crl_ocsp` reads OCSP responses and CRLs; `revocation_policy` decides from such evidence whether a chain is acceptable.
"""

from ccp.errors import ChainError
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchor, TrustAnchors, VerifiedChain
from ccp.x509.profiles import AnchorRole, Profile, Usage

__all__ = [
    "AnchorRole",
    "Certificate",
    "ChainError",
    "Profile",
    "TrustAnchor",
    "TrustAnchors",
    "Usage",
    "VerifiedChain",
]
