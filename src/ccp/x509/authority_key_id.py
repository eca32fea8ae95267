"""AuthorityKeyIdentifier, in a form for comparison with an issuer certificate."""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509

from ccp.x509 import der
from ccp.x509.canonical_names import canonical_name


class AuthorityKeyId(NamedTuple):
    """The parts of an AuthorityKeyIdentifier, each None if absent.

    key_identifier: opaque. serial_number, issuer: of the issuer certificate, issuer in canonical form. They identify
    one certificate; a reissued certificate for the same key does not match.
    """

    key_identifier: bytes | None
    serial_number: int | None
    issuer: bytes | None


def read_authority_key_id(value: x509.AuthorityKeyIdentifier) -> AuthorityKeyId:
    """Read the extension. Of several directory names the first counts, as in OpenSSL. Raises DERError."""
    names = [name.value for name in value.authority_cert_issuer or () if isinstance(name, x509.DirectoryName)]
    issuer = None
    if names:
        encoded = names[0].public_bytes()
        issuer = canonical_name(encoded[der.read_element(encoded, 0).start :])
    return AuthorityKeyId(value.key_identifier, value.authority_cert_serial_number, issuer)
