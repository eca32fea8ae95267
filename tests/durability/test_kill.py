"""A server that is killed again and again while partners change contracts: what was acknowledged is there.

Each client has EMAIDs of its own, whose history it therefore knows, and shares vehicles with the others. A request that
got no answer may have been done or not; both are followed up, so at the end the database has to be in one of the states
that the answers allow, with exactly the events that belong to it.

By default on SQLite; with the environment variable CCP_TEST_DATABASE on the empty database that it names.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ccp.api.opnc import BASE
from ccp.auth import new_secret
from ccp.ids import EMAID, PCID
from ccp.sim.pki import PKI
from ccp.sim.sandbox import Member, World, register
from ccp.store import Store, connect, schema
from tests.bulk.fleet import body, new_emaid, new_pcid
from tests.cli.run import COMMAND, environment
from tests.cli.test_serving import free_port
from tests.store.made import statements
from tests.world import AT, parties

CLIENTS = 4
CREATED, UPDATED, DELETED = "oem.contract.created", "oem.contract.updated", "oem.contract.deleted"


# --- What may be so --------------------------------------------------------------------------------------------------


class Fate(NamedTuple):
    """One possible story of a contract: where it is and what was published last, and the events told of it."""

    place: tuple[str, str] | None
    events: tuple[tuple[str, int], ...]

    def told(self, *kinds: str) -> Counter[str]:
        return Counter(dict(self.events)) + Counter(kinds)


def fate(place: tuple[str, str] | None, events: Counter[str]) -> Fate:
    return Fate(place, tuple(sorted(events.items())))


@dataclass
class Contract:
    """A client's own. versions: bodies by vehicle and metadata."""

    emaid: EMAID
    versions: dict[tuple[str, str], dict[str, Any]]
    fates: set[Fate] = field(default_factory=lambda: {Fate(None, ())})

    def published(self, place: tuple[str, str], known: bool) -> None:
        after = set()
        for before in self.fates:
            if before.place is None:
                kinds = [CREATED]
            elif before.place[0] == place[0]:
                kinds = [UPDATED]
            else:
                kinds = [DELETED, CREATED]
            after.add(fate(place, before.told(*kinds)))
        self.fates = after if known else self.fates | after

    def withdrawn(self, status: int | None) -> None:
        """status: of the answer, None without one."""
        gone = {fate(None, each.told(DELETED)) for each in self.fates if each.place is not None}
        if status == 200:
            self.fates = gone
        elif status == 404:
            self.fates = {each for each in self.fates if each.place is None}
        else:
            self.fates |= gone
        assert self.fates, f"{self.emaid}: an answer that nothing explains"


@dataclass
class Choice:
    """A vehicle with two contracts that one client alone has: only its default changes."""

    pcid: PCID
    emaids: tuple[EMAID, EMAID]
    bodies: tuple[dict[str, Any], dict[str, Any]]
    possible: set[str] = field(default_factory=set)


# --- The clients -----------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Changes its contracts until it is told to stop, and notes what it was told."""

    def __init__(
        self, url: str, tokens: Mapping[str, str], contracts: list[Contract], choice: Choice, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.tokens = tokens
        self.contracts = contracts
        self.choice = choice
        self.chance = random.Random(seed)
        self.stop = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.acknowledged = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                with httpx.Client(base_url=self.url + BASE, timeout=10) as http:
                    while not self.stop.is_set() and self.once(http):
                        pass
                time.sleep(0.02)
        except BaseException as exc:
            self.failure = exc

    def once(self, http: httpx.Client) -> bool:
        """One change. Returns whether the server answered."""
        contract = self.chance.choice(self.contracts)
        what = self.chance.choices(["put", "delete", "default"], [6, 2, 3])[0]
        if what == "put":
            place = self.chance.choice(list(contract.versions))
            status = self.call(http, "cps", "PUT", "/signedcontractdata", contract.versions[place])
            assert status in (201, 503, None, 0), status
            if status != 0 and status != 503:
                contract.published(place, status == 201)
        elif what == "delete":
            status = self.call(http, "emsp", "DELETE", f"/signedcontractdata/{contract.emaid}")
            assert status in (200, 404, 503, None, 0), status
            if status != 0 and status != 503:
                contract.withdrawn(status)
        else:
            emaid = self.chance.choice(self.choice.emaids)
            path = f"/signedcontractdata/{emaid}/{self.choice.pcid}/setdefault"
            status = self.call(http, "oem", "POST", path)
            assert status in (200, 503, None, 0), status
            if status != 0 and status != 503:
                self.choice.possible = {emaid} if status == 200 else self.choice.possible | {emaid}
        self.outcomes[f"{what} {status}"] += 1
        self.acknowledged += status in (200, 201)
        return status is not None and status != 0

    def call(self, http: httpx.Client, party: str, method: str, path: str, members: Any = None) -> int | None:
        """The status; 0 when nobody was there to take the request, None when it got no answer."""
        try:
            headers = {"Authorization": f"Bearer {self.tokens[party]}"}
            return http.request(method, path, json=members, headers=headers).status_code
        except httpx.ConnectError:
            return 0
        except httpx.TransportError:
            return None


# --- The server ------------------------------------------------------------------------------------------------------


@contextmanager
def serving(config: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own; at the end of the block every process of it is killed."""
    log = config.with_name("log")
    with log.open("wb") as err:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(config)], env=environment(), start_new_session=True, stderr=err
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(url + "/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ask(url: str, use: Any) -> Any:
    """Open the store, use it, close it."""

    async def run() -> Any:
        store: Store = connect(url)
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in ask(url, lambda store: store.read(statements((statement, ()))))]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return os.environ.get("CCP_TEST_DATABASE") or f"sqlite:///{tmp_path / 'ccp.db'}"


def furnish(pki: PKI, cars: list[PCID]) -> tuple[list[Contract], Choice]:
    """What one client has: three contracts, each in two versions for each of two vehicles, and a vehicle of its own."""
    contracts = []
    for _ in range(3):
        emaid = new_emaid()
        versions = {
            (str(car), text): body(pki, emaid, car, metaData=text) for car in random.sample(cars, 2) for text in "ab"
        }
        contracts.append(Contract(emaid, versions))
    pcid, emaids = new_pcid(), (new_emaid(), new_emaid())
    return contracts, Choice(pcid, emaids, (body(pki, emaids[0], pcid), body(pki, emaids[1], pcid)), {emaids[0]})


def test_whatever_was_acknowledged_before_a_kill_is_there_and_nothing_half(
    tmp_path: Path, pkis: dict[str, PKI], database: str
) -> None:
    hammer(database, tmp_path, pkis, workers=2, kills=4, seconds=0.7)


def hammer(database: str, folder: Path, pkis: Mapping[str, PKI], *, workers: int, kills: int, seconds: float) -> None:
    """Run a server, kill it after so many seconds of work, run it anew, … and look into the database at the end."""
    schema.upgrade(database)
    world = World({"iso2": pkis["iso2"]}, tuple(Member(party, new_secret()) for party in parties()))
    ask(database, lambda store: register(store, world, AT))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config = folder / "ccp.toml"
    values = {"database": database, "port": port, "base_url": url, "workers": workers, "log_level": "error"}
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))

    cars = [new_pcid() for _ in range(4)]
    owned = [furnish(pkis["iso2"], cars) for _ in range(CLIENTS)]
    tokens: dict[str, str] = {}
    clients: list[Client] = []
    try:
        for number in range(kills):
            with serving(config, url):
                if not clients:
                    for name in ("cps", "emsp", "oem"):
                        tokens[name] = token(url, name, world.member(name).secret)
                    for _, choice in owned:
                        for members in choice.bodies:
                            publish(url, tokens["cps"], members)
                    clients = [Client(url, tokens, *each, seed) for seed, each in enumerate(owned)]
                    for client in clients:
                        client.start()
                begun = time.monotonic()
                enough = done(clients) + 50
                while time.monotonic() < begun + seconds or done(clients) < enough:
                    assert time.monotonic() < begun + 60
                    time.sleep(0.01 + 0.003 * number)
    finally:
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join(30)
    for client in clients:
        assert client.failure is None, client.failure
    outcomes = sum((client.outcomes for client in clients), Counter())
    check(database, owned)
    # It was work indeed, and it was interrupted.
    for acknowledged in ("put 201", "delete 200", "default 200"):
        assert outcomes[acknowledged] >= kills, outcomes
    assert any(outcomes[f"{what} None"] for what in ("put", "delete", "default")), outcomes


def done(clients: list[Client]) -> int:
    """How many requests were acknowledged."""
    return sum(client.acknowledged for client in clients)


def token(url: str, name: str, secret: str) -> str:
    form = {"grant_type": "client_credentials", "client_id": name, "client_secret": secret}
    answer = httpx.post(f"{url}/oauth/token", data=form, timeout=10)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["access_token"]
    return found


def publish(url: str, given: str, members: Mapping[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {given}"}
    answer = httpx.put(url + BASE + "/signedcontractdata", json=members, headers=headers, timeout=10)
    assert answer.status_code == 201, answer.text


def check(database: str, owned: list[tuple[list[Contract], Choice]]) -> None:
    """Hold the database against what the clients know."""
    contracts = rows(database, "select emaid, pcid, metadata, is_default from contract")
    vehicles = {
        pcid: (rev, default) for pcid, rev, default in rows(database, "select pcid, rev, default_emaid from vehicle")
    }
    claims = dict(rows(database, "select emaid, pcid from emaid_claim"))
    events = rows(database, "select pcid, rev, kind, emaid from outbox")

    # What every database has to be, whatever was done to it.
    assert len({emaid for emaid, *_ in contracts}) == len(contracts), "an EMAID is in one place"
    assert {emaid: pcid for emaid, pcid, *_ in contracts} == claims, "a claim for each contract, and no other"
    of_vehicle: dict[str, set[str]] = defaultdict(set)
    for emaid, pcid, _, is_default in contracts:
        of_vehicle[pcid].add(emaid)
        assert bool(is_default) == (vehicles[pcid][1] == emaid), "the flag repeats the vehicle's default"
    for pcid, (_, default) in vehicles.items():
        assert default is None or default in of_vehicle[pcid], "a default that the vehicle has"
    for pcid, rev, _, _ in events:
        assert rev <= vehicles[pcid][0], "an event of a revision that was"

    # What was acknowledged, and at most what was asked for besides.
    places = {emaid: (pcid, metadata) for emaid, pcid, metadata, _ in contracts}
    told: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, kind, emaid in events:
        told[emaid][kind] += 1
    for mine, choice in owned:
        for contract in mine:
            found = fate(places.get(contract.emaid), told[contract.emaid])
            assert found in contract.fates, (contract.emaid, found, contract.fates)
        assert vehicles[choice.pcid][1] in choice.possible
        assert of_vehicle[choice.pcid] == set(choice.emaids)
