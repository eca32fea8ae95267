"""Overview: what needs attention first, then the state of the pool.

Counts are those that one process makes at intervals and stores for all (`ccp.server.pool.statistics`), so the page
costs the same at any number of contracts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from starlette.responses import Response

from ccp.server.console.application import Console
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.rendering import age, duration, number, plural
from ccp.server.console.visit import Visit
from ccp.server.domain.statistics import ContractState, ContractStatistics, VehicleState, WebhookStatistics
from ccp.server.trust.anchors import expiry_warnings

_PROVIDERS: Final = 10  # Of the expiry forecast.


@dataclass(frozen=True, slots=True)
class Attention:
    """A sentence about what needs attention. kind: bad or warn. path: of the page that shows more."""

    kind: str
    text: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its name. kind: warn, bad, or empty."""

    label: str
    value: str
    kind: str = ""
    note: str = ""


def register(console: Console, parts: ConsoleParts) -> None:
    """Register the page."""

    @console.page("/overview", "Overview", navigation=True)
    async def show(visit: Visit) -> Response:
        contracts, webhooks = parts.statistics.contracts, parts.statistics.webhooks
        attention = [Attention("bad", sentence, "/health") for sentence in await parts.health.problems()]
        attention += [Attention("warn", text, "/anchors") for text in expiry_warnings(parts.trust.anchors, visit.now)]
        figures = [Figure("Trust anchors", str(len(parts.trust.anchors.anchors)))]
        if contracts is not None:
            attention += _contract_problems(contracts)
            figures = [*_contract_figures(contracts, visit.now), *figures]
        if webhooks is not None:
            attention += _webhook_problems(webhooks, visit.now)
            figures.append(Figure("Events that wait", number(sum(each.waiting for each in webhooks.webhooks))))
        return visit.render(
            "overview.html",
            attention=sorted(attention, key=lambda each: each.kind),
            figures=figures,
            forecast=contracts and contracts.expiry,
            most=_PROVIDERS,
            counted_at=contracts and contracts.counted_at,
        )


def _contract_problems(counted: ContractStatistics) -> Iterator[Attention]:
    without = counted.contracts.get(ContractState.NO_EVIDENCE, 0)
    if without:
        text = f"{plural(without, 'contract')} cannot be delivered: their revocation evidence has expired."
        yield Attention("bad", text, "/health")
    contested = counted.vehicles.get(VehicleState.CONTESTED, 0)
    if contested:
        text = "have contracts of several providers, and no choice of the manufacturer."
        yield Attention("warn", f"{plural(contested, 'vehicle')} {text}")
    soon = counted.expiry.totals[0] if counted.expiry.totals else 0
    if soon:
        yield Attention("warn", f"{plural(soon, 'contract')} will end within {plural(counted.expiry.days[0], 'day')}.")


def _webhook_problems(counted: WebhookStatistics, now: datetime) -> Iterator[Attention]:
    for each in counted.webhooks[:5]:
        if each.dead:
            text = (
                f"{plural(each.dead, 'event')} to a webhook of {each.client_id} {'was' if each.dead == 1 else 'were'}"
            )
            yield Attention("bad", f"{text} given up.", f"/webhooks/{each.webhook_id}")
        elif each.oldest is not None and (now - each.oldest).total_seconds() > 3600:
            text = f"Events to a webhook of {each.client_id} have waited for {duration(now - each.oldest)}."
            yield Attention("warn", text, f"/webhooks/{each.webhook_id}")


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
    yield Figure("Contested vehicles", number(contested), "warn" if contested else "")
    for kind, evidence in sorted(counted.evidence.items()):
        note = f"oldest {age(evidence.oldest, now)}" if evidence.oldest else ""
        if evidence.expired:
            note = f"{number(evidence.expired)} expired, {note}" if note else f"{number(evidence.expired)} expired"
        name = {"ocsp": "OCSP responses", "crl": "CRLs"}.get(kind, kind)
        yield Figure(name, number(evidence.current + evidence.expired), "warn" if evidence.expired else "", note)
