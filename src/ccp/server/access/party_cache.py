"""Cache of the enabled parties in each worker, updated from the change feed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from ccp.server.domain.parties import Party
from ccp.server.storage import Store
from ccp.server.storage.change_feed import PORTION, ChangeFeed
from ccp.server.storage.queries import parties
from ccp.server.storage.queries.change_counters import ChangeCounter


class PartyCache:
    """The enabled parties by client id."""

    def __init__(self, store: Store, changed: Callable[[], None]) -> None:
        """changed: called after each change of the cache."""
        self._store = store
        self._changed = changed
        self._by_id: dict[str, Party] = {}
        self._feed = ChangeFeed(store, (ChangeCounter.PARTIES,), self)

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._by_id

    def get(self, client_id: str) -> Party | None:
        """The enabled party with a client id."""
        return self._by_id.get(client_id)

    async def refresh(self) -> None:
        """Apply the changes since the last refresh. Raises Unavailable."""
        await self._feed.refresh()

    async def reload(self) -> None:
        """See `ccp.server.storage.change_feed.TableCopy`."""
        gone, after = set(self._by_id), ""
        while found := await self._store.read(parties.list_page(after, PORTION)):
            for party in found:
                after = party.client_id
                gone.discard(after)
                self._put(after, party)
            await asyncio.sleep(0)
        for client_id in gone:
            self._put(client_id, None)

    async def apply(self, counter: ChangeCounter, after: int, last: int, keys: Collection[str]) -> None:
        """See `ccp.server.storage.change_feed.TableCopy`."""
        found = {party.client_id: party for party in await self._store.read(parties.list_changed(after, last))}
        for client_id in keys:
            self._put(client_id, found.get(client_id))

    def _put(self, client_id: str, party: Party | None) -> None:
        known = party if party is not None and party.enabled else None
        if known == self._by_id.get(client_id):
            return
        if known is None:
            del self._by_id[client_id]
        else:
            self._by_id[client_id] = known
        self._changed()
