"""What pages of the console are built from: the services of the pool that they show."""

from __future__ import annotations

from dataclasses import dataclass

from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.console.identifiers import HandleCipher
from ccp.server.events.ping import Pinger
from ccp.server.events.webhooks import Webhooks
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.services import ExternalServices
from ccp.server.http.request_context import RequestContext
from ccp.server.http.routes.health import Health
from ccp.server.metrics.last_calls import LastCalls
from ccp.server.pool.operations import Pool
from ccp.server.pool.peers import RegisteredPeers
from ccp.server.pool.statistics import PoolStatistics
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService


@dataclass(frozen=True, slots=True)
class ConsoleParts:
    """The services of one worker, built in `ccp.server.app`. A page reads and changes through these only.

    has_documentation: the worker serves its documentation, and pages link to it.
    """

    config: Settings
    store: Store
    context: RequestContext
    authority: AuthorizationServer
    registry: PartyRegistry
    pseudonyms: Pseudonyms
    cipher: HandleCipher
    trust: TrustStore
    revocation: RevocationService
    pool: Pool
    peers: RegisteredPeers
    webhooks: Webhooks
    pinger: Pinger
    statistics: PoolStatistics
    external: ExternalServices
    outbound: OutboundClient
    background: BackgroundTasks
    health: Health
    calls: LastCalls
    has_documentation: bool
