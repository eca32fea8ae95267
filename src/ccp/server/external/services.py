"""The external services of a pool, as its settings name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ccp.errors import ConfigurationError
from ccp.server.external.est import ESTServer
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.pki_service import PKIService
from ccp.server.external.provisioning_pool import ProvisioningCertificatePool
from ccp.server.external.root_pool import RootCertificatePool
from ccp.server.external.service_connection import ServiceConnection, check_files
from ccp.server.settings import Settings
from ccp.server.settings.services import SERVICES, Dialect


@dataclass(frozen=True, slots=True)
class ExternalServices:
    """Clients of the configured services; None for a service that is not configured.

    connections: of every configured service, by the prefix of its settings.
    """

    connections: Mapping[str, ServiceConnection]
    root_pool: RootCertificatePool | None
    provisioning_pool: ProvisioningCertificatePool | None
    pki_service: PKIService | None
    est_server: ESTServer | None

    @classmethod
    def from_settings(cls, config: Settings, outbound: OutboundClient) -> ExternalServices:
        """Create the clients. Raises what `check` raises."""
        check(config)
        connections = {
            prefix: ServiceConnection(outbound, service, SERVICES[prefix], prefix=prefix)
            for prefix, service in config.services.items()
        }
        rcp, pcp, pki, est = (connections.get(prefix) for prefix in ("rcp", "pcp", "pki", "est"))
        return cls(
            connections,
            RootCertificatePool(rcp) if rcp else None,
            ProvisioningCertificatePool(pcp) if pcp else None,
            PKIService(pki, config.operator_cas) if pki else None,
            ESTServer(est) if est else None,
        )


def check(config: Settings) -> None:
    """Check the settings of the services, and the files that they name.

    Raises ConfigurationError for settings that need a service that is not configured, and for unusable files.
    """
    if config.operator_cas and not config.pki:
        raise ConfigurationError("operator_cas needs pki_url: without it their certificates cannot be revoked.")
    if config.require_known_vehicle and not config.pcp:
        raise ConfigurationError("require_known_vehicle needs pcp_url: else no vehicle is known.")
    if config.pki and config.pki.dialect is Dialect.OPCP:
        raise ConfigurationError("pki_dialect: OPCP describes no operation that revokes certificates.")
    check_files(config.services)
