"""Questions about the keys that sign access tokens.

A key is published as soon as it is here, signs from a time on, and verifies until it is retired; then it is removed.
Changes begin with the number of the topic: its row is locked until the transaction ends, so that changes of keys happen
one after another on every engine, and of several workers that find a key too old one rotates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ccp.errors import NotFound
from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.queries.change_counters import ChangeCounter, bump
from ccp.server.storage.queries.contracts import instant, microseconds

_CLOCKS_DIFFER: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """private_key: PKCS #8, PEM. signs_from: None, since it was made. retired_at: None, it verifies until replaced."""

    kid: str
    private_key: str
    created_at: datetime
    signs_from: datetime | None = None
    retired_at: datetime | None = None

    @property
    def starts_at(self) -> datetime:
        return self.signs_from or self.created_at

    def verifies(self, now: datetime) -> bool:
        return self.retired_at is None or now < self.retired_at


def current_key(known: Iterable[TokenKey], now: datetime) -> TokenKey | None:
    """The key that signs at that time: of those that have started the newest. Where none has, the first that will."""
    live = sorted((key for key in known if key.verifies(now)), key=lambda key: (key.starts_at, key.created_at, key.kid))
    started = [key for key in live if key.starts_at <= now]
    return started[-1] if started else next(iter(live), None)


@read_committed
def list_all() -> Query[list[TokenKey]]:
    """All keys, newest first."""
    rows = yield (
        "select kid, private_key, created_at, signs_from, retired_at from token_key order by created_at desc, kid",
        (),
    )
    return [
        TokenKey(kid, key, instant(created_at), _maybe(signs_from), _maybe(retired_at))
        for kid, key, created_at, signs_from, retired_at in rows
    ]


@read_committed
def exists(kid: str) -> Query[bool]:
    """Whether a key verifies tokens: it is neither revoked nor retired and removed."""
    rows = yield "select 1 from token_key where kid = $1", (kid,)
    return bool(rows)


def ensure(candidate: TokenKey) -> Query[None]:
    """Keep the key if there is none yet; of several workers that start together the first one's stays."""
    if (yield from list_all()):
        return
    yield bump(ChangeCounter.TOKEN_KEYS)
    if not (yield from list_all()):
        yield from _insert(candidate)


def rotate(candidate: TokenKey, retire_at: datetime, now: datetime) -> Query[None]:
    """Add a key, which takes over when it starts. retire_at: when the last token of the others has expired."""
    yield bump(ChangeCounter.TOKEN_KEYS)
    yield from _replace(candidate, retire_at, now)


def rotate_old(candidate: TokenKey, older_than: datetime, retire_at: datetime, now: datetime) -> Query[bool]:
    """Rotate if no key is newer than that. Returns whether it was this caller who did."""
    if not _all_older((yield from list_all()), older_than, now):
        return False
    yield bump(ChangeCounter.TOKEN_KEYS)
    if not _all_older((yield from list_all()), older_than, now):
        return False
    yield from _replace(candidate, retire_at, now)
    return True


def revoke(kid: str, candidate: TokenKey) -> Query[bool]:
    """Remove a key at once. Where no other is left to go on signing, the candidate takes its place.

    Returns whether it did. Raises NotFound.
    """
    yield bump(ChangeCounter.TOKEN_KEYS)
    known = yield from list_all()
    if kid not in {key.kid for key in known}:
        raise NotFound(f"There is no key {kid}.")
    yield "delete from token_key where kid = $1", (kid,)
    if any(key.retired_at is None for key in known if key.kid != kid):
        return False
    yield from _insert(candidate)
    return True


def remove_all() -> Query[list[str]]:
    """Remove all keys, and end every token with them. Returns their kids."""
    yield bump(ChangeCounter.TOKEN_KEYS)
    rows = yield "delete from token_key returning kid", ()
    return sorted(row[0] for row in rows)


def remove_retired(now: datetime) -> Query[int]:
    """Remove the keys whose tokens have all expired. Returns how many there were."""
    if all(key.verifies(now) for key in (yield from list_all())):
        return 0
    yield bump(ChangeCounter.TOKEN_KEYS)
    return (yield from _remove_retired(now))


def _replace(candidate: TokenKey, retire_at: datetime, now: datetime) -> Query[None]:
    yield from _remove_retired(now)
    yield "update token_key set retired_at = $1 where retired_at is null", (microseconds(retire_at),)
    yield from _insert(candidate)


def _remove_retired(now: datetime) -> Query[int]:
    rows = yield "delete from token_key where retired_at <= $1 returning kid", (microseconds(now),)
    return len(rows)


def _insert(key: TokenKey) -> Query[None]:
    insert = """
    insert into token_key (kid, private_key, created_at, signs_from, retired_at) values ($1, $2, $3, $4, $5)
    """
    times = [None if time is None else microseconds(time) for time in (key.signs_from, key.retired_at)]
    yield insert, (key.kid, key.private_key, microseconds(key.created_at), *times)


def _all_older(known: Iterable[TokenKey], than: datetime, now: datetime) -> bool:
    """Whether none is newer. A key from the future was made under a wrong clock and does not count."""
    return all(key.created_at <= than or key.created_at > now + _CLOCKS_DIFFER for key in known)


def _maybe(time: int | None) -> datetime | None:
    return None if time is None else instant(time)
