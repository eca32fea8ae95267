"""Commands that select few rows of many: an export of one provider, the audit trail of one contract."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ccp.ids import ProviderId
from ccp.server.bulk import exporter
from ccp.server.bulk.exporter import ExportFilter
from ccp.server.pool import maintenance
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import audit, erasure
from ccp.server.storage.queries.audit import Action, Entry
from rig import world
from rig.postgres import PoolOn
from rig.report import Row
from rig.rows import Made, Templates, fill_sqlite

AIMS: Final = (
    "Aims: an export of one of sixteen providers reads the contracts of that provider only; a search for a contract "
    "in the audit trail, which reads the whole trail (decision 0022), delays no change, also in `ccp erase`."
)
TEMPLATES: Final = 32
_BATCH: Final = 5000


@dataclass(frozen=True, slots=True)
class Plan:
    """rows: of the audit trail. share: aim for the time of an export of one provider, of the time of the whole export.
    search: aim for the search in the trail, seconds. held: aim for the time that an erasure holds up changes, seconds.
    """

    contracts: int
    rows: int
    rounds: int
    share: float
    search: float
    held: float


LONG: Final = Plan(300_000, 200_000, 3, share=0.125, search=3.0, held=0.1)
SHORT: Final = Plan(4_000, 10_000, 3, share=0.5, search=3.0, held=1.0)


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = SHORT if short else LONG
    url = f"sqlite:///{folder / 'ccp.db'}"
    schema.upgrade(url)
    PoolOn(folder / "pool", url, TEMPLATES)
    fill_sqlite(url, Templates(url), plan.contracts)
    _fill_trail(url, plan.rows)
    yield from asyncio.run(_measured(plan, url))


async def _measured(plan: Plan, url: str) -> list[Row]:
    store = connect(url)
    await store.open()
    try:
        return [await _export(plan, store), await _search(plan, store), await _erase(plan, store)]
    finally:
        await store.close()


async def _export(plan: Plan, store: Store) -> Row:
    """Alternating rounds; the result is the median. Lines are generated but not written."""
    provider = ExportFilter(providers=frozenset({ProviderId(world.provider(world.SETS[0]))}))
    times: dict[str, list[float]] = {"all": [], "one": []}
    counts = dict.fromkeys(times, 0)
    for _ in range(plan.rounds):
        for name, wanted in (("all", ExportFilter()), ("one", provider)):
            began = time.perf_counter()
            counts[name] = 0
            async for _line in exporter.lines(store, wanted):
                counts[name] += 1
            times[name].append(time.perf_counter() - began)
    every, one = (statistics.median(times[name]) for name in ("all", "one"))
    return Row(
        f"export of one provider, of the time of the whole export ({counts['one']:,} of {counts['all']:,} contracts)",
        f"≤ {plan.share:g}",
        f"{one / every:.3f} ({one:.2f} s of {every:.1f} s)",
        one / every <= plan.share and 0 < counts["one"] < counts["all"] / 8,
    )


async def _search(plan: Plan, store: Store) -> Row:
    emaid = Made.of(TEMPLATES + plan.rows // 2).emaid
    stops = [0.0]
    lag = asyncio.ensure_future(_note_stops(stops))
    times = []
    for _ in range(plan.rounds):
        began = time.perf_counter()
        found = await store.read(audit.search(audit.Filter(ids=(emaid,)), 100))
        times.append(time.perf_counter() - began)
    lag.cancel()
    taken = statistics.median(times)
    return Row(
        f"search for one contract in {plan.rows:,} rows of the audit trail",
        f"≤ {plan.search:g} s",
        f"{taken:.2f} s, {taken / plan.rows * 1e6:.1f} µs a row",
        taken <= plan.search and len(found) == 1,
        f"The event loop went on meanwhile; its longest stop was {max(stops) * 1000:.0f} ms.",
    )


async def _note_stops(stops: list[float]) -> None:
    """Record the delay of each iteration of the event loop, in seconds."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        stops.append(time.perf_counter() - began - 0.001)


async def _erase(plan: Plan, store: Store) -> Row:
    """As `Maintenance.erase`: the audit trail is searched before the transaction."""
    emaid = Made.of(TEMPLATES + plan.rows // 3).emaid
    began = time.perf_counter()
    ends = await store.read(audit.shard_lengths())
    found: list[Any] = []
    for lane, last in ends.items():
        for after in range(0, last, maintenance.AUDIT_PORTION):
            until = min(after + maintenance.AUDIT_PORTION, last)
            found += await store.read(audit.rows_naming_in_shard(emaid, lane, after, until))
    looked = time.perf_counter() - began
    rows = erasure.AuditRows(tuple(found), ends)
    began = time.perf_counter()
    erased = await store.write(erasure.erase(emaid, (), datetime.now(UTC), "cli:bench", notify=True, rows=rows))
    held = time.perf_counter() - began
    return Row(
        f"ccp erase with {plan.rows:,} rows of the audit trail: changes wait for",
        f"≤ {plan.held:g} s",
        f"{held:.3f} s, after {looked:.2f} s in which they do not",
        held <= plan.held and erased.audit_rows == 1 and erased.contracts == 1,
    )


def _fill_trail(url: str, rows: int) -> None:
    """Add one audit row for the publication of each contract, chained in its shard."""
    columns = audit.COLUMNS
    insert = f"insert into audit ({columns}) values ({', '.join('?' * len(columns.split(',')))})"
    at = datetime.now(UTC)
    with closing(sqlite3.connect(schema.sqlite_file(url), isolation_level=None)) as connection:
        heads = {lane: (number, end) for lane, number, end in connection.execute("select * from audit_head")}
        for start in range(0, rows, _BATCH):
            connection.execute("begin")
            for number in range(start, min(start + _BATCH, rows)):
                made = Made.of(TEMPLATES + number)
                subject = {"emaid": made.emaid, "pcid": made.pcid, "root": "0" * 64}
                entry = Entry(at, "example-cps", Action.CONTRACT_PUBLISHED, subject, trace_id="0" * 32)
                last, end = heads[entry.lane]
                values = audit._values(entry, entry.lane, last + 1, end)
                connection.execute(insert, values)
                heads[entry.lane] = last + 1, str(values[-1])
            connection.execute("commit")
        connection.executemany(
            "update audit_head set number = ?, hash = ? where lane = ?",
            [(number, end, lane) for lane, (number, end) in heads.items()],
        )
