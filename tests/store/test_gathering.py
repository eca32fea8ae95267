"""What many ask at the same moment is one query, and each still gets its own answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.pki.evidence import Evidence, Key, Known, Rules, Status
from ccp.store import Store, connect, contracts, evidence, postgres
from ccp.store.gathering import gathered
from ccp.store.steps import Steps, newest
from tests.databases import Server
from tests.store.made import AT, variant

ISSUERS = [f"{number:064x}" for number in range(3)]


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.emptied()


def car(number: int) -> PCID:
    return PCID(f"WEX0GATHER{number:07d}")


def asking(url: str, use: Callable[[Store], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        store = connect(url, 4)
        await store.open()
        try:
            return await asyncio.wait_for(use(store), 60)
        finally:
            await store.close()

    return asyncio.run(run())


class Counted:
    """How often the store has gone to the server to read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        fetch = postgres.PostgresStore._fetch

        async def counting(store: postgres.PostgresStore, statement: str, parameters: Any) -> Any:
            self.statements.append(statement)
            return await fetch(store, statement, parameters)

        monkeypatch.setattr(postgres.PostgresStore, "_fetch", counting)


async def fleet(store: Store, count: int) -> None:
    """Cars with none, one or two contracts, and evidence on certificates."""
    for number in range(count):
        for place in range(number % 3):
            await store.write(contracts.publish(variant(EMAID(f"DEEXAG{number * 10 + place:08d}"), car(number)), AT))
        await store.write(
            evidence.learn(
                Evidence(ISSUERS[number % 3], number, Status.GOOD, AT, AT + timedelta(hours=1), None, "OCSP")
            )
        )


def emaids(number: int) -> list[str]:
    return [f"DEEXAG{number * 10 + place:08d}" for place in range(number % 3)]


def test_everybody_gets_the_contracts_of_the_own_vehicle_and_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)

    async def use(store: Store) -> None:
        await fleet(store, 30)
        chance = random.Random(1)
        for many in (1, 2, 40, 200):
            asked = [chance.randrange(40) for _ in range(many)]  # Some are unknown, some are asked for twice.
            counted.statements.clear()
            found = await asyncio.gather(*(store.read(contracts.by_vehicle(car(number))) for number in asked))
            for number, own in zip(asked, found, strict=True):
                assert sorted(each.emaid for each in own) == (emaids(number) if number < 30 else [])
                assert all(each.pcid == car(number) for each in own)
            assert len(counted.statements) <= 1 + many / 40, "they went together"

    asking(url, use)


def test_everybody_gets_the_evidence_on_the_own_certificates_and_no_other(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)

    def key(number: int) -> Key:
        return Key(ISSUERS[number % 3], number, None)

    async def use(store: Store) -> None:
        await fleet(store, 30)
        chance = random.Random(2)
        asked = [[chance.randrange(40) for _ in range(chance.randrange(1, 10))] for _ in range(60)]
        counted.statements.clear()
        found: list[Known] = await asyncio.gather(
            *(store.read(evidence.known(map(key, numbers), Rules())) for numbers in asked)
        )
        for numbers, own in zip(asked, found, strict=True):
            assert {serial for _, serial in own.evidence} == {number for number in numbers if number < 30}
        assert len(counted.statements) < 20
        # The number without its issuer is another certificate.
        other = Key(ISSUERS[1], 3, None)
        both = await asyncio.gather(
            store.read(evidence.known([other], Rules())), store.read(evidence.known([key(3)], Rules()))
        )
        assert [len(each.evidence) for each in both] == [0, 1]

    asking(url, use)


def test_who_asks_alone_asks_in_the_plain_form(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    plain, _ = next(iter(contracts.by_vehicle(car(1))))
    asking(url, lambda store: store.read(contracts.by_vehicle(car(1))))
    assert counted.statements == [plain]
    assert gathered(plain) is not None, "it would have gone with others"


def test_who_asks_after_a_change_was_acknowledged_sees_it_even_while_others_ask(url: str) -> None:
    async def use(store: Store) -> None:
        async def others(ended: asyncio.Event) -> None:
            while not ended.is_set():
                await store.read(contracts.by_vehicle(car(1)))

        ended = asyncio.Event()
        crowd = [asyncio.create_task(others(ended)) for _ in range(12)]
        for number in range(60):
            emaid = EMAID(f"DEEXAH{number:08d}")
            await store.write(contracts.publish(variant(emaid, car(1)), AT))
            assert emaid in {each.emaid for each in await store.read(contracts.by_vehicle(car(1)))}
        ended.set()
        await asyncio.gather(*crowd)

    asking(url, use)


def test_one_who_goes_takes_nothing_from_the_others(url: str) -> None:
    async def use(store: Store) -> None:
        await fleet(store, 9)
        for _ in range(20):
            tasks = [asyncio.create_task(store.read(contracts.by_vehicle(car(number % 9)))) for number in range(30)]
            for _ in range(random.Random(3).randrange(6)):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for number, own in enumerate(found):
                if number % 3 == 0:
                    assert isinstance(own, asyncio.CancelledError)
                else:
                    assert not isinstance(own, BaseException)
                    assert sorted(each.emaid for each in own) == emaids(number % 9)
        # When all have gone, whoever comes is served.
        gone = asyncio.create_task(store.read(contracts.by_vehicle(car(1))))
        await asyncio.sleep(0)
        gone.cancel()
        assert len(await store.read(contracts.by_vehicle(car(2)))) == 2

    asking(url, use)


def test_where_the_server_is_gone_everybody_is_told_and_served_when_it_is_back() -> None:
    server = Server()
    try:
        server.start()

        async def use(store: Store) -> None:
            await fleet(store, 9)
            server.stop()
            asked = [store.read(contracts.by_vehicle(car(number))) for number in range(9)]
            told = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(each) for each in told] == [Unavailable] * 9
            server.start()
            found = await asyncio.gather(*(store.read(contracts.by_vehicle(car(number))) for number in range(9)))
            assert [len(each) for each in found] == [0, 1, 2] * 3

        asking(server.database(), use)
    finally:
        server.close()


def test_connections_that_ended_while_nobody_used_them_are_noticed_by_nobody_who_asks_together(url: str) -> None:
    async def use(store: Store) -> None:
        await fleet(store, 9)
        await asyncio.gather(*(store.read(contracts.by_vehicle(car(number))) for number in range(9)))
        outside = await asyncpg.connect(url)
        await outside.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where application_name = 'opnc-ccp' and datname = current_database()"
        )
        await outside.close()
        found = await asyncio.gather(*(store.read(contracts.by_vehicle(car(number))) for number in range(9)))
        assert [len(each) for each in found] == [0, 1, 2] * 3

    asking(url, use)


def test_a_mistake_of_ours_is_told_to_everybody_who_made_it(url: str) -> None:
    @newest
    def wrong() -> Steps[Any]:
        return (yield "select pcid, nowhere from contract where pcid = $1", (car(1),))

    async def use(store: Store) -> None:
        told = await asyncio.gather(*(store.read(wrong()) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in told] == [Unavailable] * 5, "a column that is missing comes with a migration"
        assert await store.read(contracts.by_vehicle(car(1))) == []

    asking(url, use)


@pytest.mark.parametrize(
    "statement",
    [
        "select pcid from emaid_claim where emaid = $1",
        "select emaid from contract where pcid = $1",
        "select emaid, pcid from contract where pcid = $1 and emaid = $2",
        "select emaid, pcid from contract where emaid = $1",
        "select emaid, pcid from contract where pcid = $1 for update",
        "select issuer, serial from evidence where (issuer = $1 and serial = $2) or (issuer = $3 and status = $4)",
    ],
)
def test_what_is_no_lookup_by_a_key_that_comes_back_goes_by_itself(statement: str) -> None:
    assert gathered(statement) is None


def test_what_else_is_asked_for_has_to_be_the_same_for_all() -> None:
    one = gathered("select case when namespace = $2 then response end, pcid from contract where pcid = $1")
    assert one is not None
    assert one.statement.endswith("from contract where pcid = any($1::text[])")
    assert (one.keys(("A", "n")), one.rest(("A", "n"))) == ((("A",),), ("n",))
    assert one.parameters([("A",), ("B",), ("A",)], ("n",)) == (["A", "B"], "n")
    assert one.handed_out([(b"1", "A"), (b"2", "B")], [(("B",),), (("C",),), (("A",),)]) == [
        [(b"2", "B")], [], [(b"1", "A")],
    ]  # fmt: skip
