"""Clients that open connections and say nothing, little, or nothing of use: others are served, and what is refused is
told so.
"""

from __future__ import annotations

import resource
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.http import connection_limits, deadlines, protocol
from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, environment
from tests.cli.served_sandbox import free_port, own_certificate, serving
from tests.server.http.guards.raw import Raw, connect
from tests.world import Pool, start

HEALTH = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
ATTACKERS = tuple(f"127.0.0.{number}" for number in range(11, 16))
HONEST = "127.0.0.21"
OTHER = "127.0.0.22"


@pytest.fixture(autouse=True, scope="module")
def _descriptors() -> Iterator[None]:
    """This process plays all clients."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    logger = CapturingLogger()
    monkeypatch.setattr(connection_limits, "_log", logger)
    return logger.calls


@contextmanager
def opened(pool: Pool | str, source: str, count: int, sentence: str = "") -> Iterator[list[Raw]]:
    """Connections of one address, on each of which the same is said."""
    with ExitStack() as stack:
        raws = [Raw(stack.enter_context(connect(pool, source))) for _ in range(count)]
        for raw in raws:
            if sentence:
                raw.send(sentence)
        yield raws


def status(raw: Raw, sentence: str = HEALTH) -> int | None:
    """The status of the answer; None if the connection has been closed."""
    try:
        raw.send(sentence)
    except ConnectionError:
        return None
    answer = raw.answer()
    return None if answer is None else answer.status


def counted(pool: Pool, calls: list[CapturedCall], event: str, least: int) -> int:
    """How many connections the log says that this happened to, once it says of so many."""
    deadline = time.monotonic() + 10
    while True:
        found = sum(call.kwargs["count"] for call in calls if call.args == (event,))
        if found >= least or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


# --- Without TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that takes twenty connections, eight of an address; loopback addresses are strangers."""
    limits = {"max_connections": 20, "max_connections_per_address": 8, "trusted_proxies": ()}
    with start({"iso2": pkis["iso2"]}, **limits) as running:
        running.http.close()
        yield running


def test_connections_of_five_addresses_that_are_silent_keep_no_client_out(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "ccp.toml").write_text("trusted_proxies = []\n")
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(serving(url, "--port", port, cwd=tmp_path, log=tmp_path / "log"))
        for attacker in ATTACKERS:
            stack.enter_context(opened(url, attacker, 200))
        with opened(url, HONEST, 1) as (honest,):
            began = time.monotonic()
            assert status(honest) == 200
            assert time.monotonic() - began < 5, "originally no request was served for 70 seconds"
        for _ in range(20):
            with opened(url, OTHER, 1) as (other,):
                assert status(other) == 200
        # The log tells it once every half second.
        deadline = time.monotonic() + 30
        while "idle connections closed to make room" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    "sentence",
    [
        pytest.param("", id="silent"),
        pytest.param(HEALTH, id="idle"),
        pytest.param("GET / HTTP/1.1\r\nHost", id="head not complete"),
        pytest.param("GET / HTTP/1.1\r\n\r\n", id="refused and lingering"),
        pytest.param("POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", id="body not complete"),
        pytest.param("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx", id="answered before its body"),
    ],
)
def test_requests_that_are_unfinished_do_not_keep_other_clients_out(
    small: Pool, sentence: str, log: list[CapturedCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "_STALLED_AFTER", 0.0)
    with ExitStack() as stack:
        for attacker in ATTACKERS:
            for raw in stack.enter_context(opened(small, attacker, 8)):
                try:
                    raw.send(sentence)
                except OSError:
                    continue  # It has given way to another one.
        for _ in range(30):
            with opened(small, HONEST, 1) as (honest,):
                assert status(honest) == 200
    assert counted(small, log, "idle connections closed to make room", 20) >= 20


def test_request_in_progress_is_never_closed_for_a_new_connection(small: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limits, "_STALLED_AFTER", 60.0)
    form = "grant_type=nothing"
    head = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: {len(form)}\r\n\r\n"
    with opened(small, HONEST, 8, HEALTH + head) as busy, opened(small, OTHER, 8, HEALTH + head) as busy_too:
        for raw in (*busy, *busy_too):
            answer = raw.answer()
            assert answer is not None
            assert answer.status == 200, "so the server has read the head of the second request too"
        with ExitStack() as stack:
            for attacker in ATTACKERS:
                stack.enter_context(opened(small, attacker, 8))
            for raw in (*busy, *busy_too):
                assert status(raw, form) == 401


def test_address_with_the_most_idle_connections_loses_its_oldest_first(small: Pool) -> None:
    first, second, third = ATTACKERS[:3]
    with ExitStack() as stack:

        def used(source: str, count: int) -> list[Raw]:
            raws = []
            for _ in range(count):
                raws += stack.enter_context(opened(small, source, 1, HEALTH))
                answer = raws[-1].answer()
                assert answer is not None
                assert answer.status == 200
            return raws

        ours, many, fewer, settled = used(HONEST, 4), used(first, 8), used(second, 6), used(third, 2)
        for raw in (stack.enter_context(opened(small, OTHER, 1))[0] for _ in range(5)):
            assert status(raw) == 200
        # 20 were open, then five came: the eight of one address lose two, then both that have six lose in turn.
        alive = [[status(raw) == 200 for raw in group] for group in (ours, many, fewer, settled)]
    assert alive == [[True] * 4, [False] * 4 + [True] * 4, [False] + [True] * 5, [True] * 2]


def test_client_that_is_refused_reads_its_503_whatever_it_sends(small: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent and not read would make the system answer with a reset, and the refusal would be lost."""
    monkeypatch.setattr(connection_limits, "_STALLED_AFTER", 60.0)
    busy = "POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    request = f"PUT {BASE}/signedcontractdata HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + "x" * 200_000
    with ExitStack() as stack:
        for source in ATTACKERS[:3]:
            for raw in stack.enter_context(opened(small, source, 7, HEALTH + busy)):
                raw.answer()
        for _ in range(10):
            with connect(small, HONEST) as connection:
                raw = Raw(connection)
                raw.send(request)
                # Not `Raw.answer`: it takes a reset for an end.
                received = b""
                while part := connection.recv(65_536):
                    received += part
            assert received.startswith(b"HTTP/1.1 503 ")
            assert b"too many connections" in received


def test_connections_that_are_refused_are_bounded_and_the_newest_gets_its_response(
    small: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "MAX_REFUSED", 4)
    with opened(small, HONEST, 8, HEALTH) as ours:
        for raw in ours:
            answer = raw.answer()
            assert answer is not None
        with opened(small, HONEST, 12) as refused:
            answer = refused[-1].answer()
            assert answer is not None
            assert answer.status == 429


def test_timeouts_shrink_with_the_number_of_connections(small: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "SHORTEST_TIMEOUT", 1.0)
    with ExitStack() as stack:
        deadline = time.monotonic() + 20
        while True:
            idle = [raw for source in ATTACKERS[:4] for raw in stack.enter_context(opened(small, source, 5))]
            statuses = {status(raw) for raw in idle}
            if statuses == {200}:
                break
            assert time.monotonic() < deadline, statuses
            stack.close()  # Connections of the test before this one were still there.
            time.sleep(0.1)
        began = time.monotonic()
        assert idle[0].answer() is None
        assert time.monotonic() - began < 20, "75 seconds where there is room"
        assert status(idle[-1]) in (200, None)


# --- With TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return own_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(pkis: dict[str, PKI], files: tuple[Path, Path]) -> Iterator[Pool]:
    limits = {"max_connections": 60, "max_connections_per_address": 40, "trusted_proxies": ()}
    with start({"iso2": pkis["iso2"]}, tls_cert=files[0], tls_key=files[1], **limits) as running:
        yield running


@contextmanager
def secured(pool: Pool, files: tuple[Path, Path], source: str) -> Iterator[Raw]:
    context = ssl.create_default_context(cafile=str(files[0]))
    with connect(pool, source) as connection, context.wrap_socket(connection, server_hostname="127.0.0.1") as tls:
        yield Raw(tls)  # type: ignore[arg-type]


def test_tls_handshakes_that_are_silent_count_as_connections(
    secure: Pool, files: tuple[Path, Path], log: list[CapturedCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    handshakes: list[Any] = []
    accepted = protocol.Connection.accepted
    failed = protocol.Connection.handshake_failed

    def began(self: protocol.Connection, *args: Any) -> None:
        handshakes.append(self)
        accepted(self, *args)

    def ended(self: protocol.Connection) -> None:
        handshakes.remove(self)
        failed(self)

    monkeypatch.setattr(protocol.Connection, "accepted", began)
    monkeypatch.setattr(protocol.Connection, "handshake_failed", ended)
    with opened(secure, ATTACKERS[0], 400), secured(secure, files, HONEST) as honest:
        assert status(honest) == 200
        assert counted(secure, log, "connections turned away", 300) >= 300
        assert len(handshakes) <= 40 + connection_limits.MAX_REFUSED + 1
        with ExitStack() as stack:
            for attacker in ATTACKERS[1:]:
                stack.enter_context(opened(secure, attacker, 100))
            with secured(secure, files, OTHER) as other:
                assert status(other) == 200
            assert len(handshakes) <= 60 + connection_limits.MAX_REFUSED + 2


def test_client_refused_over_tls_gets_a_503(
    secure: Pool, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "_STALLED_AFTER", 60.0)
    busy = "POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with ExitStack() as stack:
        for source in ATTACKERS[:2]:
            for _ in range(30):
                raw = stack.enter_context(secured(secure, files, source))
                assert status(raw, HEALTH + busy) == 200
        with secured(secure, files, HONEST) as honest:
            (answer,) = honest.answers()
        assert answer.refused(503) == "The pool has too many connections just now."


def test_address_with_too_many_tls_connections_gets_a_429(secure: Pool, files: tuple[Path, Path]) -> None:
    deadline = time.monotonic() + 20
    answer = None
    while answer is None or (answer.status != 429 and time.monotonic() < deadline):  # Others may still be closing.
        with opened(secure, ATTACKERS[0], 40), secured(secure, files, ATTACKERS[0]) as raw:
            raw.send(HEALTH)
            answer = raw.answer()
    assert answer.refused(429) == "There are too many connections from this address."


# --- Descriptors -----------------------------------------------------------------------------------------------------


def limited(soft: int, hard: int) -> list[str]:
    return ["/bin/sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh", *COMMAND]


def started(tmp_path: Path, soft: int, hard: int) -> tuple[str, int]:
    """What a server prints that starts under these limits, and the soft limit that it then has."""
    port = free_port()
    command = [*limited(soft, hard), "serve", "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env=environment(), text=True)
    assert process.stderr is not None
    try:
        printed = ""
        while '"event":"pool starting"' not in printed:
            line = process.stderr.readline()
            assert line, printed
            printed += line
        line = next(
            each for each in Path(f"/proc/{process.pid}/limits").read_text().splitlines() if "open files" in each
        )
    finally:
        process.terminate()
        _, rest = process.communicate(timeout=30)
    return printed + rest, int(line.split()[3])


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits of a process are looked up in /proc")
def test_limit_of_descriptors_is_raised_to_what_connections_need(tmp_path: Path) -> None:
    printed, soft = started(tmp_path, 256, 4096)
    assert soft == 1000 + 64 + 10 + 256
    assert f'"file_descriptors":{soft}' in printed
    assert "too few" not in printed


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits of a process are looked up in /proc")
def test_max_connections_is_lowered_and_logged_where_descriptors_are_too_few(tmp_path: Path) -> None:
    printed, soft = started(tmp_path, 256, 600)
    assert soft == 600
    assert "600 file descriptors are too few for max_connections = 1000; a worker accepts 300" in printed
