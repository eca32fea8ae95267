"""Results of the rounds, their aims, and their tables."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from rig import load, report
from rig.report import CORES, Aim


@dataclass(slots=True)
class Cell:
    """Measurements of a row in every round. cpu, database: CPU seconds per request of the server and of PostgreSQL."""

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


NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "ceiling": "ceiling"}
TITLES = {
    "post": "POST, ISO 15118-2",
    "post-again": "POST, ISO 15118-2, the same 512 cars again and again",
    "post-20": "POST, ISO 15118-20 (P-521), the same 128 cars",
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


def unavoidable(results: Results, lookup: str) -> list[float]:
    """Microseconds, by rounds; empty if a part was not measured."""
    found = [results.parts.get(name, []) for name in (VERIFY, PARSE, lookup)]
    return [sum(each) for each in zip(*found, strict=False)]


def ratio(above: list[float], below: list[float]) -> float | None:
    """The median of the ratios of each round: other load on the machine changes between rounds more than within one."""
    found = [one / other for one, other in zip(above, below, strict=False)]
    return statistics.median(found) if found else None


def aims(results: Results) -> list[Aim]:
    def cell(*key: Any) -> Cell:
        return results.cells.get(key) or Cell()  # type: ignore[call-overload]

    found = []
    for engine, lookup in (("sqlite", LOOK), ("postgresql", FETCH)):
        times = ratio([cost * 1e6 for cost in cell(engine, 1, "post").cpu], unavoidable(results, lookup))
        found.append(Aim(f"CPU of a POST / unavoidable parts, {NAMES[engine]}", 1.8, times, "×", True))
    post = [100 * rate for rate in cell("sqlite", CORES, "post").rates]
    bare, loop = (ratio(post, cell("ceiling", CORES, name).rates) for name in ("bare", "loop"))
    found.append(Aim(f"POST, {CORES} workers, SQLite, of the bare protocol", 65, bare, " %", False))
    found.append(Aim(f"POST, {CORES} workers, SQLite, of the bare loop on all cores", 41, loop, " %", False, 48))
    for engine in ("sqlite", "postgresql"):
        for workers in (1, CORES):
            paced = results.paced.get((engine, workers))
            p99 = statistics.median(each.p99 for each in paced[1]) if paced else None
            what = f"POST p99 at 70 % of its peak, {NAMES[engine]}, {workers} worker{'s' * (workers > 1)}"
            found.append(Aim(what, 25, p99, " ms", True))
    for engine in ("sqlite", "postgresql"):
        cost = statistics.median(cell(engine, 1, "put").cpu) * 1e3 if cell(engine, 1, "put").cpu else None
        found.append(Aim(f"CPU of a PUT, {NAMES[engine]}", 3.5, cost, " ms", True))
    share = 100 * results.imported["steady"] * results.imported["put"] / CORES if results.imported else None
    found.append(Aim("import, of cores / CPU of a PUT", 90, share, " %", False))
    for engine in ("sqlite", "postgresql"):
        sizes = [size[0] for (name, _), size in results.memory.items() if name == engine]
        found.append(
            Aim(f"memory of an idle worker (RSS), {NAMES[engine]}", 120, max(sizes, default=None), " MiB", True)
        )
    return found


def tables(results: Results, judged: list[Aim]) -> str:
    parts = ["### Aims", "", report.table(("aim", "limit", "measured", "judged"), (aim.row() for aim in judged)), ""]
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
    parts += ["### Real servers", "", report.table(("engine, workers", "operation", *head), rows), ""]
    rows = []
    post = {workers: results.cells.get(("sqlite", workers, "post")) for workers in (1, CORES)}
    for (engine, workers, name), cell in sorted(results.cells.items(), key=_place):
        if engine == "ceiling" and cell.rates:
            below = post[workers]
            reached = ratio(below.rates, cell.rates) if below else None
            share = f"{100 * reached:.0f} %" if reached is not None else ""
            numbers = _numbers(cell) if cell.loads else [f"{cell.rate:.0f}", "", "", ""]
            rows.append([TITLES[name], str(workers), *numbers, f"{statistics.median(cell.cpu) * 1e6:.0f}", share])
    if rows:
        head = ("processes", "a second", "p50 ms", "p95 ms", "p99 ms", "CPU µs each", "POST (SQLite) reaches of it")
        parts += ["### Ceilings", "", report.table(("what", *head), rows), ""]
    if results.parts:
        rows = [[name, f"{statistics.median(each):.0f}"] for name, each in results.parts.items()]
        for engine, lookup in (("SQLite", LOOK), ("PostgreSQL", FETCH)):
            if cost := unavoidable(results, lookup):
                rows.append([f"**unavoidable parts of a POST, {engine}**", f"**{statistics.median(cost):.0f}**"])
        parts += ["### Unavoidable parts", "", report.table(("part", "CPU µs"), rows), ""]
    if results.paced:
        rows = [
            [f"{NAMES[engine]}, {workers}", f"{rate:.0f}", *(
                f"{statistics.median(getattr(each, name) for each in seen):.2f}" for name in ("p50", "p95", "p99")
            )]
            for (engine, workers), (rate, seen) in results.paced.items()
        ]  # fmt: skip
        head = ("engine, workers", "requests/s", "p50 ms", "p95 ms", "p99 ms")
        parts += ["### POST at 70 % of its peak", "", report.table(head, rows), ""]
    if results.memory:
        rows = [[f"{NAMES[e]}, {w}", f"{rss:.0f}", f"{pss:.0f}"] for (e, w), (rss, pss) in results.memory.items()]
        parts += ["### Memory of an idle worker", "", report.table(("engine, workers", "RSS MiB", "PSS MiB"), rows), ""]
    if found := results.imported:
        rows = [
            ["one PUT over HTTP, CPU ms", f"{found['put'] * 1e3:.2f}"],
            ["import, lines/s in the middle", f"{found['steady']:.0f}"],
            ["import, lines/s with start and end", f"{found['overall']:.0f}"],
            ["import, CPU ms of a line", f"{found['cost'] * 1e3:.2f}"],
        ]
        parts += ["### Import", "", report.table(("SQLite, all cores", ""), rows), ""]
    return "\n".join([*parts, *results.notes]).strip()


def _place(item: tuple[Key, Cell]) -> tuple[int, int, int]:
    engine, workers, name = item[0]
    return list(NAMES).index(engine), workers, list(TITLES).index(name)


def _numbers(cell: Cell) -> list[str]:
    return [f"{cell.rate:.0f}", *(f"{cell.latency(name):.2f}" for name in ("p50", "p95", "p99"))]
