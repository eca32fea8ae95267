"""How queries read and write columns that hold secrets.

    rows = yield "select party_id, secret from peer", ()
    codec = yield from secret_codec(rows)
    secrets = [codec.decrypt(Place("peer", "secret", party_id), stored) for party_id, stored in rows]

    encrypt = yield from encryption()
    yield "update peer set secret = $2 where party_id = $1", (party_id, encrypt("peer", "secret", party_id, secret))

The table `storage_key` says which key encrypts: row `current`. Every write of a secret locks this row until the end of
its transaction. So after a change of the key no transaction writes with the former one, and workers need not be told.
The other rows name keys of values that are not yet encrypted anew; `CLEAR` stands for clear text.

Locks are taken in one order: the change counter of the table, `current`, the rows with secrets.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from ccp.server.storage.engine.query import Query, Row, Statement, read_committed
from ccp.server.storage.engine.secret_codec import CLEAR, MissingStorageKey, Place, SecretCodec

CODEC: Final[Statement] = ("secret codec", ())
"""Not SQL: an engine answers this statement itself, with its `SecretCodec`.

The answer is None where the schema has no storage keys yet: then secrets are in clear text.
"""

CURRENT: Final = "current"
"""Name of the row of `storage_key` with the key that encrypts."""


class SecretColumn(NamedTuple):
    """A column with secrets. key: the primary key of its table, a text."""

    table: str
    key: str
    column: str


SECRET_COLUMNS: Final = (
    SecretColumn("token_key", "kid", "private_key"),
    SecretColumn("pool_secret", "name", "value"),
    SecretColumn("peer", "party_id", "secret"),
    SecretColumn("peer", "party_id", "token"),
    SecretColumn("webhook", "id", "secret"),
    SecretColumn("webhook", "id", "previous_secrets"),
    SecretColumn("subscription", "id", "secret"),
)
"""Every column with a secret that the pool has to know. Secrets that it only compares are hashes (`party_secret`)."""


def secret_codec(found: Iterable[Row] = ()) -> Generator[Statement, list[Row], SecretCodec]:
    """The codec of the engine that runs this query.

    found: the rows to decrypt. A value in them under a key that neither this process nor the database uses is damaged:
    it costs its row, not the others. A key that the database uses and this process lacks is a fault of the process.
    """
    codec: SecretCodec = (yield CODEC)[0][0] or SecretCodec()
    lacking = codec.lacking(value for row in found for value in row)
    if lacking:
        used = {row[1] for row in (yield _SELECT, ())}
        codec = codec.without(lacking - used)
    return codec


@dataclass(frozen=True, slots=True)
class Encryption:
    """Encrypts secrets with the current key of the database, within the transaction that looked it up."""

    codec: SecretCodec
    key_id: str

    def __call__(self, table: str, column: str, row: str, secret: str) -> str:
        """A secret as it is stored. row: primary key. Raises UnreadableSecret if this process lacks the key."""
        return self.codec.encrypt(self.key_id, Place(table, column, row), secret)

    def optional(self, table: str, column: str, row: str, secret: str | None) -> str | None:
        """As a call; None stays None."""
        return None if secret is None else self(table, column, row, secret)


def encryption() -> Query[Encryption]:
    """Lock and return the current key. Where none was chosen yet, the newest key of this process becomes it."""
    codec: SecretCodec | None = (yield CODEC)[0][0]
    if codec is None:
        return Encryption(SecretCodec(), CLEAR)
    rows = yield "select key_id, chosen from storage_key where name = $1 for update", (CURRENT,)
    key_id, chosen = rows[0]
    if not chosen and codec.newest != CLEAR:
        key_id = codec.newest
        yield from choose(CLEAR, key_id)
    return Encryption(codec, key_id)


def choose(before: str, after: str) -> Query[None]:
    """Make another key the current one, whose row is locked. before: the key so far, which stays known as an old one.

    before, after: key ids, or `CLEAR`.
    """
    if before != CLEAR or (yield from holds_secrets()):
        yield (
            "insert into storage_key (name, key_id, chosen) values ($1, $1, $2) on conflict (name) do nothing",
            (before, True),
        )
    yield "update storage_key set key_id = $1, chosen = $2 where name = $3", (after, True, CURRENT)
    yield "delete from storage_key where name = $1", (after,)


def holds_secrets() -> Query[bool]:
    """Whether the database has any secret, encrypted or not."""
    for table, _, column in SECRET_COLUMNS:
        if (yield f"select 1 from {table} where {column} is not null limit 1", ()):  # noqa: S608  constants
            return True
    return False


@dataclass(frozen=True, slots=True)
class StorageKeyState:
    """Which keys the database uses.

    current: the key that encrypts, `CLEAR` for clear text. chosen: whether it was chosen, or is that of a new database.
    old: keys of values that are not encrypted with the current one yet.
    """

    current: str
    chosen: bool
    old: tuple[str, ...]


@read_committed
def state() -> Query[StorageKeyState]:
    """Which keys the database uses. Raises MissingStorageKey if this process lacks one of them."""
    codec = yield from secret_codec()
    rows = {name: (key_id, bool(chosen)) for name, key_id, chosen in (yield _SELECT, ())}
    for key_id, _ in rows.values():
        if not codec.has(key_id):
            sentence = codec.missing(key_id)
            raise MissingStorageKey(
                f"{sentence[0].upper()}{sentence[1:]} If the key is lost: `ccp keys rotate-storage --help`."
            )
    current, chosen = rows.pop(CURRENT)
    return StorageKeyState(current, chosen, tuple(sorted(key_id for key_id, _ in rows.values())))


_SELECT: Final = "select name, key_id, chosen from storage_key"
