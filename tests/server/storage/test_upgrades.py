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
from alembic.script import ScriptDirectory

from ccp.server.audit.verification import ChainVerifier, verify_trail
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import peers
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.databases import sql
from tests.server.console.browsing import admin, logged_in
from tests.server.storage.earlier_revisions import Rows, all_rows, copy_into_revision, rows_of_all_tables
from tests.server.storage.made import broken_invariants, with_store
from tests.server.storage.storage_keys import write_keys
from tests.waiting import wait_until
from tests.world import Contract, Pool, response_bytes, start

REVISIONS = [
    each.revision for each in ScriptDirectory.from_config(schema.migrations("sqlite:///unused.db")).walk_revisions()
]
EARLIER = sorted(set(REVISIONS) - {schema.HEAD})
BY_TASKS = {
    *("audit_stream", "audit_stream_position", "refusal", "refusal_contract", "request_count", "statistics"),
    *("console_session", "storage_key"),
}
"""Tables that the pool fills for itself."""


@dataclass(frozen=True)
class Donor:
    """A pool that was in use, and the rows of its tables. delivered: the message that the car got."""

    pool: Pool
    car: Car
    contracts: tuple[Contract, Contract]
    delivered: bytes
    rows: dict[str, Rows]


@pytest.fixture(scope="module")
def donor(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Donor:
    return used(pkis, tmp_path_factory.mktemp("donor"))


@pytest.fixture(scope="module")
def encrypted(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Donor:
    """The same with secrets that are encrypted in the database."""
    folder = tmp_path_factory.mktemp("encrypted")
    return used(pkis, folder, secrets_key_file=write_keys(folder / "keys", 1))


def used(pkis: dict[str, PKI], folder: Path, **options: Any) -> Donor:
    stream = {"audit_stream": "file", "audit_stream_file": folder / "audit.jsonl"}
    with start(pkis, [admin()], console=True, keep_refused_requests=True, **stream, **options) as pool:
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
        refused = pool.car()
        pool.expire(pool.publish(refused).emaid)
        assert "metaData" in pool.post(refused).text
        with logged_in(pool):
            pass

        def written() -> set[str]:
            counts = {table: sql(pool.settings.database, f"select count(*) from {table}")[0][0] for table in BY_TASKS}
            return {table for table, count in counts.items() if not count}

        wait_until(lambda: not written(), describe=written)
        rows = rows_of_all_tables(pool.settings.database)
    return Donor(pool, car, contracts, delivered, rows)


def a_peer() -> peers.Peer:
    return peers.Peer(
        party_id="peer-pool",
        base_url="https://peer.example",
        token="a token of the peer",
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ccp.db'}"
    made: str = request.getfixturevalue("postgres").database(empty=True)
    return made


@pytest.mark.parametrize("revision", EARLIER)
def test_upgrade_keeps_data_of_every_earlier_revision_and_serves_it(empty: str, revision: str, donor: Donor) -> None:
    stored = copy_into_revision(empty, revision, donor.rows)
    assert {"vehicle", "contract", "emaid_claim"} <= {table for table, rows in stored.items() if rows}
    assert schema.upgrade(empty) == (revision, schema.HEAD)
    for table, rows in stored.items():
        names = list(rows[0]) if rows else []
        assert not rows or sorted(map(repr, all_rows(empty, table, names))) == sorted(map(repr, rows)), table
    assert not broken_invariants(empty)
    if "party" not in stored or "trust_anchor" not in stored:
        return  # Without parties and anchors there is no one to serve.
    check_serves(empty, donor)
    assert is_intact(empty)
    assert not broken_invariants(empty)


@pytest.mark.parametrize("revision", [each for each in EARLIER if each >= "0016"])
def test_upgrade_keeps_secrets_that_are_encrypted(tmp_path: Path, revision: str, encrypted: Donor) -> None:
    url = f"sqlite:///{tmp_path / 'ccp.db'}"
    stored = copy_into_revision(url, revision, encrypted.rows)
    assert "a token of the peer" not in str(stored)
    assert schema.upgrade(url) == (revision, schema.HEAD)
    for table in ("peer", "storage_key", "webhook", "pool_secret", "token_key"):
        names = list(stored[table][0])
        assert sorted(map(repr, all_rows(url, table, names))) == sorted(map(repr, stored[table])), table
    check_serves(url, encrypted)


def check_serves(url: str, donor: Donor) -> None:
    """Assert that a pool on an upgraded database serves the car."""
    with loopback() as (listening, base_url), httpx.Client(base_url=base_url, timeout=10) as http:
        settings = donor.pool.settings.model_copy(update={"database": url, "base_url": base_url})
        with running(settings, listening):
            pool = Pool(base_url, settings, donor.pool.world, donor.pool.database, http)
            try:
                serves(pool, donor)
            finally:
                pool.close()


def serves(pool: Pool, donor: Donor) -> None:
    """Assert that a pool delivers the default contract, lists both, and takes another one."""
    first, second = donor.contracts
    assert response_bytes(pool.ask(donor.car)[0]) == donor.delivered
    assert {item["emaid"] for item in pool.listed(donor.car)} == {first.emaid, second.emaid}
    pool.publish(donor.car)
    assert response_bytes(pool.ask(donor.car)[0]) == donor.delivered


def is_intact(url: str) -> bool:
    """Whether the audit trail is whole."""

    async def verified(store: Store) -> bool:
        verifier = ChainVerifier()
        async for _ in verify_trail(store, verifier):
            pass
        return not verifier.result().broken

    return with_store(url, verified)


def test_upgrade_donor_has_rows_in_tables_that_partners_fill(donor: Donor) -> None:
    filled = {table for table, rows in donor.rows.items() if rows}
    assert filled >= BY_TASKS | {
        *("audit", "audit_head", "contract", "emaid_claim", "outbox", "party", "party_owns", "party_secret", "peer"),
        *("pool_secret", "token_key", "trust_anchor", "vehicle", "webhook"),
    }
