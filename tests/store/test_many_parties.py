"""How much is read does not depend on how many parties and webhooks there are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime

import pytest

from ccp.errors import CCPError
from ccp.events import Subscribers
from ccp.parties import Party, Role
from ccp.register import Actor, Register
from ccp.store import Store, contracts, events, sqlite
from ccp.store import parties as questions
from ccp.store.steps import Row, Statement, Steps, T
from ccp.subscriptions import EventKind
from ccp.tokens import Authority
from tests.databases import sql
from tests.events.receiver import webhook
from tests.store.made import AT, FIRST, opened, variant, write
from tests.world import party

BY = Actor("cli:test")


@dataclass
class CountingStore:
    """A store that notes each statement with the number of its rows, those of the audit trail left out."""

    inner: Store
    seen: list[tuple[str, int]] = field(default_factory=list)
    all: list[tuple[str, Row]] = field(default_factory=list)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def time(self) -> datetime | None:
        return await self.inner.time()

    async def read(self, question: Steps[T]) -> T:
        return await self.inner.read(self._counted(question))

    async def write(self, change: Steps[T]) -> T:
        return await self.inner.write(self._counted(change))

    def _counted(self, steps: Steps[T]) -> Steps[T]:
        steps = iter(steps)  # type: ignore[assignment]
        try:
            statement: Statement = next(steps)
            while True:
                rows = yield statement
                if "audit" not in statement[0]:
                    self.seen.append((statement[0], len(rows)))
                    self.all.append(statement)
                statement = steps.send(rows)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def taken(self) -> list[tuple[str, int]]:
        """Statements and how many rows each had, since the last time."""
        seen, self.seen = self.seen, []
        return seen


def oem(number: int) -> Party:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return party(f"oem-{number}", Role.OEM, wmis=f"X{digits[number // 36]}{digits[number % 36]}")


def filled(url: str, more: int) -> None:
    """A maker and a provider with a webhook each, and so many others."""

    def change() -> Steps[None]:
        yield from questions.add(party("maker", Role.OEM, wmis="WEX"), "hash", AT)
        yield from questions.add(party("emsp", Role.EMSP, providers="DEEXA"), "hash", AT)
        yield from events.put_webhook(webhook("http://maker.example/", "maker"))
        yield from events.put_webhook(webhook("http://emsp.example/", "emsp", EventKind.HANDED_OUT.value))
        for number in range(more):
            yield from questions.add(oem(number), "hash", AT)
            yield from events.put_webhook(webhook(f"http://{number}.example/", f"oem-{number}"))

    write(url, change())


async def used(store: CountingStore) -> list[list[tuple[str, int]]]:
    """What is read by each thing that happens to a pool which is up to date."""
    register = Register(store)
    authority = Authority(store, issuer="https://pool.example", lifetime=60)
    subscribers = Subscribers(store)
    await authority.refresh_parties()
    await subscribers.refresh()
    store.taken()
    store.all.clear()
    found = []

    async def note() -> None:
        await authority.refresh_parties()
        await subscribers.refresh()
        found.append(store.taken())

    await register.edit("maker", lambda p: replace(p, name="Maker Ltd"), BY, AT)
    await note()
    await register.add(party("added", Role.CPO), BY, AT, "secret")
    await note()
    with pytest.raises(CCPError):
        await register.add(replace(party("another", Role.CPO), name="ADDED"), BY, AT, "secret")
    await note()
    assert (await register.named("maker ltd")).client_id == "maker"
    await register.disable("emsp", BY, AT)
    await note()
    assert not subscribers.wants(EventKind.HANDED_OUT, FIRST)
    await register.enable("emsp", BY, AT)
    await note()
    assert subscribers.wants(EventKind.HANDED_OUT, FIRST)
    await store.write(contracts.publish(variant(), AT))
    store.taken()
    assert await store.write(events.fan_out(AT)) == 1
    await note()
    await store.write(events.put_webhook(webhook("http://new.example/", "maker")))
    await note()
    return found


def test_edits_refreshes_and_fan_outs_read_as_much_among_many_parties_as_among_few(url: str) -> None:
    async def run() -> tuple[list[list[tuple[str, int]]], list[tuple[str, Row]]]:
        async with opened(url) as inner:
            store = CountingStore(inner)
            return await used(store), store.all

    filled(url, 2)
    few, _ = asyncio.run(run())
    emptied(url)
    filled(url, 500)
    many, statements = asyncio.run(run())
    assert many == few
    assert max(rows for step in many for _, rows in step) <= 5
    assert sql(url, "select count(*) from delivery") == [(1,)]
    if url.startswith("sqlite:"):
        plans = {
            statement: sql(url, f"explain query plan {sqlite._dialect(statement)}", *parameters)
            for statement, parameters in statements
        }
        small = ("change_count", "CONSTANT", "USING INDEX party_not_folded", "USING INDEX outbox_created_at")
        scans = [
            (statement, step[-1])
            for statement, plan in plans.items()
            for step in plan
            if step[-1].startswith("SCAN") and not step[-1].endswith(small)
        ]
        assert scans == [], "each row is found by an index"


def emptied(url: str) -> None:
    for table in (
        "party", "party_owns", "party_secret", "webhook", "delivery", "outbox", "contract", "emaid_claim", "vehicle",
        "change_log",
    ):  # fmt: skip
        sql(url, f"delete from {table}")
    sql(url, "update change_count set number = 0")
