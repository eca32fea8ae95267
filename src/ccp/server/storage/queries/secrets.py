"""Queries for secrets that the pool generates once and all workers share."""

from __future__ import annotations

from typing import Final

from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.engine.secret_codec import DamagedSecret, Place
from ccp.server.storage.engine.stored_secrets import encryption, secret_codec

IMPORT_CHECKPOINT_KEY: Final = "import_checkpoint_key"
"""Authenticates checkpoints of `ccp import`. After its removal no checkpoint is valid for this database."""


@read_committed
def find(name: str) -> Query[str | None]:
    """The secret with a name; None also for a damaged one, which `ensure` replaces."""
    rows = yield "select value from pool_secret where name = $1", (name,)
    if not rows:
        return None
    codec = yield from secret_codec(rows)
    try:
        return codec.decrypt(Place("pool_secret", "value", name), rows[0][0])
    except DamagedSecret:
        return None


def ensure(name: str, candidate: str) -> Query[str]:
    """Return the stored secret; store the candidate if there is none, or a damaged one.

    Among concurrent workers the first wins.
    """
    encrypt = yield from encryption()
    stored = encrypt("pool_secret", "value", name, candidate)
    yield "insert into pool_secret (name, value) values ($1, $2) on conflict (name) do nothing", (name, stored)
    rows = yield "select value from pool_secret where name = $1", (name,)
    codec = yield from secret_codec(rows)
    try:
        return codec.decrypt(Place("pool_secret", "value", name), rows[0][0])
    except DamagedSecret:  # Nothing can be read with it any more, and the pool does not start without one.
        yield "update pool_secret set value = $2 where name = $1", (name, stored)
        return candidate


def remove(name: str) -> Query[None]:
    """Delete a secret."""
    yield "delete from pool_secret where name = $1", (name,)
