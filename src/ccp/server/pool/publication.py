"""Stores contracts that passed every check of PUT: the transaction, its audit row, and what operators learn of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import structlog

from ccp.ids import EMAID, PCID
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.domain.parties import Caller
from ccp.server.metrics import Metrics
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, contracts
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.contracts import Published

_log = structlog.get_logger("ccp.server.pool.service")


def utc_now() -> datetime:
    return datetime.now(UTC)


class Publications:
    """clock: gives the time of a change, read while its vehicle is locked."""

    def __init__(self, store: Store, settings: Settings, clock: Callable[[], datetime], metrics: Metrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._rules = VehicleRules(
            settings.automatic_default,
            settings.max_contracts_per_vehicle,
            settings.max_contracts_per_vehicle_and_provider,
        )

    async def publish(self, caller: Caller, contract: SignedContract) -> None:
        """Store a contract; durable when this returns. Raises LimitExceeded, MismatchError, Unavailable."""
        self.note(caller, contract, await self._store.write(self.change(caller, contract)))

    async def check(self, emaid: EMAID, pcid: PCID, began: datetime) -> str:
        """What `publish` would refuse by what is stored now; nothing is changed. Returns what it would do.

        began: as `SignedContract.created_at` of what is published. Raises LimitExceeded, MismatchError, Unavailable.
        """
        return await self._store.read(contracts.check_publication(emaid, pcid, began, self._clock(), self._rules))

    def change(self, caller: Caller, contract: SignedContract, *, wanted: bool | None = None) -> Query[Published]:
        """The transaction. wanted: see `ccp.server.domain.default_contracts.after_publication`; for an import."""
        return audit.with_audit(
            contracts.publish(contract, self._clock, self._rules, wanted=wanted),
            lambda done: [_published(caller, contract, done)],
            caller.standing(lambda party: authorise(party, Operation.PUBLISH, contract.emaid)),
        )

    def note(self, caller: Caller, contract: SignedContract, done: Published) -> None:
        """Count and log what a publication brought about, once it is durable."""
        if done.rivals and done.created:
            self._metrics.vehicle_contested()
            _log.warning(
                "vehicle contested",
                trace_id=caller.trace_id,
                publisher=contract.emaid.provider,
                default_provider=done.default_provider,
                other_providers=sorted(done.rivals),
                wmi=contract.pcid.wmi,
            )


def _published(caller: Caller, contract: SignedContract, done: Published) -> Entry:
    subject: dict[str, str] = {
        "emaid": contract.emaid,
        "pcid": contract.pcid,
        "namespace": contract.namespace,
        "root": contract.root_fingerprint,
    }
    action = Action.CONTRACT_REPLACED if done.replaced else Action.CONTRACT_PUBLISHED
    if done.moved_from is not None:
        action, subject = Action.CONTRACT_MOVED, {**subject, "moved_from": done.moved_from}
    return Entry(done.at, caller.party.client_id, action, subject, trace_id=caller.trace_id)
