"""Queries that change the key of the secrets in the database, see `ccp.server.storage.engine.stored_secrets`."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from ccp.errors import Conflict
from ccp.server.storage.engine.query import Query, long_read, read_committed, retryable
from ccp.server.storage.engine.secret_codec import CLEAR, Place, UnreadableSecret, key_of
from ccp.server.storage.engine.stored_secrets import (
    CURRENT,
    SECRET_COLUMNS,
    Encryption,
    SecretColumn,
    StorageKeyState,
    choose,
    encryption,
    holds_secrets,
    secret_codec,
    state,
)
from ccp.server.storage.queries.change_counters import ChangeCounter, bump, clear_log, lock

PORTION: Final = 100
"""Rows of one transaction."""
_PAGE: Final = 1_000
_ADVICE: Final = {
    "token_key": "nothing: the pool makes a new key, and callers request new tokens",
    "pool_secret": "nothing: the pool makes a new one",
    "peer": "`ccp peer rotate-secret {}`",
    "webhook": "`ccp webhook rotate-secret {}`, and give it to the partner",
}

_COUNTERS: Final = {
    "token_key": ChangeCounter.TOKEN_KEYS,
    "peer": ChangeCounter.PEERS,
    "webhook": ChangeCounter.WEBHOOKS,
    "subscription": ChangeCounter.SUBSCRIPTIONS,
}


@dataclass(frozen=True, slots=True)
class Portion:
    """Some rows of a column.

    replaced: their former stored values. discarded: keys of the rows whose secret was discarded. last: key of the last
    row; None at the end.
    """

    replaced: tuple[str, ...]
    discarded: tuple[str, ...]
    last: str | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A secret that cannot be decrypted. row: primary key. reason: a sentence. source: that of a subscription."""

    column: SecretColumn
    row: str
    reason: str
    source: str | None = None

    @property
    def advice(self) -> str:
        """What gives the pool a new secret, a clause."""
        if self.column.table == "subscription":
            return f"`ccp neighbour subscribe --renew {(self.source or '').removeprefix('peer:')}`"
        return _ADVICE[self.column.table].format(self.row)


@retryable
def select_key(target: str) -> Query[str]:
    """Make a key the current one. Returns the one before. target: a key id, or `CLEAR`."""
    rows = yield "select key_id, chosen from storage_key where name = $1 for update", (CURRENT,)
    before, chosen = rows[0]
    if before != target or not chosen:
        yield from choose(before, target)
    return str(before)


@retryable
def reencrypt(column: SecretColumn, after: str, target: str, *, discard: bool = False) -> Query[Portion]:
    """Encrypt the secrets of the next rows with the current key. after: key of the row before them.

    target: the key that has to be the current one. discard: replace secrets that cannot be decrypted, see `_discard`.
    Raises Conflict if the target is not the current key; UnreadableSecret.
    """
    table, key, name = column
    if (counter := _COUNTERS.get(table)) is not None:
        yield lock(counter)
    encrypt = yield from encryption()
    if encrypt.key_id != target:
        raise _overtaken()
    rows = yield f"select {key}, {name} from {table} where {key} > $1 order by {key} limit $2", (after, PORTION)  # noqa: S608
    replaced, discarded = [], []
    for row, stored in rows:
        if stored is None or stored == "[]" or (key_of(stored) == target and not discard):
            continue
        try:
            secret = encrypt.codec.decrypt(Place(table, name, row), stored)
        except UnreadableSecret:
            if not discard:
                raise
            yield from _discard(column, row, encrypt)
            discarded.append(row)
        else:
            if key_of(stored) == target:
                continue
            yield f"update {table} set {name} = $2 where {key} = $1", (row, encrypt(table, name, row, secret))  # noqa: S608
        replaced.append(stored)
    if discarded and counter is not None:
        yield bump(counter)
        yield clear_log(counter)  # Workers read the whole table.
    return Portion(tuple(replaced), tuple(discarded), rows[-1][0] if len(rows) == PORTION else None)


def _discard(column: SecretColumn, row: str, encrypt: Encryption) -> Query[None]:
    """Replace a secret that cannot be decrypted by what stands for no secret.

    The pool makes token keys and its own secrets anew. Peers and subscriptions are without one until they get it. A
    webhook always has a secret: it gets a random one, which its receiver refuses until both have another.
    """
    table, key, name = column
    if table in ("token_key", "pool_secret"):
        yield f"delete from {table} where {key} = $1", (row,)  # noqa: S608  constants
        return
    value = None
    if table == "webhook":
        value = "[]" if name == "previous_secrets" else encrypt(table, name, row, secrets.token_urlsafe(32))
    yield f"update {table} set {name} = $2 where {key} = $1", (row, value)  # noqa: S608  constants


@long_read
def list_unreadable() -> Query[list[Unreadable]]:
    """Every secret that cannot be decrypted, by column and row. Reads all secrets."""
    found = []
    for column in SECRET_COLUMNS:
        table, key, name = column
        source = "source" if table == "subscription" else "null"
        last: str | None = ""
        while last is not None:
            rows = yield (
                f"select {key}, {name}, {source} from {table} where {key} > $1 order by {key} limit $2",  # noqa: S608
                (last, _PAGE),
            )
            codec = yield from secret_codec(rows)
            for row, stored, of in rows:
                try:
                    codec.decrypt(Place(table, name, row), stored or "")
                except UnreadableSecret as exc:
                    found.append(Unreadable(column, row, str(exc), of))
            last = rows[-1][0] if len(rows) == _PAGE else None
    return found


@retryable
def forget_old_keys(target: str) -> Query[None]:
    """Forget all keys but the current one, after every row was encrypted with it. Raises Conflict as `reencrypt`."""
    if (yield from encryption()).key_id != target:
        raise _overtaken()
    yield "delete from storage_key where name <> $1", (CURRENT,)


@read_committed
def newest_key() -> Query[str]:
    """Id of the newest key of this process; `CLEAR` without keys."""
    return (yield from secret_codec()).newest


@read_committed
def warnings() -> Query[list[str]]:
    """Sentences about secrets that are not stored as the settings ask for. Raises ConfigurationError without a key."""
    found: StorageKeyState = yield from state()
    newest = (yield from secret_codec()).newest
    if newest == CLEAR:
        return []
    if (found.current == CLEAR and (found.chosen or (yield from holds_secrets()))) or CLEAR in found.old:
        return ["Secrets in the database are in clear text although secrets_key_file is set; `ccp keys rotate-storage` "
                "encrypts them."]  # fmt: skip
    if found.current not in (newest, CLEAR):
        return ["The newest key of secrets_key_file is not in use yet; `ccp keys rotate-storage` changes to it."]
    if found.old:
        return ["Secrets in the database are still encrypted with an older key; `ccp keys rotate-storage` goes on."]
    return []


def _overtaken() -> Conflict:
    return Conflict("Another command has changed the storage key meanwhile; run this one again.")
