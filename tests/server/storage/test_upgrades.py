"""Databases of every earlier schema revision, with the data of a pool that was in use, after an upgrade.

One pool writes the data. Each database is made by the migrations up to its revision, and gets the rows and columns that
exist at that revision. After the upgrade it holds the same rows, and a pool on it serves the same car.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

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
from tests.server.storage.earlier_revisions import Rows, all_rows, copy_into_revision, rows_of_all_tables
from tests.server.storage.made import broken_invariants, with_store
from tests.world import Contract, Pool, response_bytes, start

REVISIONS = [
    each.revision for each in ScriptDirectory.from_config(schema.migrations("sqlite:///unused.db")).walk_revisions()
]
EARLIER = sorted(set(REVISIONS) - {schema.HEAD})


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
def test_upgrade_keeps_data_of_every_earlier_revision_and_serves_it(
    empty: str, revision: str, donor: Donor, pkis: dict[str, PKI]
) -> None:
    stored = copy_into_revision(empty, revision, donor.rows)
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
