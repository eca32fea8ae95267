"""Servers that are killed repeatedly under load: acknowledged changes are stored, none partly."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.databases import NOT_HERE, Server, binaries, sql
from tests.durability.load import Partner, acknowledged, check_accounts, serving, working
from tests.server.events.receiver import receiving, webhook
from tests.server.storage.made import new_database, write
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def durable() -> Iterator[Server]:
    """A PostgreSQL server with fsync, as in production."""
    if binaries() is None:
        pytest.skip(NOT_HERE)
    server = Server(durable=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return new_database(tmp_path)
    made: str = request.getfixturevalue("durable").database()
    return made


def until_more(partners: list[Partner], more: int) -> None:
    """Wait until a number of further changes were acknowledged."""
    wanted, deadline = acknowledged(partners) + more, time.monotonic() + 30
    while acknowledged(partners) < wanted:
        assert time.monotonic() < deadline, [partner.answers for partner in partners]
        assert not any(partner.failure for partner in partners), [partner.failure for partner in partners]
        time.sleep(0.005)


def test_pool_that_is_killed_loses_no_acknowledged_change(url: str, pkis: dict[str, PKI], tmp_path: Path) -> None:
    """Its workers send events to a webhook that accepts them and to one that does not."""
    with receiving() as receiver, serving(pkis, tmp_path, url, workers=2, dispatch=True) as (served, pool):
        receiver.says("/ill", 503)
        for path in ("/well", "/ill"):
            write(url, webhooks.put(webhook(receiver.url + path)))
        with working(pool, partners=4, contracts=60) as partners:
            for again in (True, True, False):
                until_more(partners, 25)
                if not again:  # Three short runs may be too short to send much.
                    wait_until(lambda: len(receiver.asked("/well")) > 10)
                served.kill()
                if again:
                    served.start()
        check_accounts(url, partners)
        answers = sum((partner.answers for partner in partners), Counter())
        assert set(answers) <= {"200", "201", "503", "ReadError", "RemoteProtocolError", "WriteError"}, answers
        # Events match the changes, and a delivery that a webhook has accepted is not lost with the server.
        known = {row[0]: row[1] for row in sql(url, "select event_id, state from delivery")}
        arrived = {sent.event["eventId"] for sent in receiver.received}
        assert arrived <= set(known)
        assert {event_id for event_id, state in known.items() if state == "delivered"} <= arrived
    if url.startswith("sqlite"):
        assert sql(url, "pragma integrity_check") == [("ok",)]


def test_postgres_server_that_is_killed_loses_no_acknowledged_change(
    durable: Server, pkis: dict[str, PKI], tmp_path: Path
) -> None:
    url = durable.database()
    with serving(pkis, tmp_path, url, workers=2, dispatch=False) as (served, pool):
        assert served.process is not None
        before = served.process.pid
        with working(pool, partners=4, contracts=100) as partners:
            for end in (durable.kill, lambda: durable.stop(signal.SIGQUIT), lambda: durable.stop(signal.SIGINT)):
                until_more(partners, 25)
                end()
                served.wait(503)
                durable.start()
                served.wait(200)
            until_more(partners, 25)
        assert served.process.pid == before
        assert served.process.poll() is None
        check_accounts(url, partners)
        answers = sum((partner.answers for partner in partners), Counter())
        assert set(answers) == {"200", "201", "503"}, answers
