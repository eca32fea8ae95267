"""Overview: what needs attention first, requests and refusals as charts, the state of the pool.

Counts are those that one process makes at intervals and stores for all (`ccp.server.pool.statistics`), and the counters
of requests by hour, so the page costs the same at any number of contracts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from starlette.responses import Response

from ccp.errors import FieldError
from ccp.ids import PCID
from ccp.server.console import attention, systems
from ccp.server.console.application import Console
from ccp.server.console.attention import Attention
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import age, number
from ccp.server.console.request_charts import ChartPeriod, RequestCharts, request_charts
from ccp.server.console.system_health import SystemHealth
from ccp.server.console.visit import Visit
from ccp.server.domain.parties import PartyRole
from ccp.server.domain.statistics import ContractState, ContractStatistics, VehicleState
from ccp.server.storage.queries import request_counts, vehicle_lock
from ccp.server.trust.anchors import expiry_warnings
from ccp.x509.profiles import AnchorRole

_PROVIDERS: Final = 10  # Of the expiry forecast.
_CODES: Final = 20
_CONTESTED: Final = 25
_PARTIES: Final = 100
_ATTENTION: Final = 25
_SYSTEMS: Final = 20


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its name. kind: warn, bad, or empty. path: of the page that shows more."""

    label: str
    value: str
    kind: str = ""
    note: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do before a new pool can deliver. command: empty if a partner does it."""

    text: str
    command: str
    is_done: bool


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the pages."""

    @console.page("/overview", "Overview", navigation=True)
    async def show(visit: Visit) -> Response:
        period = _period_of(visit)
        contracts = parts.statistics.contracts
        charts = await _charts(parts, period, visit.now)
        figures = [] if contracts is None else list(_contract_figures(contracts, visit.now))
        around = systems.all_health(
            await systems.load_peers(parts, visit.now), await systems.load_services(parts, visit.now)
        )
        urgent = attention.urgent_first(await _attention(parts, charts, around, visit.now))
        return visit.render(
            "overview.html",
            attention=urgent[:_ATTENTION],
            not_shown=len(urgent[_ATTENTION:]),
            systems=around[:_SYSTEMS],
            other_systems=len(around[_SYSTEMS:]),
            steps=await _first_steps(parts),
            counted=charts,
            periods=[(each.value, each.words) for each in ChartPeriod],
            codes=_CODES,
            figures=[*figures, *_other_figures(parts)],
            forecast=contracts and contracts.expiry,
            most=_PROVIDERS,
        )

    @console.page("/contested", "Contested vehicles")
    async def contested(visit: Visit) -> Response:
        found = await parts.store.read(vehicle_lock.list_contested(_after(visit), _CONTESTED + 1))
        shown = found[:_CONTESTED]
        following = visit.ids.handle(shown[-1].pcid) if len(found) > _CONTESTED else None
        return visit.render("contested.html", vehicles=shown, following=following)

    def _after(visit: Visit) -> str:
        text = visit.query("after")
        return str(visit.ids.resolve(PCID, text)) if text else ""


def _period_of(visit: Visit) -> ChartPeriod:
    text = visit.query("period", ChartPeriod.DAY)
    if text not in set(ChartPeriod):
        raise FieldError(f"period : must be one of {', '.join(ChartPeriod)}")
    return ChartPeriod(text)


async def _charts(parts: ConsoleParts, period: ChartPeriod, now: datetime) -> RequestCharts:
    counted = await parts.store.read(request_counts.read(period.begins(now)[0], now, period.step))
    return request_charts(counted, period, now)


async def _attention(
    parts: ConsoleParts, charts: RequestCharts, around: list[SystemHealth], now: datetime
) -> list[Attention]:
    examine = "Examine the pool there; the findings say what to do."
    problems = await parts.health.problems()
    found = [Attention("bad", sentence, "/health", "See the health", examine) for sentence in problems]
    found += attention.of_systems(around)
    found += attention.of_tasks(parts.background.states())
    found += attention.of_deliveries(charts)
    if parts.statistics.contracts is not None:
        found += attention.of_contracts(parts.statistics.contracts)
    if parts.statistics.webhooks is not None:
        found += attention.of_webhooks(parts.statistics.webhooks, now)
    found += [
        Attention("warn", text, "/anchors", "See the anchors", "Get its successor, and add it with ccp trust add.")
        for text in expiry_warnings(parts.trust.anchors, now)
    ]
    return found


async def _first_steps(parts: ConsoleParts) -> list[Step]:
    """What a new pool needs until it can deliver, in order; empty once contracts are stored."""
    counted = parts.statistics.contracts
    if counted is None or any(counted.contracts.values()):
        return []
    anchors = {role for anchor in parts.trust.anchors.anchors for role in anchor.roles}
    found, more = await parts.registry.list_page("", _PARTIES)
    roles = set(PartyRole) if more else {role for party in found if party.enabled for role in party.roles}
    return [
        Step(
            "Trust the V2G roots under which contracts are signed.",
            "ccp trust add v2g-root.pem --role v2g",
            AnchorRole.V2G in anchors,
        ),
        Step(
            "Trust the roots of the manufacturers whose vehicles ask.",
            "ccp trust add oem-root.pem --role oem",
            AnchorRole.OEM in anchors,
        ),
        Step(
            "Add the provisioning service that signs and publishes contracts, with the provider ids it signs for.",
            'ccp party add "Example CPS" --role cps --provider-id DEEXA',
            PartyRole.CPS in roles,
        ),
        Step(
            "Add the charging station operators, which bring the vehicles' requests.",
            'ccp party add "Example CPO" --role cpo',
            PartyRole.CPO in roles,
        ),
        Step("The provisioning service publishes the first contract.", "", False),
    ]


def _other_figures(parts: ConsoleParts) -> Iterator[Figure]:
    yield Figure("Trust anchors", str(len(parts.trust.anchors.anchors)), path="/anchors")
    if parts.statistics.webhooks is not None:
        backlogs = parts.statistics.webhooks.webhooks
        dead = sum(each.dead for each in backlogs)
        yield Figure("Events that wait", number(sum(each.waiting for each in backlogs)), path="/webhooks")
        yield Figure("Events given up", number(dead), "bad" if dead else "", path="/webhooks")
    yield Figure("External services", str(len(parts.config.services)), path="/partners#services")
    tasks = parts.background.states()
    failing = sum(1 for task in tasks if task.failures)
    note = f"{failing} failing" if failing else "all succeed"
    yield Figure("Background tasks", str(len(tasks)), "warn" if failing else "", note, "/health#tasks")


def _contract_figures(counted: ContractStatistics, now: datetime) -> Iterator[Figure]:
    yield Figure("Contracts", number(sum(counted.contracts.values())), note=f"counted {age(counted.counted_at, now)}")
    for state, label, kind in (
        (ContractState.VALID, "Valid", ""),
        (ContractState.EXPIRED, "Expired", ""),
        (ContractState.REVOKED, "Revoked", ""),
        (ContractState.NO_EVIDENCE, "Without evidence", "bad"),
    ):
        count = counted.contracts.get(state, 0)
        yield Figure(label, number(count), kind if count else "")
    contested = counted.vehicles.get(VehicleState.CONTESTED, 0)
    yield Figure("Vehicles", number(sum(counted.vehicles.values())))
    yield Figure("Contested vehicles", number(contested), "warn" if contested else "", path="/contested")
    for kind, evidence in sorted(counted.evidence.items()):
        note = f"oldest {age(evidence.oldest, now)}" if evidence.oldest else ""
        if evidence.expired:
            note = f"{number(evidence.expired)} expired, {note}" if note else f"{number(evidence.expired)} expired"
        name = {"ocsp": "OCSP responses", "crl": "CRLs"}.get(kind, kind)
        yield Figure(name, number(evidence.current + evidence.expired), "warn" if evidence.expired else "", note)
