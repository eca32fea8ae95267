"""Warnings about messages that are valid but will cause questions, for publishers and operators. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from ccp.errors import ChainError
from ccp.verify.request import InstallationRequest
from ccp.verify.response import InstallationResponse
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole

_SOON: Final = timedelta(days=30)
# Characters of Base64 that charging stations accept: OCPP 2.0.1 allows 7,500, its first edition 5,600.
_MAX_LENGTHS: Final = (7_500, 5_600)
_SHA1_BYTES: Final = 20


def lint_response(
    response: InstallationResponse, anchors: TrustAnchors, now: datetime, leaves: Collection[Certificate] = ()
) -> tuple[str, ...]:
    """Warnings about a CertificateInstallationRes.

    anchors: the snapshot that has its sub-CA certificates cached. leaves: its leaf certificates, if they were read
    before. A certificate that cannot be read fails a check and gets no warning.
    """
    return tuple(_on_response(response, anchors, now, {leaf.der: leaf for leaf in leaves}))


def _on_response(
    response: InstallationResponse, anchors: TrustAnchors, now: datetime, leaves: Mapping[bytes, Certificate]
) -> Iterator[str]:
    length = (len(response.parsed.data) + 2) // 3 * 4
    limit = next((limit for limit in _MAX_LENGTHS if length > limit), None)
    if limit is not None:
        yield f"The response has {length} characters in Base64; some charging stations take {limit} at most."
    for leaf, sub_cas in (
        (response.contract_certificate, response.contract_sub_certificates),
        (response.cps_certificate, response.cps_sub_certificates),
    ):
        with contextlib.suppress(ChainError):
            yield from _on_certificate(leaves.get(leaf) or Certificate.load(leaf), now, is_leaf=True)
        for der in sub_cas:
            with contextlib.suppress(ChainError):
                yield from _on_certificate(anchors.load_intermediate(der), now, is_leaf=False)


def _on_certificate(certificate: Certificate, now: datetime, *, is_leaf: bool) -> Iterator[str]:
    if now <= certificate.not_after < now + _SOON:
        yield f"Certificate {certificate.display_name} expires on {certificate.not_after:%Y-%m-%d}."
    if certificate.key_identifier is not None and len(certificate.key_identifier) == _SHA1_BYTES:
        yield (
            f"Certificate {certificate.display_name} has a key identifier of 20 bytes, as SHA-1 makes; "
            "the field has eight."
        )
    if is_leaf and certificate.extension(x509.KeyUsage) is None:
        yield f"Certificate {certificate.display_name} does not say what its key is for."


def lint_request(request: InstallationRequest, anchors: TrustAnchors) -> tuple[str, ...]:
    """Warnings about a CertificateInstallationReq: V2G roots that the vehicle lists and the pool does not know."""
    known = anchors.by_role(AnchorRole.V2G)
    return tuple(
        f"The vehicle lists a V2G root that is not known here: {root.X509IssuerName[:100]!a}, "
        f"serial {root.X509SerialNumber:x}."
        for root in request.root_ids
        if not any(
            root.X509SerialNumber == anchor.serial_number and anchor.subject_matches(root.X509IssuerName)
            for anchor in known
        )
    )
