"""What needs attention first: sentences from the state of the pool, the most urgent first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote

from ccp.server.console.rendering import duration, percent, plural
from ccp.server.console.request_charts import RequestCharts
from ccp.server.console.system_health import SystemHealth
from ccp.server.domain.statistics import ContractState, ContractStatistics, VehicleState, WebhookStatistics
from ccp.server.runtime.background import TaskState

_WEBHOOKS: Final = 5
_WAITED: Final = 3600.0
"""Seconds after which events that wait need attention."""
_REFUSED_SHARE: Final = 0.1
_REFUSED_LEAST: Final = 10
_TASK_FAILURES: Final = 3
"""Failed rounds in a row. One failure is repeated at once, and often succeeds."""


@dataclass(frozen=True, slots=True)
class Attention:
    """A sentence about what needs attention, and what to do.

    kind: bad or warn. path: of the page that shows more, below the prefix. label: its link. action: a sentence.
    """

    kind: str
    text: str
    path: str = ""
    label: str = "Show"
    action: str = ""


def urgent_first(found: Iterable[Attention]) -> list[Attention]:
    """Problems before warnings, otherwise in their order."""
    return sorted(found, key=lambda each: each.kind)


def of_contracts(counted: ContractStatistics) -> Iterator[Attention]:
    """Contracts that are not delivered, contested vehicles, contracts that end."""
    without = counted.contracts.get(ContractState.NO_EVIDENCE, 0)
    if without:
        text = f"{plural(without, 'contract')} cannot be delivered: their revocation evidence has expired."
        yield Attention("bad", text, "/health", "Run the checks", "See which CRL or OCSP responder does not answer.")
    contested = counted.vehicles.get(VehicleState.CONTESTED, 0)
    if contested:
        verb = "has" if contested == 1 else "have"
        text = f"{plural(contested, 'vehicle')} {verb} contracts of several providers, and no choice by the OEM."
        yield Attention("warn", text, "/contested", "List the vehicles", "Ask the manufacturers to choose.")
    soon = counted.expiry.totals[0] if counted.expiry.totals else 0
    if soon:
        verb = "ends" if soon == 1 else "end"
        text = f"{plural(soon, 'contract')} {verb} within {plural(counted.expiry.days[0], 'day')}."
        action = "Ask the providers to publish renewed contracts."
        yield Attention("warn", text, "/overview#forecast", "See which providers", action)


def of_webhooks(counted: WebhookStatistics, now: datetime) -> Iterator[Attention]:
    """Webhooks with events that were given up or wait for long."""
    for each in counted.webhooks[:_WEBHOOKS]:
        path = f"/webhooks/{each.webhook_id}"
        if each.dead:
            verb = "was" if each.dead == 1 else "were"
            text = f"{plural(each.dead, 'event')} to a webhook of {each.client_id} {verb} given up."
            action = "Ask the partner what it refused; then send them again."
            yield Attention("bad", text, f"{path}?state=dead", "See why, and send again", action)
        elif each.oldest is not None and (now - each.oldest).total_seconds() > _WAITED:
            text = f"Events to a webhook of {each.client_id} have waited for {duration(now - each.oldest)}."
            yield Attention("warn", text, path, "See the last responses", "Ask the partner to mend its receiver.")


def of_systems(systems: Iterable[SystemHealth]) -> Iterator[Attention]:
    """Peers, external services and subscriptions that do not work."""
    for each in systems:
        if each.kind in ("bad", "warn"):
            text = f"{each.name} ({each.what}): {each.words or each.state}"
            yield Attention(each.kind, text, each.path, "See it, and test it", each.action)


def of_tasks(tasks: Sequence[TaskState]) -> Iterator[Attention]:
    """Background tasks that keep failing."""
    for task in tasks:
        if task.failures >= _TASK_FAILURES:
            text = f"The background task {task.name} has failed {task.failures} times in a row: {task.reason}"
            action = "The log has the cause; it is repeated by itself."
            kind = "bad" if task.critical else "warn"
            yield Attention(kind, text.rstrip(".") + ".", "/health#tasks", "See the tasks", action)


def of_deliveries(charts: RequestCharts) -> Iterator[Attention]:
    """A large share of refused deliveries. The sentence names the most frequent reason."""
    delivered, refused = (line.total for line in charts.deliveries.series)
    if refused < _REFUSED_LEAST or refused < _REFUSED_SHARE * (delivered + refused):
        return
    share = percent(refused, delivered + refused)
    text = f"{share} of the vehicles' requests in {charts.period.words} got no contract."
    main = max((each for each in charts.reasons if each.recorded), key=lambda each: each.recorded, default=None)
    if main is None:
        yield Attention("warn", text)
        return
    action = f"{main.code.responsible.value}: {main.code.action}" if main.code else ""
    path = f"/refusals?code={quote(main.name)}"
    yield Attention("warn", f"{text} Most: {main.name}.", path, "See these refusals", action)
