"""A server process that can be killed, partners that send without pause, and the ledger of the answers they got.

Each partner has its own vehicle, publishes one contract after another for it, makes some the default and withdraws
some. So the answers determine the final state:

- an acknowledged change is stored;
- an unanswered change is stored completely, with its event, or not at all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import ccp as package
from ccp.server.sandbox.local_pool import loopback
from ccp.server.settings import Settings
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.databases import sql
from tests.server.storage.made import broken_invariants
from tests.world import AT, Contract, Member, Pool, World, new_secret, opened, parties, register

ROOT = Path(package.__file__).parents[1]


@dataclass
class Served:
    """A server process and its workers."""

    settings: Settings
    folder: Path
    port: int
    workers: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CCP_DATABASE": self.settings.database,
            "CCP_BASE_URL": self.settings.public_url,
            "CCP_PORT": str(self.port),
            "CCP_WORKERS": str(self.workers),
            "CCP_LOG_LEVEL": "error",
            "CCP_DOCUMENTATION": "false",
            "CCP_MAX_CONTRACTS_PER_VEHICLE": str(self.settings.max_contracts_per_vehicle),
            "CCP_MAX_CONTRACTS_PER_VEHICLE_AND_PROVIDER": str(self.settings.max_contracts_per_vehicle_and_provider),
            "CCP_EVENT_DISPATCH": str(self.settings.event_dispatch),
            "CCP_EGRESS_ALLOW_NETWORKS": json.dumps(self.settings.egress_allow_networks),
        }
        command = [sys.executable, "-c", "from ccp.cli import main; main()", "serve"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.wait(200)

    def wait(self, status: int, timeout: float = 40) -> None:
        """Wait until readiness answers 200 or 503."""
        deadline = time.monotonic() + timeout
        while True:
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                if httpx.get(self.settings.public_url + "/health", timeout=5).status_code == status:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill all processes of the server at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # All have ended already.
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.kill()


@dataclass
class Partner:
    """A partner with its own vehicle, and its ledger: EMAIDs by acknowledged change; number of answers by status."""

    pool: Pool
    car: Car
    contracts: list[Contract]
    published: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    tried_to_withdraw: set[str] = field(default_factory=set)
    # EMAIDs that may be the vehicle's default since the last acknowledged change.
    defaults: list[str | None] = field(default_factory=lambda: [None])
    answers: Counter[str] = field(default_factory=Counter)
    failure: BaseException | None = None

    def work(self, stop: threading.Event) -> None:
        try:
            for number, contract in enumerate(self.contracts):
                if stop.is_set():
                    return
                emaid = str(contract.emaid)
                self.tried.add(emaid)
                if not self.published:
                    self.defaults.append(emaid)  # The first contract becomes the default.
                if not self.ask("cps", "PUT", "/signedcontractdata", 201, stop, contract.body):
                    continue
                if not self.published and len(self.tried) == 1:
                    self.defaults = [emaid]
                self.published.add(emaid)
                if number % 3 == 1:
                    self.defaults.append(emaid)
                    path = f"/signedcontractdata/{emaid}/{self.car.pcid}/setdefault"
                    if self.ask("oem", "POST", path, 200, stop):
                        self.defaults = [emaid]
                if number % 3 == 2:
                    self.tried_to_withdraw.add(emaid)
                    if self.ask("emsp", "DELETE", f"/signedcontractdata/{emaid}", 200, stop):
                        self.withdrawn.add(emaid)
        except BaseException as exc:
            self.failure = exc

    def ask(self, caller: str, method: str, path: str, good: int, stop: threading.Event, body: object = None) -> bool:
        """Send a request. Returns whether it was acknowledged. Retries only if it cannot have reached the server."""
        while not stop.is_set():
            try:
                answer = self.pool.client(caller).request(method, path, json=body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                time.sleep(0.05)
                continue
            except httpx.HTTPError as exc:
                self.answers[type(exc).__name__] += 1
                return False
            self.answers[str(answer.status_code)] += 1
            if answer.status_code == 503:
                assert answer.headers["Retry-After"]
                time.sleep(0.4)
                return False
            time.sleep(0.02)  # Leaves work for the whole run.
            assert answer.status_code == good, answer.text
            return True
        return False


@contextmanager
def serving(
    pkis: Mapping[str, PKI], folder: Path, database: str, workers: int, *, dispatch: bool
) -> Iterator[tuple[Served, Pool]]:
    """A server on a database with the schema and the test world. dispatch: it sends events."""
    with loopback() as (listening, base_url):
        port = listening.getsockname()[1]
    settings = Settings(
        database=database,
        base_url=base_url.rsplit(":", 1)[0] + f":{port}",
        event_dispatch=dispatch,
        egress_allow_networks=("127.0.0.0/8",),
        max_contracts_per_vehicle=100_000,
        max_contracts_per_vehicle_and_provider=100_000,
    )
    world = World(
        {name: pki for name, pki in pkis.items() if name != "stranger"},
        tuple(Member(party, new_secret()) for party in parties()),
    )

    async def fill() -> None:
        async with opened(settings) as store:
            await register(store, world, AT)

    asyncio.run(fill())
    served = Served(settings, folder, port, workers)
    try:
        served.start()
        with httpx.Client(base_url=settings.public_url, timeout=15) as http:
            pool = Pool(settings.public_url, settings, world, folder / "ccp.db", http)
            try:
                yield served, pool
            finally:
                pool.close()
    finally:
        served.stop()


@contextmanager
def working(pool: Pool, partners: int, contracts: int) -> Iterator[list[Partner]]:
    """Run partners during the block; all have finished after it."""
    made = []
    for _ in range(partners):
        car = pool.car()
        made.append(Partner(pool, car, [pool.contract(car) for _ in range(contracts)]))
    for name in ("cps", "oem", "emsp"):
        pool.client(name)  # Fetch its token while the server runs.
    stop = threading.Event()
    threads = [threading.Thread(target=partner.work, args=(stop,)) for partner in made]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    for partner in made:
        if partner.failure is not None:
            raise partner.failure


def acknowledged(partners: list[Partner]) -> int:
    return sum(len(partner.published) + len(partner.withdrawn) for partner in partners)


def check_accounts(url: str, partners: list[Partner]) -> None:
    """Check that every acknowledged change is stored, none partly, and each has exactly one event."""
    assert broken_invariants(url) == []
    both = "select 1 from outbox o join delivery d on d.pcid = o.pcid and d.rev = o.rev"
    assert sql(url, both) == [], "an event is in the outbox or on its way"
    for partner in partners:
        pcid = str(partner.car.pcid)
        stored = [row[0] for row in sql(url, "select emaid from contract where pcid = ?", pcid)]
        assert len(set(stored)) == len(stored)
        # An event has one delivery for each webhook and namespace.
        stored_events = sql(
            url,
            "select rev, kind, emaid from outbox where pcid = ? union select rev, kind, emaid from delivery "
            "where pcid = ?",
            pcid,
            pcid,
        )
        events = Counter((kind, emaid) for _, kind, emaid in stored_events)
        created = {emaid for kind, emaid in events if kind == "oem.contract.created"}
        deleted = {emaid for kind, emaid in events if kind == "oem.contract.deleted"}
        assert set(events.values()) <= {1}, "each change has its event once"
        assert {kind for kind, _ in events} <= {"oem.contract.created", "oem.contract.deleted"}
        assert partner.published <= created <= partner.tried
        assert partner.withdrawn <= deleted <= partner.tried_to_withdraw
        assert set(stored) == created - deleted, "a change and its event are there together or not at all"
        (row,) = sql(url, "select rev, default_emaid from vehicle where pcid = ?", pcid) or [(0, None)]
        possible = {None if default in deleted else default for default in partner.defaults}
        assert row[1] in possible, (row[1], partner.defaults)
