"""What a vehicle would get now, without a request: the selection of a delivery for an assumed vehicle of an edition."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ccp.errors import CCPError, NotFound, Unavailable, UpstreamError
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain import contracts
from ccp.server.domain.contracts import NoDefaultPolicy, RootMatch, SignedContract, VehicleWish
from ccp.server.external.services import ExternalServices
from ccp.server.pool.delivery import undeliverable_reason
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import revocation as evidence
from ccp.server.trust.revocation import RevocationService

_MAX_CHAINS: Final = 255  # ISO 15118-20: MaximumContractCertificateChains is an unsigned byte.


@dataclass(frozen=True, slots=True)
class AssumedVehicle:
    """A vehicle that lists the V2G root of every contract, takes as many as it can, and prefers none."""

    namespace: Namespace
    prioritized_emaids: tuple[EMAID, ...] = ()
    max_chains: int = _MAX_CHAINS

    def trusts_root_of(self, contract: SignedContract, /) -> bool:
        """Whether the vehicle lists the variant's V2G root."""
        return True


@dataclass(frozen=True, slots=True)
class PreviewedVariant:
    """A variant of the edition. place: in the delivery, from 1; None if it is not delivered. reason: why not."""

    contract: SignedContract
    place: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class DeliveryPreview:
    """What a vehicle of an edition would get now.

    variants: of this edition; delivered ones first, in order. refusal: why it gets nothing; None if it gets a contract.
    notes: what could not be taken into account.
    """

    namespace: Namespace
    variants: tuple[PreviewedVariant, ...]
    refusal: CCPError | None
    notes: tuple[str, ...] = ()

    @property
    def delivered(self) -> list[SignedContract]:
        """The delivered contracts, in order."""
        return [each.contract for each in self.variants if each.place is not None]


class DeliveryPreviews:
    """Answers what a vehicle would get, by the code and the settings of a delivery. Other pools are not asked."""

    def __init__(
        self, store: Store, revocation: RevocationService, external: ExternalServices, settings: Settings
    ) -> None:
        self._store = store
        self._revocation = revocation
        self._provisioning_pool = external.provisioning_pool
        self._no_default: NoDefaultPolicy = settings.no_default_policy
        self._root_match: RootMatch = settings.root_match

    async def of(
        self,
        pcid: PCID,
        namespace: Namespace,
        stored: list[SignedContract],
        now: datetime,
        *,
        wish: VehicleWish | None = None,
    ) -> DeliveryPreview:
        """Preview a delivery. stored: every variant of the vehicle, of either namespace. wish: of a real request."""
        policy = self._revocation.rules
        refs = [ref for contract in stored for ref in contract.certificates or ()]
        state = await self._store.read(evidence.load(refs, policy))
        key, notes = await self._current_key(pcid, namespace, stored)

        # Each variant is examined once: a vehicle may have hundreds.
        problems = {contract: undeliverable_reason(contract, state, policy, key, now) for contract in stored}

        def deliverable(contract: SignedContract) -> bool:
            return problems[contract] is None

        refusal: CCPError | None = None
        places: dict[SignedContract, int] = {}
        try:
            selected = contracts.select(
                wish or AssumedVehicle(namespace),
                stored,
                now,
                deliverable=deliverable,
                max_one=False,
                no_default=self._no_default,
                root_match=self._root_match,
            )
            places = {contract: place for place, (contract, _) in enumerate(selected, start=1)}
        except NotFound as exc:
            refusal = exc

        placed = {contract.emaid for contract in places}
        not_selected: dict[EMAID, str | None] = {}

        def reason(contract: SignedContract) -> str | None:
            if contract in places:
                return None
            if not contract.valid_at(now):
                return "The contract certificate has expired." if contract.valid_to < now else _NOT_YET
            error = problems[contract]
            if error is not None:
                return str(error)
            if contract.emaid in placed:
                return "The vehicle gets another variant of this contract: the newest one whose V2G root it lists."
            if contract.emaid not in not_selected:
                not_selected[contract.emaid] = contracts.not_selected_reason(
                    contract, stored, now, deliverable=deliverable, no_default=self._no_default
                )
            return not_selected[contract.emaid]

        variants = [
            PreviewedVariant(contract, places.get(contract), reason(contract))
            for contract in stored
            if contract.namespace is namespace
        ]
        variants.sort(key=lambda each: (each.place is None, each.place or 0))
        return DeliveryPreview(namespace, tuple(variants), refusal, notes)

    async def _current_key(
        self, pcid: PCID, namespace: Namespace, stored: list[SignedContract]
    ) -> tuple[str | None, tuple[str, ...]]:
        """Fingerprint of the vehicle's current provisioning key, None if it is not known; and notes."""
        if self._provisioning_pool is None or not any(contract.provisioning_key for contract in stored):
            return None, ()
        try:
            current = await self._provisioning_pool.get_chain(pcid)
        except (Unavailable, UpstreamError) as exc:
            return None, (f"The vehicle's current key is not known: {exc}",)
        return (None, ()) if current is None else (current.key_for(namespace), ())


_NOT_YET: Final = "The contract certificate is not valid yet."
