"""Queries of events about the state of stored contracts, on both engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ccp.ids import EMAID, Namespace
from ccp.server.domain.subscriptions import UndeliverableReason
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contract_notices as notices
from ccp.server.storage.queries import contract_portions, contracts, revocation
from ccp.server.storage.queries.contract_notices import Undeliverable
from ccp.x509.revocation_evidence import CertificateRef, Evidence, RevocationStatus
from tests.databases import Server, sql
from tests.server.storage.made import (
    AT,
    CAR,
    DAY,
    FIRST,
    OTHER_CAR,
    OTHER_ROOT,
    SECOND,
    SECOND_CONTRACT,
    THIRD,
    new_database,
    read,
    variant,
    write,
)
from tests.waiting import wait_until

DAYS = (30, 7)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return server.emptied()


def publish(url: str, emaid: EMAID = FIRST, left: timedelta = 400 * DAY, **more: Any) -> None:
    write(url, contracts.publish(variant(emaid, valid_to=(AT + left).replace(microsecond=0), **more), AT))


def written(url: str, kind: str = "emsp.contract.expiring") -> list[tuple[str, list[str], dict[str, Any]]]:
    """EMAID, namespaces and members of the events, in order."""
    rows = sql(url, "select emaid, payload from outbox where kind = ? order by pcid, rev", kind)
    loaded = [(emaid, json.loads(payload)) for emaid, payload in rows]
    return [(emaid, payload["namespaces"], payload["members"]) for emaid, payload in loaded]


def test_contracts_that_expire_are_found_in_portions(url: str) -> None:
    for emaid, left in ((FIRST, 5), (SECOND_CONTRACT, 20), (THIRD, 29)):
        publish(url, emaid, left * DAY)
    publish(url, EMAID("DEEXAS00000009"), 31 * DAY, pcid=OTHER_CAR)
    publish(url, EMAID("DEEXAS00000008"), -1 * DAY, pcid=OTHER_CAR)
    found, after, portions = [], contract_portions.FIRST_CONTRACT, 0
    while after is not None:
        portion = read(url, notices.expiring(DAYS, AT, after, 2))
        found += portion.emaids
        after, portions = portion.following, portions + 1
    assert (found, portions) == ([FIRST, SECOND_CONTRACT, THIRD], 2)
    assert [write(url, notices.report_expiring(emaid, DAYS, AT)) for emaid in found] == [1, 1, 1]
    assert read(url, notices.expiring(DAYS, AT)).emaids == []
    assert [(emaid, members["noticeDays"]) for emaid, _, members in written(url)] == [
        (FIRST, 7),
        (SECOND_CONTRACT, 30),
        (THIRD, 30),
    ]


def test_report_expiring_writes_each_notice_once(url: str) -> None:
    publish(url, FIRST, 31 * DAY)
    assert write(url, notices.report_expiring(FIRST, DAYS, AT)) == 0
    for later, expected in ((1, 1), (2, 0), (23, 0), (24, 1), (25, 0), (40, 0)):
        assert write(url, notices.report_expiring(FIRST, DAYS, AT + later * DAY)) == expected, later
    assert [members["noticeDays"] for _, _, members in written(url)] == [30, 7]


def test_report_expiring_has_one_event_for_variants_that_end_together(url: str) -> None:
    publish(url, FIRST, 30 * DAY)
    publish(url, FIRST, 30 * DAY + timedelta(hours=5), namespace=Namespace.ISO20)
    publish(url, FIRST, 30 * DAY + timedelta(hours=9), root_fingerprint=OTHER_ROOT)
    assert write(url, notices.report_expiring(FIRST, DAYS, AT)) == 1
    assert write(url, notices.report_expiring(FIRST, DAYS, AT + timedelta(hours=12))) == 0
    ((emaid, namespaces, members),) = written(url)
    assert (emaid, namespaces) == (FIRST, sorted([Namespace.ISO2, Namespace.ISO20]))
    assert members == {"validTo": "2026-03-31T12:00:00Z", "noticeDays": 30}


def test_report_expiring_begins_anew_with_a_renewal(url: str) -> None:
    publish(url, FIRST, 20 * DAY)
    assert write(url, notices.report_expiring(FIRST, DAYS, AT)) == 1
    publish(url, FIRST, 20 * DAY)  # The same end.
    assert write(url, notices.report_expiring(FIRST, DAYS, AT)) == 0
    publish(url, FIRST, 25 * DAY)
    assert write(url, notices.report_expiring(FIRST, DAYS, AT)) == 1


def test_report_expiring_by_several_workers_writes_one_event(url: str) -> None:
    publish(url, FIRST, 20 * DAY)
    with ThreadPoolExecutor(4) as aside:
        counts = list(aside.map(lambda _: write(url, notices.report_expiring(FIRST, DAYS, AT)), range(8)))
    assert sorted(counts) == [0] * 7 + [1]
    assert len(written(url)) == 1


@pytest.mark.parametrize(
    "notice",
    [
        lambda: notices.report_expiring(FIRST, DAYS, AT),
        lambda: notices.report_undeliverable(
            Undeliverable(FIRST, CAR, Namespace.ISO2, UndeliverableReason.STALE, AT), AT
        ),
    ],
    ids=["expiring", "undeliverable"],
)
def test_contract_notice_locks_the_vehicle_before_its_contracts(
    postgres: Server, notice: Callable[[], Query[Any]]
) -> None:
    """In another order it and a publication, which changes the flags of all contracts, would wait for each other."""
    url = postgres.emptied()
    publish(url, FIRST, 20 * DAY)

    async def race() -> None:
        held = await asyncpg.connect(url)
        try:
            await held.execute("set lock_timeout = '100ms'; begin")
            await held.execute("select rev from vehicle for update")
            writing = asyncio.create_task(asyncio.to_thread(write, url, notice()))
            await asyncio.to_thread(wait_until, lambda: waiting_for_a_lock(url))
            await held.execute("update contract set is_default = true")
            await held.execute("commit")
            assert await writing
        finally:
            await held.close()

    asyncio.run(race())


def waiting_for_a_lock(url: str) -> bool:
    query = "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return bool(sql(url, query))


def test_report_undeliverable_is_written_once_for_each_reason(url: str) -> None:
    publish(url)
    stale = Undeliverable(FIRST, CAR, Namespace.ISO2, UndeliverableReason.STALE, AT)
    revoked = stale._replace(reason=UndeliverableReason.REVOKED)
    given = [write(url, notices.report_undeliverable(each, AT)) for each in (stale, stale, revoked, stale, revoked)]
    assert given == [True, False, True, False, False]
    assert [members["reason"] for _, _, members in written(url, "emsp.contract.undeliverable")] == ["stale", "revoked"]


def test_report_undeliverable_ignores_a_contract_that_was_published_since(url: str) -> None:
    publish(url)
    found = Undeliverable(FIRST, CAR, Namespace.ISO2, UndeliverableReason.STALE, AT)
    write(url, contracts.publish(variant(), AT + SECOND))
    assert not write(url, notices.report_undeliverable(found, AT + 2 * SECOND))
    write(url, contracts.withdraw(FIRST, AT))
    assert not write(url, notices.report_undeliverable(found, AT + 2 * SECOND))
    publish(url, FIRST, pcid=OTHER_CAR)
    assert not write(url, notices.report_undeliverable(found, AT + 2 * SECOND))
    assert written(url, "emsp.contract.undeliverable") == []


def revoke(url: str, serial: int) -> None:
    evidence = Evidence("issuer", serial, RevocationStatus.REVOKED, AT, AT + DAY, AT - DAY, "OCSP test")
    write(url, revocation.store_evidence(evidence))


def test_report_revoked_names_the_editions_without_another_variant(url: str) -> None:
    for serial, more in ((1, {}), (2, {"root_fingerprint": OTHER_ROOT}), (3, {"namespace": Namespace.ISO20})):
        publish(url, certificates=(CertificateRef("issuer", serial, None),), **more)
    assert not write(url, notices.report_revoked(FIRST, AT))
    revoke(url, 1)
    assert read(url, contract_portions.revoked(unreported=True)).emaids == [FIRST]
    assert not write(url, notices.report_revoked(FIRST, AT)), "the variant under the other root is valid"
    revoke(url, 3)
    assert write(url, notices.report_revoked(FIRST, AT))
    revoke(url, 2)
    assert write(url, notices.report_revoked(FIRST, AT))
    assert not write(url, notices.report_revoked(FIRST, AT))
    assert read(url, contract_portions.revoked(unreported=True)).emaids == []
    assert [namespaces for _, namespaces, _ in written(url, "emsp.contract.undeliverable")] == [
        [Namespace.ISO20],
        [Namespace.ISO2],
    ]
