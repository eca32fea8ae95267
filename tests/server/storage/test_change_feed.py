"""Change log and change feed: numbers, order, portions, reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command

from ccp.errors import Conflict
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.storage import Store, change_feed
from ccp.server.storage.change_feed import ChangeFeed
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import change_counters, parties
from ccp.server.storage.queries.change_counters import ChangeCounter
from tests.databases import sql
from tests.server.storage.made import AT, opened, read, statements, write
from tests.world import party


class Seen:
    """What a feed asks for: the keys of each portion, and "all" for a reload."""

    def __init__(self) -> None:
        self.calls: list[set[str] | str] = []

    async def reload(self) -> None:
        self.calls.append("all")

    async def apply(self, counter: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        self.calls.append(set(keys))

    def taken(self) -> list[set[str] | str]:
        calls, self.calls = self.calls, []
        return calls


def recorded(*keys: str, counter: ChangeCounter = ChangeCounter.WEBHOOKS) -> Query[None]:
    for key in keys:
        yield from change_counters.bump_and_log(counter, key)


def test_change_log_numbers_each_change_and_keeps_the_latest(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_counters, "MAX_LOGGED", 3)
    write(url, recorded("a", "b"), recorded("c", counter=ChangeCounter.PARTIES), recorded("d", "e"))
    assert read(url, change_counters.log_entries(ChangeCounter.WEBHOOKS, 0, 10)) == [(2, "b"), (3, "d"), (4, "e")]
    assert read(url, change_counters.log_entries(ChangeCounter.WEBHOOKS, 2, 1)) == [(3, "d")]
    assert read(url, change_counters.log_entries(ChangeCounter.PARTIES, 0, 10)) == [(1, "c")]
    assert read(url, change_counters.read_all()) == {"webhooks": 4, "parties": 1}


def test_change_log_reuses_the_number_of_a_rolled_back_change(url: str) -> None:
    first = party("one", PartyRole.CPO)

    def failing() -> Query[None]:
        yield from parties.add(party("other", PartyRole.CPO), "hash", AT)
        yield from parties.add(replace(first, client_id="another"), "hash", AT)

    write(url, parties.add(first, "hash", AT))
    with pytest.raises(Conflict):
        write(url, failing())
    write(url, parties.add(party("two", PartyRole.CPO), "hash", AT))
    assert read(url, change_counters.log_entries(ChangeCounter.PARTIES, 0, 10)) == [(1, "one"), (2, "two")]


def test_change_log_numbers_commit_in_order(postgres: object) -> None:
    url: str = postgres.emptied()  # type: ignore[attr-defined]

    def slow(key: str, duration: float) -> Query[None]:
        yield from change_counters.bump_and_log(ChangeCounter.WEBHOOKS, key)
        yield f"select pg_sleep({duration})", ()

    async def run() -> None:
        async with opened(url) as store:
            writing = asyncio.gather(*(store.write(slow(str(n), 0.02 * (n % 3))) for n in range(30)))
            seen: list[int] = []
            while not writing.done():
                found = [
                    number
                    for number, _ in await store.read(change_counters.log_entries(ChangeCounter.WEBHOOKS, 0, 100))
                ]
                assert found == list(range(1, len(found) + 1)), "a gap would be taken for a change without an entry"
                seen.append(len(found))
            await writing
            assert len(set(seen)) > 3, "it was looked at meanwhile"

    asyncio.run(run())


def with_feed(url: str, use: object, topics: tuple[ChangeCounter, ...] = (ChangeCounter.WEBHOOKS,)) -> None:
    async def run() -> None:
        async with opened(url) as store:
            seen = Seen()
            await use(store, ChangeFeed(store, topics, seen), seen)  # type: ignore[operator]

    asyncio.run(run())


def test_change_feed_reads_the_table_once_and_then_changes_only(url: str) -> None:
    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        await store.write(recorded("before"))
        await feed.refresh()
        assert seen.taken() == ["all"]
        await feed.refresh()
        assert seen.taken() == []
        await store.write(recorded("a", "b", "a"))
        await store.write(recorded("c", counter=ChangeCounter.PARTIES))
        await store.write(recorded("unrelated", counter=ChangeCounter.PEERS))
        await feed.refresh()
        assert seen.taken() == [{"c"}, {"a", "b"}]
        await feed.refresh()
        assert seen.taken() == []

    with_feed(url, use, (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS))


def test_change_feed_applies_many_changes_in_portions(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_feed, "PORTION", 2)

    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        await feed.refresh()
        await store.write(recorded("a", "b", "c", "d", "e"))
        await feed.refresh()
        assert seen.taken() == ["all", {"a", "b"}, {"c", "d"}, {"e"}]

    with_feed(url, use)


@pytest.mark.parametrize(
    "change",
    [
        [("update change_count set number = number + 1 where topic = $1", ("webhooks",))],
        [
            ("update change_count set number = number + 2 where topic = $1", ("webhooks",)),
            ("insert into change_log (topic, number, key) values ($1, 3, $2)", ("webhooks", "b")),
        ],
        [("update change_count set number = 0 where topic = $1", ("webhooks",))],
        [("delete from change_log where topic = $1 and number < 5", ("webhooks",))],
    ],
    ids=["a release without the log", "one in between", "a restored database", "removed from the log"],
)
def test_change_feed_reloads_if_the_log_lacks_a_change(url: str, change: list[tuple[str, tuple[str, ...]]]) -> None:
    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        await store.write(recorded("a"))
        await feed.refresh()
        if "delete" in change[0][0]:
            await store.write(recorded("b", "c", "d", "e"))
        await store.write(statements(*change))
        await feed.refresh()
        assert seen.taken() == ["all", "all"]
        await store.write(recorded("f"))
        await feed.refresh()
        assert seen.taken() == [{"f"}]

    with_feed(url, use)


def test_change_feed_reloads_if_it_is_too_far_behind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_feed, "MAX_BEHIND", 3)

    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        await feed.refresh()
        await store.write(recorded("a", "b", "c"))
        await feed.refresh()
        await store.write(recorded("a", "b", "c", "d"))
        await feed.refresh()
        assert seen.taken() == ["all", {"a", "b", "c"}, "all"]

    with_feed(url, use)


def test_change_feed_applies_changes_made_during_a_reload(url: str) -> None:
    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        reload = seen.reload

        async def meanwhile() -> None:
            await store.write(recorded("late"))
            await reload()

        seen.reload = meanwhile  # type: ignore[method-assign]
        await feed.refresh()
        seen.reload = reload  # type: ignore[method-assign]
        await feed.refresh()
        assert seen.taken() == ["all", {"late"}]

    with_feed(url, use)


def test_change_feed_retries_after_a_failure(url: str) -> None:
    async def use(store: Store, feed: ChangeFeed, seen: Seen) -> None:
        await feed.refresh()
        await store.write(recorded("a"))
        apply = seen.apply

        async def fails(*_: object) -> None:
            raise OSError

        seen.apply = fails  # type: ignore[method-assign]
        with pytest.raises(OSError):
            await feed.refresh()
        seen.apply = apply  # type: ignore[method-assign]
        await feed.refresh()
        assert seen.taken() == ["all", {"a"}]

    with_feed(url, use)


# --- Beside the release before ---------------------------------------------------------------------------------------


def added_by_the_release_before(wanted: Party) -> Query[list[tuple[object, ...]]]:
    """The statements with which the release before migration 0009 registers a party without ids."""
    return statements(
        (
            "insert into change_count (topic, number) values ($1, 1) "
            "on conflict (topic) do update set number = change_count.number + 1",
            ("parties",),
        ),
        (
            "insert into party (client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled, "
            "created_at) values ($1, $2, $3, '[]', $4, '[]', '[]', $5, 0)",
            (wanted.client_id, wanted.name, '["cpo"]', False, True),
        ),
    )


def test_name_that_the_previous_release_folded_is_unique_and_found(url: str) -> None:
    write(
        url,
        added_by_the_release_before(party("OLD", PartyRole.CPO)),
        parties.add(party("new", PartyRole.CPO), "hash", AT),
    )
    for wanted in (party("old", PartyRole.CPO), replace(party("fresh", PartyRole.CPO), name="oLd")):
        with pytest.raises(Conflict):
            write(url, parties.add(wanted, "hash", AT))
    assert read(url, parties.get_by_name("ｏｌｄ")).client_id == "OLD"
    # It renames what this release has added, and leaves the form of the name as it was.
    sql(url, "update party set name = 'ELSE' where client_id = 'new'")
    assert read(url, parties.get_by_name("else")).client_id == "new"
    with pytest.raises(Conflict):
        write(url, parties.add(replace(party("fresh", PartyRole.CPO), name="Else"), "hash", AT))
    write(url, parties.add(party("fresh", PartyRole.CPO), "hash", AT))
    rows = sql(url, "select client_id, folded_id, folded_name, folded_of from party order by client_id")
    assert sorted(rows) == [("OLD", "old", "old", "OLD"), ("fresh",) * 4, ("new", "new", "else", "ELSE")]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ccp.db'}"
    made: str = request.getfixturevalue("postgres").database(empty=True)
    return made


def test_name_that_is_folded_is_stored_by_an_upgrade(empty: str) -> None:
    command.upgrade(schema.migrations(empty), "0008")
    for client_id, name in (("A", "Straße GmbH"), ("b", "Example")):
        sql(empty, "insert into party (client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, "
                   "enabled, created_at) values (?, ?, '[\"cpo\"]', '[]', ?, '[]', '[]', ?, 0)",
            client_id, name, False, True)  # fmt: skip
    schema.upgrade(empty)
    query = "select folded_id, folded_name, folded_of from party order by folded_id"
    stored = sql(empty, query)
    assert stored == [("a", "strasse gmbh", "Straße GmbH"), ("b", "example", "Example")]
    assert read(empty, parties.get_by_name("STRASSE GMBH")).client_id == "A"
    schema.downgrade(empty, "0008")
    schema.upgrade(empty)
    assert sql(empty, query) == stored
