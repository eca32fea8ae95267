"""Queries that change the key of the secrets in the database, see `ccp.server.storage.engine.stored_secrets`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ccp.errors import Conflict
from ccp.server.storage.engine.query import Query, read_committed, retryable
from ccp.server.storage.engine.secret_codec import CLEAR, Place, key_of
from ccp.server.storage.engine.stored_secrets import (
    CURRENT,
    SecretColumn,
    StorageKeyState,
    choose,
    encryption,
    holds_secrets,
    secret_codec,
    state,
)
from ccp.server.storage.queries.change_counters import ChangeCounter, lock

PORTION: Final = 100
"""Rows of one transaction."""

_COUNTERS: Final = {
    "token_key": ChangeCounter.TOKEN_KEYS,
    "peer": ChangeCounter.PEERS,
    "webhook": ChangeCounter.WEBHOOKS,
    "subscription": ChangeCounter.SUBSCRIPTIONS,
}


@dataclass(frozen=True, slots=True)
class Portion:
    """Some rows of a column. replaced: their former stored values. last: key of the last row; None at the end."""

    replaced: tuple[str, ...]
    last: str | None


@retryable
def select_key(target: str) -> Query[str]:
    """Make a key the current one. Returns the one before. target: a key id, or `CLEAR`."""
    rows = yield "select key_id, chosen from storage_key where name = $1 for update", (CURRENT,)
    before, chosen = rows[0]
    if before != target or not chosen:
        yield from choose(before, target)
    return str(before)


@retryable
def reencrypt(column: SecretColumn, after: str, target: str) -> Query[Portion]:
    """Encrypt the secrets of the next rows with the current key. after: key of the row before them.

    target: the key that has to be the current one. Raises Conflict if it is not; UnreadableSecret.
    """
    table, key, name = column
    if (counter := _COUNTERS.get(table)) is not None:
        yield lock(counter)
    encrypt = yield from encryption()
    if encrypt.key_id != target:
        raise _overtaken()
    rows = yield f"select {key}, {name} from {table} where {key} > $1 order by {key} limit $2", (after, PORTION)  # noqa: S608
    replaced = []
    for row, stored in rows:
        if stored is None or stored == "[]" or key_of(stored) == target:
            continue
        secret = encrypt.codec.decrypt(Place(table, name, row), stored)
        yield f"update {table} set {name} = $2 where {key} = $1", (row, encrypt(table, name, row, secret))  # noqa: S608
        replaced.append(stored)
    return Portion(tuple(replaced), rows[-1][0] if len(rows) == PORTION else None)


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
