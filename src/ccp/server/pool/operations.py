"""The operations of this pool in one object, as routes and commands call them.

    delivery               a vehicle asks for its contracts
    delivery_preview       what a vehicle would get now, without a request
    contract_data          eMSPs, vehicle makers and operators read contracts
    publication            a provisioning service publishes a contract
    maintenance            contracts are withdrawn, set as default, invalidated, purged, erased
    verification_reports   every check on a message, explained
    examination            one message: decoded, its checks and chains, what a vehicle would get for it

`ccp.server.pool.remote.RemotePool` has those that can be addressed to another pool.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from ccp.server.events import EventSink, NullSink
from ccp.server.external.services import ExternalServices
from ccp.server.metrics import Metrics
from ccp.server.pool.contract_data import ContractData
from ccp.server.pool.delivery import Delivery
from ccp.server.pool.delivery_preview import DeliveryPreviews
from ccp.server.pool.examination import Examinations
from ccp.server.pool.maintenance import Maintenance
from ccp.server.pool.peers import Peers
from ccp.server.pool.publication import Publication
from ccp.server.pool.verification_reports import VerificationReports
from ccp.server.runtime.clock import utc_now
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.x509.path_validation import TrustAnchors

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans


class Pool:
    """Operations are attributes: each is a bound method, so its signature and docstring are in one place, and a
    request costs no further call. `now` is the time of the request, read once when it arrives.
    """

    def __init__(
        self,
        store: Store,
        trust: TrustStore,
        revocation: RevocationService,
        peers: Peers,
        external: ExternalServices,
        settings: Settings,
        events: EventSink | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
        spans: Spans | None = None,
    ) -> None:
        """events: is notified of deliveries and changes.

        clock: gives the time of a change, while its vehicle is locked. spans: traces verification; None for none.
        """
        events = events or NullSink()
        self._trust = trust

        delivery = Delivery(store, trust, revocation, peers, external, settings, events)
        if spans is not None:
            delivery.trace(spans)
        self.deliver: Final = delivery.deliver
        previews = DeliveryPreviews(store, revocation, external, settings)
        self.preview_delivery: Final = previews.of

        contract_data = ContractData(store, revocation, external, settings, events)
        self.contract_data_by_emaid: Final = contract_data.by_emaid
        self.contract_data_by_pcid: Final = contract_data.by_pcid
        self.signed_contract_data: Final = contract_data.signed
        self.stored: Final = contract_data.stored

        reports = VerificationReports(trust, revocation, settings)
        self.explain_response: Final = reports.on_response
        self.explain_request: Final = reports.on_request
        self.examine: Final = Examinations(store, reports, previews).of

        self.publication: Final = Publication(
            store, trust, revocation, external, settings, events, reports, clock, metrics or Metrics()
        )
        if spans is not None:
            self.publication.trace(spans)
        self.publish: Final = self.publication.publish
        self.dry_run: Final = self.publication.dry_run

        maintenance = Maintenance(store, external, settings, events, clock)
        self.withdraw: Final = maintenance.withdraw
        self.set_default: Final = maintenance.set_default
        self.invalidate_vehicle: Final = maintenance.invalidate_vehicle
        self.purge_expired: Final = maintenance.purge_expired
        self.erase: Final = maintenance.erase

    @property
    def anchors(self) -> TrustAnchors:
        """The trust anchors now."""
        return self._trust.anchors
