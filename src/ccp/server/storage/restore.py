"""Preparation of a backup for a restore, and a list of what the restore undoes.

A restore brings back keys and parties that were revoked or disabled after the backup. The rows that a later state of
the same audit trail (the replaced database, an export) has beyond the end of the backup's trail say what is undone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ccp.server.storage.engine import stored_secrets
from ccp.server.storage.engine.query import Query
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.server.storage.engine.sqlite import run
from ccp.server.storage.queries import audit, console_sessions, secrets, signing_keys
from ccp.server.storage.queries.audit import SHARDS, AuditRow, ChainHead, Entry
from ccp.server.storage.queries.signing_keys import TokenKey

TRAIL_SINCE: Final = "0003"
"""The revision that added the audit trail and the validity times of keys."""
KEYS_SINCE: Final = "0016"
"""The revision that added encryption of secrets."""
CONSOLE_SINCE: Final = "0018"
"""The revision that added the sessions of the console."""

# Routine rows, which are only counted: publishing and purging repeat by themselves, log-ins and tests change nothing.
_COUNTED: Final = (
    "contract.", "vehicle.", "access.", "events.", "console.", "audit.", "peer.tested", "service.tested",
    "webhook.pinged",
)  # fmt: skip


@dataclass(slots=True)
class Undone:
    """Rows of a later audit trail beyond the end of the backup's.

    rows: those that granted or revoked access or trust, or erased data; an operator has to examine each. counted: the
    number of the others, by action. diverged: the trail does not continue the backup's.
    """

    rows: list[AuditRow] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    diverged: bool = False

    def add(self, found: Iterable[AuditRow], heads: Mapping[int, ChainHead]) -> None:
        """Add rows of a trail. heads: chain heads of the backup, by shard."""
        known = {(row.lane, row.number, row.hash) for row in self.rows}
        for row in found:
            head = heads.get(row.lane, ChainHead(0, audit.GENESIS_HASH))
            if row.number == head.number and row.hash != head.hash:
                self.diverged = True
            if row.number <= head.number or (row.lane, row.number, row.hash) in known:
                continue
            if row.action.startswith(_COUNTED):
                self.counted[row.action] += 1
            else:
                self.rows.append(row)


def chain_heads(connection: sqlite3.Connection) -> dict[int, ChainHead]:
    """The chain head of each shard of the trail."""
    rows = connection.execute("select lane, number, hash from audit_head").fetchall()
    return {lane: ChainHead(number, hash) for lane, number, hash in rows}


def trail(connection: sqlite3.Connection, since: Mapping[int, ChainHead]) -> Iterator[AuditRow]:
    """The rows of a trail beginning with those of the given chain heads."""
    for shard in range(SHARDS):
        first = since.get(shard, ChainHead(0, audit.GENESIS_HASH)).number
        for row in connection.execute(
            f"select {audit.COLUMNS} from audit where lane = ? and number >= ? order by number",  # noqa: S608  constants
            (shard, first),
        ):
            yield AuditRow(*row)


def prepare(
    file: Path,
    revision: str,
    key: TokenKey | None,
    entry: Callable[[Sequence[str]], Entry],
    codec: SecretCodec,
) -> tuple[list[str], dict[int, ChainHead]]:
    """Prepare a copy of a backup to become the database, before anything uses it.

    key: replaces every token signing key; None keeps them. entry: makes the trail's entry for the restore from the kids
    of the removed keys. codec: for the secrets of the backup. Returns these kids, and the chain heads of the backup's
    trail. Raises sqlite3.Error; ConfigurationError without the keys of the backup's secrets.
    """
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("pragma trusted_schema = off")
        before = chain_heads(connection) if revision >= TRAIL_SINCE else {}
        connection.execute("begin immediate")
        removed = run(connection, _prepare(revision, key, entry), codec if revision >= KEYS_SINCE else None)
        connection.execute("commit")
    return removed, before


def _prepare(revision: str, key: TokenKey | None, entry: Callable[[Sequence[str]], Entry]) -> Query[list[str]]:
    removed: list[str] = []
    if revision >= KEYS_SINCE:
        yield from stored_secrets.state()
    if key is not None:
        # A release without validity times creates a key itself if there is none.
        removed = yield from signing_keys.remove_all()
        if revision >= TRAIL_SINCE:
            yield from signing_keys.ensure(key)
    if revision >= TRAIL_SINCE:
        # Import checkpoints count lines as stored that the backup does not have.
        yield from secrets.remove(secrets.IMPORT_CHECKPOINT_KEY)
    if revision >= CONSOLE_SINCE:
        yield from console_sessions.remove_all()  # Some had ended after the backup.
    if revision >= TRAIL_SINCE:
        yield from audit.record(entry(removed))
    return removed
