"""A SQLite writer thread that dies under load, and a purge of many contracts during deliveries."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ccp.server.storage.engine import schema
from rig.open_loop import UNANSWERED, Outcome, Stream, running
from rig.postgres import PoolOn
from rig.report import Row
from rig.rows import Templates, fill_sqlite

AIMS: Final = (
    "The lock of the SQLite writer thread fails (OSError) for some seconds under a load of PUT and POST. Aims: "
    "every request is answered, changes with 503; readiness fails meanwhile; service resumes without intervention; "
    "nothing acknowledged is missing. Then a worker purges many expired contracts from a large database while "
    "vehicles send requests. Aim: they are answered as without a purge."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds, and requests a second. contracts: of the database that is purged. expired: one in so many of them.

    ratio, more: aims for p99 of POST during a purge: of p99 without it, or so many seconds more.
    """

    before: float
    outage: float
    after: float
    vehicles: float
    publishers: float
    contracts: int
    expired: int
    purging: float
    ratio: float
    more: float


LONG: Final = Plan(5, 10, 10, 60, 60, 300_000, 20, 30, ratio=1.5, more=0.010)
SHORT: Final = Plan(0.5, 1.5, 3.0, 15, 15, 3_000, 20, 2.5, ratio=3.0, more=0.5)
IN_TIME: Final = 4.0
PUT_IN_TIME: Final = 6.0
BACK: Final = 6.0
"""Seconds: a thread that failed is started again after five at most."""
TEMPLATES: Final = 32

# Runs in every interpreter that is started with this folder in PYTHONPATH, before the pool.
_HOOK: Final = """
import os
from ccp.server.storage.engine.write_lock import WriteLock

_hold = WriteLock.hold

def hold(self):
    if os.path.exists({file!r}):
        raise OSError(5, "Input/output error")
    return _hold(self)

WriteLock.hold = hold
"""


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = SHORT if short else LONG
    url = f"sqlite:///{folder / 'ccp.db'}"
    schema.upgrade(url)
    pool = PoolOn(folder / "pool", url, TEMPLATES)
    yield from _dying_writer(plan, pool, url, folder)
    yield from _purge(plan, pool, url)


# --- The writer ------------------------------------------------------------------------------------------------------


def _dying_writer(plan: Plan, pool: PoolOn, url: str, folder: Path) -> Iterator[Row]:
    fault = folder / "fault"
    seconds = plan.before + plan.outage + plan.after
    with _hooked(folder, fault), pool.serving(url) as server:
        had = _recorded(url)
        post, put = (pool.operations[name].messages for name in ("post", "put"))
        streams = (
            Stream("vehicles", post, plan.vehicles, seconds, 100, open_first=False),
            Stream("publishers", put, plan.publishers, seconds, 100, patience=10.0, open_first=False),
        )
        with running(server.port, streams) as load, _readiness(server.port) as ready:
            time.sleep(max(0.0, plan.before - load.elapsed))
            fault.touch()
            began = load.elapsed
            time.sleep(plan.outage)
            fault.unlink()
            over = load.elapsed
            found = load.result()
            start = load.began
        recorded = _recorded(url) - had
    vehicles, publishers = found["vehicles"], found["publishers"]
    yield Row(
        f"writer dies: vehicles with a contract within {IN_TIME:g} s",
        "all",
        f"{vehicles.good(IN_TIME)} of {len(vehicles.answers)}, the slowest after {_slowest(vehicles):.2f} s",
        vehicles.good(IN_TIME) == len(vehicles.answers),
    )
    in_time = sum(a.latency <= PUT_IN_TIME and a.status in (201, 503) for a in publishers.answers)
    statuses = ", ".join(f"{status or 'none'}: {count}" for status, count in sorted(publishers.statuses().items()))
    yield Row(
        f"writer dies: publishers with an answer (201 or 503) within {PUT_IN_TIME:g} s",
        "all",
        f"{in_time} of {len(publishers.answers)}, the slowest after {_slowest(publishers):.2f} s",
        in_time == len(publishers.answers) and not publishers.statuses()[UNANSWERED],
        f"Status {statuses}.",
    )
    # A change that had its turn when the fault came may still be made.
    made = [a for a in publishers.due(began + 0.1, over) if a.status == 201 and a.due + a.latency < over]
    yield Row("writer dies: 201 during the fault", "none", str(len(made)), not made)
    taken = publishers.statuses()[201]
    yield Row(
        "writer dies: rows in the audit trail for each 201",
        "exactly one",
        f"{recorded} for {taken}",
        recorded == taken,
    )
    red = [at - start for at, is_ready in ready if not is_ready]
    first, last = (min(red), max(red)) if red else (float("nan"), float("nan"))
    yield Row(
        f"writer dies: not ready during the fault, ready within {BACK:g} s of its end",
        f"≤ 1.5 s, ≤ {BACK:g} s",
        f"not ready {first - began:.2f} s after it came, ready {last - over:.2f} s after it went",
        bool(red) and first - began <= 1.5 and last - over <= BACK,
    )
    again = min((a.due + a.latency - over for a in publishers.due(over) if a.status == 201), default=float("inf"))
    late = [a for a in publishers.due(over + BACK) if a.status != 201]
    yield Row(
        f"writer dies: 201 again within {BACK:g} s of the fault's end",
        f"≤ {BACK:g} s",
        f"{again:.2f} s; {len(late)} other answers after {BACK:g} s",
        again <= BACK and not late,
    )


@contextmanager
def _hooked(folder: Path, fault: Path) -> Iterator[None]:
    """Servers that are started within the context fail while the file exists."""
    hooks = folder / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOK.format(file=str(fault)))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(hooks)
    try:
        yield
    finally:
        fault.unlink(missing_ok=True)
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def _readiness(port: int) -> Iterator[list[tuple[float, bool]]]:
    """Query readiness ten times per second. Yields the times (monotonic) and the answers."""
    seen: list[tuple[float, bool]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            ready = False
            with contextlib.suppress(OSError):  # Of which HTTPError is one.
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).close()
                ready = True
            seen.append((time.monotonic(), ready))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join(10)


def _recorded(url: str) -> int:
    """Rows of the audit trail that record a publication."""
    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection:
        count = "select count(*) from audit where action in ('contract.published', 'contract.replaced')"
        return int(connection.execute(count).fetchone()[0])


def _slowest(outcome: Outcome) -> float:
    return max(answer.latency for answer in outcome.answers)


# --- The purge -------------------------------------------------------------------------------------------------------


def _purge(plan: Plan, pool: PoolOn, url: str) -> Iterator[Row]:
    fill_sqlite(url, Templates(url), plan.contracts)
    expired = _expire(url, plan.expired)
    settings = pool.config.read_text()
    found: dict[int, Outcome] = {}
    left = expired
    for interval in (0, 1):
        pool.config.write_text(f"{settings}purge_interval = {interval}\n")
        with pool.serving(url) as server:
            stream = Stream("vehicles", pool.operations["post"].messages, plan.vehicles, plan.purging, 100)
            with running(server.port, [stream]) as load:
                found[interval] = load.result()["vehicles"]
        left = _expired(url)
    pool.config.write_text(settings)
    without, during = found[0], found[1]
    p99, p99_purging = without.percentile(0.99), during.percentile(0.99)
    within = p99_purging <= max(plan.ratio * p99, p99 + plan.more)
    what = f"purge of {expired:,} of {plan.contracts:,} contracts"
    yield Row(
        f"{what}: p99 of POST, of p99 without a purge",
        f"≤ {plan.ratio:g}×, or {plan.more * 1000:g} ms more",
        f"{p99_purging / p99:.2f}× ({p99_purging * 1000:.1f} ms of {p99 * 1000:.1f} ms)",
        within,
    )
    yield Row(
        f"{what}: vehicles with a contract within {IN_TIME:g} s",
        "all",
        f"{during.good(IN_TIME)} of {len(during.answers)}, the slowest after {_slowest(during) * 1000:.0f} ms "
        f"(without a purge {_slowest(without) * 1000:.0f} ms)",
        during.good(IN_TIME) == len(during.answers),
    )
    yield Row(f"{what}: contracts purged", "some", f"{expired - left:,} in {plan.purging:g} s", left < expired)


def _expire(url: str, one_in: int) -> int:
    """Set contracts that no vehicle of the load has to expired. Returns their number."""
    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection, connection:
        connection.execute(f"update contract set valid_to = 1000 where rowid > {TEMPLATES} and rowid % {one_in} = 0")
    return _expired(url)


def _expired(url: str) -> int:
    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection:
        return int(connection.execute("select count(*) from contract where valid_to = 1000").fetchone()[0])
