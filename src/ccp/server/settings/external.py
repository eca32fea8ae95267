"""Settings of the external services that the pool calls."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, Field, SecretStr

from ccp.server.settings.services import SERVICES, ServiceSettings
from ccp.x509.profiles import AnchorRole

CA_LABEL: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""Pattern of the name of a CA in a path of EST: characters that need no escaping in a URL."""


class EnrolmentSubjects(StrEnum):
    """Common names in certificate requests: EVSE ids of the caller's operator ids, or any."""

    OWN = "own"
    ANY = "any"


class ExternalSettings(BaseModel):
    """Root and Provisioning Certificate Pool, PKI service, EST server, Certificate Provisioning Service."""

    rcp: ServiceSettings | None = Field(
        None, description="Root Certificate Pool to fetch anchors from; see [external services](#external-services)."
    )
    rcp_interval: Annotated[int, Field(ge=60)] = Field(
        86_400, description="Seconds between two synchronisations with the Root Certificate Pool."
    )
    rcp_roles: Annotated[tuple[AnchorRole, ...], Field(min_length=1)] = Field(
        tuple(AnchorRole), description="Roles for which roots of the Root Certificate Pool are trusted."
    )
    pcp: ServiceSettings | None = Field(
        None,
        description="Provisioning Certificate Pool: vehicles and their current keys; see [external "
        "services](#external-services).",
    )
    require_known_vehicle: bool | None = Field(
        None,
        description="Refuse a contract for a PCID that is unknown to the Provisioning Certificate Pool (400), and "
        "every contract while that pool does not answer (503). Default: `true` if `pcp_url` is set.",
    )
    pcp_webhook_secret: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="HMAC key for the events that the Provisioning Certificate Pool posts to "
        "`/opnc/v1/ccp/events/pcp`; without it they are refused.",
    )
    pki: ServiceSettings | None = Field(
        None, description="PKI service that revokes contract certificates; see [external services](#external-services)."
    )
    est: ServiceSettings | None = Field(
        None,
        description="EST server that issues certificates to charging stations; see [external "
        "services](#external-services).",
    )
    est_labels: dict[Annotated[str, Field(pattern=CA_LABEL)], Annotated[str, Field(pattern=f"^$|{CA_LABEL}")]] = Field(
        {"cpo": "cpo"},
        description="CAs that charge point operators may name in a path of EST, and the label of each at the EST "
        "server; an empty label is the server's default CA. A CA for other certificates than those of "
        "stations does not belong here.",
    )
    est_subjects: EnrolmentSubjects = Field(
        EnrolmentSubjects.OWN,
        description="`own`: the common name of a certificate request must be an EVSE id of the caller's operator "
        "ids, because the EST server sees the pool's credentials only. `any`: the EST server decides. "
        "Other attributes and extensions of a request are always the EST server's to check.",
    )
    cps: ServiceSettings | None = Field(
        None,
        description="Certificate Provisioning Service, used by `ccp neighbour test` only; see [external "
        "services](#external-services).",
    )

    @property
    def services(self) -> dict[str, ServiceSettings]:
        """The configured external services, by prefix."""
        found = {prefix: getattr(self, prefix) for prefix in SERVICES}
        return {prefix: service for prefix, service in found.items() if service is not None}
