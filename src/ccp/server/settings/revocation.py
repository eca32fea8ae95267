"""Settings of revocation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, Field, field_validator

from ccp.x509.issuer_map import parse_issuer


class RevocationMode(StrEnum):
    """Which certificates need evidence that they are not revoked."""

    WHEN_NAMED = "when-named"
    REQUIRE = "require"
    OFF = "off"


class RevocationSettings(BaseModel):
    """Which certificates are checked for revocation, and how."""

    revocation: RevocationMode = Field(
        RevocationMode.WHEN_NAMED,
        description="Certificates whose revocation is checked. `when-named`: those with a CRL or OCSP address, or "
        "whose issuer is in `crl_urls`. `require`: all. `off`: none, for laboratories.",
    )
    revocation_grace: Annotated[int, Field(ge=0)] = Field(
        0, description="Seconds that a CRL or OCSP response may be past its nextUpdate and still permit a delivery."
    )
    crl_urls: dict[str, str] = Field(
        {},
        description="CRL URL by issuer: SHA-256 fingerprint of a certificate in the trust store, or common name. "
        "Applies to every certificate with the same name and key "
        "([issuers](trust.md#issuers-in-the-settings)). The address may be private.",
    )
    ocsp_sha256: tuple[str, ...] = Field(
        (), description="Issuers (as in `crl_urls`) whose OCSP responders are queried with SHA-256 CertIDs."
    )
    egress_allow_networks: tuple[str, ...] = Field(
        (),
        description="Non-public networks (CIDR) that the pool may call for CRLs, OCSP and webhooks.",
    )
    operator_cas: tuple[str, ...] = Field(
        (),
        description="Fingerprints of the contract CAs whose certificates DELETE revokes; each applies to every "
        "certificate with the same name and key, and should be in the trust store. Needs `pki_url`.",
    )

    @field_validator("crl_urls", "ocsp_sha256")
    @classmethod
    def _check_issuer_names(cls, value: Any) -> Any:
        """Refuse hexadecimal digits that are not a SHA-256 fingerprint: a typing error, not the common name of a CA."""
        for text in value:
            parse_issuer(text)
        return value
