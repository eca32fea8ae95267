"""Statistics of what the pool stores: contracts, vehicles, revocation evidence, webhooks. Pure.

One process counts at intervals and stores the result as JSON; every worker reads it (`ccp.server.pool.statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

EXPIRY_DAYS: Final = (7, 30, 90)
"""Windows of the expiry forecast, in days from now."""


class ContractState(StrEnum):
    """State of a contract. The first one that applies counts.

    EXPIRED: every variant has ended. REVOKED: the certificate of a variant is revoked. NO_EVIDENCE: the policy needs
    revocation evidence for a variant's certificate, and the stored one has expired; the contract is not delivered.
    VALID: none of these; a contract that begins later is included.
    """

    VALID = "valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NO_EVIDENCE = "no_evidence"


class VehicleState(StrEnum):
    """State of a vehicle that has contracts.

    CHOSEN: its manufacturer chose the default contract. AUTOMATIC: the pool did. CONTESTED: the same, and a second
    provider has published. NO_DEFAULT: it has no default contract.
    """

    CHOSEN = "chosen"
    AUTOMATIC = "automatic"
    CONTESTED = "contested"
    NO_DEFAULT = "no_default"


@dataclass(frozen=True, slots=True)
class EvidenceStatistics:
    """Stored revocation evidence of one kind (`ocsp` or `crl`) that the pool keeps up to date.

    current, expired: numbers of responses or lists. oldest: thisUpdate of the oldest one.
    """

    current: int
    expired: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class ProviderExpiry:
    """Contracts of a provider that end within each of the windows, in their order; a window includes the shorter ones.

    A contract ends when its first variant ends.
    """

    provider: str
    contracts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExpiryForecast:
    """Contracts that end soon, by provider: the provider that loses most contracts first.

    days: the windows, ascending. counted_at: time from which they are counted.
    """

    counted_at: datetime
    days: tuple[int, ...]
    providers: tuple[ProviderExpiry, ...]

    @classmethod
    def of(cls, counted_at: datetime, days: Sequence[int], rows: Mapping[str, Sequence[int]]) -> ExpiryForecast:
        """Build the forecast. rows: contracts in each window, by provider id."""
        found = [ProviderExpiry(provider, tuple(counts)) for provider, counts in rows.items() if any(counts)]
        found.sort(key=lambda each: ([-count for count in each.contracts], each.provider))
        return cls(counted_at, tuple(days), tuple(found))

    @property
    def totals(self) -> tuple[int, ...]:
        """The contracts of all providers in each window."""
        return tuple(sum(each.contracts[at] for each in self.providers) for at in range(len(self.days)))

    def members(self) -> dict[str, Any]:
        """The JSON of `ccp expiry` and of the admin API."""

        def windows(counts: Sequence[int]) -> list[dict[str, int]]:
            return [{"days": days, "contracts": count} for days, count in zip(self.days, counts, strict=True)]

        return {
            "counted_at": self.counted_at.isoformat(),
            "total": windows(self.totals),
            "providers": [
                {"provider_id": each.provider, "expiring": windows(each.contracts)} for each in self.providers
            ],
        }


@dataclass(frozen=True, slots=True)
class ContractStatistics:
    """Counts of contracts and vehicles at a time. seconds: what the counting took."""

    counted_at: datetime
    seconds: float
    contracts: Mapping[str, int]
    vehicles: Mapping[str, int]
    evidence: Mapping[str, EvidenceStatistics]
    expiry: ExpiryForecast

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {
            "seconds": self.seconds,
            "contracts": dict(self.contracts),
            "vehicles": dict(self.vehicles),
            "evidence": {
                kind: [each.current, each.expired, each.oldest and each.oldest.timestamp()]
                for kind, each in self.evidence.items()
            },
            "days": list(self.expiry.days),
            "expiry": {each.provider: list(each.contracts) for each in self.expiry.providers},
        }

    @classmethod
    def from_json(cls, counted_at: datetime, stored: Mapping[str, Any]) -> ContractStatistics:
        """Read the stored form. Raises KeyError, TypeError and ValueError for that of another release."""
        return cls(
            counted_at,
            float(stored["seconds"]),
            {str(state): int(count) for state, count in stored["contracts"].items()},
            {str(state): int(count) for state, count in stored["vehicles"].items()},
            {
                str(kind): EvidenceStatistics(
                    int(current), int(expired), oldest and datetime.fromtimestamp(oldest, counted_at.tzinfo)
                )
                for kind, (current, expired, oldest) in stored["evidence"].items()
            },
            ExpiryForecast.of(counted_at, stored["days"], stored["expiry"]),
        )


@dataclass(frozen=True, slots=True)
class WebhookBacklog:
    """Undelivered events of one webhook. oldest: since when the oldest one waits."""

    webhook_id: str
    client_id: str
    waiting: int
    dead: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookStatistics:
    """Undelivered events of each webhook that has some: the longest backlog first. seconds: what the counting took."""

    counted_at: datetime
    seconds: float
    webhooks: tuple[WebhookBacklog, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        return {
            "seconds": self.seconds,
            "webhooks": [
                [each.webhook_id, each.client_id, each.waiting, each.dead, each.oldest and each.oldest.timestamp()]
                for each in self.webhooks
            ],
        }

    @classmethod
    def from_json(cls, counted_at: datetime, stored: Mapping[str, Any]) -> WebhookStatistics:
        """Read the stored form. Raises KeyError, TypeError and ValueError for that of another release."""
        return cls(
            counted_at,
            float(stored["seconds"]),
            tuple(
                WebhookBacklog(
                    str(webhook_id),
                    str(client_id),
                    int(waiting),
                    int(dead),
                    oldest and datetime.fromtimestamp(oldest, counted_at.tzinfo),
                )
                for webhook_id, client_id, waiting, dead, oldest in stored["webhooks"]
            ),
        )


def is_due(counted_at: datetime | None, interval: timedelta, now: datetime) -> bool:
    """Whether statistics have to be counted again. A time in the future is that of a clock that was wrong."""
    return counted_at is None or not now - interval < counted_at <= now + interval
