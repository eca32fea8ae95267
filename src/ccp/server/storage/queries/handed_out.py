"""Queries for contracts that were handed out one by one, in answer to a request that a vehicle repeats.

There is a row for each vehicle, party and request, with its own time of expiry. It is locked while the next contract is
chosen, so requests that arrive at the same time get different ones, on whichever machine. The party is part of the key:
what one party repeats costs no other party's vehicles a contract.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ccp.ids import EMAID, PCID
from ccp.server.domain.deliveries import HandedOut, Turn, next_turn
from ccp.server.storage.engine.query import Query, retryable
from ccp.server.storage.queries.vehicle_lock import instant, microseconds

MAX_ROWS: Final = 4096
"""Rows of one party; the oldest is removed. Its vehicle gets its first contract again."""
PORTION: Final = 500


@retryable
def take_turn(
    pcid: PCID,
    client_id: str,
    request: str,
    candidates: Sequence[EMAID],
    max_chains: int,
    *,
    key: str | None,
    now: datetime,
    lifetime: timedelta,
    max_rows: int = MAX_ROWS,
) -> Query[Turn]:
    """Choose the vehicle's next contract, and remember it for `lifetime` from now.

    request: `ccp.server.domain.deliveries.request_digest`. candidates, max_chains, key: see `next_turn`.
    """
    at, until = microseconds(now), microseconds(now + lifetime)
    rows = yield (
        "insert into handed_out (pcid, client_id, request, contracts, expires_at) values ($1, $2, $3, '[]', $4) "
        "on conflict (pcid, client_id, request) do update set expires_at = excluded.expires_at, "
        "contracts = case when handed_out.expires_at < $5 then '[]' else handed_out.contracts end "
        "returning contracts",
        (pcid, client_id, request, until, at),
    )
    before = [HandedOut(EMAID(emaid), used) for emaid, used in json.loads(rows[0][0])]
    turn = next_turn(candidates, before, max_chains, key)
    yield (
        "update handed_out set contracts = $1 where pcid = $2 and client_id = $3 and request = $4",
        (json.dumps(turn.handed_out), pcid, client_id, request),
    )
    if not before:
        yield (
            "delete from handed_out where client_id = $1 and expires_at < coalesce("
            "(select expires_at from handed_out where client_id = $1 order by expires_at desc limit 1 offset $2), 0)",
            (client_id, max_rows - 1),
        )
    return turn


@retryable
def remove_expired(now: datetime, limit: int = PORTION) -> Query[int]:
    """Remove rows that have expired. Returns how many; fewer than `limit` after the last ones."""
    rows = yield (
        "delete from handed_out where expires_at < $1 and (pcid, client_id, request) in "
        "(select pcid, client_id, request from handed_out where expires_at < $1 order by expires_at limit $2) "
        "returning pcid",
        (microseconds(now), limit),
    )
    return len(rows)


class Remembered(NamedTuple):
    """Contracts that one party's requests handed out to a vehicle, in order, and how long that is remembered."""

    client_id: str
    emaids: tuple[EMAID, ...]
    until: datetime


def of_vehicle(pcid: PCID, limit: int) -> Query[list[Remembered]]:
    """What was handed out to a vehicle one by one, latest first. A vehicle has a row for each party and request."""
    rows = yield (
        "select client_id, contracts, expires_at from handed_out where pcid = $1 order by expires_at desc limit $2",
        (pcid, limit),
    )
    return [
        Remembered(client_id, tuple(EMAID(emaid) for emaid, _ in json.loads(contracts)), instant(int(until)))
        for client_id, contracts, until in rows
    ]


def erase(named: EMAID | PCID) -> Query[int]:
    """Remove every row that names a contract or a vehicle. Returns how many."""
    if isinstance(named, PCID):
        return len((yield "delete from handed_out where pcid = $1 returning pcid", (named,)))
    # The text of an EMAID has no wildcard but "_", which finds more than wanted.
    rows = yield (
        "select pcid, client_id, request, contracts from handed_out where contracts like $1 order by pcid, client_id, "
        "request",
        (f'%"{named}"%',),
    )
    keys = [tuple(row[:3]) for row in rows if any(emaid == named for emaid, _ in json.loads(row[3]))]
    for key in keys:
        yield "delete from handed_out where pcid = $1 and client_id = $2 and request = $3", key
    return len(keys)
