"""Checks of single certificates and of one issuer-subject pair, as path validation needs them.

Each check returns nothing or raises ChainError with a sentence that names the certificate and the cause.
Source: RFC 5280 clauses 4 and 6.1; the profiles of ISO 15118-2 annex F and ISO 15118-20 annex B.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from ccp.errors import ChainError, ExpiredError
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import (
    DOMAIN_COMPONENT,
    ED448,
    KEYS,
    ROLE_DOMAIN_COMPONENTS,
    SIGNATURE_OF_KEY,
    SIGNATURES,
    Profile,
    Usage,
)

_PROCESSED: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)
# No profile uses them. They restrict what a CA may issue, so a validator that does not process them must refuse them,
# critical or not.
_REFUSED: Final = {
    ExtensionOID.NAME_CONSTRAINTS: "name constraints",
    ExtensionOID.POLICY_CONSTRAINTS: "policy constraints",
    ExtensionOID.POLICY_MAPPINGS: "policy mappings",
    ExtensionOID.INHIBIT_ANY_POLICY: "inhibitAnyPolicy",
}
_MAX_SERIAL_BITS: Final = 20 * 8 - 1  # A positive INTEGER of 20 bytes (RFC 5280 clause 4.1.2.2).
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


def check_profile(certificate: Certificate, profile: Profile) -> None:
    """Check version, serial number, algorithms and extensions: of every certificate of a path, the anchor included."""
    if certificate.x509.version is not x509.Version.v3:
        raise ChainError(f"Certificate {certificate.display_name} is not of X.509 version 3.")
    if certificate.serial_number <= 0 or certificate.serial_number.bit_length() > _MAX_SERIAL_BITS:
        raise ChainError(
            f"The serial number of certificate {certificate.display_name} is not a positive number of at most 20 bytes."
        )
    if certificate.public_key_algorithm not in KEYS[profile]:
        raise ChainError(
            f"The key of certificate {certificate.display_name} is not of a kind that {profile.value} allows."
        )
    if certificate.x509.signature_algorithm_oid not in SIGNATURES[profile]:
        raise ChainError(
            f"Certificate {certificate.display_name} is signed with an algorithm that {profile.value} does not allow."
        )
    for oid, critical in certificate.listed_extensions:
        if oid in _REFUSED:
            raise ChainError(f"Certificate {certificate.display_name} has {_REFUSED[oid]}, which are not supported.")
        if critical and oid not in _PROCESSED:
            raise ChainError(
                f"Certificate {certificate.display_name} has the critical extension {oid.dotted_string}, "
                "which is not supported."
            )


def check_leaf(leaf: Certificate, usage: Usage) -> None:
    """Check that a certificate is an end-entity certificate for a usage.

    Key usage is checked where it is present; a fifth of the leaves in the field have none.
    """
    leaf.validate_subject()
    leaf.public_key  # noqa: B018  Raises if unreadable; no other step reads the key of a contract certificate.
    basic = leaf.extension(x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise ChainError(
            f"Certificate {leaf.display_name} is a CA certificate and cannot be used as {usage.value} certificate."
        )
    allowed = leaf.extension(x509.KeyUsage)
    # An Ed448 key cannot do key agreement (RFC 8410 clause 5); such a vehicle has an X448 key besides.
    agrees = usage is Usage.OEM_PROVISIONING and leaf.public_key_algorithm != ED448
    if allowed is not None and (
        not allowed.digital_signature or allowed.key_cert_sign or (agrees and not allowed.key_agreement)
    ):
        raise ChainError(f"The key usage of certificate {leaf.display_name} does not fit a {usage.value} certificate.")
    purposes = leaf.extension(x509.ExtendedKeyUsage)
    if purposes is not None and ExtendedKeyUsageOID.OCSP_SIGNING in purposes:
        raise ChainError(f"Certificate {leaf.display_name} is for an OCSP responder, not a {usage.value} certificate.")
    domains = leaf.domain_components() & ROLE_DOMAIN_COMPONENTS
    if domains - {DOMAIN_COMPONENT[usage]} or (usage is Usage.CPS and not domains):
        found = ", ".join(sorted(domains)) or "none"
        raise ChainError(
            f"The domain component of certificate {leaf.display_name} ({found}) does not fit {usage.value}."
        )


def check_ca(issuer: Certificate, below: Sequence[Certificate]) -> None:
    """Check that a certificate may issue others.

    below: the intermediates between it and the leaf.
    """
    basic = issuer.extension(x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise ChainError(f"Certificate {issuer.display_name} is used as an issuer but is not a CA certificate.")
    allowed = issuer.extension(x509.KeyUsage)
    if allowed is None or not allowed.key_cert_sign:
        raise ChainError(f"Certificate {issuer.display_name} is used as an issuer but lacks the key usage keyCertSign.")
    if basic.path_length is not None:
        counted = [certificate for certificate in below if not certificate.is_self_issued]  # RFC 5280 clause 4.2.1.9
        if len(counted) > basic.path_length:
            raise ChainError(f"The path length of CA certificate {issuer.display_name} is exceeded.")


def is_root(certificate: Certificate) -> bool:
    """Whether issuer and subject are the same name, and the authority key identifier, if any, is its own."""
    return certificate.is_self_issued and certificate.authority_mismatch(certificate) is None


def check_issued(child: Certificate, issuer: Certificate) -> None:
    """Check that `issuer` issued `child`: authority key identifier, algorithm, issuer name, signature."""
    mismatch = child.authority_mismatch(issuer)
    if mismatch == "key identifier":
        raise ChainError(
            f"The authority key identifier of certificate {child.display_name} is not that of {issuer.display_name}."
        )
    if mismatch is not None:
        raise ChainError(
            f"The authority key identifier of certificate {child.display_name} names a certificate of its issuer with "
            f"another {mismatch} than {issuer.display_name}."
        )
    if child.x509.signature_algorithm_oid != SIGNATURE_OF_KEY.get(issuer.public_key_algorithm):
        raise ChainError(
            f"The signature of certificate {child.display_name} does not fit the key of its issuer "
            f"{issuer.display_name}."
        )
    if child is issuer:
        if child.self_signature_error is not None:
            raise ChainError(child.self_signature_error)
    else:
        child.verify_issued_by(issuer)


def check_validity(certificate: Certificate, now: datetime, usage: Usage | None = None) -> None:
    """Check the validity period. usage: of a leaf; None for other certificates. Raises ExpiredError, ChainError."""
    if now < certificate.not_before:
        raise ChainError(
            f"Certificate {certificate.display_name} is not valid before {certificate.not_before:{_TIME}}."
        )
    # The second that notAfter names is valid to its end.
    if now.replace(microsecond=0) > certificate.not_after:
        if usage is Usage.CONTRACT:
            raise ExpiredError("The validUntil date of contract certificate is in the past.")
        raise ExpiredError(f"Certificate {certificate.display_name} expired at {certificate.not_after:{_TIME}}.")


def validate_root(certificate: Certificate) -> None:
    """Refuse a self-issued certificate that no valid chain of either edition can end in, at any time.

    Checks the profile, that it is a CA certificate, and its own signature. Raises ChainError.
    """
    check_profile(certificate, Profile.ISO20)  # Its algorithms include those of ISO 15118-2.
    check_ca(certificate, ())
    if certificate.self_signature_error is not None:
        raise ChainError(
            f"Certificate {certificate.display_name} names itself as its issuer, but its own signature does not hold."
        )
