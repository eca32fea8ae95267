"""Metrics of facts about the whole pool that every worker knows: built when they are queried, from memory.

They are not written to the workers' shared files: each worker would have the same values, and series that no longer
exist would stay. The number of series is bounded: where a label names an anchor, a provider or a webhook, the most
urgent ones have series of their own, and `other` has the sum of the rest.
"""

from __future__ import annotations

import heapq
import platform
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from ccp.server.domain.statistics import ContractStatistics, WebhookBacklog, WebhookStatistics

MAX_ANCHORS: Final = 100
MAX_PROVIDERS: Final = 100
MAX_WEBHOOKS: Final = 50
OTHER: Final = "other"
"""Label value of the sum of the rest."""


class AnchorExpiry(NamedTuple):
    """Expiry of a trust anchor in one role. not_after: seconds since 1970."""

    role: str
    fingerprint: str
    not_after: float


def build_info(version: str, schema_revision: str) -> Iterator[Metric]:
    """The release, the schema revision that it needs, and the Python version."""
    info = InfoMetricFamily("ccp_build", "Release of the pool.")
    members = {"version": version, "schema_revision": schema_revision, "python_version": platform.python_version()}
    info.add_metric((), members)
    yield info


def anchors(found: Iterable[AnchorExpiry]) -> Iterator[Metric]:
    """Trust anchors: their number by role, and the expiry of those that expire first."""
    found = list(found)
    numbers = GaugeMetricFamily("ccp_anchors", "Trusted root certificates.", labels=("role",))
    for role in sorted({each.role for each in found}):
        numbers.add_metric((role,), sum(each.role == role for each in found))
    expiry = GaugeMetricFamily(
        "ccp_anchor_not_after_timestamp_seconds",
        "End of validity of a trusted root certificate.",
        labels=("role", "fingerprint"),
    )
    for each in heapq.nsmallest(MAX_ANCHORS, found, key=lambda each: (each.not_after, each.fingerprint, each.role)):
        expiry.add_metric((each.role, each.fingerprint), each.not_after)
    yield numbers
    yield expiry


def statistics(contracts: ContractStatistics | None, webhooks: WebhookStatistics | None) -> Iterator[Metric]:
    """What was counted last, and when."""
    counted_at = GaugeMetricFamily(
        "ccp_statistics_timestamp_seconds", "Time of the last count of this kind.", labels=("kind",)
    )
    duration = GaugeMetricFamily(
        "ccp_statistics_duration_seconds", "Duration of the last count of this kind.", labels=("kind",)
    )
    for kind, counted in (("contracts", contracts), ("webhooks", webhooks)):
        if counted is not None:
            counted_at.add_metric((kind,), counted.counted_at.timestamp())
            duration.add_metric((kind,), counted.seconds)
    yield counted_at
    yield duration
    if contracts is not None:
        yield from _contracts(contracts)
    if webhooks is not None:
        yield from _webhooks(webhooks)


def _contracts(counted: ContractStatistics) -> Iterator[Metric]:
    contracts = GaugeMetricFamily("ccp_contracts", "Stored contracts by state.", labels=("state",))
    for state, count in counted.contracts.items():
        contracts.add_metric((state,), count)
    yield contracts
    vehicles = GaugeMetricFamily("ccp_vehicles", "Vehicles with contracts by state.", labels=("state",))
    for state, count in counted.vehicles.items():
        vehicles.add_metric((state,), count)
    yield vehicles
    evidence = GaugeMetricFamily(
        "ccp_revocation_evidence", "Stored OCSP responses and CRLs that are kept up to date.", labels=("kind", "state")
    )
    oldest = GaugeMetricFamily(
        "ccp_revocation_evidence_oldest_timestamp_seconds",
        "Time of issue (thisUpdate) of the oldest evidence of this kind.",
        labels=("kind",),
    )
    for kind, each in counted.evidence.items():
        evidence.add_metric((kind, "current"), each.current)
        evidence.add_metric((kind, "expired"), each.expired)
        if each.oldest is not None:
            oldest.add_metric((kind,), each.oldest.timestamp())
    yield evidence
    yield oldest
    expiring = GaugeMetricFamily(
        "ccp_contracts_expiring", "Contracts that end within a number of days.", labels=("provider", "days")
    )
    forecast = counted.expiry
    rest = forecast.providers[MAX_PROVIDERS:]
    rows = [(each.provider, each.contracts) for each in forecast.providers[:MAX_PROVIDERS]]
    # Also without any contract, so that an alert has a series to look at.
    rows.append((OTHER, tuple(sum(each.contracts[at] for each in rest) for at in range(len(forecast.days)))))
    for provider, counts in rows:
        for days, count in zip(forecast.days, counts, strict=True):
            expiring.add_metric((provider, str(days)), count)
    yield expiring


def _webhooks(counted: WebhookStatistics) -> Iterator[Metric]:
    events = GaugeMetricFamily(
        "ccp_webhook_events", "Undelivered events of a webhook by state.", labels=("webhook", "party", "state")
    )
    oldest = GaugeMetricFamily(
        "ccp_webhook_oldest_event_timestamp_seconds",
        "Time since when the oldest undelivered event of a webhook waits.",
        labels=("webhook", "party"),
    )
    rest = counted.webhooks[MAX_WEBHOOKS:]
    sums = WebhookBacklog(OTHER, OTHER, sum(each.waiting for each in rest), sum(each.dead for each in rest), None)
    for each in (*counted.webhooks[:MAX_WEBHOOKS], sums):
        events.add_metric((each.webhook_id, each.client_id, "waiting"), each.waiting)
        events.add_metric((each.webhook_id, each.client_id, "dead"), each.dead)
        if each.oldest is not None:
            oldest.add_metric((each.webhook_id, each.client_id), each.oldest.timestamp())
    yield events
    yield oldest
