"""Vehicles and contracts: search, contracts with their chains, and what a vehicle would get now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote

from starlette.responses import Response

from ccp import verify
from ccp.errors import EXIError, NotFound
from ccp.ids import EMAID, PCID, Namespace
from ccp.schemas.event_types import canonical
from ccp.server.console.application import Console
from ccp.server.console.audit_subjects import Detail, details_of
from ccp.server.console.certificate_chains import Chain, load_chains
from ccp.server.console.paging import portion
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import EDITIONS
from ccp.server.console.sessions import ConsoleRole
from ccp.server.console.visit import Visit
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.subscriptions import EventKind
from ccp.server.pool.delivery_preview import PreviewedVariant
from ccp.server.pool.refusal_reports import parse_ids
from ccp.server.storage.queries import audit, deliveries, handed_out, refusals, vehicle_lock
from ccp.server.storage.queries.deliveries import Delivery
from ccp.server.storage.queries.refusals import RefusalFilter
from ccp.verify.report import CheckResult
from ccp.x509.revocation_policy import DeferredRevocation

_EVENTS: Final = 50
_SHOWN_EVENTS: Final = 15
_HANDED_OUT: Final = 5
_REFUSALS: Final = 8
_VARIANTS: Final = 12
_SHOWN_AUDIT: Final = 15
_AUDIT_ROWS: Final = 2000
"""Rows of a shard of the audit trail that a page searches: there is no index for ids."""


@dataclass(frozen=True, slots=True)
class VariantDetail:
    """A variant with its chains and the result of every check on its message."""

    contract: SignedContract
    chains: tuple[Chain, ...]
    passed: bool
    checks: tuple[CheckResult, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A row of the audit trail that names the vehicle. number: shard and number."""

    at: datetime
    actor: str
    action: str
    outcome: str
    trace_id: str
    number: str
    details: tuple[Detail, ...]


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the pages."""

    @console.page("/search", "Find", navigation=True, role=ConsoleRole.ADMIN)
    async def search(visit: Visit) -> Response:
        text = visit.query("q")
        if not text:
            return visit.render("search.html", text="", canonical=[], problem=None)
        candidates = parse_ids(text)
        for found in candidates:
            stored = await _stored(parts, found)
            if stored or (isinstance(found, PCID) and await _known(parts, found)):
                kind = "contracts" if isinstance(found, EMAID) else "vehicles"
                return visit.redirect(f"/{kind}/{quote(visit.ids.handle(found))}")
        problem = (
            "Nothing is stored under this id."
            if candidates
            else "This is neither an EMAID (DE-8AA-C12345678-X, with or without hyphens and check digit) "
            "nor a PCID (17 or 18 letters and digits)."
        )
        return visit.render("search.html", 404, text=text, canonical=candidates, problem=problem)

    def not_stored(visit: Visit, named: EMAID | PCID) -> Response:
        return visit.render("search.html", 404, text="", canonical=[named], problem=None)

    @console.page("/vehicles/{id}", "Vehicle")
    async def vehicle(visit: Visit) -> Response:
        pcid = visit.ids.resolve(PCID, visit.path_part("id"))
        state = await parts.store.read(vehicle_lock.find_state(pcid))
        stored = await parts.pool.stored(None, pcid)
        refused = await parts.store.read(refusals.search_page(RefusalFilter(pcid=pcid), _REFUSALS))
        if state is None and not stored and not refused.found:
            return not_stored(visit, pcid)
        sent = await parts.store.read(deliveries.of_vehicle(pcid, _EVENTS))
        return visit.render(
            "vehicle.html",
            title=f"Vehicle {visit.ids.show(pcid)}",
            pcid=pcid,
            state=state,
            stored=portion(visit, _in_order(stored), _VARIANTS),
            previews=[await parts.pool.preview_delivery(pcid, edition, stored, visit.now) for edition in EDITIONS],
            no_default=parts.config.no_default_policy.value,
            editions=EDITIONS,
            sent=sent[:_SHOWN_EVENTS],
            more_sent=len(sent) > _SHOWN_EVENTS,
            delivered=_delivered(sent)[:_SHOWN_EVENTS],
            handed_out=await parts.store.read(handed_out.of_vehicle(pcid, _HANDED_OUT)),
            refused=refused,
            lines=await _audit_lines(parts, visit, pcid),
            named=pcid,
        )

    @console.page("/contracts/{id}", "Contract")
    async def contract(visit: Visit) -> Response:
        emaid = visit.ids.resolve(EMAID, visit.path_part("id"))
        found = await parts.pool.stored(emaid, None)
        of_vehicle = await parts.pool.stored(None, found[0].pcid) if found else []
        variants = [each for each in of_vehicle if each.emaid == emaid]
        if not variants:
            return not_stored(visit, emaid)
        variants.sort(key=lambda each: each.updated_at, reverse=True)
        pcid = variants[0].pcid
        previews = [
            await parts.pool.preview_delivery(pcid, edition, of_vehicle, visit.now)
            for edition in EDITIONS
            if any(each.namespace is edition for each in variants)
        ]
        outcome = {each.contract: each for preview in previews for each in preview.variants}
        shown = _wanted(visit.query("variant"), variants, outcome)
        sent = [each for each in await parts.store.read(deliveries.of_vehicle(pcid, _EVENTS)) if each.emaid == emaid]
        remembered = await parts.store.read(handed_out.of_vehicle(pcid, _HANDED_OUT))
        return visit.render(
            "contract.html",
            title=f"Contract {visit.ids.show(emaid)}",
            emaid=emaid,
            pcid=pcid,
            editions=EDITIONS,
            state=await parts.store.read(vehicle_lock.find_state(pcid)),
            previews=previews,
            no_default=parts.config.no_default_policy.value,
            variants=portion(visit, variants, _VARIANTS),
            detail=await _detail(parts, shown, visit.now),
            name_of=name_of,
            outcome=outcome,
            sent=sent[:_SHOWN_EVENTS],
            more_sent=len(sent) > _SHOWN_EVENTS,
            delivered=_delivered(sent)[:_SHOWN_EVENTS],
            handed_out=[each for each in remembered if emaid in each.emaids],
            refused=await parts.store.read(refusals.search_page(RefusalFilter(pcid=pcid), _REFUSALS)),
            lines=await _audit_lines(parts, visit, pcid, emaid),
            named=emaid,
        )


def _delivered(sent: list[Delivery]) -> list[Delivery]:
    """The events that report deliveries."""
    return [each for each in sent if canonical(each.kind) == EventKind.DELIVERED]


def _in_order(stored: Sequence[SignedContract]) -> list[SignedContract]:
    return sorted(stored, key=lambda each: (each.namespace, not each.is_default, each.emaid, each.root_fingerprint))


def name_of(variant: SignedContract) -> str:
    """The variant of a contract in an address."""
    return f"{'2' if variant.namespace is Namespace.ISO2 else '20'}-{variant.root_fingerprint}"


def _wanted(
    name: str, variants: list[SignedContract], outcome: Mapping[SignedContract, PreviewedVariant]
) -> SignedContract:
    """The variant that a request names, or else the newest of those that a vehicle would get, or the newest one."""
    if name:
        found = next((each for each in variants if name_of(each) == name), None)
        if found is None:
            raise NotFound("This variant of the contract is not stored, or not any more.")
        return found
    return next((each for each in variants if outcome[each].place is not None), variants[0])


async def _stored(parts: ConsoleParts, canonical: EMAID | PCID) -> list[SignedContract]:
    is_contract = isinstance(canonical, EMAID)
    return await parts.pool.stored(canonical if is_contract else None, None if is_contract else canonical)  # type: ignore[arg-type]


async def _known(parts: ConsoleParts, pcid: PCID) -> bool:
    if await parts.store.read(vehicle_lock.find_state(pcid)) is not None:
        return True
    return bool((await parts.store.read(refusals.search_page(RefusalFilter(pcid=pcid), 1))).found)


async def _detail(parts: ConsoleParts, contract: SignedContract, now: datetime) -> VariantDetail:
    """Verify a stored variant again, as PUT does; nothing is fetched."""
    try:
        message = verify.read_response(contract.response, contract.namespace)
    except EXIError as exc:
        return VariantDetail(contract, (), False, (), (str(exc),))
    deferred = DeferredRevocation()
    checks, warnings = await parts.pool.explain_response(
        message, emaid=contract.emaid, root=contract.root_fingerprint, now=now, fetch=False, deferred=deferred
    )
    paths = (
        ("Contract", (message.contract_certificate, *message.contract_sub_certificates)),
        ("Provisioning service", (message.cps_certificate, *message.cps_sub_certificates)),
    )
    chains = await load_chains(parts, paths, deferred.chains, now)
    return VariantDetail(contract, chains, checks.passed, tuple(checks.results), tuple(warnings))


async def _audit_lines(parts: ConsoleParts, visit: Visit, pcid: PCID, emaid: EMAID | None = None) -> list[AuditLine]:
    rows = await parts.store.read(audit.latest_naming(str(pcid), _AUDIT_ROWS))
    return [
        AuditLine(
            row.when,
            row.actor,
            row.action,
            row.outcome,
            row.trace_id or "",
            f"{row.lane}/{row.number}",
            tuple(details_of(row.subject, visit.ids)),
        )
        for row in [row for row in rows if emaid is None or row.names(str(emaid))][: _SHOWN_AUDIT + 1]
    ]
