"""Keys of the console that all workers share, in the database."""

from __future__ import annotations

import secrets

from ccp.server.storage import Store
from ccp.server.storage.queries import secrets as secret_queries


async def load_key(store: Store, name: str) -> bytes:
    """The key with a name, 32 random bytes; created if there is none. Raises Unavailable."""
    stored = await store.read(secret_queries.find(name))
    if stored is None:
        stored = await store.write(secret_queries.ensure(name, secrets.token_hex(32)))
    return bytes.fromhex(stored)
