"""Counts of what the pool stores, and the table that keeps them.

Counts read indexes from end to end, so they are `long_read`: one process at a time counts, at intervals, and stores the
result for all workers. The cost grows with the pool; `ccp_statistics_duration_seconds` shows it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from ccp.errors import ChainError
from ccp.server.domain.statistics import (
    ContractState,
    EvidenceStatistics,
    ExpiryForecast,
    VehicleState,
    WebhookBacklog,
)
from ccp.server.storage.engine.query import Query, long_read, read_committed, retryable
from ccp.server.storage.queries.vehicle_lock import instant, microseconds
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_policy import RevocationPolicy

MAX_LEASE: Final = timedelta(minutes=10)
"""Upper limit of the time for one count."""
_MAX_WEBHOOKS: Final = 100
# SQLite keeps the order of a cross join. By itself it reads every contract for the few certificates that are revoked.
_EVIDENCE_FIRST: Final = (
    "evidence e cross join contract c where c.certificate_issuer = e.issuer and c.certificate_serial = e.serial"
)
_MAX_AUTHORITIES: Final = 200  # Certificates with expired evidence that are looked at to find sub-CAs.


class Stored(NamedTuple):
    """Statistics as stored. counted_at: None if they were never counted."""

    name: str
    counted_at: datetime | None
    leased_until: datetime
    payload: Any


@read_committed
def load_all() -> Query[list[Stored]]:
    """The stored statistics, a row for each name."""
    rows = yield "select name, counted_at, lease_until, payload from statistics", ()
    return [
        Stored(name, instant(counted_at) if counted_at else None, instant(lease), json.loads(payload))
        for name, counted_at, lease, payload in rows
    ]


@retryable
def claim(name: str, counted_at: datetime | None, now: datetime, lease: timedelta) -> Query[bool]:
    """Claim the next count for this process. counted_at: of the last count that it knows.

    Returns False if another process is counting, or has counted since. lease: up to `MAX_LEASE`; a lease beyond it is
    that of a clock that was wrong, and does not count.
    """
    start = microseconds(now)
    rows = yield (
        "insert into statistics (name, counted_at, lease_until, payload) values ($1, 0, $2, 'null') "
        "on conflict (name) do update set lease_until = excluded.lease_until "
        "where statistics.counted_at = $3 and (statistics.lease_until <= $4 or statistics.lease_until > $5) "
        "returning name",
        (
            name,
            start + lease // timedelta(microseconds=1),
            microseconds(counted_at) if counted_at else 0,
            start,
            start + MAX_LEASE // timedelta(microseconds=1),
        ),
    )
    return bool(rows)


@retryable
def renew(name: str, leased_until: datetime, payload: Mapping[str, Any]) -> Query[None]:
    """Store an intermediate result, and extend the lease of this process."""
    yield (
        "update statistics set lease_until = $1, payload = $2 where name = $3",
        (microseconds(leased_until), json.dumps(payload), name),
    )


@retryable
def store(name: str, counted_at: datetime, payload: Mapping[str, Any]) -> Query[None]:
    """Store a count, and end the lease."""
    yield (
        "update statistics set counted_at = $1, lease_until = 0, payload = $2 where name = $3",
        (microseconds(counted_at), json.dumps(payload), name),
    )


# --- Contracts -------------------------------------------------------------------------------------------------------


@long_read
def expiry_forecast(now: datetime, days: Sequence[int]) -> Query[ExpiryForecast]:
    """Contracts that end within each of the windows, by provider. Reads the index of the longest window only.

    days: ascending, at least one. A contract whose first variant has ended already is not included.
    """
    start = int(now.timestamp())
    ends = [int((now + timedelta(days=each)).timestamp()) for each in days]
    counts = ", ".join(f"sum(case when ends <= ${at + 2} then 1 else 0 end)" for at in range(len(ends)))
    rows = yield (
        f"select provider, {counts} from ("  # noqa: S608  constants
        "select substr(emaid, 1, 5) as provider, min(valid_to) as ends from contract "
        f"where valid_to >= $1 and valid_to <= ${len(ends) + 1} group by emaid) as ending group by provider",
        (start, *ends),
    )
    return ExpiryForecast.of(now, days, {provider: [int(count) for count in found] for provider, *found in rows})


@long_read
def unexpired_contracts(now: datetime) -> Query[int]:
    """The number of contracts with a variant that has not ended."""
    rows = yield (
        "select count(*) from (select emaid from contract where valid_to >= $1 group by emaid) as unexpired",
        (int(now.timestamp()),),
    )
    return int(rows[0][0])


@long_read
def all_contracts() -> Query[int]:
    """The number of contracts."""
    rows = yield "select count(*) from emaid_claim", ()
    return int(rows[0][0])


@long_read
def revoked_contracts(now: datetime) -> Query[int]:
    """The number of contracts with an unexpired variant whose certificate is revoked. Cost: revoked certificates."""
    rows = yield (
        f"select count(distinct c.emaid) from {_EVIDENCE_FIRST} "  # noqa: S608  constants
        "and e.status = 'revoked' and c.valid_to >= $1",
        (int(now.timestamp()),),
    )
    return int(rows[0][0])


@long_read
def contracts_without_evidence(policy: RevocationPolicy, now: datetime) -> Query[int]:
    """The number of unexpired contracts that are not delivered because stored evidence has expired.

    Evidence is that of the contract certificate and of the sub-CAs above it, from OCSP or from a CRL. That of the
    provisioning service's certificates is not included: it is counted in `evidence_counts`. A contract whose variants
    have several issuers may count for each. Cost: the contracts that it concerns, and one pass through the evidence.
    """
    if not policy.enabled:
        return 0
    valid_to, limit = int(now.timestamp()), microseconds(now - policy.grace)
    rows = yield "select issuer, max(next_update) from crl group by issuer", ()
    listed = {issuer for issuer, _ in rows}
    overdue = sorted(issuer for issuer, next_update in rows if next_update < limit)
    # Certificates whose evidence is an OCSP response alone.
    rows = yield (
        f"select c.certificate_issuer, count(distinct c.emaid) from {_EVIDENCE_FIRST} "  # noqa: S608
        "and e.status <> 'revoked' and (e.status <> 'good' or e.next_update < $1) and c.valid_to >= $2 "
        "group by c.certificate_issuer",
        (limit, valid_to),
    )
    found = {issuer: int(count) for issuer, count in rows if issuer not in listed}
    # Certificates of issuers whose every list has expired, without a valid OCSP response.
    for issuer in overdue:
        rows = yield (
            "select count(distinct c.emaid) from contract c left join evidence e "
            "on e.issuer = c.certificate_issuer and e.serial = c.certificate_serial "
            "and (e.status = 'revoked' or (e.status = 'good' and e.next_update >= $1)) "
            "where c.certificate_issuer = $2 and c.valid_to >= $3 and e.serial is null",
            (limit, issuer, valid_to),
        )
        found[issuer] = int(rows[0][0])
    for issuer in (yield from _unknown_authorities(limit, listed - set(overdue))):
        rows = yield (
            "select count(distinct emaid) from contract where certificate_issuer = $1 and valid_to >= $2",
            (issuer, valid_to),
        )
        found[issuer] = int(rows[0][0])
    return sum(found.values())


def _unknown_authorities(limit: int, listed: set[str]) -> Query[list[str]]:
    """The key ids of sub-CAs whose own evidence has expired. listed: issuers with a valid list."""
    # Sub-CAs are valid for longer than the contracts that they issue, so they come first. The key id of any other
    # certificate is not that of an issuer.
    rows = yield (
        "select w.issuer, w.certificate from evidence e cross join watched_certificate w "
        "where w.issuer = e.issuer and w.serial = e.serial "
        "and e.status <> 'revoked' and (e.status <> 'good' or e.next_update < $1) "
        "order by w.not_after desc limit $2",
        (limit, _MAX_AUTHORITIES),
    )
    found = []
    for issuer, der in rows:
        if issuer not in listed:
            with suppress(ChainError):
                found.append(Certificate.load(der).issuer_key_id)
    return list(dict.fromkeys(found))


@long_read
def vehicles_by_state() -> Query[dict[str, int]]:
    """The number of vehicles with contracts in each `VehicleState`."""
    rows = yield (
        "select case when v.default_emaid is null then 'no_default' when v.default_chosen then 'chosen' "
        "when v.contested is not null then 'contested' else 'automatic' end as state, count(*) "
        "from vehicle v where v.default_emaid is not null "
        "or exists (select 1 from contract c where c.pcid = v.pcid) group by state",
        (),
    )
    return {state.value: 0 for state in VehicleState} | {state: int(count) for state, count in rows}


@long_read
def evidence_counts(now: datetime) -> Query[dict[str, EvidenceStatistics]]:
    """Evidence that the pool keeps up to date, by kind; without the grace that deliveries allow for expired evidence.

    OCSP responses and CRLs. A response that is not refreshed, such as that of a vehicle, does not count when it has
    expired.
    """
    at = microseconds(now)
    current = yield (
        "select count(*), min(this_update) from evidence where status = 'good' and next_update >= $1",
        (at,),
    )
    expired = yield (
        "select count(*), min(e.this_update) from evidence e cross join watched_certificate w "
        "where w.issuer = e.issuer and w.serial = e.serial and e.status = 'good' and e.next_update < $1",
        (at,),
    )
    lists = yield (
        "select sum(case when next_update >= $1 then 1 else 0 end), sum(case when next_update < $1 then 1 else 0 end), "
        "min(this_update) from crl",
        (at,),
    )
    found = {}
    for kind, fresh, late, *times in (
        ("ocsp", current[0][0], expired[0][0], current[0][1], expired[0][1]),
        ("crl", *lists[0]),
    ):
        oldest = min((each for each in times if each is not None), default=None)
        found[kind] = EvidenceStatistics(int(fresh or 0), int(late or 0), None if oldest is None else instant(oldest))
    return found


def by_state(all_contracts: int, unexpired: int, revoked: int, without_evidence: int) -> dict[str, int]:
    """The number of contracts in each `ContractState`, from counts that were taken one after another."""
    return {
        ContractState.EXPIRED.value: max(0, all_contracts - unexpired),
        ContractState.REVOKED.value: revoked,
        ContractState.NO_EVIDENCE.value: without_evidence,
        ContractState.VALID.value: max(0, unexpired - revoked - without_evidence),
    }


# --- Webhooks --------------------------------------------------------------------------------------------------------


@long_read
def longest_backlogs(limit: int = _MAX_WEBHOOKS) -> Query[list[WebhookBacklog]]:
    """The webhooks with most undelivered events. Cost: the undelivered events."""
    rows = yield (
        "select webhook_id, sum(case when state = 'waiting' then 1 else 0 end) as waiting, "
        "sum(case when state = 'dead' then 1 else 0 end) as dead, "
        "min(case when state = 'waiting' then queued_at end) from delivery where state in ('waiting', 'dead') "
        "group by webhook_id order by waiting desc, dead desc, webhook_id limit $1",
        (limit,),
    )
    found = []
    for webhook_id, waiting, dead, oldest in rows:
        owners = yield "select client_id from webhook where id = $1", (webhook_id,)
        client_id = owners[0][0] if owners else ""
        since = None if oldest is None else instant(oldest)
        found.append(WebhookBacklog(webhook_id, client_id, int(waiting), int(dead), since))
    return found
