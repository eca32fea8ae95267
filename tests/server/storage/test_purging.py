"""Queries that find what can be purged: complete, in portions, by indexes."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

import pytest

from ccp.ids import EMAID, PCID
from ccp.server.storage import Store
from ccp.server.storage.queries import contract_portions, contracts, revocation, vehicles
from ccp.server.storage.queries import purging as queries
from ccp.x509.revocation_evidence import CertificateRef, Evidence, RevocationStatus
from tests.server.storage.made import AT, DAY, NO_LIMITS, SECOND, candidates, variant, with_store
from tests.server.storage.plans import as_if_large, plans

ISSUER = hashlib.sha256(b"issuer").hexdigest()
MANY = 25


def emaid(number: int) -> EMAID:
    return EMAID(f"DEEXAP{number:08d}")


def pcid(number: int) -> PCID:
    return PCID(f"WEX0PURGE{number:08d}")


def contract(number: int, valid_to: datetime, began: datetime = AT) -> Any:
    keys = (CertificateRef(ISSUER, number, None),)
    return variant(emaid(number), pcid(number), valid_to=valid_to, certificates=keys, created_at=began)


def stated(number: int, status: RevocationStatus) -> Any:
    revoked_at = AT - DAY if status is RevocationStatus.REVOKED else None
    return revocation.store_evidence(Evidence(ISSUER, number, status, AT - DAY, AT + DAY, revoked_at, "OCSP"))


@pytest.fixture
def filled(url: str) -> str:
    """Contracts that expired at the same second, that are revoked, and that are neither; some of them are both."""

    async def fill(store: Store) -> None:
        for number in range(3 * MANY):
            valid_to = AT - SECOND if number < MANY else AT + DAY
            revoked = MANY - 5 <= number < 2 * MANY
            await store.write(contracts.publish(contract(number, valid_to), AT - DAY, NO_LIMITS))
            await store.write(stated(number, RevocationStatus.REVOKED if revoked else RevocationStatus.GOOD))
        for number in range(1000, 1000 + MANY):
            await store.write(stated(number, RevocationStatus.REVOKED))  # Of certificates that are not here.

    with_store(url, fill)
    return url


@pytest.mark.parametrize("limit", [1, 7, MANY, 1000])
def test_candidates_are_complete_for_any_portion_size(filled: str, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    for module, query in ((queries, "expired"), (contract_portions, "revoked")):
        real = getattr(module, query)
        monkeypatch.setattr(module, query, lambda *given, real=real: real(*given, limit=limit))
    found = candidates(filled, AT)
    assert set(found) == {emaid(number) for number in range(2 * MANY)}
    assert len(found) == 2 * MANY + 5, "those that are both are found in both ways"


def test_portion_examines_at_most_its_limit(filled: str) -> None:
    async def use(store: Store) -> None:
        portion = await store.read(queries.expired(AT, limit=7))
        assert len(portion.emaids) == 7
        after, found = contract_portions.FIRST_CERTIFICATE, 0
        portions = 0
        while after is not None:
            portion = await store.read(contract_portions.revoked(after, limit=10))
            assert len(portion.emaids) <= 10
            found += len(portion.emaids)
            portions += 1
            after = portion.following
        assert (found, portions) == (MANY + 5, 6)

    with_store(filled, use)


def test_idle_vehicles_are_found_in_portions(url: str) -> None:
    async def use(store: Store) -> None:
        for number in range(MANY):
            await store.write(vehicles.invalidate(pcid(number), AT + timedelta(seconds=number // 3)))
        await store.write(contracts.publish(contract(3, AT + DAY, AT + DAY), AT + DAY, NO_LIMITS))
        found, after = [], queries.FIRST_VEHICLE
        while after is not None:
            portion = await store.read(queries.idle_vehicles(AT + timedelta(seconds=6), after, limit=4))
            assert len(portion.vehicles) <= 4
            found += [vehicle for vehicle, _ in portion.vehicles]
            after = portion.following
        assert found == [pcid(number) for number in range(18) if number != 3]

    with_store(url, use)


def test_idle_vehicle_with_a_new_contract_stays(url: str) -> None:
    async def use(store: Store) -> None:
        await store.write(vehicles.invalidate(pcid(1), AT))
        portion = await store.read(queries.idle_vehicles(AT + SECOND))
        await store.write(contracts.publish(contract(1, AT + DAY, AT + DAY), AT + DAY, NO_LIMITS))
        assert await store.write(queries.remove_vehicles(portion.vehicles)) == 0
        assert len(await store.read(contracts.by_vehicle(pcid(1)))) == 1

    with_store(url, use)


def test_purge_queries_use_indexes(filled: str) -> None:
    """Without them a purge reads every row of evidence, one for each certificate that was ever seen."""
    as_if_large(filled)
    assert "evidence_revoked" in plans(filled, contract_portions.revoked())
    assert "contract_validity" in plans(filled, queries.expired(AT))
    if filled.startswith("sqlite"):
        every = plans(filled, contract_portions.revoked()) + plans(filled, queries.expired(AT))
        assert "SCAN" not in every
        assert "TEMP B-TREE" not in every
