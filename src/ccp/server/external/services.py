"""The external services of a pool, as its settings name them."""

from __future__ import annotations

from dataclasses import dataclass

from ccp.errors import ConfigurationError
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.pki_service import PKIService
from ccp.server.external.provisioning_pool import ProvisioningCertificatePool
from ccp.server.external.root_pool import RootCertificatePool
from ccp.server.settings import Settings


@dataclass(frozen=True, slots=True)
class ExternalServices:
    """Clients of the configured services; None for a service that is not configured."""

    root_pool: RootCertificatePool | None
    provisioning_pool: ProvisioningCertificatePool | None
    pki_service: PKIService | None

    @classmethod
    def from_settings(cls, config: Settings, outbound: OutboundClient) -> ExternalServices:
        """Create the clients. Raises ConfigurationError for settings that need a service that is not configured."""
        if config.operator_cas and not config.pki_url:
            raise ConfigurationError("operator_cas needs pki_url: without it their certificates cannot be revoked.")
        if config.require_known_vehicle and not config.pcp_url:
            raise ConfigurationError("require_known_vehicle needs pcp_url: else no vehicle is known.")
        return cls(
            RootCertificatePool(outbound, config.rcp_url, config.rcp_token) if config.rcp_url else None,
            ProvisioningCertificatePool(outbound, config.pcp_url, config.pcp_token) if config.pcp_url else None,
            PKIService(outbound, config.pki_url, config.pki_token, config.operator_cas) if config.pki_url else None,
        )
