"""Alive, ready, and being stopped."""

from __future__ import annotations

import errno
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.storage.engine.time_limits import NOT_WRITTEN
from ccp.server.storage.engine.write_lock import WriteLock
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, ccp_process, environment
from tests.cli.served_sandbox import free_port
from tests.databases import knows_sqlite
from tests.server.bulk.fleet import body, database, line
from tests.server.storage.made import sql
from tests.world import Pool, start


def fetch(url: str, path: str) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(url + path, timeout=5)
    return answer.status_code, answer.json()


def test_pool_that_runs_is_alive_and_ready(pool: Pool) -> None:
    assert fetch(pool.base_url, "/health/live") == (200, {"status": "alive"})
    assert fetch(pool.base_url, "/health/ready") == (200, {"status": "ready"})
    assert fetch(pool.base_url, "/health") == (200, {"status": "ok"})


def test_pool_whose_schema_has_become_too_old_or_is_gone_is_alive_and_not_ready(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        (version,) = pool.sql("select version_num from alembic_version")
        pool.sql("update alembic_version set version_num = '0001'")
        assert fetch(pool.base_url, "/health/ready") == (
            503,
            {"status": "not ready", "reasons": ["The database schema is older than this release needs."]},
        )
        pool.sql("alter table alembic_version rename to gone")
        status, answer = fetch(pool.base_url, "/health/ready")
        assert (status, answer["reasons"]) == (503, ["The database does not answer."])
        assert fetch(pool.base_url, "/health") == (503, {"status": "unavailable"})
        assert fetch(pool.base_url, "/health/live")[0] == 200
        pool.sql("alter table gone rename to alembic_version")
        pool.sql("update alembic_version set version_num = ?", *version)
        assert fetch(pool.base_url, "/health/ready") == (200, {"status": "ready"})


@knows_sqlite
def test_pool_with_a_failing_database_writer_serves_reads_and_recovers(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(write_lock: WriteLock) -> Iterator[None]:
        raise OSError(errno.EIO, "Input/output error")
        yield

    with start(pkis) as pool:
        car = pool.car()
        contract = pool.publish(car)
        with monkeypatch.context() as patch:
            patch.setattr(WriteLock, "hold", broken)
            for _ in range(3):
                answer = pool.client("cps").put("/signedcontractdata", json=contract.body)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
                assert answer.json()["errorMessages"] == [NOT_WRITTEN]
            status, readiness = fetch(pool.base_url, "/health/ready")
            assert (status, readiness["reasons"]) == (
                503,
                ["The database writer does not run; it is being started again."],
            )
            assert fetch(pool.base_url, "/health") == (503, {"status": "unavailable"})
            assert len(pool.ask(car)) == 1, "vehicles are served meanwhile"
        deadline = time.monotonic() + 30
        while fetch(pool.base_url, "/health/ready")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert pool.client("cps").put("/signedcontractdata", json=contract.body).status_code == 201


@contextmanager
def process(folder: Path, pool: Pool, **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`ccp serve` on the database of a pool that runs already: it knows parties, roots and tokens."""
    port = free_port()
    config = folder / "ccp.toml"
    values = {
        "database": pool.settings.database,
        "port": port,
        "base_url": pool.base_url,
        "log_level": "error",
        **options,
    }
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    running = subprocess.Popen(
        [*COMMAND, "serve", "--config", str(config)], env=environment(), stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            assert running.poll() is None
            try:
                if fetch(url, "/health/ready")[0] == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield running, url
    finally:
        if running.poll() is None:
            running.terminate()
            running.wait(30)


def stopping(url: str) -> Any:
    """Wait until the server is not ready any more. Returns its reasons."""
    deadline = time.monotonic() + 30
    while (found := fetch(url, "/health/ready"))[0] != 503:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[1].get("reasons")


@pytest.mark.parametrize("workers", [1, 2])
def test_health_is_lost_first_then_the_port_and_requests_meanwhile_are_answered(
    tmp_path: Path, pool: Pool, workers: int
) -> None:
    headers = {"Authorization": f"Bearer {pool.token('cps')}"}
    contract = pool.contract(pool.car())
    with process(tmp_path, pool, workers=workers, drain_period=5) as (server, url):
        server.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        # The parent of several workers looks for signals every half a second.
        assert stopping(url) == ["The pool is being stopped."]
        assert fetch(url, "/health/live")[0] == 200
        put = httpx.put(url + "/opnc/v1/ccp/signedcontractdata", json=contract.body, headers=headers)
        assert put.status_code == 201
        server.wait(30)
        assert 5 <= time.monotonic() - signalled < 25
        assert server.returncode in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            fetch(url, "/health/live")
    assert pool.stored(contract.emaid) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_request_under_way_is_answered_before_the_server_ends(
    tmp_path: Path, pool: Pool, pkis: dict[str, PKI], workers: int
) -> None:
    encoded = line(body(pkis["iso2"]))
    with process(tmp_path, pool, workers=workers) as (server, url):
        head = (
            "PUT /opnc/v1/ccp/signedcontractdata HTTP/1.1\r\nHost: test\r\n"
            f"Authorization: Bearer {pool.token('cps')}\r\nContent-Length: {len(encoded)}\r\n\r\n"
        )
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n" + head.encode() + encoded[:1000])
            # All of it comes at once, so the server that answers the first has begun with the second.
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            server.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 30
            while True:  # Until the server refuses new connections.
                try:
                    socket.create_connection((host, int(port)), timeout=1).close()
                except OSError:
                    break
                assert time.monotonic() < deadline
                time.sleep(0.02)
            connection.sendall(encoded[1000:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 201 ")
        assert server.wait(30) in (0, -signal.SIGTERM)


def test_serve_stops_without_drain_period_at_sigint(tmp_path: Path, pool: Pool) -> None:
    with process(tmp_path, pool, drain_period=200) as (server, url):
        server.send_signal(signal.SIGTERM)
        stopping(url)
        server.send_signal(signal.SIGINT)
        server.wait(15)


@pytest.mark.parametrize("workers", [1, 2])
def test_server_whose_workers_cannot_start_does_not_end_as_if_all_were_well(
    tmp_path: Path, pkis: dict[str, PKI], workers: int
) -> None:
    target = database(tmp_path / "pool", pkis)
    sql(target.url, "drop table token_key")
    done = ccp_process("serve", "--port", free_port(), "--workers", workers, env=environment(**target.env))
    assert done.returncode == 3
