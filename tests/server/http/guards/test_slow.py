"""Slow clients, many connections, and an end in order. One server with a limit of one second, tests with sockets of
their own; the watch looks twice a second.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.http import connection_limits, deadlines, protocol
from ccp.server.http.routes.opnc import BASE
from ccp.server.sandbox.local_pool import loopback, running
from ccp.testing.pki import PKI
from tests.server.http.guards.raw import Raw, connected
from tests.world import Pool, start

HEALTH = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def strict(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that waits for one second, and counts loopback addresses like any other."""
    with start(
        {"iso2": pkis["iso2"]}, read_timeout=1, max_connections=12, max_connections_per_address=8, trusted_proxies=()
    ) as running:
        yield running


@contextmanager
def lasting(least: float, most: float) -> Iterator[None]:
    """Seconds that the block has to take."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert least <= took <= most, took


def dripping(raw: Raw, data: bytes, every: float = 0.1) -> Callable[[], None]:
    """Send one byte at a time in the background. Returns a function that stops it."""
    ended = threading.Event()

    def drip() -> None:
        for each in data:
            if ended.wait(every):
                return
            try:
                raw.send(bytes([each]))
            except OSError:
                return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


def test_head_sent_byte_by_byte_has_a_deadline(strict: Pool) -> None:
    with connected(strict.base_url) as raw, lasting(0.9, 20):
        end = dripping(raw, HEALTH.encode() * 10)
        answer = raw.answer()
        end()
    assert answer is not None
    assert answer.refused(408) == "The head of the request took longer than 1 seconds."


def test_body_sent_byte_by_byte_has_a_deadline(strict: Pool) -> None:
    token = strict.token("cps")
    head = f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    for framing, body in (
        ("Content-Length: 400", b"x" * 400),
        ("Transfer-Encoding: chunked", b"1\r\nx\r\n" * 100),
        ("Transfer-Encoding: chunked", b"1;" + b"a" * 400),
    ):
        with connected(strict.base_url) as raw, lasting(0.9, 20):
            raw.send(f"{head}{framing}\r\n\r\n")
            end = dripping(raw, body)
            answer = raw.answer()
            end()
        assert answer is not None
        assert answer.refused(408) == "The body of the request took longer than 1 seconds."
        assert answer.headers["connection"] == "close"


def test_body_that_no_route_reads_has_a_deadline(strict: Pool) -> None:
    with connected(strict.base_url) as raw, lasting(0.9, 20):
        raw.send("POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n")
        answer = raw.answer()
        end = dripping(raw, b"x" * 400)
        assert raw.answer() is None
        end()
    assert answer is not None
    answer.refused(404)


def test_connection_that_is_silent_is_closed_without_response(strict: Pool) -> None:
    for sent in ("", "\r\n"):
        with connected(strict.base_url) as raw, lasting(0.9, 20):
            raw.send(sent)
            assert raw.answer() is None


def test_connection_that_is_idle_is_closed_and_empty_lines_do_not_keep_it(
    strict: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "IDLE_TIMEOUT", 2.0)
    with connected(strict.base_url) as raw, lasting(1.9, 40):
        raw.send(HEALTH)
        assert raw.answer() is not None
        end = dripping(raw, b"\r\n" * 300)
        assert raw.answer() is None
        end()


def test_connection_is_kept_longer_than_a_head_may_take(strict: Pool) -> None:
    with connected(strict.base_url) as raw:
        for _ in range(2):
            raw.send(HEALTH)
            assert raw.answer() is not None
            time.sleep(1.2)  # Longer than `read_timeout`, which is whole seconds.


def test_client_that_reads_no_responses_is_disconnected(strict: Pool) -> None:
    """What it asks for is large, and it asks for it again and again without reading."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", int(strict.base_url.rsplit(":", 1)[1])))
        connection.settimeout(40)
        with pytest.raises(OSError), lasting(0.9, 40):  # noqa: PT012
            for _ in range(100_000):
                connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(0.0005)
    assert strict.http.get("/health").status_code == 200


def test_slow_clients_do_not_slow_down_others(strict: Pool) -> None:
    for _ in range(10):
        with ExitStack() as stack:
            slow = [stack.enter_context(connected(strict.base_url)) for _ in range(5)]
            for raw in slow:
                raw.send("GET / HTTP/1.1\r\nHost")
            assert strict.http.get("/health").status_code == 200
            if not select.select([raw.socket for raw in slow], [], [], 0)[0]:
                return  # The slow ones were still being waited for.
    raise AssertionError("others are served when slow clients have been let go")


# --- How many --------------------------------------------------------------------------------------------------------


def settled(pool: Pool) -> None:
    """Wait until connections of earlier tests are gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with ExitStack() as stack:
            opened = [stack.enter_context(connected(pool.base_url)) for _ in range(7)]
            for raw in opened:
                raw.send(HEALTH)
            answers = [raw.answer() for raw in opened]
        time.sleep(0.3)
        if all(answer is not None and answer.status == 200 for answer in answers):
            return
    raise AssertionError("the server keeps connections")


def test_worker_limits_the_connections_of_an_address(strict: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(connection_limits, "_log", logger)
    for client in (strict.http, *strict._clients.values()):
        client.close()
    strict.http = type(strict.http)(base_url=strict.base_url, timeout=10)
    strict._clients.clear()
    settled(strict)
    with ExitStack() as stack:
        opened = [stack.enter_context(connected(strict.base_url)) for _ in range(11)]
        refused = [raw.answer() for raw in opened[8:]]
        for raw in opened[:8]:
            raw.send(HEALTH)
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 200
    for answer in refused:
        assert answer is not None
        assert answer.refused(429) == "There are too many connections from this address."
        assert int(answer.headers["retry-after"]) > 0
    deadline = time.monotonic() + 30
    while not logger.calls and time.monotonic() < deadline:
        time.sleep(0.05)
    turned_away = [call for call in logger.calls if call.args == ("connections turned away",)]
    assert sum(call.kwargs["count"] for call in turned_away) == 3
    settled(strict)


def test_worker_limits_its_connections_in_total(pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "_STALLED_AFTER", 60.0)
    form = b"grant_type=nothing"
    head = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: {len(form)}\r\n\r\n"
    with start({"iso2": pkis["iso2"]}, max_connections=5, max_connections_per_address=2) as pool, ExitStack() as stack:
        busy = [stack.enter_context(connected(pool.base_url)) for _ in range(5)]
        for raw in busy:
            raw.send(f"{HEALTH}{head}")
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 200, "loopback is a trusted proxy here, so its connections are not counted"
        for _ in range(20):
            with connected(pool.base_url) as raw:
                raw.send(HEALTH)
                (refused,) = raw.answers()
            assert refused.refused(503) == "The pool has too many connections just now."
            assert int(refused.headers["retry-after"]) > 0
        for raw in busy:
            raw.send(form)
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 401, "what was under way goes on"


# --- The end ---------------------------------------------------------------------------------------------------------


def test_requests_in_progress_are_completed_at_shutdown(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}) as first:
        contract = first.contract(first.car())
        token = first.token("cps")
        body = json.dumps(contract.body).encode()
        head = (
            f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with loopback() as (listening, base_url), ExitStack() as stack:
            ending = ExitStack()
            ending.enter_context(running(first.settings, listening))
            busy = stack.enter_context(connected(base_url))
            idle = stack.enter_context(connected(base_url))
            idle.send(HEALTH)
            answer = idle.answer()
            assert answer is not None
            assert answer.status == 200
            busy.send(HEALTH.encode() + head.encode() + body[:100])
            answer = busy.answer()
            assert answer is not None
            assert answer.status == 200, "so the server has begun with what comes after it"
            stopping = threading.Thread(target=ending.close)
            stopping.start()
            assert idle.answer() is None, "nothing is under way there"
            busy.send(body[100:])
            (answer,) = busy.answers()
            stopping.join(30)
            assert not stopping.is_alive()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            with pytest.raises(OSError), connected(base_url, 1):
                pass
        assert first.stored(contract.emaid) == 1


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    logger = CapturingLogger()
    monkeypatch.setattr(protocol, "_log", logger)
    return logger.calls


def test_connection_code_that_has_a_fault_is_500_and_is_in_the_log(
    pool: Pool, log: list[CapturedCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, version: str) -> None:
        raise KeyError("a mistake of ours")

    with connected(pool.base_url) as raw:
        monkeypatch.setattr(protocol.Connection, "_check_head", broken)
        raw.send(HEALTH)
        (answer,) = raw.answers()
    assert answer.refused(500) == "Something went wrong here; the trace id finds it in the log."
    assert b"mistake" not in answer.body
    assert any(call.method_name == "error" and "exc_info" in call.kwargs for call in log)
