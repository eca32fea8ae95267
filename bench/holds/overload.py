"""Overload: more requests than a pool can answer, over few and over many connections.

If there are two cores, the only worker is pinned to one of them and the load generator to the other, so the peak is
that of the worker. The peak depends on the load of the machine; it is measured in a closed loop before and after each
row, and the row is compared with the mean of both.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop

from ccp.server import logging, settings
from ccp.server.storage.engine import schema
from figures import token_of
from rig import load, processes, world
from rig.open_loop import PATIENCE, UNANSWERED, Outcome, Stream, running
from rig.processes import Server
from rig.report import Row

AIMS: Final = (
    "Vehicles send 1.5, 3 and 10 times the rate that saturates a worker, over 100 to 10,000 connections. Aims: at "
    "least 90 % of the peak rate is answered within 500 ms of the time at which a request was due, the rest with "
    "503; vehicles are served normally afterwards, and while bulk requests flood the pool."
)

WITHIN: Final = 0.5
_WARM: Final = 1.5  # Seconds at the start of a load that are not judged.
_HEALTH: Final = (b"GET /health/ready HTTP/1.1\r\nHost: ccp.example\r\n\r\n",)


@dataclass(frozen=True, slots=True)
class Plan:
    contracts: int
    loads: tuple[tuple[float, int], ...]
    """Multiples of the peak, and connections."""
    seconds: float
    peak_seconds: float
    goodput: float
    """The least share of the peak."""
    max_connections: int


LONG: Final = Plan(
    4800,
    tuple((times, count) for times in (1.5, 3.0, 10.0) for count in (100, 1000, 10_000)),
    seconds=8,
    peak_seconds=3,
    goodput=0.9,
    max_connections=11_000,
)
# On a machine whose cores are busy the peak of one second says little about the next one. Without admission it is 0.
SHORT: Final = Plan(200, ((3.0, 100),), seconds=3.5, peak_seconds=1.0, goodput=0.15, max_connections=1000)


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = SHORT if short else LONG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    try:
        with ExitStack() as stack:
            rig = Rig(plan, folder, stack, cores if len(cores) > 1 and not short else [])
            for times, count in plan.loads:
                if count + 64 <= hard:
                    yield from rig.flood(times, count)
            yield rig.recovery()
            yield from rig.mixed()
            if not short:
                yield rig.default_limits()
    finally:
        os.sched_setaffinity(0, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Rig:
    """A pool with one worker, and its load generators."""

    def __init__(self, plan: Plan, folder: Path, stack: ExitStack, cores: Sequence[int]) -> None:
        self.plan, self.folder, self.stack, self.cores = plan, folder, stack, cores
        at = datetime.now(UTC).replace(microsecond=0)
        self.world = world.build(at, {"iso2": plan.contracts})
        self.database = f"sqlite:///{folder / 'ccp.db'}"
        schema.upgrade(self.database)
        config = settings.load(self.config("fill.toml"), database=self.database)
        logging.configure(config.model_copy(update={"log_level": "error"}))
        uvloop.run(world.fill(config, self.world))
        limits = f"max_connections = {plan.max_connections}\n"
        self.server = stack.enter_context(self.serving(self.config("ccp.toml", limits)))
        self.operations = self.operations_of(self.server)
        if cores:
            os.sched_setaffinity(0, {cores[0]})
        self.closed(4 if cores else 1)  # Each vehicle once: what is remembered of it is part of the peak.

    def config(self, name: str, more: str = "") -> Path:
        file = self.folder / name
        file.write_text(f'base_url = "{world.BASE_URL}"\n{more}')
        return file

    @contextmanager
    def serving(self, config: Path) -> Iterator[Server]:
        with processes.serving(config, self.database, 1, self.folder / "servers.log") as server:
            for pid in processes.tree(server.pids[0]) if self.cores else ():
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {self.cores[-1]})
            yield server

    def operations_of(self, server: Server) -> dict[str, world.Operation]:
        tokens = {
            key: token_of(f"http://127.0.0.1:{server.port}/oauth/token", member.party.client_id, member.secret)
            for key, member in self.world.members.items()
        }
        return world.operations(self.world, tokens)

    def closed(self, seconds: float) -> float:
        """The peak: responses per second in a closed loop."""
        return load.drive(self.operations["post"], self.server.port, 16, seconds).rate

    def open(self, port: int, *streams: Stream) -> dict[str, Outcome]:
        with running(port, streams, core=self.cores[0] if self.cores else None) as generator:
            return generator.result()

    def vehicles(self, rate: float, connections: int, seconds: float, **more: float) -> Stream:
        return Stream("vehicles", self.operations["post"].messages, rate, seconds, connections, **more)  # type: ignore[arg-type]

    def flood(self, times: float, connections: int) -> Iterator[Row]:
        plan, before = self.plan, self.closed(self.plan.peak_seconds)
        used, began = self.server.cpu(), time.monotonic()
        probes = Stream("probes", _HEALTH, 4, plan.seconds, 1)
        found = self.open(self.server.port, self.vehicles(times * before, connections, plan.seconds), probes)
        used = (self.server.cpu() - used) / (time.monotonic() - began)
        peak = (before + self.closed(plan.peak_seconds)) / 2
        what = f"{times:g} times the peak over {connections:,} connections"
        yield self._goodput(what, found["vehicles"], peak, plan.goodput, f"{used:.0%} of a core used by the worker")
        statuses = found["probes"].statuses()
        ready = statuses[200] / max(1, statuses.total())
        yield Row(f"{what}: readiness", "200", f"{ready:.0%} of {statuses.total()} probes 200", 503 not in statuses)

    def _goodput(self, what: str, found: Outcome, peak: float, least: float, note: str = "") -> Row:
        seconds = found.stream.seconds - _WARM
        start, end = found.stream.start + _WARM, found.stream.start + found.stream.seconds
        goodput = found.good(WITHIN, start=start, end=end) / seconds
        statuses, count = found.statuses(start, end), max(1, len(found.due(start, end)))
        p99 = found.percentile(0.99, 200, start, end) * 1e3
        figure = (
            f"{goodput / peak:.0%} of {peak:,.0f}/s at {count / seconds:,.0f}/s due; 503: {statuses[503] / count:.0%}, "
            f"no answer: {statuses[UNANSWERED] / count:.1%}; p99 of 200: {p99:.0f} ms"
        )
        return Row(what, f"≥ {least:.0%} of the peak within 500 ms", figure, goodput >= least * peak, note)

    def recovery(self) -> Row:
        """Three times the peak, then half of it: two seconds later all requests are served normally."""
        plan, peak = self.plan, self.closed(self.plan.peak_seconds)
        seconds = plan.seconds
        calm = Stream("calm", self.operations["post"].messages, 0.4 * peak, seconds + 2, 100, start=seconds)
        found = self.open(self.server.port, self.vehicles(3 * peak, 400, seconds), calm)["calm"]
        late = found.due(start=seconds + 2)
        ok = sum(answer.status == 200 for answer in late)
        p99 = found.percentile(0.99, start=seconds + 2)
        limit, least = (0.1, 1.0) if self.cores else (2.0, 0.8)
        return Row(
            "2 s after an overload, at 0.4 times the peak",
            f"≥ {least:.0%} are 200, p99 ≤ {limit * 1e3:.0f} ms",
            f"{ok} of {len(late)} are 200, p99 {p99 * 1e3:.0f} ms",
            ok >= least * len(late) and p99 <= limit,
        )

    def mixed(self) -> Iterator[Row]:
        """Bulk requests at three times the peak, vehicles at half of it."""
        plan, peak = self.plan, self.closed(self.plan.peak_seconds)
        rate = 0.5 * peak if self.cores else 0.3 * peak
        bulk = [
            Stream(name, self.operations[name].messages, peak, plan.seconds, 200, patience=10)
            for name in ("put", "by-emaid")
        ]
        found = self.open(self.server.port, self.vehicles(rate, 200, plan.seconds), *bulk)
        least = 0.9 if self.cores else 0.3
        vehicles = found["vehicles"]
        due = len(vehicles.due(_WARM))
        good = vehicles.good(WITHIN, start=_WARM)
        yield Row(
            "vehicles while PUT and GET flood the pool",
            f"≥ {least:.0%} answered 200 within 500 ms",
            f"{good / max(1, due):.1%} of {due}; p99 {vehicles.percentile(0.99, 200, _WARM) * 1e3:.0f} ms",
            good >= least * due,
        )
        served = {name: found[name].statuses(_WARM) for name in ("put", "by-emaid")}
        done = served["put"][201] + served["by-emaid"][200]
        yield Row(
            "bulk meanwhile",
            "does not starve",
            f"{served['put'][201]} PUT and {served['by-emaid'][200]} GET served, "
            f"{served['put'][503] + served['by-emaid'][503]} answered 503",
            done > 0,
        )

    def default_limits(self) -> Row:
        """2.5 times the peak with default limits; every client has its own connection."""
        with self.serving(self.config("default.toml")) as server:
            self.operations = self.operations_of(server)
            self.server = server
            before = self.closed(self.plan.peak_seconds)
            found = self.open(server.port, self.vehicles(2.5 * before, 900, self.plan.seconds, open_first=False))
            return self._goodput(
                "2.5 times the peak, default settings, connections opened when needed",
                found["vehicles"],
                before,
                self.plan.goodput,
                f"clients give up after {PATIENCE} s; 900 connections at most",
            )
