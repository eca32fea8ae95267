"""What a client of an overloaded pool sees: 503 with Retry-After on a connection that goes on, and nothing else."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.http import connection_limits, overload
from ccp.server.http.admission import Admission
from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.server.http.guards.raw import Answer, Raw, connect
from tests.world import AT, SESSION, Pool, post_body, start

SHED = overload.OVERLOADED
HEALTH = "GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n"


class Closable:
    """An admission that can be made to start nothing of some classes, as if the worker had all it can do."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._limits = {lane: lane.max_in_flight for lane in admission.lanes}
        admission.bulk.max_age = 0.3  # type: ignore[misc]

    @contextmanager
    def closed(self, *names: str) -> Iterator[None]:
        for lane, limit in self._limits.items():
            lane.max_in_flight = 0 if lane.name in names else limit  # type: ignore[misc]
        try:
            yield
        finally:
            for lane, limit in self._limits.items():
                lane.max_in_flight = limit  # type: ignore[misc]
            deadline = time.monotonic() + 10
            while self.admission.waiting and time.monotonic() < deadline:
                time.sleep(0.02)


@pytest.fixture(scope="module")
def made() -> list[Closable]:
    return []


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI], made: list[Closable]) -> Iterator[Pool]:
    def make() -> Admission:
        made.append(Closable(Admission()))
        return made[-1].admission

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_limits, "Admission", make)
        patch.setattr(overload, "_ENDED_AFTER", 1.5)
        with start({"iso2": pkis["iso2"]}) as running:
            yield running


@pytest.fixture
def gate(pool: Pool, made: list[Closable]) -> Closable:
    return made[-1]


@pytest.fixture
def log(gate: Closable, monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What is logged from now on, when the last overload has ended."""
    logger = CapturingLogger()
    monkeypatch.setattr(overload, "_log", logger)
    time.sleep(2.1)  # Silence: longer than `_ENDED_AFTER` and a round of the reaper.
    logger.calls.clear()
    return logger.calls


@pytest.fixture(scope="module")
def vehicle_post(pool: Pool) -> bytes:
    """A whole POST of a vehicle that has a contract."""
    car = pool.car()
    pool.publish(car)
    pool.ask(car)  # So that the caller's token has been verified.
    return vehicle_request(pool, car)


def vehicle_request(pool: Pool, car: Any, caller: str = "cpo", extra: str = "") -> bytes:
    body = json.dumps(post_body(car.request(SESSION, AT), str(car.namespace))).encode()
    head = (
        f"POST {BASE}/signedcontractdata HTTP/1.1\r\nHost: pool.example\r\n"
        f"Authorization: Bearer {pool.token(caller)}\r\n"
        f"Content-Type: application/json\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@contextmanager
def clients(pool: Pool, count: int) -> Iterator[list[Raw]]:
    with ExitStack() as stack:
        yield [Raw(stack.enter_context(connect(pool, "127.0.0.1"))) for _ in range(count)]


@contextmanager
def reading_little(pool: Pool) -> Iterator[socket.socket]:
    """A connection whose client has next to no room for what it has not read."""
    url = httpx.URL(pool.base_url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(20)
        connection.connect((url.host, url.port))
        yield connection


def answer(raw: Raw) -> Answer:
    found = raw.answer()
    assert found is not None
    return found


def is_shed(found: Answer) -> bool:
    if found.status == 200:
        return False
    assert found.refused(503) == SHED
    assert found.headers["retry-after"] == "2"
    assert found.headers["cache-control"] == "no-store"
    assert "connection" not in found.headers
    return True


def overloaded(gate: Closable, raws: list[Raw], vehicle_post: bytes) -> None:
    """Fill the queue and wait until it counts as one that lasts."""
    for raw in raws:
        raw.send(vehicle_post)
    deadline = time.monotonic() + 10
    while not gate.admission.overloaded and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gate.admission.overloaded


def test_request_without_room_gets_503_at_once_and_the_connection_goes_on(
    pool: Pool, gate: Closable, vehicle_post: bytes
) -> None:
    with clients(pool, 40) as raws, clients(pool, 1) as (late,):
        with gate.closed("vehicle"):
            overloaded(gate, raws, vehicle_post)
            for _ in range(3):
                late.send(vehicle_post)
                assert is_shed(answer(late))
            assert [is_shed(answer(raw)) for raw in raws] == [True] * 40
        for raw in (late, *raws):
            raw.send(vehicle_post)
            assert not is_shed(answer(raw)), "the overload is over"


def test_requests_are_all_answered_if_the_worker_comes_to_them_in_time(
    pool: Pool, gate: Closable, vehicle_post: bytes
) -> None:
    with clients(pool, 10) as raws:
        with gate.closed("vehicle"):
            for raw in raws:
                raw.send(vehicle_post)
            time.sleep(0.05)
        assert [is_shed(answer(raw)) for raw in raws] == [False] * 10


def test_queue_wait_counts_towards_the_time_of_a_vehicle(
    pool: Pool, gate: Closable, vehicle_post: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate.admission.vehicles, "max_age", 30.0)
    with clients(pool, 1) as (raw,):
        raw.send(vehicle_post)
        assert b"cpsV2GRootCertificateFingerprint" in answer(raw).body
        monkeypatch.setattr("ccp.server.http.signed_contract_data.DELIVERY_TIMEOUT", 0.3)
        with gate.closed("vehicle"):
            raw.send(vehicle_post)
            time.sleep(0.4)
        assert b"temporary: The pool cannot answer in time now" in answer(raw).body


def test_health_readiness_and_metrics_are_answered_under_overload(
    pool: Pool, gate: Closable, vehicle_post: bytes
) -> None:
    with clients(pool, 40) as raws, gate.closed("vehicle", "bulk", "unverified"):
        overloaded(gate, raws, vehicle_post)
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert httpx.get(pool.base_url + path).status_code == 200


def test_vehicle_of_another_caller_is_answered_while_one_floods(
    pool: Pool, gate: Closable, vehicle_post: bytes
) -> None:
    car = pool.car()
    pool.publish(car)
    other = vehicle_request(pool, car, caller="everything")
    with clients(pool, 1) as (quiet,):
        quiet.send(other)
        assert not is_shed(answer(quiet))
        with clients(pool, 40) as raws:
            with gate.closed("vehicle"):
                overloaded(gate, raws, vehicle_post)
                quiet.send(other)
                time.sleep(0.05)
            assert not is_shed(answer(quiet))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"{BASE}/signedcontractdata"),
        ("GET", f"{BASE}/contractData/pcid/WEX0EXAMPLE000001"),
        ("HEAD", f"{BASE}/contractData/pcid/WEX0EXAMPLE000001"),
        ("GET", "/opnc/v1/event/endpoints"),
        ("GET", "/v1/root/rootCerts"),
        ("GET", "/v1/root/rootCerts/b1b86334-7c74-4ccc-b78d-d4f773d3b559"),
        ("POST", "/oauth/token"),
    ],
)
def test_requests_of_every_kind_are_shed_before_they_are_looked_at(
    pool: Pool, gate: Closable, method: str, path: str
) -> None:
    length = "Content-Length: 4\r\n" if method in ("PUT", "POST") else ""
    request = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n" + ("oops" if length else "")
    with clients(pool, 1) as (raw,), gate.closed("bulk", "unverified"):
        raw.send(request)
        raw.send(HEALTH)
        if method == "HEAD":
            assert b"503" in head_only(raw)
        else:
            assert is_shed(answer(raw))
        assert answer(raw).status == 200, "the connection is in step"


def head_only(raw: Raw) -> bytes:
    """The head of an answer to HEAD, which announces a length that does not follow."""
    while b"\r\n\r\n" not in raw._rest:
        assert raw._more()
    head, _, raw._rest = raw._rest.partition(b"\r\n\r\n")
    return head


def test_body_of_a_shed_request_is_read_and_dropped(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    head, _, body = vehicle_post.partition(b"\r\n\r\n")
    with clients(pool, 40) as raws, clients(pool, 1) as (slow,):
        with gate.closed("vehicle"):
            overloaded(gate, raws, vehicle_post)
            slow.send(head + b"\r\n\r\n" + body[:100])
            assert is_shed(answer(slow))
            slow.send(body[100:])
            slow.send(vehicle_post)
            assert is_shed(answer(slow))
        slow.send(vehicle_post)
        assert not is_shed(answer(slow))


def test_body_that_comes_late_waits_for_its_turn_too(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    head, _, body = vehicle_post.partition(b"\r\n\r\n")
    with clients(pool, 1) as (slow,):
        slow.send(head + b"\r\n\r\n" + body[:100])
        time.sleep(0.1)
        with gate.closed("vehicle"):
            slow.send(body[100:])
            time.sleep(0.1)
            assert gate.admission.waiting == 1
        assert not is_shed(answer(slow))
        slow.send(head + b"\r\n\r\n" + body[:100])
        time.sleep(0.1)
        with gate.closed("vehicle"):
            slow.send(body[100:])
            found = answer(slow)
        found.refused(503)
        assert found.headers["retry-after"] == "2"


def test_shed_answers_a_client_that_expects_100_continue(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    expecting = vehicle_post.replace(b"Content-Type", b"Expect: 100-continue\r\nContent-Type", 1).partition(
        b"\r\n\r\n"
    )[0]
    with clients(pool, 40) as raws, clients(pool, 1) as (raw,), gate.closed("vehicle"):
        overloaded(gate, raws, vehicle_post)
        raw.send(expecting + b"\r\n\r\n")
        found = answer(raw)
        assert found.refused(503) == SHED
        assert found.headers["connection"] == "close", "whether the body comes cannot be known"
        assert raw.answer() is None


def test_client_that_wants_its_connection_closed_gets_that(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    closing = vehicle_post.replace(b"Content-Type", b"Connection: close\r\nContent-Type", 1)
    with clients(pool, 40) as raws, clients(pool, 1) as (raw,), gate.closed("vehicle"):
        overloaded(gate, raws, vehicle_post)
        raw.send(closing)
        found = answer(raw)
        assert found.refused(503) == SHED
        assert found.headers["connection"] == "close"
        assert raw.answer() is None


def test_requests_sent_ahead_are_answered_in_their_order(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    with clients(pool, 40) as raws, clients(pool, 1) as (raw,), gate.closed("vehicle"):
        overloaded(gate, raws, vehicle_post)
        raw.send(vehicle_post + HEALTH.encode() + vehicle_post)
        assert [answer(raw).status for _ in range(3)] == [503, 200, 503]


def test_client_that_gave_up_costs_no_work(pool: Pool, gate: Closable, vehicle_post: bytes) -> None:
    before = requests_answered(pool)
    with gate.closed("vehicle"):
        with clients(pool, 10) as raws:
            for raw in raws:
                raw.send(vehicle_post)
            deadline = time.monotonic() + 5
            while gate.admission.waiting < 10 and time.monotonic() < deadline:
                time.sleep(0.005)
        while gate.admission.waiting and time.monotonic() < deadline:
            time.sleep(0.005)
    assert gate.admission.shed["vehicle", "client_gone"] >= 10
    assert requests_answered(pool) == before


def requests_answered(pool: Pool) -> float:
    """Vehicles' requests that the application has answered."""
    text = httpx.get(pool.base_url + "/metrics").text
    name = r'^ccp_requests_total\{operation="GetSignedContractDataByCertificateInstallationReq".*\} (\S+)$'
    return sum(map(float, re.findall(name, text, re.M)))


def test_overload_is_logged_once_and_counted_by_reason(
    pool: Pool, gate: Closable, vehicle_post: bytes, log: list[CapturedCall]
) -> None:
    before = requests_answered(pool)
    with clients(pool, 40) as raws:
        with gate.closed("vehicle"):
            overloaded(gate, raws, vehicle_post)
            found = [answer(raw) for raw in raws]
        assert {each.status for each in found} == {503}
    deadline = time.monotonic() + 10
    while [call.args[0] for call in log][-1:] != ["overload ended"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [call.args[0] for call in log] == ["overload began", "overload ended"]
    assert log[-1].kwargs["shed"] == 40
    assert {each.json["traceId"] for each in found} == {log[0].kwargs["trace_id"]} == {log[1].kwargs["trace_id"]}
    text = httpx.get(pool.base_url + "/metrics").text
    assert 'ccp_requests_shed_total{class="vehicle",reason="queue_age"}' in text
    assert 'ccp_requests_in_flight{class="vehicle"} 0.0' in text
    assert 'ccp_requests_waiting{class="vehicle"} 0.0' in text
    assert 'ccp_request_queue_delay_seconds{class="vehicle"}' in text
    assert requests_answered(pool) == before, "none of them reached the application"


def test_client_that_does_not_read_its_refusals_is_not_read_from_either(
    pool: Pool, gate: Closable, vehicle_post: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would gather in memory, as refusals wait for nothing: tens of megabytes a second."""
    monkeypatch.setattr(gate.admission.vehicles, "max_age", 60.0)
    small = vehicle_post.partition(b"Content-Length")[0] + b"Content-Length: 2\r\n\r\n{}"
    with clients(pool, 40) as raws, reading_little(pool) as deaf, gate.closed("vehicle"):
        deaf.settimeout(1)
        overloaded(gate, raws, vehicle_post)
        sent = 0
        with suppress(TimeoutError, ConnectionError):  # Many that are read as one piece end the connection.
            while sent < 3000:
                deaf.sendall(8 * small)
                sent += 1
                time.sleep(0.001)
        assert sent < 3000


def test_requests_in_one_piece_are_not_all_refused_in_one_turn(
    pool: Pool, gate: Closable, vehicle_post: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate.admission.vehicles, "max_age", 60.0)
    small = vehicle_post.partition(b"Content-Length")[0] + b"Content-Length: 2\r\n\r\n{}"
    with clients(pool, 40) as raws, clients(pool, 1) as (raw,), gate.closed("vehicle"):
        overloaded(gate, raws, vehicle_post)
        raw.send(100 * small)
        statuses = [each.status for each in raw.answers()]
        assert 1 < len(statuses) <= 17
        assert set(statuses) <= {400, 503}


def test_body_that_is_too_large_waits_for_its_turn_as_every_request_does(pool: Pool, gate: Closable) -> None:
    request = f"POST {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
    with clients(pool, 1) as (raw,):
        with gate.closed("vehicle", "unverified"):
            raw.send(request)
            deadline = time.monotonic() + 5
            while not gate.admission.waiting and time.monotonic() < deadline:
                time.sleep(0.005)
            assert gate.admission.waiting == 1
        assert answer(raw).status in (401, 413)


def test_party_that_may_not_ask_for_vehicles_has_no_share_of_their_class(pool: Pool, gate: Closable) -> None:
    def known(name: str) -> bool:
        return hash(f"Bearer {pool.token(name)}".encode()) in gate.admission._parties

    for name, expected in (("emsp", 403), ("cpo", 400)):
        assert pool.client(name).post("/signedcontractdata", content=b"{}").status_code == expected
    assert (known("emsp"), known("cpo")) == (False, True)


def test_clients_of_many_threads_see_nothing_but_200_and_503(pool: Pool, vehicle_post: bytes) -> None:
    """A closed load of 64 connections, more than the short queue holds: nothing hangs, nothing is out of step."""
    statuses: list[int] = []

    def ask() -> None:
        with clients(pool, 1) as (raw,):
            for _ in range(10):
                raw.send(vehicle_post)
                statuses.append(200 if not is_shed(answer(raw)) else 503)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses) == 640
    assert statuses.count(200) >= 10
