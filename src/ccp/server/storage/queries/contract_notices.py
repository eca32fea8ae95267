"""Events about stored contracts that nothing has changed: they expire soon, or their vehicle does not get them.

Each is written once. The row of a variant holds what was written (columns `expiring_days` and `undeliverable`); a
publication of the variant clears it. A write locks the claim on the EMAID, the vehicle and its contracts, in this order
as all writers do, so that no variant changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from ccp.ids import EMAID, PCID
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.subscriptions import EventKind, UndeliverableReason
from ccp.server.storage.engine.query import Query, long_read, retryable
from ccp.server.storage.queries.contract_portions import FIRST_CONTRACT, PORTION, Cursor, Portion, portion
from ccp.server.storage.queries.contracts import event
from ccp.server.storage.queries.vehicle_lock import Now, lock_vehicle, microseconds, read_clock

# Variants of a contract may end at slightly different times. One event is about all of them.
_TOGETHER: Final = timedelta(days=1)


def reached_notice(valid_to: datetime, reported: int | None, days: Collection[int], now: datetime) -> int | None:
    """The shortest notice, in days, that a contract has reached and that was not reported. None without one.

    valid_to: end of the contract. reported: the shortest one that was reported, None for none.
    """
    reached = [
        notice
        for notice in days
        if now <= valid_to <= now + timedelta(days=notice) and (reported is None or reported > notice)
    ]
    return min(reached, default=None)


@long_read
def expiring(
    days: Collection[int], now: datetime, after: Cursor = FIRST_CONTRACT, limit: int = PORTION
) -> Query[Portion]:
    """Contracts with a variant that has reached a notice, in portions of an index."""
    until = now + timedelta(days=max(days))
    rows = yield (
        "select valid_to, emaid, expiring_days from contract where valid_to >= $1 and valid_to <= $2 "
        "and (valid_to, emaid) > ($3, $4) order by valid_to, emaid limit $5",
        (int(now.timestamp()), int(until.timestamp()), *after, limit),
    )
    due = (
        emaid
        for valid_to, emaid, reported in rows
        if reached_notice(datetime.fromtimestamp(valid_to, UTC), reported, days, now) is not None
    )
    return portion(due, [row[:2] for row in rows], limit)


@retryable
def report_expiring(emaid: EMAID, days: Sequence[int], now: Now) -> Query[int]:
    """Write the event of each notice that a contract has reached, unless it was written before. Returns how many."""
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims:
        return 0
    pcid, time, written = PCID(claims[0][0]), read_clock(now), 0
    select = "select namespace, root_fingerprint, valid_to, expiring_days from contract where pcid = $1 and emaid = $2"
    for notice in sorted(days):
        variants = yield select, (pcid, emaid)
        due = [
            (namespace, root, datetime.fromtimestamp(valid_to, UTC))
            for namespace, root, valid_to, reported in variants
            if reported is None or reported > notice
        ]
        due = [one for one in due if time <= one[2] <= time + timedelta(days=notice) + _TOGETHER]
        if not due or min(one[2] for one in due) > time + timedelta(days=notice):
            continue
        vehicle = yield from lock_vehicle(pcid, now)
        for namespace, root, _ in due:
            yield (
                "update contract set expiring_days = $1 "
                "where pcid = $2 and emaid = $3 and namespace = $4 and root_fingerprint = $5",
                (notice, pcid, emaid, namespace, root),
            )
        members = {"validTo": rfc3339(min(one[2] for one in due)), "noticeDays": notice}
        yield event(EventKind.EXPIRING, emaid, pcid, vehicle, {one[0] for one in due}, **members)
        written += 1
    return written


class Undeliverable(NamedTuple):
    """A contract that its vehicle did not get. newest: `updated_at` of its newest variant of the namespace."""

    emaid: EMAID
    pcid: PCID
    namespace: str
    reason: UndeliverableReason
    newest: datetime


_MARKS: Final = "select undeliverable, updated_at from contract where pcid = $1 and emaid = $2 and namespace = $3"


@retryable
def report_undeliverable(found: Undeliverable, now: Now) -> Query[bool]:
    """Write the event of an undeliverable contract. Returns whether it was written.

    It is not written if it was before, and if the contract has been published again since it was found.
    """
    if not (yield from _is_news(found)):
        return False  # Without a lock: a vehicle may ask again and again.
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (found.emaid,)
    if not claims or claims[0][0] != found.pcid or not (yield from _is_news(found)):
        return False
    yield from _write(found.emaid, found.pcid, {found.namespace}, found.reason, now)
    return True


def _is_news(found: Undeliverable) -> Query[bool]:
    rows = yield _MARKS, (found.pcid, found.emaid, found.namespace)
    is_same = bool(rows) and max(row[1] for row in rows) == microseconds(found.newest)
    # A revocation is never undone, so nothing is reported after it.
    return is_same and any(row[0] not in (found.reason, UndeliverableReason.REVOKED) for row in rows)


@retryable
def report_revoked(emaid: EMAID, now: Now) -> Query[bool]:
    """Write the event of a revoked contract, for each namespace without a variant whose certificate is not revoked.

    Returns whether it was written; it is not if it was before.
    """
    claims = yield "select pcid from emaid_claim where emaid = $1 for update", (emaid,)
    if not claims:
        return False
    pcid = PCID(claims[0][0])
    variants = yield (
        "select c.namespace, e.serial, c.undeliverable from contract c left join evidence e "
        "on e.issuer = c.certificate_issuer and e.serial = c.certificate_serial and e.status = 'revoked' "
        "where c.pcid = $1 and c.emaid = $2 and c.valid_to >= $3",
        (pcid, emaid, int(read_clock(now).timestamp())),
    )
    usable = {namespace for namespace, serial, _ in variants if serial is None}
    news = {namespace for namespace, _, reported in variants if reported != UndeliverableReason.REVOKED} - usable
    if not news:
        return False
    yield from _write(emaid, pcid, news, UndeliverableReason.REVOKED, now)
    return True


def _write(emaid: EMAID, pcid: PCID, namespaces: Collection[str], reason: UndeliverableReason, now: Now) -> Query[None]:
    vehicle = yield from lock_vehicle(pcid, now)
    for namespace in sorted(namespaces):
        yield (
            "update contract set undeliverable = $1 where pcid = $2 and emaid = $3 and namespace = $4",
            (reason.value, pcid, emaid, namespace),
        )
    yield event(EventKind.UNDELIVERABLE, emaid, pcid, vehicle, namespaces, reason=reason.value)
