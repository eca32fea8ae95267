"""The cost of an import: `ccp import` of a fleet, relative to PUTs measured in the same run.

    python bench/bulk.py [--contracts 5000] [--workers N]

The reference is the rate of all cores if each contract cost the CPU time of one PUT with cached issuers; the aim is at
least 0.9 of it. A second figure is the rate if only the checks cost CPU time. It cannot be reached, because reading,
transfer to workers and storing use the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from ccp.ids import EMAID, PCID
from ccp.server import logging, settings
from ccp.server.app import build_services
from ccp.server.bulk import exporter, import_worker, importer, messages
from ccp.server.bulk.lines import InputSource
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.sandbox.setup import create, publish_body
from ccp.server.settings import Settings
from ccp.testing.partners import Car
from request import free_port, token_of
from rig.processes import environment

console = Console(width=110)
CALLER = Caller(Party("bench", "bench", frozenset({PartyRole.CPS}), all_providers=True))


def make(folder: Path, count: int) -> tuple[Settings, Path]:
    """A sandbox and a file of contracts, each for another vehicle. All vehicles share one key."""
    at = datetime.now(UTC)
    world = create(folder, "http://127.0.0.1:1", at, store_samples=False)
    pki = world.pkis["iso2"]
    car = Car.generate(pki, PCID("WEX0FLEET00000000"), at)
    fleet = folder / "fleet.jsonl"
    with fleet.open("wb") as file:
        for number in range(count):
            each = replace(car, pcid=PCID(f"WEX0FLEET{number:08d}"))
            file.write(orjson.dumps(publish_body(pki, EMAID(f"DEEXAF{number:08d}"), each, at)) + b"\n")
    config = settings.load(folder / "ccp.toml", log_level="error")
    logging.configure(config)
    return config, fleet


async def alone(config: Settings, lines: list[bytes]) -> tuple[float, float]:
    """CPU seconds to check one line, and to store it in its own transaction."""
    built = build_services(config)
    await built.open()
    at = datetime.now(UTC)
    checking = storing = 0.0
    for start in range(0, len(lines), 250):
        part = lines[start : start + 250]
        began = time.process_time()
        checked = [await import_worker.check_line(built.pool, CALLER, config.max_body, line, at) for line in part]
        checking += (time.process_time() - began) / len(lines)
        began = time.process_time()
        for each in checked:
            assert isinstance(each, messages.AcceptedLine), each
            await built.store.write(built.pool.publication.transaction(CALLER, each.contract))
        storing += (time.process_time() - began) / len(lines)
    await built.close()
    return checking, storing


def served(folder: Path, lines: list[bytes]) -> float:
    """CPU seconds of the server per PUT over HTTP, with eight concurrent requests."""
    port = free_port()
    config = folder / "ccp.toml"
    credentials = json.loads((folder / "credentials.json").read_text())
    cps = next(party for party in credentials["parties"] if party["role"] == "cps")
    server = subprocess.Popen(
        [sys.executable, "-c", "from ccp.cli import main; main()", "serve", "--config", config, "--port", str(port)],
        env=environment(CCP_LOG_LEVEL="error"),
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        token = token_of(url + "/oauth/token", cps["client_id"], cps["client_secret"])
        turn = iter(lines)

        def put(_: int) -> None:
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}) as http:
                for line in turn:
                    answer = http.put("/opnc/v1/ccp/signedcontractdata", content=line)
                    assert answer.status_code == 201, answer.text

        def used() -> float:
            fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = used()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(put, range(8)))
        return (used() - before) / len(lines)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def cpu() -> float:
    """CPU seconds of all processes of the process group: this one and the workers of an import."""
    ticks = 0
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = each.read_text().rpartition(")")[2].split()
            if int(fields[2]) == os.getpgrp():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def imported(config: Settings, fleet: Path, workers: int) -> tuple[float, float, float]:
    """Lines per second, in the middle and overall; CPU seconds of all processes per line in the middle.

    The start of processes and the end, when workers become idle, are left out of the middle.
    """
    seen: list[tuple[float, int, float]] = []

    def on_progress(state: importer.ImportProgress) -> None:
        seen.append((time.perf_counter(), state.lines_done, cpu()))

    began = time.perf_counter()
    plan = importer.ImportPlan(
        InputSource.of(str(fleet)), CALLER, workers, fleet.with_suffix(".checkpoint"), None, on_progress
    )
    state = await importer.run(config, plan)
    ended = time.perf_counter()
    assert not state.counts[importer.REFUSED], state.counts
    (t0, n0, c0), (t1, n1, c1) = seen[workers * 4], seen[-workers * 4]
    return (n1 - n0) / (t1 - t0), state.lines_done / (ended - began), (c1 - c0) / (n1 - n0)


def main() -> None:
    options = argparse.ArgumentParser(description="What an import costs.")
    options.add_argument("--contracts", type=int, default=5000)
    options.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = options.parse_args()
    console.print(f"Python {platform.python_version()}, {given.workers} workers, {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name:
        config, fleet = make(Path(name) / "sandbox", given.contracts)
        lines = fleet.read_bytes().splitlines()
        checking, storing = asyncio.run(alone(config, lines[:1000]))
        put = served(Path(name) / "sandbox", lines[1000:2000])
        ceiling = given.workers / put
        table = Table("", "lines/s", "× cores / PUT", "CPU ms each", box=None, header_style="bold")

        def row(what: str, rate: float | None, cost: float | None = None) -> None:
            table.add_row(
                what,
                "" if rate is None else f"{rate:.0f}",
                "" if rate is None else f"{rate / ceiling:.2f}",
                "" if cost is None else f"{cost * 1e3:.2f}",
            )

        row("checks of one line (one core)", 1 / checking, checking)
        row("storing one, by itself", None, storing)
        row("one PUT over HTTP, one core", 1 / put, put)
        row("cores / PUT: the measure", ceiling)
        row("cores / (checks + storing)", given.workers / (checking + storing))
        row("cores / checks, as if storing were free", given.workers / checking)
        for what in ("import, new or replaced", "import again, nothing to change"):
            steady, overall, cost = asyncio.run(imported(config, fleet, given.workers))
            row(f"{what}: in the middle", steady, cost)
            row(f"{what}: with start and end", overall)
            row(f"{what}: cores / its CPU, on cores of its own", given.workers / cost)
        target = Path(name) / "export.jsonl"
        row("export", *timed(lambda: asyncio.run(exported(config, target)), given.contracts))
        console.print(table)


async def exported(config: Settings, target: Path) -> None:
    built = build_services(config)
    await built.open()
    await exporter.export(built.store, str(target), exporter.ExportFilter())
    await built.close()


def timed(work: Callable[[], object], count: int) -> tuple[float, float]:
    began, used = time.perf_counter(), cpu()
    work()
    return count / (time.perf_counter() - began), (cpu() - used) / count


if __name__ == "__main__":
    main()
