"""Floods of wrong logins: they are throttled wherever they come from, and honest logins survive them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.errors import NotAuthenticated, TooManyRequests
from ccp.server.access import authorization_server
from ccp.server.access.client_address import RemoteAddress
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.access.rate_limits import RateLimits
from ccp.server.access.secret_cache import SecretCache
from ccp.server.access.token_bucket import SharedTokenBucket
from ccp.server.domain.actor import Actor
from ccp.server.http.middleware import client_address
from ccp.server.settings import Settings
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.databases import with_schema
from tests.world import Pool, opened, start

T = TypeVar("T")
NGINX = shutil.which("nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
OPERATOR = Actor("cli:test")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """With the default limits: ten failed logins a minute for a client id. Loopback is a trusted proxy."""
    with start({"iso2": pkis["iso2"]}) as running:
        yield running


def log_in(url: str, client_id: str, secret: str) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return httpx.post(url + "/oauth/token", data=form, timeout=20)


def throttled(url: str, client_id: str, secrets: Iterable[str]) -> None:
    """Try them all: the first ten are looked at, then one every six seconds."""
    began = time.monotonic()
    seen = [log_in(url, client_id, secret).status_code for secret in secrets]
    assert seen[:10] == [401] * 10
    assert set(seen[10:]) <= {401, 429}
    assert 429 in seen
    assert seen.count(401) <= 11 + (time.monotonic() - began) / 6


def guesses(count: int) -> list[str]:
    return [f"guess {number}" for number in range(count)]


def in_register(pool: Pool, change: Callable[[PartyRegistry], Awaitable[T]]) -> T:
    """What an operator does at the command line meanwhile."""

    async def run() -> T:
        async with opened(pool.settings) as store:
            return await change(PartyRegistry(store))

    return asyncio.run(run())


@contextmanager
def nginx(pool: Pool, folder: Path, header: str = "") -> Iterator[str]:
    """A proxy as people write it down first: `proxy_pass` and nothing else."""
    port = free_port()
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ {header} proxy_pass {pool.base_url}; }} }} }}\n"
    )
    command = [NGINX or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command, env={"PATH": os.defpath})
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                if httpx.get(url + "/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@needs_nginx
def test_login_flood_through_a_proxy_that_names_no_client_is_throttled(pool: Pool, tmp_path: Path) -> None:
    with nginx(pool, tmp_path) as url:
        throttled(url, "cpo", guesses(25))
        assert log_in(url, "oem", pool.world.member("oem").secret).status_code == 200, "each client id for itself"


@needs_nginx
def test_login_flood_through_a_proxy_that_names_its_client_locks_out_it_alone(pool: Pool, tmp_path: Path) -> None:
    with nginx(pool, tmp_path, "proxy_set_header X-Forwarded-For 203.0.113.77;") as url:
        throttled(url, "other_oem", guesses(25))
    secret = pool.world.member("other_oem").secret
    assert log_in(pool.base_url, "other_oem", secret).status_code == 200


def test_login_flood_on_loopback_is_throttled(pool: Pool) -> None:
    throttled(pool.base_url, "peer", guesses(60))


def test_client_ids_are_counted_one_by_one_where_the_address_is_not_known(pool: Pool) -> None:
    for client_id in ("missing-1", "missing-2", "missing-\N{SNOWMAN}", "n" * 5000):
        throttled(pool.base_url, client_id, guesses(14))


def test_login_flood_for_a_client_id_does_not_stop_its_honest_login(pool: Pool) -> None:
    secret = pool.world.member("emsp").secret
    assert log_in(pool.base_url, "emsp", secret).status_code == 200
    throttled(pool.base_url, "emsp", guesses(40))
    for _ in range(5):
        assert log_in(pool.base_url, "emsp", secret).status_code == 200


def test_secret_that_is_recognised_does_not_wait_for_argon2(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = pool.world.member("small_cps").secret
    assert log_in(pool.base_url, "small_cps", secret).status_code == 200

    def busy(hashes: list[str], secret: str) -> str | None:
        raise AssertionError("argon2 was asked")

    monkeypatch.setattr(authorization_server, "matching_hash", busy)
    assert log_in(pool.base_url, "small_cps", secret).status_code == 200
    assert log_in(pool.base_url, "small_cps", "guess").status_code == 500


def test_secret_that_was_replaced_is_not_recognised_and_throttled_as_any_other(pool: Pool) -> None:
    old = pool.world.member("cps").secret
    assert log_in(pool.base_url, "cps", old).status_code == 200
    new, _ = in_register(pool, lambda register: register.rotate_secret("cps", OPERATOR, datetime.now(UTC), overlap=600))
    assert [log_in(pool.base_url, "cps", each).status_code for each in (new, old, new)] == [200] * 3, "both are valid"
    last, _ = in_register(pool, lambda register: register.rotate_secret("cps", OPERATOR, datetime.now(UTC), overlap=0))
    assert log_in(pool.base_url, "cps", last).status_code == 200
    throttled(pool.base_url, "cps", (old, new) * 10)
    assert log_in(pool.base_url, "cps", last).status_code == 200


def test_secret_of_a_disabled_party_is_not_recognised(pool: Pool) -> None:
    secret = pool.world.member("other_emsp").secret
    assert log_in(pool.base_url, "other_emsp", secret).status_code == 200
    in_register(pool, lambda register: register.disable("other_emsp", OPERATOR, datetime.now(UTC)))
    throttled(pool.base_url, "other_emsp", [secret] * 14)


def test_secret_cache_is_bounded_holds_no_secret_and_differs_between_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ccp.server.access.secret_cache._MAX_CLIENTS", 3)
    one, other = SecretCache(), SecretCache()
    for number in range(10):
        for known in (one, other):
            known.remember(f"party-{number}", "the secret", f"hash {number}")
    assert [one.contains(f"party-{number}", "the secret") for number in range(10)] == [False] * 7 + [True] * 3
    assert list(one._known) == ["party-7", "party-8", "party-9"]
    assert "the secret" not in repr(one._known)
    assert one._known != other._known
    assert not one.contains("party-9", "another")
    assert one.valid_hash("party-9", "the secret", ["hash of its successor"]) is None
    assert not one.contains("party-9", "the secret"), "forgotten"


def test_client_addresses_that_are_invented_get_no_more_guesses_at_a_client_id(pkis: dict[str, PKI]) -> None:
    """A proxy with `proxy_pass` alone passes on the X-Forwarded-For that its client has invented."""
    with start({"iso2": pkis["iso2"]}, login_failures_per_minute=2) as pool:
        form = {"grant_type": "client_credentials", "client_id": "cpo", "client_secret": "guess"}
        seen = [
            pool.http.post("/oauth/token", data=form, headers={"X-Forwarded-For": f"203.0.113.{number}"}).status_code
            for number in range(20)
        ]
        assert seen[:10] == [401] * 10
        assert seen[10:].count(429) >= 8
        assert log_in(pool.base_url, "oem", pool.world.member("oem").secret).status_code == 200


def test_workers_all_recognise_a_secret_that_one_of_them_has_verified(tmp_path: Path) -> None:
    url, port = f"sqlite:///{tmp_path}/ccp.db", free_port()
    with_schema(url)
    added = ccp_ok("party", "add", "honest", "--role", "cpo", "--json", env={"CCP_DATABASE": url})
    secret = json.loads(added.out)["client_secret"]
    (tmp_path / "ccp.toml").write_text(f'database = "{url}"\nport = {port}\nworkers = 2\n')
    address = f"http://127.0.0.1:{port}"
    with serving(address, "--config", tmp_path / "ccp.toml"):
        assert log_in(address, "honest", secret).status_code == 200
        throttled(address, "honest", guesses(30))
        assert [log_in(address, "honest", secret).status_code for _ in range(20)] == [200] * 20


def test_secret_that_was_recognised_is_forgotten_by_all_workers_when_it_fails(tmp_path: Path) -> None:
    SharedTokenBucket.prepare(tmp_path / "limits")
    one, other = (
        RateLimits(Settings(login_failures_per_minute=2, rate_limit_file=tmp_path / "limits")) for _ in range(2)
    )
    client = RemoteAddress(None, None)
    with one.login_attempt(client, "cpo", "secret"):
        pass
    for limits in (other, one):  # The party is disabled by now.
        with pytest.raises(NotAuthenticated), limits.login_attempt(client, "cpo", "secret"):
            raise NotAuthenticated("no")
    for limits in (one, other):
        with pytest.raises(TooManyRequests):
            limits.login_attempt(client, "cpo", "secret")


# --- The warning -----------------------------------------------------------------------------------------------------


def test_trusted_proxies_that_name_no_client_are_logged_once(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(client_address, "_log", logger)
    with start({"iso2": pkis["iso2"]}) as pool:
        for path in ("/health", "/health/ready", "/metrics"):
            pool.http.get(path)
        pool.http.get("/opnc/v1/ccp/x", headers={"X-Forwarded-For": "203.0.113.1"})
        calls: list[CapturedCall] = list(logger.calls)
        assert not calls, "probes of this machine are not a proxy's"
        for _ in range(3):
            pool.http.get("/opnc/v1/ccp/x")
    (call,) = logger.calls
    assert call.method_name == "warning"
    assert call.args[0].startswith("no client address from trusted proxy")
    assert call.kwargs == {"peer": "127.0.0.1"}
