"""Several dispatcher processes on both engines: order, no duplicates, at least once after a kill."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.ids import EMAID, PCID
from ccp.server import app, logging
from ccp.server.domain.parties import PartyRole
from ccp.server.settings import Settings
from ccp.server.storage.queries import contracts, parties, webhooks
from tests.databases import Server, sql
from tests.server.events.receiver import Receiver, receiving, webhook
from tests.server.storage.made import AT, new_database, variant, with_store, write
from tests.waiting import wait_until
from tests.world import party

SPAWN = multiprocessing.get_context("spawn")
CARS = [PCID(f"WEX0PROCESS{number:06d}") for number in range(6)]
HOOKS = ("/one", "/two")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    server: Server = request.getfixturevalue("postgres")
    return server.emptied()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


class Senders:
    """Processes that send and do nothing else. Each logs to a file of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        # Long enough to answer on a machine with much to do, and what was killed is free again soon: 2 * 1.2 + 2 s.
        self.values = {
            "database": url, "egress_allow_networks": ("127.0.0.0/8",), "event_timeout": 1.2, "event_retry_delay": 0.5,
        }  # fmt: skip
        self.folder = folder
        self.numbers = itertools.count()
        self.alive: list[Any] = []
        self.all: list[Any] = []

    def start(self) -> None:
        process = SPAWN.Process(target=_send, args=(self.values, self.folder / f"{next(self.numbers)}.log"))
        process.start()
        self.alive.append(process)
        self.all.append(process)

    def kill(self) -> None:
        """The one that has been there longest, in the middle of whatever it does."""
        process = self.alive.pop(0)
        process.kill()
        process.join(10)

    def attempts(self) -> list[int]:
        """How many attempts each process has made."""
        return [log.read_text().count('"event delivery attempted"') for log in sorted(self.folder.glob("*.log"))]

    def close(self) -> None:
        for process in self.all:
            process.kill()
            process.join(10)


def _send(values: dict[str, Any], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    config = Settings(**values)
    logging.configure(config)
    asyncio.run(app.run_dispatcher(config))


def publish(url: str, rounds: range) -> list[tuple[str, str]]:
    """Let something happen to each vehicle, again and again. Returns PCID and timestamp of each event."""
    made = []

    async def use(store: Any) -> None:
        for number in rounds:
            at = AT + timedelta(seconds=number)
            for place, car in enumerate(CARS):
                await store.write(contracts.publish(variant(EMAID(f"DEEXAP{place:08d}"), car), at))
                made.append((str(car), f"{at:%Y-%m-%dT%H:%M:%S}.250Z"))
                await asyncio.sleep(0.005)

    with_store(url, use)
    return made


def came(receiver: Receiver, path: str) -> list[tuple[str, str]]:
    return [(sent.pcid, sent.event["timestamp"]) for sent in receiver.asked(path)]


def in_order(arrived: list[tuple[str, str]]) -> None:
    """Repetitions may be among them, but only of what came last for the vehicle."""
    for car in CARS:
        times = [datetime.fromisoformat(at) for pcid, at in arrived if pcid == car]
        assert times == sorted(times), times


def test_dispatchers_send_once_in_order_and_survive_kills(url: str, receiver: Receiver, tmp_path: Path) -> None:
    write(url, parties.add(party("oem", PartyRole.OEM, wmis="WEX"), "hash", AT))
    for path in HOOKS:
        write(url, webhooks.put(webhook(receiver.url + path)))
    senders = Senders(url, tmp_path)
    receiver.delay = 0.05  # One process alone does not send everything while the others start.
    try:
        for _ in range(3):
            senders.start()
        wait_until(lambda: len(list(tmp_path.glob("*.log"))) == 3, timeout=30)
        made = publish(url, range(12))
        for path in HOOKS:
            receiver.wait(path, len(made), 30)
            assert Counter(came(receiver, path)) == Counter(made)
            in_order(came(receiver, path))
        wait_until(lambda: sql(url, "select count(*) from delivery where state <> 'delivered'") == [(0,)])
        assert sum(senders.attempts()) == 2 * len(made)
        assert sum(count > 0 for count in senders.attempts()) > 1, senders.attempts()

        receiver.delay = 0.15
        made += publish(url, range(12, 15))
        wait_until(lambda: receiver.busy > 0)
        senders.kill()
        senders.kill()
        made += publish(url, range(15, 18))  # Longer than the receiver takes to answer those that were killed.
        wait_until(lambda: receiver.busy > 0)
        senders.kill()
        senders.start()
        for path in HOOKS:
            wait_until(lambda path=path: set(came(receiver, path)) >= set(made), 40)  # type: ignore[misc]
            in_order(came(receiver, path))
            assert set(came(receiver, path)) == set(made)
        ids = {sent.event["eventId"] for sent in receiver.received}
        assert len(ids) == 2 * len(made), "a repetition has the same id"
        wait_until(lambda: sql(url, "select count(*) from delivery where state <> 'delivered'") == [(0,)])
        assert sql(url, "select count(*) from outbox") == [(0,)]
    finally:
        senders.close()
    repeated = len(receiver.received) - len(ids)
    assert 0 < repeated <= 3 * 2 * 4, "those that were on their way, and no others"
