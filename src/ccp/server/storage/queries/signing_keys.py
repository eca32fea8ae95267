"""Queries for the keys that sign access tokens.

A key is published as soon as it is stored, signs from its activation on, and verifies until it is retired; then it is
removed. Every write increments the change counter first, whose row stays locked until the end of the transaction. So
writes are serialised on every engine, and of several workers that find a key too old only one rotates it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from ccp.errors import NotFound
from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.engine.secret_codec import DamagedSecret, Place
from ccp.server.storage.engine.stored_secrets import encryption, secret_codec
from ccp.server.storage.queries.change_counters import ChangeCounter, bump
from ccp.server.storage.queries.contracts import instant, microseconds

_CLOCKS_DIFFER: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A signing key. private_key: PKCS #8, PEM.

    signs_from: None means since `created_at`. retired_at: None while it is active.
    """

    kid: str
    private_key: str
    created_at: datetime
    signs_from: datetime | None = None
    retired_at: datetime | None = None

    @property
    def starts_at(self) -> datetime:
        """The time from which the key signs."""
        return self.signs_from or self.created_at

    def verifies(self, now: datetime) -> bool:
        """Whether the key verifies tokens at a time."""
        return self.retired_at is None or now < self.retired_at


def current_key(known: Iterable[TokenKey], now: datetime) -> TokenKey | None:
    """The key that signs at a time: the newest active one; if none is active yet, the next one."""
    live = sorted((key for key in known if key.verifies(now)), key=lambda key: (key.starts_at, key.created_at, key.kid))
    started = [key for key in live if key.starts_at <= now]
    return started[-1] if started else next(iter(live), None)


@read_committed
def list_all() -> Query[list[TokenKey]]:
    """All keys, newest first; without those whose stored value is damaged, so that others take over."""
    return (yield from _read())[0]


@read_committed
def list_damaged() -> Query[list[TokenKey]]:
    """The keys whose stored value is damaged, newest first, with an empty private key. They verify no token."""
    return (yield from _read())[1]


def _read() -> Query[tuple[list[TokenKey], list[TokenKey]]]:
    """The keys that can be used, and those whose stored value is damaged."""
    rows = yield (
        "select kid, private_key, created_at, signs_from, retired_at from token_key order by created_at desc, kid",
        (),
    )
    codec = yield from secret_codec(rows)
    usable, damaged = [], []
    for kid, stored, created_at, signs_from, retired_at in rows:
        key = TokenKey(kid, "", instant(created_at), _maybe(signs_from), _maybe(retired_at))
        try:
            private_key = codec.decrypt(Place("token_key", "private_key", kid), stored)
        except DamagedSecret:
            damaged.append(key)
        else:
            usable.append(replace(key, private_key=private_key))
    return usable, damaged


@read_committed
def exists(kid: str) -> Query[bool]:
    """Whether a key is stored, that is, neither revoked nor retired and removed."""
    rows = yield "select 1 from token_key where kid = $1", (kid,)
    return bool(rows)


def ensure(candidate: TokenKey) -> Query[None]:
    """Store a key if there is none. Among workers that start concurrently the first wins."""
    if (yield from list_all()):
        return
    yield bump(ChangeCounter.TOKEN_KEYS)
    if not (yield from list_all()):
        yield from _insert(candidate)


def rotate(candidate: TokenKey, retire_at: datetime, now: datetime) -> Query[None]:
    """Add a key that takes over at its activation. retire_at: when the last token of the other keys expires."""
    yield bump(ChangeCounter.TOKEN_KEYS)
    yield from _replace(candidate, retire_at, now)


def rotate_old(candidate: TokenKey, older_than: datetime, retire_at: datetime, now: datetime) -> Query[bool]:
    """Rotate if no key is newer than a time. Returns whether this call rotated."""
    if not _all_older((yield from list_all()), older_than, now):
        return False
    yield bump(ChangeCounter.TOKEN_KEYS)
    if not _all_older((yield from list_all()), older_than, now):
        return False
    yield from _replace(candidate, retire_at, now)
    return True


def revoke(kid: str, candidate: TokenKey) -> Query[bool]:
    """Remove a key at once. If no other key can sign, the candidate replaces it.

    Returns whether it did. Raises NotFound.
    """
    yield bump(ChangeCounter.TOKEN_KEYS)
    if not (yield "delete from token_key where kid = $1 returning kid", (kid,)):
        raise NotFound(f"There is no key {kid}.")
    if any(key.retired_at is None for key in (yield from list_all())):
        return False
    yield from _insert(candidate)
    return True


def remove_all() -> Query[list[str]]:
    """Remove all keys, which invalidates every token. Returns their kids."""
    yield bump(ChangeCounter.TOKEN_KEYS)
    rows = yield "delete from token_key returning kid", ()
    return sorted(row[0] for row in rows)


def remove_retired(now: datetime) -> Query[int]:
    """Remove the keys whose tokens have all expired. Returns how many."""
    if all(key.verifies(now) for key in (yield from list_all())):
        return 0
    yield bump(ChangeCounter.TOKEN_KEYS)
    return (yield from _remove_retired(now))


def _replace(candidate: TokenKey, retire_at: datetime, now: datetime) -> Query[None]:
    yield from encryption()  # Locked before the rows that it protects.
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
    encrypt = yield from encryption()
    private_key = encrypt("token_key", "private_key", key.kid, key.private_key)
    times = [None if time is None else microseconds(time) for time in (key.signs_from, key.retired_at)]
    yield insert, (key.kid, private_key, microseconds(key.created_at), *times)


def _all_older(known: Iterable[TokenKey], than: datetime, now: datetime) -> bool:
    """Whether no key is newer. A key from the future was created under a wrong clock and is ignored."""
    return all(key.created_at <= than or key.created_at > now + _CLOCKS_DIFFER for key in known)


def _maybe(time: int | None) -> datetime | None:
    return None if time is None else instant(time)
