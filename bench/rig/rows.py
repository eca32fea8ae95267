"""Contract rows in large numbers, derived from really published ones, and their loading."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from ccp.ids import EMAID, PCID
from ccp.server.storage.engine import schema
from rig import world

_BATCH: Final = 5000
_PRIME: Final = 99_999_989  # More than there are contracts: number × anything modulo it is different for each.
_TABLES: Final = {
    "vehicle": ("pcid", "rev", "default_emaid"),
    "emaid_claim": ("emaid", "pcid"),
    "evidence": ("issuer", "serial", "status", "this_update", "next_update", "revoked_at", "source"),
}

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """Ids of the contract with a number; the order of ids is independent of the order of numbers."""

    letter: str
    pcid: PCID
    emaid: EMAID

    @classmethod
    def of(cls, number: int) -> Made:
        place, other = number * 61_803_399 % _PRIME, number * 41_421_356 % _PRIME
        letter = world.SETS[place % len(world.SETS)]
        return cls(letter, PCID(f"{world.wmi(letter)}0M{place:012d}"), EMAID(f"{world.provider(letter)}M{other:08d}"))


class Templates:
    """Rows of published contracts, from which others are derived."""

    def __init__(self, database: str) -> None:
        with closing(sqlite3.connect(schema.sqlite_file(database))) as connection:
            found = connection.execute("select * from contract where response is not null order by pcid")
            self.columns = tuple(name for name, *_ in found.description)
            self.rows = [dict(zip(self.columns, row, strict=True)) for row in found]
            self.evidence = connection.execute("select * from evidence limit 1").fetchone()

    def batches(self, first: int, last: int) -> Iterator[dict[str, list[Row]]]:
        chance = random.Random(first)
        for start in range(first, last, _BATCH):
            tables: dict[str, list[Row]] = {"contract": [], **{name: [] for name in _TABLES}}
            for number in range(start, min(start + _BATCH, last)):
                made = Made.of(number)
                row = dict(self.rows[number % len(self.rows)])
                serial = f"{chance.getrandbits(158) | 1 << 157:x}"
                row["certificates"] = row["certificates"].replace(row["certificate_serial"], serial)
                row |= {"pcid": made.pcid, "emaid": made.emaid, "certificate_serial": serial}
                row["is_default"] = True
                row["valid_to"] += chance.randrange(86_400 * 300)
                tables["contract"].append(tuple(row.values()))
                tables["vehicle"].append((made.pcid, 1, made.emaid))
                tables["emaid_claim"].append((made.emaid, made.pcid))
                tables["evidence"].append((row["certificate_issuer"], serial, *self.evidence[2:]))
            yield tables

    def expected(self, number: int) -> bytes:
        data: bytes = self.rows[number % len(self.rows)]["response"]
        return data


def fill_sqlite(url: str, templates: Templates, size: int) -> None:
    with closing(sqlite3.connect(schema.sqlite_file(url), isolation_level=None)) as connection:
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma cache_size = -2000000")
        for tables in templates.batches(len(templates.rows), size):
            connection.execute("begin")
            for name, rows in tables.items():
                columns = _TABLES.get(name, templates.columns)
                places = ", ".join("?" * len(columns))
                connection.executemany(f"insert into {name} ({', '.join(columns)}) values ({places})", rows)
            connection.execute("commit")
        connection.execute("pragma wal_checkpoint(truncate)")


async def fill_postgres(url: str, templates: Templates, size: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("set default_toast_compression = lz4")  # As the pool's own sessions have it.
        for tables in templates.batches(len(templates.rows), size):
            for name, rows in tables.items():
                await connection.copy_records_to_table(
                    name, records=rows, columns=list(_TABLES.get(name, templates.columns))
                )
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()
