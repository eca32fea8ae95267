"""In-memory copies of webhooks and parties after changes and after a reload."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from ccp.ids import EMAID, WMI, ProviderId
from ccp.server.access import party_cache
from ccp.server.access.party_cache import PartyCache
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import EventKind, Webhook
from ccp.server.events import Subscribers
from ccp.server.events import subscribers as module
from ccp.server.storage import Store, change_feed
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import parties, webhooks
from tests.server.events.receiver import webhook
from tests.server.storage.made import AT, opened, statements
from tests.world import party

KINDS = [kind for kind in EventKind if kind.role is PartyRole.EMSP]
PROVIDERS = ["DEEXA", "DEEXB", "NLEXC"]
NAMES = [f"p{number}" for number in range(4)]


def a_change(chance: random.Random, hooks: dict[str, Webhook], known: dict[str, Party]) -> Query[object]:
    """Some change of a party or of a webhook, with what is there noted."""
    name = chance.choice(NAMES)
    match chance.randrange(4):
        case 0 if name not in known:
            known[name] = party(name, PartyRole.OEM, wmis=f"WX{name[1]}")
            return parties.add(known[name], "hash", AT)
        case 0 | 1 if name in known:
            before = known[name]
            free = [p for p in PROVIDERS if not any(p in k.provider_ids for k in known.values() if k is not before)]
            own = frozenset(ProviderId(p) for p in free if chance.random() < 0.7)
            known[name] = replace(
                before, enabled=chance.random() < 0.8, provider_ids=own, wmis=frozenset({WMI(f"WX{name[1]}")}),
                roles=frozenset({PartyRole.OEM, PartyRole.EMSP} if own else {PartyRole.OEM}),
            )  # fmt: skip
            return parties.update(before, known[name])
        case 2 if hooks:
            return webhooks.remove(hooks.pop(chance.choice(sorted(hooks))).id)
        case _ if name in known:
            made = webhook("http://a.example/", name, *chance.sample(KINDS, 2), id=f"{chance.getrandbits(64):x}")
            if hooks and chance.random() < 0.5:  # One that is there, of another party perhaps.
                made = replace(made, id=chance.choice(sorted(hooks)), enabled=chance.random() < 0.7)
            hooks[made.id] = replace(made, provider_ids=(ProviderId("DEEXA"),) if chance.random() < 0.3 else ())
            return webhooks.put(hooks[made.id])
    return statements()


@pytest.mark.parametrize("seed", range(3))
def test_table_copies_equal_a_full_reload_after_any_changes(
    url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed, "PORTION", 3)
    chance = random.Random(seed)
    hooks: dict[str, Webhook] = {}
    known: dict[str, Party] = {}
    ever: set[str] = set()

    def state(subscribers: Subscribers, parties: PartyCache) -> object:
        wanted = {
            (kind, provider)
            for kind in KINDS
            for provider in PROVIDERS
            if subscribers.wants(kind, EMAID(f"{provider}C00000001"))
        }
        return {id: subscribers.active(id) for id in ever}, wanted, {name: parties.get(name) for name in NAMES}

    async def fresh(store: Store) -> object:
        subscribers, parties = Subscribers(store), PartyCache(store, lambda: None)
        await subscribers.refresh()
        await parties.refresh()
        return state(subscribers, parties)

    async def run() -> None:
        async with opened(url) as store:
            subscribers, kept = Subscribers(store), PartyCache(store, lambda: None)
            for _ in range(40):
                for _ in range(chance.randrange(4)):
                    await store.write(a_change(chance, hooks, known))
                    ever.update(hooks)
                await subscribers.refresh()
                await kept.refresh()
                expected = {name: found if (found := known.get(name)) and found.enabled else None for name in NAMES}
                assert state(subscribers, kept) == await fresh(store)
                assert {name: kept.get(name) for name in NAMES} == expected
            # As a release without the log changes things, until everything is read.
            await store.write(statements(("delete from webhook", ()), ("delete from party", ()),
                                         ("update change_count set number = number + 1", ())))  # fmt: skip
            await subscribers.refresh()
            await kept.refresh()
            assert state(subscribers, kept) == (dict.fromkeys(ever), set(), dict.fromkeys(NAMES))
            assert not subscribers._cache._of_party
            assert not any(subscribers._cache.wanted.values())

    asyncio.run(run())
    assert len(ever) > 1


def test_reload_yields_to_the_event_loop_between_portions(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, party_cache):
        monkeypatch.setattr(each, "PORTION", 2)

    def many() -> Query[None]:
        for number in range(10):
            yield from parties.add(party(f"cpo-{number}", PartyRole.CPO), "hash", AT)
            yield from webhooks.put(webhook("http://a.example/", f"cpo-{number}"))

    async def run() -> None:
        async with opened(url) as store:
            await store.write(many())
            for followed in (Subscribers(store), PartyCache(store, lambda: None)):
                turns = 0
                reading = asyncio.ensure_future(followed.refresh())
                while not reading.done():
                    await asyncio.sleep(0)
                    turns += 1
                await reading
                assert turns > 5

    asyncio.run(run())
