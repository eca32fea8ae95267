"""Contracts whose certificates a test revokes."""

from __future__ import annotations

from ccp.testing.pki import PKI, Credential
from ccp.x509.certificates import Certificate
from tests.world import Contract

EDITIONS = ["iso2", "iso20"]


def cas(pki: PKI) -> tuple[Credential, ...]:
    return (
        pki.v2g_root, pki.cps_sub1, pki.cps_sub2, pki.emsp_root, pki.emsp_sub1, pki.emsp_sub2,
        pki.oem_root, pki.oem_sub1, pki.oem_sub2,
    )  # fmt: skip


def serial(contract: Contract) -> int:
    return Certificate.load(contract.certificate).serial_number
