"""The store on a Citus cluster of a coordinator and a worker, if the extension is installed."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.queues import Queue

import pytest

from ccp.errors import ConfigurationError
from ccp.server.storage.engine import citus, schema
from ccp.server.storage.queries import contracts, purging, revocation
from ccp.server.storage.queries.contracts import Published
from ccp.server.storage.queries.vehicles import invalidate
from ccp.x509.revocation_evidence import CertificateRef, Evidence, RevocationList, RevocationStatus
from ccp.x509.revocation_policy import RevocationPolicy
from tests.databases import Server, has_citus, sql
from tests.server.storage.concurrent_writes import hammer
from tests.server.storage.contract_model import check_against_model
from tests.server.storage.made import (
    AT,
    CAR,
    DAY,
    FIRST,
    OTHER_CAR,
    SECOND_CONTRACT,
    THIRD,
    broken_invariants,
    candidates,
    new_database,
    read,
    variant,
    write,
)

SPAWN = multiprocessing.get_context("spawn")
ISSUER = "ab" * 32
SETTINGS = {
    "shared_preload_libraries": "citus",
    "max_prepared_transactions": "100",
    "citus.node_conninfo": "sslmode=disable",
}
needs_citus = pytest.mark.skipif(not has_citus(), reason="the PostgreSQL of this machine has no extension citus")


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Server]]:
    """A coordinator and a worker."""
    servers: list[Server] = []
    try:
        for _ in range(2):
            servers.append(Server(**SETTINGS))
            servers[-1].start()
        yield servers
    finally:
        for server in servers:
            server.close()


@pytest.fixture(scope="module")
def distributed(cluster: list[Server]) -> str:
    """The URL of a database that is distributed over the cluster."""
    coordinator, worker = cluster
    for server in cluster:
        sql(server.url("postgres"), "create database spread template template0")
        sql(server.url("spread"), "create extension citus")
    url = coordinator.url("spread")
    sql(url, "select citus_set_coordinator_host('127.0.0.1', ?)", coordinator.port)
    sql(url, "select citus_add_node('127.0.0.1', ?)", worker.port)
    # Shards on both, so that a vehicle's are elsewhere than the coordinator's own tables as often as not.
    sql(url, "select citus_set_node_property('127.0.0.1', ?, 'shouldhaveshards', true)", coordinator.port)
    schema.upgrade(url)
    assert citus.distribute(url) == [
        ("vehicle", "distributed by pcid"),
        ("contract", "distributed by pcid"),
        ("outbox", "distributed by pcid"),
        ("delivery", "distributed by pcid"),
        ("emaid_claim", "distributed by emaid"),
        ("evidence", "on every node"),
    ]
    return url


@pytest.fixture
def url(distributed: str) -> str:
    empty(distributed)
    return distributed


def empty(url: str) -> None:
    for table in ("vehicle", "contract", "outbox", "delivery", "emaid_claim", "evidence", "crl", "watched_certificate"):
        sql(url, f"delete from {table}")


@needs_citus
def test_citus_distribution_is_idempotent(url: str) -> None:
    assert {how for _, how in citus.distribute(url)} == {"distributed already", "on every node already"}
    places = sql(url, "select logicalrelid::text, partmethod::text from pg_dist_partition order by 1")
    assert places == [
        ("contract", "h"), ("delivery", "h"), ("emaid_claim", "h"), ("evidence", "n"), ("outbox", "h"),
        ("vehicle", "h"),
    ]  # fmt: skip
    nodes = sql(url, "select count(distinct nodeport) from citus_shards where table_name = 'contract'::regclass")
    assert nodes == [(2,)]


@needs_citus
def test_citus_stores_moves_and_removes_contracts(url: str) -> None:
    assert write(url, contracts.publish(variant(), AT)) == Published(True, None)
    write(url, contracts.publish(variant(SECOND_CONTRACT), AT), contracts.publish(variant(THIRD, OTHER_CAR), AT))
    assert write(url, contracts.publish(variant(FIRST, OTHER_CAR), AT)).moved_from == CAR
    write(url, contracts.set_default(FIRST, OTHER_CAR, AT))
    assert [(c.pcid, c.is_default) for c in read(url, contracts.by_emaid(FIRST))] == [(OTHER_CAR, True)]
    assert write(url, invalidate(OTHER_CAR, AT)) == [FIRST, THIRD]
    assert write(url, contracts.withdraw(SECOND_CONTRACT, AT)).pcid == CAR
    assert sql(url, "select count(*) from emaid_claim") == [(0,)]


@needs_citus
def test_citus_purges_revoked_and_expired_contracts(url: str) -> None:
    keys = (CertificateRef(ISSUER, 7, ()),)
    write(url, contracts.publish(variant()._replace(certificates=keys), AT))
    write(url, contracts.publish(variant(SECOND_CONTRACT, valid_to=AT - DAY), AT))
    write(url, contracts.publish(variant(THIRD, OTHER_CAR), AT))
    revoked = RevocationList(ISSUER, None, AT, AT + DAY, dict.fromkeys(range(500), AT))
    loaded = revocation.store_crl(
        revoked, url="http://crl.example", issuer_certificate=b"der", etag=None, last_modified=None, now=AT,
        refresh_at=AT + DAY,
    )  # fmt: skip
    assert write(url, loaded) is True
    assert (
        write(url, revocation.store_evidence(Evidence(ISSUER, 9, RevocationStatus.GOOD, AT, AT + DAY, None, "OCSP")))
        is False
    )
    known = read(url, revocation.load(keys, RevocationPolicy()))
    assert known.evidence[ISSUER, 7].status is RevocationStatus.REVOKED
    assert set(candidates(url, AT)) == {FIRST, SECOND_CONTRACT}
    assert read(url, purging.purge_reason(FIRST, AT)) == (CAR, "revoked")
    assert write(url, purging.purge(FIRST, AT, AT)).reason == "revoked"
    assert write(url, purging.purge(SECOND_CONTRACT, AT, AT)).reason == "expired"
    assert write(url, purging.purge(THIRD, AT, AT + timedelta(1))) is None
    assert write(url, revocation.due_crls(AT + 2 * DAY, AT + 3 * DAY, 10)) != []


@needs_citus
def test_citus_agrees_with_the_model(url: str) -> None:
    def new() -> str:
        empty(url)
        return url

    check_against_model(new, 3, invariants=False)


@needs_citus
def test_citus_keeps_invariants_under_concurrent_writes(url: str) -> None:
    outcomes: Queue[Counter[str]] = SPAWN.Queue()
    processes = [SPAWN.Process(target=hammer, args=(url, seed, 3.0, outcomes)) for seed in range(2)]
    for process in processes:
        process.start()
    counted = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    together = sum(counted, Counter())
    assert set(together) <= {"publish", "withdraw", "set_default", "NotFound"}, together
    # Joins by other columns are not for a cluster: the rows are looked at elsewhere.
    copy = Looked(url)
    assert broken_invariants(copy.url) == []
    assert copy.events >= together["publish"] + together["withdraw"]


class Looked:
    """The rows of a cluster's tables as they are, copied into tables of one node."""

    def __init__(self, url: str) -> None:
        for table in ("vehicle", "contract", "outbox", "delivery", "webhook", "emaid_claim"):
            sql(url, "create schema if not exists looked")
            sql(url, f"drop table if exists looked.{table}")
            sql(url, f"create table looked.{table} as select * from public.{table}")
        self.url = url + "?search_path=looked"
        self.events: int = sql(self.url, "select count(*) from outbox")[0][0]


def test_citus_distribution_needs_the_extension(postgres: Server) -> None:
    with pytest.raises(ConfigurationError, match="lacks the extension citus; a superuser adds it with"):
        citus.distribute(postgres.database())


def test_citus_distribution_refuses_sqlite(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigurationError, match="Only a PostgreSQL database with the extension citus"):
        citus.distribute(new_database(tmp_path))
