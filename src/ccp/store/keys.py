"""Questions about the keys that sign access tokens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ccp.store.changes import Topic, count
from ccp.store.contracts import instant, microseconds
from ccp.store.steps import Steps


@dataclass(frozen=True, slots=True)
class TokenKey:
    """private_key: PKCS #8, PEM."""

    kid: str
    private_key: str
    created_at: datetime


def every() -> Steps[list[TokenKey]]:
    """All keys, newest first: that one signs, the others still verify."""
    rows = yield "select kid, private_key, created_at from token_key order by created_at desc, kid", ()
    return [TokenKey(kid, key, instant(created_at)) for kid, key, created_at in rows]


def ensure(candidate: TokenKey) -> Steps[None]:
    """Keep the key if there is none yet; of several workers that start together the first one's stays."""
    if (yield from every()):
        return
    yield count(Topic.TOKEN_KEYS)  # Locks its row: from here on one after another.
    if (yield from every()):
        return
    insert = "insert into token_key (kid, private_key, created_at) values ($1, $2, $3)"
    yield insert, (candidate.kid, candidate.private_key, microseconds(candidate.created_at))
