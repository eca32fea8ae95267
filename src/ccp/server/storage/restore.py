"""What a restored database brings back: keys and parties that were ended after the backup. Known from the audit trail.

The backup's trail ends somewhere; what a later state of the same trail (the database that is replaced, an export) has
beyond that, the restored database has undone.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ccp.server.storage.engine.query import Query
from ccp.server.storage.engine.sqlite import run
from ccp.server.storage.queries import audit, secrets, signing_keys
from ccp.server.storage.queries.audit import SHARDS, AuditRow, ChainHead, Entry
from ccp.server.storage.queries.signing_keys import TokenKey

TRAIL_SINCE: Final = "0003"
"""The revision that brought the audit trail, and times from and until which keys are valid."""

# Everyday rows, which are only counted: publishing and cleansing repeat by themselves.
_COUNTED: Final = ("contract.", "vehicle.", "access.", "events.")


@dataclass(slots=True)
class Undone:
    """What a trail has beyond the backup's end.

    rows: that gave or took access or trust, or erased data: an operator has to look at each. counted: of the others,
    by action. diverged: the trail is not the backup's, or was written anew.
    """

    rows: list[AuditRow] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    diverged: bool = False

    def take(self, found: Iterable[AuditRow], ends: Mapping[int, ChainHead]) -> None:
        """ends: of the backup's lanes."""
        known = {(row.lane, row.number, row.hash) for row in self.rows}
        for row in found:
            end = ends.get(row.lane, ChainHead(0, audit.GENESIS_HASH))
            if row.number == end.number and row.hash != end.hash:
                self.diverged = True
            if row.number <= end.number or (row.lane, row.number, row.hash) in known:
                continue
            if row.action.startswith(_COUNTED):
                self.counted[row.action] += 1
            else:
                self.rows.append(row)


def ends(connection: sqlite3.Connection) -> dict[int, ChainHead]:
    """Where each lane of the trail ends."""
    rows = connection.execute("select lane, number, hash from audit_head").fetchall()
    return {lane: ChainHead(number, hash) for lane, number, hash in rows}


def trail(connection: sqlite3.Connection, since: Mapping[int, ChainHead]) -> Iterator[AuditRow]:
    """A database's trail from these ends on, their own rows included."""
    for lane in range(SHARDS):
        first = since.get(lane, ChainHead(0, audit.GENESIS_HASH)).number
        for row in connection.execute(
            f"select {audit.COLUMNS} from audit where lane = ? and number >= ? order by number",  # noqa: S608  ours
            (lane, first),
        ):
            yield AuditRow(*row)


def prepare(
    file: Path, revision: str, key: TokenKey | None, entry: Callable[[Sequence[str]], Entry]
) -> tuple[list[str], dict[int, ChainHead]]:
    """Prepare a copy of a backup to become the database, before anything uses it.

    key: takes the place of every key that signs tokens; None keeps them. entry: what the trail says of the restore,
    from the kids of the keys that are gone. Returns these, and the ends of the backup's trail. Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("pragma trusted_schema = off")
        before = ends(connection) if revision >= TRAIL_SINCE else {}
        connection.execute("begin immediate")
        gone = run(connection, _prepared(revision, key, entry))
        connection.execute("commit")
    return gone, before


def _prepared(revision: str, key: TokenKey | None, entry: Callable[[Sequence[str]], Entry]) -> Query[list[str]]:
    gone: list[str] = []
    if key is not None:
        # A release that knows no times for keys makes a key itself where there is none.
        gone = yield from signing_keys.remove_all()
        if revision >= TRAIL_SINCE:
            yield from signing_keys.ensure(key)
    if revision >= TRAIL_SINCE:
        # Checkpoints count lines as stored that the older database does not have.
        yield from secrets.remove(secrets.IMPORT_CHECKPOINT_KEY)
        yield from audit.record(entry(gone))
    return gone
