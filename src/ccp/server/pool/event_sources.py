"""The systems whose events this pool has subscribed to, in memory by the id in the address of their events."""

from __future__ import annotations

from collections.abc import Callable

from ccp.server.storage import Store
from ccp.server.storage.queries import subscriptions as queries
from ccp.server.storage.queries.subscriptions import Subscription


class EventSources:
    """A copy of the subscriptions, kept up to date by `ccp.server.storage.snapshot_refresh`."""

    def __init__(self, store: Store, on_new: Callable[[], None]) -> None:
        """on_new: called after a subscription was added: events before it were missed."""
        self._store = store
        self._on_new = on_new
        self._by_id: dict[str, Subscription] | None = None

    async def refresh(self) -> None:
        """Load the subscriptions. Raises Unavailable."""
        found = {each.id: each for each in await self._store.read(queries.list_all()) if each.secret is not None}
        before, self._by_id = self._by_id, found
        if before is not None and found.keys() - before.keys():
            self._on_new()

    def find(self, subscription_id: str) -> Subscription | None:
        """The subscription with an id, with its secret; None for one that the other system has not accepted yet."""
        return (self._by_id or {}).get(subscription_id)
