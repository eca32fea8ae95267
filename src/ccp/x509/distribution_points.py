"""CRL distribution points: whether a CRL is the one that a certificate refers to.

A distribution point may have several names for one CRL, and the IssuingDistributionPoint of the CRL others; one name in
common is enough (RFC 5280 clause 6.3.3 b 2 i). Names are compared as keys: strings that are equal for equal names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography import x509

from ccp.errors import ChainError
from ccp.x509 import der
from ccp.x509.canonical_names import canonical_name
from ccp.x509.certificates import Certificate


def url_key(url: str) -> str:
    """The key of a URL: scheme and host in lower case, surrounding blanks removed."""
    scheme, separator, rest = url.strip().partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}{separator}{host.lower()}{slash}{path}"


def distribution_point_names(certificate: Certificate, url: str) -> frozenset[str]:
    """Keys of all names of the distribution points of a certificate that contain a URL. Raises ChainError."""
    wanted = url_key(url)
    found: set[str] = set()
    for point in certificate.extension(x509.CRLDistributionPoints) or ():
        keys = general_name_keys(point.full_name or ())
        if wanted in keys and not point.reasons and not point.crl_issuer:
            found |= keys
    return frozenset(found)


def general_name_keys(names: Iterable[x509.GeneralName]) -> set[str]:
    """Keys of the URLs and directory names among general names. Raises ChainError."""
    found = set()
    for name in names:
        if isinstance(name, x509.UniformResourceIdentifier):
            found.add(url_key(name.value))
        elif isinstance(name, x509.DirectoryName):
            encoded = name.value.public_bytes()
            try:
                canonical = canonical_name(encoded[der.read_element(encoded, 0).start :])
            except der.DERError as exc:
                raise ChainError("A name of a CRL distribution point cannot be read.") from exc
            found.add("directory:" + hashlib.sha256(canonical).hexdigest())
    return found
