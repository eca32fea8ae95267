"""Builders of databases, contracts and statements. The store does not parse messages, so these hold arbitrary bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.pool import purging
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.query import Query, Row, Statement
from ccp.server.storage.queries import contracts
from tests.databases import sql, with_schema

AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
CAR, OTHER_CAR = PCID("WEX0STORE00000001"), PCID("WEX0STORE00000002")
FIRST, SECOND_CONTRACT, THIRD = (EMAID(f"DEEXAS0000000{number}") for number in (1, 2, 3))
ROOT, OTHER_ROOT = (Fingerprint(hashlib.sha256(name).hexdigest()) for name in (b"root", b"other root"))

T = TypeVar("T")


NO_LIMITS = VehicleRules(max_contracts=1_000_000, max_contracts_of_provider=1_000_000)


def published_by_previous_release(contract: SignedContract, at: datetime) -> Query[None]:
    """The statements with which a release before migration 0008 stores the first contract of a vehicle."""
    now, key = contracts.microseconds(at), (contract.emaid, contract.pcid)
    yield (
        "insert into emaid_claim (emaid, pcid) values ($1, $2) "
        "on conflict (emaid) do update set pcid = emaid_claim.pcid returning pcid",
        key,
    )
    rows = yield (
        "insert into vehicle (pcid, rev, default_emaid) values ($1, 1, null) "
        "on conflict (pcid) do update set rev = vehicle.rev + 1 returning rev, default_emaid",
        (contract.pcid,),
    )
    yield "update vehicle set default_emaid = $1 where pcid = $2", key
    yield (
        "insert into contract (emaid, pcid, namespace, root_fingerprint, root_serial, root_dn, valid_from, valid_to, "
        "certificate, response, created_at, updated_at, is_default, rev) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) "
        "on conflict (pcid, namespace, emaid, root_fingerprint) do update set updated_at = excluded.updated_at",
        (*key, contract.namespace, contract.root_fingerprint, "5", contract.root_dn, 0,
         int(contract.valid_to.timestamp()), contract.certificate, contract.response, now, now, True, rows[0][0]),
    )  # fmt: skip
    yield (
        "insert into outbox (pcid, rev, kind, emaid, payload, created_at, lease_until, attempts) "
        "values ($1, $2, $3, $4, $5, $6, 0, 0)",
        (contract.pcid, rows[0][0], "oem.contract.created", contract.emaid, '{"namespaces": []}', now),
    )


def new_database(folder: Path) -> str:
    """URL of a new SQLite database in a folder."""
    url = f"sqlite:///{folder / 'ccp.db'}"
    with_schema(url)
    return url


def variant(emaid: EMAID = FIRST, pcid: PCID = CAR, **changes: Any) -> SignedContract:
    """A variant, by default of ISO 15118-2 under ROOT. changes: fields of SignedContract."""
    fields: dict[str, Any] = {
        "emaid": emaid, "pcid": pcid, "namespace": Namespace.ISO2, "root_fingerprint": ROOT,
        "root_serial": 2**127 + 5, "root_dn": "CN=V2G Root, DC=V2G, O=Example, C=DE",
        "valid_from": datetime(2026, 1, 1, tzinfo=UTC), "valid_to": datetime(2027, 1, 1, 0, 0, 59, tzinfo=UTC),
        "certificate": b"certificate", "response": b"response", "remaining_from_end": None, "metadata": None,
        "created_at": AT, "updated_at": AT,
    }  # fmt: skip
    return SignedContract(**{**fields, **changes})


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """An open store."""
    store = connect(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def with_store(url: str, use: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, use it, close it."""

    async def run() -> T:
        async with opened(url) as store:
            return await use(store)

    return asyncio.run(run())


def write(url: str, *queries: Query[Any]) -> Any:
    """Run writes one after another. Returns the result of the last one."""

    async def use(store: Store) -> Any:
        return [await store.write(query) for query in queries][-1]

    return with_store(url, use)


def read(url: str, query: Query[T]) -> T:
    """Run a read. Returns its result."""
    return with_store(url, lambda store: store.read(query))


def statements(*wanted: Statement) -> Query[list[Row]]:
    """A query of these statements. Its result is the rows of the last one."""
    rows: list[Row] = []
    for statement in wanted:
        rows = yield statement
    return rows


def broken_invariants(url: str) -> list[str]:
    """Descriptions of the invariants that a database violates."""
    return [
        f"{name}: {rows}"
        for name, query in {
            "several default contracts": (
                "select pcid from contract where is_default group by pcid having count(distinct emaid) > 1"
            ),
            "is_default does not repeat the vehicle's default": (
                "select c.pcid, c.emaid from contract c join vehicle v on v.pcid = c.pcid "
                "where c.is_default != (c.emaid is not distinct from v.default_emaid)"
            ),
            "a default that the vehicle does not have": (
                "select pcid from vehicle v where default_emaid is not null and not exists "
                "(select 1 from contract c where c.pcid = v.pcid and c.emaid = v.default_emaid)"
            ),
            "an EMAID in several places": "select emaid from contract group by emaid having count(distinct pcid) > 1",
            "a variant without its claim": (
                "select emaid from contract c where not exists "
                "(select 1 from emaid_claim e where e.emaid = c.emaid and e.pcid = c.pcid)"
            ),
            "a claim without a variant": (
                "select emaid from emaid_claim e where not exists (select 1 from contract c where c.emaid = e.emaid)"
            ),
            "a variant without its vehicle": (
                "select pcid from contract c where not exists (select 1 from vehicle v where v.pcid = c.pcid)"
            ),
            "an event that is not of a revision": (
                "select o.pcid from outbox o left join vehicle v on v.pcid = o.pcid "
                "where o.pcid <> '' and (v.rev is null or o.rev > v.rev)"
            ),
            "an event that is not later than one before it": (
                "select o.pcid, o.rev from outbox o join outbox e on e.pcid = o.pcid and e.rev < o.rev "
                "and e.created_at >= o.created_at where o.pcid <> ''"
            ),
            "a delivery that is not of a revision": (
                "select d.pcid from delivery d left join vehicle v on v.pcid = d.pcid "
                "where v.rev is null or d.rev > v.rev"
            ),
            "a delivery without a webhook": (
                "select d.event_id from delivery d left join webhook w on w.id = d.webhook_id where w.id is null"
            ),
        }.items()
        if (rows := sql(url, query))
    ]


def candidates(url: str, before: datetime) -> list[EMAID]:
    """Contracts that can be purged, in the order in which they are found."""

    async def use(store: Store) -> list[EMAID]:
        return [emaid async for emaid in purging.candidates(store, before)]

    return with_store(url, use)
