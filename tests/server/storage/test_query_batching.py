"""Query batching: concurrent lookups share a statement, and each caller gets its own result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ccp.errors import NotFound, Unavailable
from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, Row, batchable
from ccp.server.storage.engine.query_batching import QueryBatcher
from ccp.server.storage.queries import contracts, revocation
from ccp.x509.revocation_evidence import CertificateRef
from ccp.x509.revocation_policy import RevocationPolicy
from tests.server.storage.made import AT, opened, statements, variant, with_store, write
from tests.server.storage.proxy import between

CARS = [PCID(f"WEX0GATHER{number:07d}") for number in range(100)]


def contract_of(car: PCID, edition: Namespace = Namespace.ISO2) -> SignedContract:
    return variant(EMAID(f"DEEXAG{car[-8:]}"), car, namespace=edition, response=f"{edition} for {car}".encode())


@pytest.fixture
def filled(url: str) -> str:
    """Every second car has a contract, every fourth one for either edition."""
    changes = [contracts.publish(contract_of(car), AT) for car in CARS[::2]]
    changes += [contracts.publish(contract_of(car, Namespace.ISO20), AT) for car in CARS[::4]]
    write(url, *changes)
    return url


def test_batch_returns_each_caller_its_own_rows(filled: str) -> None:
    async def ask(store: Store) -> None:
        queries = [contracts.by_vehicle(car) for car in CARS]
        for car, found in zip(CARS, await asyncio.gather(*map(store.read, queries)), strict=True):
            place = CARS.index(car)
            editions = [Namespace.ISO2, Namespace.ISO20][: 0 if place % 2 else 1 if place % 4 else 2]
            assert {(each.pcid, each.namespace) for each in found} == {(car, edition) for edition in editions}

    with_store(filled, ask)


def test_batch_returns_the_same_as_single_queries(filled: str) -> None:
    async def ask(store: Store) -> None:
        for query in (
            lambda car: contracts.by_vehicle(car),
            lambda car: contracts.for_delivery(car, Namespace.ISO20),
            lambda car: contracts.by_emaid(contract_of(car).emaid),
            lambda car: contracts.by_vehicle_and_emaid(car, contract_of(car).emaid),
            lambda car: revocation.load(
                [CertificateRef("issuer", CARS.index(car), ("http://crl.example",))], RevocationPolicy()
            ),
        ):
            together = await asyncio.gather(*(store.read(query(car)) for car in CARS))
            alone = [await store.read(query(car)) for car in CARS]
            order = lambda found: sorted(found, key=lambda c: c.namespace) if isinstance(found, list) else found  # noqa: E731
            assert [order(each) for each in together] == [order(each) for each in alone]

    with_store(filled, ask)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_batch_needs_few_round_trips(filled: str) -> None:
    async def ask() -> None:
        async with between(filled) as proxy, opened(proxy.url) as store:
            await asyncio.gather(*(store.read(contracts.by_vehicle(car)) for car in CARS))  # Statements are prepared.
            before = proxy.trips
            await asyncio.gather(*(store.read(contracts.by_vehicle(car)) for car in CARS))
            assert proxy.trips - before < 20

    asyncio.run(ask())


def test_batch_survives_a_cancelled_caller(filled: str) -> None:
    async def ask(store: Store) -> None:
        tasks = [asyncio.create_task(store.read(contracts.by_vehicle(car))) for car in CARS]
        await asyncio.sleep(0)
        for task in tasks[1::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[1::2])
        assert [answer[0].pcid for answer in answers[::2] if isinstance(answer, list)] == CARS[::2]

    with_store(filled, ask)


def test_batch_sees_what_was_committed_before(filled: str) -> None:
    async def ask(store: Store) -> None:
        async def change_and_look(car: PCID) -> None:
            await store.write(contracts.publish(contract_of(car), AT))
            assert len(await store.read(contracts.by_vehicle(car))) == 1
            await store.write(contracts.withdraw(contract_of(car).emaid, AT))
            assert await store.read(contracts.by_vehicle(car)) == []

        await asyncio.gather(*map(change_and_look, CARS[1::2]))

    with_store(filled, ask)


def test_batch_isolates_a_failing_query(filled: str) -> None:
    @batchable
    def broken() -> Query[list[Row]]:
        return (yield "select nothing from nowhere", ())

    @batchable
    def wrong() -> Query[list[Row]]:
        yield "select pcid from contract", ()
        raise NotFound("as a query may")

    async def ask(store: Store) -> None:
        queries: list[Query[Any]] = [broken(), *(contracts.by_vehicle(car) for car in CARS[:10:2]), wrong()]
        first, *found, last = await asyncio.gather(*map(store.read, queries), return_exceptions=True)
        assert isinstance(first, Exception)
        assert [answer[0].pcid for answer in found if isinstance(answer, list)] == CARS[:10:2]
        assert isinstance(last, NotFound)

    with_store(filled, ask)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_batch_completes_while_the_store_closes(filled: str) -> None:
    async def ask() -> None:
        async with opened(filled) as store:
            asking = asyncio.create_task(store.read(contracts.by_vehicle(CARS[2])))
            await asyncio.sleep(0)
        assert [each.pcid for each in await asyncio.wait_for(asking, 5)] == [CARS[2]]

    asyncio.run(ask())


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_batch_reports_a_lost_server_to_every_caller_and_recovers(filled: str) -> None:
    async def ask(store: Store) -> None:
        assert await store.read(contracts.by_vehicle(CARS[0]))
        # As at a restart: every connection of the pool is closed by the server, and the next one is a fresh one.
        await store.write(
            statements(
                (
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'opnc-ccp' "
                    "and datname = current_database() and pid <> pg_backend_pid()",
                    (),
                )
            )
        )
        answers = await asyncio.gather(*(store.read(contracts.by_vehicle(car)) for car in CARS), return_exceptions=True)
        assert all(isinstance(answer, list | Unavailable) for answer in answers)
        assert (await store.read(contracts.by_vehicle(CARS[0])))[0].pcid == CARS[0]

    with_store(filled, ask)


def test_batch_skips_expired_calls() -> None:
    async def run() -> list[Row]:
        answers = asyncio.Event()

        async def fetch(statement: str, parameters: Row) -> list[Row]:
            if not answers.is_set():
                await asyncio.sleep(0.4)  # Longer than the lookups may wait.
                raise Unavailable("silent")
            arrays = isinstance(parameters[0], list)
            return [(n + 1, each) for n, each in enumerate(parameters[0])] if arrays else [(parameters[0],)]

        @batchable
        def lookup(text: str) -> Query[list[Row]]:
            rows = yield "select $1", (text,)
            return rows

        gathering = QueryBatcher(fetch, 0.2)
        asked = [asyncio.ensure_future(gathering.run(iter(lookup("early")))) for _ in range(2)]
        await asyncio.sleep(0.02)
        # Far more than are sent together: they wait for those two, and have gone when it is their turn.
        asked += [asyncio.ensure_future(gathering.run(iter(lookup(str(number))))) for number in range(300)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        answers.set()
        await gathering.close()
        late: list[Row] = await gathering.run(iter(lookup("late")))
        return late

    assert asyncio.run(run()) == [("late",)]
