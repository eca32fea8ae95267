"""Overview: charts of the counters, what needs attention first, contested vehicles, first steps of a new pool."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from ccp.server.console import attention
from ccp.server.console.system_health import of_peer, of_service
from ccp.server.metrics.last_calls import PEER, SERVICE, LastCalls
from ccp.server.runtime.background import TaskState
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.request_counts import hour_of
from ccp.testing.pki import PKI
from tests.server.console.browsing import Browser, admin, logged_in
from tests.waiting import wait_until
from tests.world import AT, Pool, new_pcid, start

DELIVER = "GetSignedContractDataByCertificateInstallationReq"
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


@pytest.fixture
def counters(pool: Pool) -> Iterator[None]:
    """Requests of this hour, of yesterday, and of three weeks ago."""
    now = datetime.now(UTC)
    rows = [
        (now, "opnc", DELIVER, "", 700),
        (now, "opnc", DELIVER, "no-contract-for-vehicle", 310),
        (now, "opcp", DELIVER, "request-signature-invalid", 20),
        (now, "opnc", "AddSignedContractData", "role-missing", 5),
        (now, "opnc", DELIVER, HOSTILE, 1),
        (now, "other", "console overview", "", 9999),
        (now - timedelta(days=21), "opnc", DELIVER, "no-default-contract", 44),
    ]
    for at, *values in rows:
        pool.sql(
            "insert into request_count (hour, dialect, operation, code, number) values (?, ?, ?, ?, ?) "
            "on conflict (hour, dialect, operation, code) do update set number = excluded.number",
            hour_of(at), *values,
        )  # fmt: skip
    yield
    pool.sql("delete from request_count")


def descriptions(source: str) -> list[str]:
    """What the charts say to a screen reader."""
    return re.findall(r"<desc>(.*?)</desc>", source)


def test_overview_charts_the_requests_of_a_day(counters: None, person: Browser) -> None:
    page = person.page("/overview")
    deliveries, refusals, requests = descriptions(page.source)
    assert "700 delivered, 331 refused" in deliveries
    assert "310 no-contract-for-vehicle, 20 request-signature-invalid" in refusals
    assert "9,999" not in requests  # Pages of the console are no requests of partners.
    assert "9,999" not in page.text
    assert "no-default-contract" not in page.text
    assert "/console/refusals?code=no-contract-for-vehicle" in page.links
    assert "/console/refusals?code=role-missing" not in page.links  # No delivery, so no record.
    assert "No contract is stored for the vehicle here" in page.text
    assert "32 % of the vehicles' requests in 24 hours got no contract. Most: no-contract-for-vehicle." in page.text
    assert "<script" not in page.source
    assert HOSTILE in page.text


def test_overview_charts_the_requests_of_a_month(counters: None, person: Browser) -> None:
    page = person.page("/overview?period=30d")
    assert "44 no-default-contract" in descriptions(page.source)[1]
    assert "The vehicle has several contracts, and none is its default." in page.text
    assert len(page.source) < 60_000
    for wrong in ("", "1h", HOSTILE):
        assert person.get("/overview", params={"period": wrong}).status_code == 400


def test_overview_with_every_code_in_every_hour_is_small(pool: Pool, person: Browser) -> None:
    hour = hour_of(datetime.now(UTC))
    codes = [f"code-{number}" for number in range(120)]
    rows = [(hour - 3600 * back, "opnc", DELIVER, code, 1_000_000) for back in range(24) for code in codes]
    places = ", ".join(str(row) for row in rows)
    pool.sql(f"insert into request_count (hour, dialect, operation, code, number) values {places}")
    answer = person.get("/overview")
    assert (answer.status_code, len(answer.content) < 60_000) == (200, True)
    assert "And 100 codes more" in answer.text
    pool.sql("delete from request_count")


def test_contested_vehicles_are_listed_in_pages(pool: Pool, person: Browser) -> None:
    pcids = sorted(str(new_pcid()) for _ in range(27))
    for pcid in pcids:
        pool.sql(
            "insert into vehicle (pcid, rev, default_emaid, default_chosen, contested) values (?, 1, ?, false, ?)",
            pcid, "DEEXAC00000001", json.dumps(["FREXAC00000002"]),
        )  # fmt: skip
    page = person.page("/contested")
    assert page.text.count("FREXAC00000002") == 25
    assert f"/console/vehicles/{pcids[0]}" in page.links
    assert "/console/contracts/FREXAC00000002" in page.links
    rest = person.page(next(link for link in page.links if "after=" in link))
    assert rest.text.count("FREXAC00000002") == 2
    assert person.get("/contested", params={"after": HOSTILE}).status_code == 400
    pool.sql("update console_session set role = 'viewer'")
    page = person.page("/contested")
    assert "FREXAC00000002" not in page.source
    assert pcids[0] not in page.source
    assert person.page(next(link for link in page.links if "after=" in link)).text.count("FREXA…") == 2
    pool.sql("delete from vehicle where contested is not null")


def test_overview_of_an_empty_pool_says_what_to_do_first(pkis: dict[str, PKI], pool: Pool, person: Browser) -> None:
    wait_until(lambda: "Contracts have not been counted yet" not in person.get("/overview").text)
    with start(pkis, [admin()], console=True, refresh_interval=0.05) as empty, logged_in(empty) as visitor:
        wait_until(lambda: "First steps" in visitor.get("/overview").text)
        empty.sql("update party set enabled = false where roles like '%cpo%'")
        wait_until(lambda: "ccp party add" in visitor.get("/overview").text)
        text = visitor.page("/overview").text
        assert "done Trust the V2G roots" in text
        assert 'ccp party add "Example CPO" --role cpo' in text
        assert "to do The provisioning service publishes the first contract." in text


def test_attention_names_peers_services_and_tasks_that_fail() -> None:
    now, calls = AT, LastCalls(clock=lambda: AT.timestamp() - 120)
    calls.record(PEER, "DE*DOWN", "timed_out", 3.0)
    calls.record(SERVICE, "rcp", "ok", 0.1)
    calls.record(SERVICE, "pcp", "client_error", 0.1)  # It does not know the vehicle.
    calls.record(SERVICE, "pki", "server_error", 0.1)
    calls.record(SERVICE, "pki", "abandoned", 0.1)  # Says nothing.
    peers = [Peer("DE*DOWN", "https://down.example"), Peer("DE*UP", "https://up.example")]
    services = [of_service(name, calls.of(SERVICE, name), now) for name in ("rcp", "pcp", "pki")]
    systems = [
        *services,
        *(of_peer(each, calls.of(PEER, each.party_id), now, circuit_is_open="DOWN" in each.party_id) for each in peers),
    ]
    found = [
        *attention.of_tasks([TaskState("statistics", False, 4, "disk full."), TaskState("purge", True, 1, "busy")]),
        *attention.of_systems(systems),
    ]
    assert [(each.kind, each.text, each.action) for each in attention.urgent_first(found)] == [
        ("bad", "pki (service): It failed by itself (status 5xx) 2 minutes ago.", "Ask its operator."),
        ("bad", "DE*DOWN (peer pool): It did not answer in time 2 minutes ago. It is left out for a while.",
         "Ask its operator."),
        ("warn", "The background task statistics has failed 4 times in a row: disk full.",
         "The log has the cause; it is repeated by itself."),
    ]  # fmt: skip


def test_last_calls_are_bounded() -> None:
    calls = LastCalls()
    for number in range(2000):
        calls.record(PEER, f"peer {number}", "ok", 0.1)
    assert calls.of(PEER, "peer 999").success is not None
    assert calls.of(PEER, "peer 1000").success is None
