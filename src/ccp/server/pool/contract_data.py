"""Contract data: what eMSPs, vehicle makers and operators read about stored contracts."""

from __future__ import annotations

from datetime import datetime

from ccp import verify
from ccp.errors import NoContract
from ccp.errors.codes import ErrorCode
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain import contracts
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.contracts import NoDefaultPolicy, SignedContract
from ccp.server.domain.parties import Caller
from ccp.server.events import EventSink
from ccp.server.external.services import ExternalServices
from ccp.server.pool.delivery import DeliveredContract, undeliverable_reason
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import contracts as queries
from ccp.server.storage.queries import revocation as evidence
from ccp.server.trust.revocation import RevocationService


class ContractData:
    """Reads contracts by EMAID and PCID."""

    def __init__(
        self,
        store: Store,
        revocation: RevocationService,
        external: ExternalServices,
        settings: Settings,
        events: EventSink,
    ) -> None:
        """events: is notified of contracts that `signed_contract_data` returns."""
        self._store = store
        self._revocation = revocation
        self._provisioning_pool = external.provisioning_pool
        self._events = events
        self._no_default: NoDefaultPolicy = settings.no_default_policy

    async def by_emaid(
        self, caller: Caller, emaid: EMAID, namespace: Namespace, root: Fingerprint | None, now: datetime
    ) -> list[tuple[SignedContract, str | None]]:
        """The variants of a contract, newest first, each with the reason why its vehicle would not get it, if any.

        Raises NotAuthorised, NotFound.
        """
        authorise(caller.party, Operation.GET_CONTRACT_DATA_BY_EMAID, emaid)
        stored = await self._store.read(queries.by_emaid(emaid))
        found = _matching(stored, namespace, root, "The contract for the given EMAID not found.")
        vehicle = await self._store.read(queries.by_vehicle(found[0].pcid))
        refs = [ref for contract in (*found, *vehicle) for ref in contract.certificates or ()]
        policy = self._revocation.rules
        state = await self._store.read(evidence.load(refs, policy))
        key = None
        if self._provisioning_pool is not None and any(contract.provisioning_key for contract in found):
            current = await self._provisioning_pool.get_chain(found[0].pcid)
            key = None if current is None else current.key_for(namespace)

        def deliverable(contract: SignedContract) -> bool:
            return undeliverable_reason(contract, state, policy, key, now) is None

        def reason(contract: SignedContract) -> str | None:
            error = undeliverable_reason(contract, state, policy, key, now)
            if error is not None:
                return str(error)
            return contracts.not_selected_reason(
                contract, vehicle, now, deliverable=deliverable, no_default=self._no_default
            )

        return [(contract, reason(contract)) for contract in found]

    async def by_pcid(self, caller: Caller, pcid: PCID, namespace: Namespace) -> list[SignedContract]:
        """The variants of a vehicle's contracts, newest first. Raises NotAuthorised, NotFound."""
        authorise(caller.party, Operation.GET_CONTRACT_DATA_BY_PCID, pcid)
        stored = await self._store.read(queries.by_vehicle(pcid))
        return _matching(stored, namespace, None, "No contract for the given PCID found.")

    async def signed(
        self,
        caller: Caller,
        emaid: EMAID,
        pcid: PCID,
        *,
        session_id: bytes,
        namespace: Namespace,
        root: Fingerprint | None,
        now: datetime,
        notify: bool = True,
    ) -> list[DeliveredContract]:
        """A contract's response messages for the vehicle's maker, newest first.

        session_id: written into the responses; if empty, they are returned as they were published. notify: cause the
        event that contracts were delivered; False for a HEAD request, which returns no response. Raises NotAuthorised,
        NotFound.
        """
        authorise(caller.party, Operation.GET_SIGNED_CONTRACT_DATA, pcid)
        stored = await self._store.read(queries.by_vehicle_and_emaid(pcid, emaid))
        found = _matching(stored, namespace, root, "The contract for the given EMAID not found.")
        if notify:
            self._events.contracts_delivered(found, now)
        return [
            DeliveredContract(c, verify.with_session(c, session_id, now) if session_id else c.response) for c in found
        ]

    async def stored(self, emaid: EMAID | None, pcid: PCID | None) -> list[SignedContract]:
        """Every variant of a contract, or of all contracts of a vehicle. For the operator: no caller is authorised."""
        if emaid is not None:
            return await self._store.read(queries.by_emaid(emaid))
        return [] if pcid is None else await self._store.read(queries.by_vehicle(pcid))


def _matching(
    stored: list[SignedContract], namespace: Namespace, root: Fingerprint | None, not_found: str
) -> list[SignedContract]:
    """The contracts of a namespace and root, newest first. Raises NoContract with the sentence `not_found`."""
    found = [c for c in stored if c.namespace is namespace and (root is None or c.root_fingerprint == root)]
    if not found:
        raise NoContract(not_found, code=ErrorCode.CONTRACT_NOT_FOUND)
    return sorted(found, key=lambda contract: contract.updated_at, reverse=True)
