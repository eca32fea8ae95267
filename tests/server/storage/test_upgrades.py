"""Databases of every earlier schema revision, with the data of a pool that was in use, after an upgrade.

One pool writes the data. Each database is made by the migrations up to its revision, and gets the rows and columns that
exist at that revision. After the upgrade it holds the same rows, and a pool on it serves the same car.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.script import ScriptDirectory

from ccp.server.audit.verification import ChainVerifier, verify_trail
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import peers
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.databases import sql, tables
from tests.server.storage.made import broken_invariants, with_store
from tests.world import Contract, Pool, response_bytes, start

REVISIONS = [
    each.revision for each in ScriptDirectory.from_config(schema.migrations("sqlite:///unused.db")).walk_revisions()
]
EARLIER = sorted(set(REVISIONS) - {schema.HEAD})
NOT_COPIED = {"alembic_version", "change_log"}
"""Tables that belong to a revision, and numbers of changes that the next refresh makes anew."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Donor:
    """A pool that was in use, and the rows of its tables. delivered: the message that the car got."""

    pool: Pool
    car: Car
    contracts: tuple[Contract, Contract]
    delivered: bytes
    rows: dict[str, Rows]


@pytest.fixture(scope="module")
def donor(pkis: dict[str, PKI]) -> Donor:
    with start(pkis) as pool:
        car = pool.car()
        contracts = pool.publish(car), pool.publish(car)
        default = f"/signedcontractdata/{contracts[1].emaid}/{car.pcid}/setdefault"
        assert pool.oem.post(default).status_code == 200
        pool.publish(pool.car("iso20"))
        webhook = {"url": "https://hooks.example/events", "events": ["oem.contract.created"]}
        answer = httpx.post(
            f"{pool.base_url}/opnc/v1/event/endpoints", json=webhook, headers=dict(pool.oem.headers), timeout=10
        )
        assert answer.status_code == 201, answer.text
        pool.change(peers.add(a_peer(), datetime.now(UTC)))
        delivered = response_bytes(pool.ask(car)[0])
        url = pool.settings.database
        rows = {table: all_rows(url, table) for table in tables(url) if not table.startswith("sqlite_")}
    return Donor(pool, car, contracts, delivered, rows)


def a_peer() -> peers.Peer:
    return peers.Peer(
        party_id="peer-pool",
        base_url="https://peer.example",
        token="a token of the peer",
    )


def columns(url: str, table: str) -> list[str]:
    if schema.is_postgres(url):
        wanted = "select column_name::text from information_schema.columns where table_name = ?"
        return [name for (name,) in sql(url, wanted, table)]
    return [name for (name,) in sql(url, "select name from pragma_table_info(?)", table)]


def booleans(url: str, table: str) -> set[str]:
    if not schema.is_postgres(url):
        return set()
    wanted = "select column_name::text from information_schema.columns where table_name = ? and data_type = 'boolean'"
    return {name for (name,) in sql(url, wanted, table)}


def all_rows(url: str, table: str, wanted: list[str] | None = None) -> Rows:
    names = wanted or columns(url, table)
    return [dict(zip(names, row, strict=True)) for row in sql(url, f"select {', '.join(names)} from {table}")]


def made_at(url: str, revision: str, donor: Donor) -> dict[str, Rows]:
    """Make a database of a revision with the donor's data. Returns the rows by table, with the columns that exist."""
    command.upgrade(schema.migrations(url), revision)
    stored: dict[str, Rows] = {}
    for table in sorted(set(tables(url)) & donor.rows.keys() - NOT_COPIED):
        names = [name for name in columns(url, table) if name in donor.rows[table][0]] if donor.rows[table] else []
        is_boolean = booleans(url, table)
        sql(url, f"delete from {table}")
        for row in donor.rows[table]:
            values = [bool(row[name]) if name in is_boolean and row[name] is not None else row[name] for name in names]
            sql(url, f"insert into {table} ({', '.join(names)}) values ({', '.join('?' * len(names))})", *values)
        stored[table] = all_rows(url, table, names) if names else []
    return stored


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ccp.db'}"
    made: str = request.getfixturevalue("postgres").database(empty=True)
    return made


@pytest.mark.parametrize("revision", EARLIER)
def test_upgrade_keeps_data_of_every_earlier_revision_and_serves_it(
    empty: str, revision: str, donor: Donor, pkis: dict[str, PKI]
) -> None:
    stored = made_at(empty, revision, donor)
    assert {"vehicle", "contract", "emaid_claim"} <= {table for table, rows in stored.items() if rows}
    assert schema.upgrade(empty) == (revision, schema.HEAD)
    for table, rows in stored.items():
        names = list(rows[0]) if rows else []
        assert not rows or sorted(map(repr, all_rows(empty, table, names))) == sorted(map(repr, rows)), table
    assert not broken_invariants(empty)
    if "party" not in stored or "trust_anchor" not in stored:
        return  # Without parties and anchors there is no one to serve.
    with loopback() as (listening, base_url), httpx.Client(base_url=base_url, timeout=10) as http:
        settings = donor.pool.settings.model_copy(update={"database": empty, "base_url": base_url})
        with running(settings, listening):
            pool = Pool(base_url, settings, donor.pool.world, donor.pool.database, http)
            try:
                serves(pool, donor)
            finally:
                pool.close()
    assert not broken_invariants(empty)


def serves(pool: Pool, donor: Donor) -> None:
    """Assert that a pool delivers the default contract, lists both, and takes another one."""
    first, second = donor.contracts
    assert response_bytes(pool.ask(donor.car)[0]) == donor.delivered
    assert {item["emaid"] for item in pool.listed(donor.car)} == {first.emaid, second.emaid}
    pool.publish(donor.car)
    assert response_bytes(pool.ask(donor.car)[0]) == donor.delivered

    async def verified(store: Store) -> bool:
        verifier = ChainVerifier()
        async for _ in verify_trail(store, verifier):
            pass
        return not verifier.result().broken

    assert with_store(pool.settings.database, verified)


def test_upgrade_donor_has_rows_in_tables_that_partners_fill(donor: Donor) -> None:
    filled = {table for table, rows in donor.rows.items() if rows}
    assert filled >= {
        *("audit", "audit_head", "contract", "emaid_claim", "outbox", "party", "party_owns", "party_secret", "peer"),
        *("pool_secret", "token_key", "trust_anchor", "vehicle", "webhook"),
    }
