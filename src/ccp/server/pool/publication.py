"""Publication: verify the signed response of a PUT and store it.

    validate: verify the message -> revocation status -> provisioning key        nothing is stored
    store:    one transaction { claim the EMAID, lock the vehicle, upsert the variant, default rule, event, audit row }

An import does both in different processes (`ccp.server.bulk`). A dry run reports every check and stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ccp import verify
from ccp.exi.base64_text import message_bytes
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.authorization import Operation, authorise
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.domain.parties import Caller
from ccp.server.events import EventSink
from ccp.server.external.services import ExternalServices
from ccp.server.metrics import Metrics
from ccp.server.pool.verification_reports import VerificationReports
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import audit, contracts
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.contracts import Published
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.verify import lint
from ccp.verify.report import CheckList
from ccp.x509.revocation_policy import DeferredRevocation

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.pool.publication")

_UNSIGNED: Final = "It is checked only for messages that a trusted provisioning service signed."


@dataclass(frozen=True, slots=True)
class ValidatedContract:
    """A contract that passed every check of PUT and is not stored yet. warnings: sentences for its publisher."""

    contract: SignedContract
    warnings: tuple[str, ...]


class Publication:
    """Validates and stores contracts."""

    def __init__(
        self,
        store: Store,
        trust: TrustStore,
        revocation: RevocationService,
        external: ExternalServices,
        settings: Settings,
        events: EventSink,
        reports: VerificationReports,
        clock: Callable[[], datetime],
        metrics: Metrics,
    ) -> None:
        """events: is notified of each stored contract.

        clock: gives the time of a change, while its vehicle is locked.
        """
        self._store = store
        self._trust = trust
        self._revocation = revocation
        self._provisioning_pool = external.provisioning_pool
        self._events = events
        self._reports = reports
        self._clock = clock
        self._metrics = metrics
        self._known_vehicles_only: bool = settings.require_known_vehicle is not False
        self._rules = VehicleRules(
            settings.automatic_default,
            settings.max_contracts_per_vehicle,
            settings.max_contracts_per_vehicle_and_provider,
        )

    async def publish(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        now: datetime,
        began: datetime | None = None,
    ) -> None:
        """Verify a signed response and store it. The contract is durable when this returns.

        message: EXI or XML, in Base64; EXI is stored. root: fingerprint of the V2G root that the publisher names.
        began: arrival time of the request, if its body took time to arrive; the contract is refused if its vehicle's
        provisioning certificate has changed since then. Raises NotAuthorised, FieldError, EXIError, MismatchError,
        VerificationError, LimitExceeded, Unavailable.
        """
        validated = await self.validate(
            caller, emaid=emaid, pcid=pcid, namespace=namespace, message=message, root=root, metadata=metadata, now=now,
            began=began,
        )  # fmt: skip
        await self.store(caller, validated.contract)
        self._events.change_committed()
        if validated.warnings:
            _log.warning("published with warnings", owner=emaid.provider, warnings=validated.warnings)

    async def validate(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        metadata: str | None,
        now: datetime,
        began: datetime | None = None,
    ) -> ValidatedContract:
        """Make every check of `publish` that needs no lock. Arguments and errors are those of `publish`."""
        authorise(caller.party, Operation.PUBLISH, emaid)
        response = verify.read_response(message_bytes(message, allow_xml=True), namespace)
        verified = verify.check_response(
            response, emaid=emaid, root=root, anchors=self._trust.anchors, revocation=DeferredRevocation(), now=now
        )
        cleared = await self._revocation.ensure_good(
            (verified.contract_chain, verified.cps_chain), now, caller=caller.party.client_id
        )
        key = None
        if self._provisioning_pool is not None:
            chain = await self._provisioning_pool.chain_for_publication(pcid, required=self._known_vehicles_only)
            key = None if chain is None else chain.key_for(namespace)
        contract = signed_contract(
            verified, pcid, metadata, began or now, certificates=cleared.keys, provisioning_key=key
        )
        leaves = verified.contract_chain.leaf, verified.cps_chain.leaf
        return ValidatedContract(contract, lint.lint_response(response, self._trust.anchors, now, leaves))

    def trace(self, spans: Spans) -> None:
        """Give the verification of publications a span from now on."""
        self.validate = spans.traced("verify response", self.validate)  # type: ignore[method-assign]

    async def store(self, caller: Caller, contract: SignedContract) -> None:
        """Store a validated contract; durable when this returns. Raises LimitExceeded, MismatchError, Unavailable."""
        self.record(caller, contract, await self._store.write(self.transaction(caller, contract)))

    def transaction(self, caller: Caller, contract: SignedContract, *, default: bool | None = None) -> Query[Published]:
        """The transaction that stores a contract, with its audit row.

        default: for an import, whether the contract shall be its vehicle's default; see
        `ccp.server.domain.default_contracts.default_after_publication`.
        """
        return audit.with_audit(
            contracts.publish(contract, self._clock, self._rules, wanted=default),
            lambda done: [_audit_entry(caller, contract, done)],
            caller.standing(lambda party: authorise(party, Operation.PUBLISH, contract.emaid)),
        )

    def record(self, caller: Caller, contract: SignedContract, published: Published) -> None:
        """Count and log the outcome of a publication, once it is durable."""
        if published.contesting_providers and published.created:
            self._metrics.vehicle_contested()
            _log.warning(
                "vehicle contested",
                trace_id=caller.trace_id,
                publisher=contract.emaid.provider,
                default_provider=published.default_provider,
                other_providers=sorted(published.contesting_providers),
                wmi=contract.pcid.wmi,
            )

    async def dry_run(
        self,
        caller: Caller,
        *,
        emaid: EMAID,
        pcid: PCID,
        namespace: Namespace,
        message: str,
        root: Fingerprint | None,
        now: datetime,
        began: datetime | None = None,
    ) -> tuple[CheckList, tuple[str, ...]]:
        """Report what `publish` would do: every check, and the warnings. Nothing is stored and no vehicle is locked.

        Checks of the vehicle are made only for a message that a trusted provisioning service signed. Otherwise any
        caller could learn about vehicles, or cause queries to the Provisioning Certificate Pool. began: see `publish`.
        Raises NotAuthorised, EXIError.
        """
        authorise(caller.party, Operation.PUBLISH, emaid)
        response = verify.read_response(message_bytes(message, allow_xml=True), namespace)
        deferred = DeferredRevocation()
        checks, warnings = await self._reports.on_response(
            response, emaid=emaid, root=root, now=now, fetch=True, caller=caller.party.client_id, deferred=deferred
        )
        trusted = bool(deferred.chains)
        if self._provisioning_pool is not None and self._known_vehicles_only:
            known = partial(self._provisioning_pool.chain_for_publication, pcid, required=True)
            await checks.run_async(
                "vehicle known to the Provisioning Certificate Pool", known, enabled=trusted, skip_reason=_UNSIGNED
            )
        await checks.run_async(
            "contracts of the vehicle",
            partial(self._check_vehicle, emaid, pcid, began or now),
            enabled=trusted,
            skip_reason=_UNSIGNED,
            evidence=lambda sentence: (sentence,),
        )
        return checks, warnings

    async def _check_vehicle(self, emaid: EMAID, pcid: PCID, began: datetime) -> str:
        """Check the rules that depend on what is stored for the vehicle, without a change or a lock.

        began: as `SignedContract.created_at` of the contract. Returns what storing it would do, as a sentence. Raises
        LimitExceeded, MismatchError, Unavailable.
        """
        return await self._store.read(contracts.check_publication(emaid, pcid, began, self._clock(), self._rules))


def _audit_entry(caller: Caller, contract: SignedContract, published: Published) -> Entry:
    subject: dict[str, str] = {
        "emaid": contract.emaid,
        "pcid": contract.pcid,
        "namespace": contract.namespace,
        "root": contract.root_fingerprint,
    }
    action = Action.CONTRACT_REPLACED if published.replaced else Action.CONTRACT_PUBLISHED
    if published.moved_from is not None:
        action, subject = Action.CONTRACT_MOVED, {**subject, "moved_from": published.moved_from}
    return Entry(published.at, caller.party.client_id, action, subject, trace_id=caller.trace_id)
