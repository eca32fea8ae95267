"""Rates: the arithmetic, whom they are counted for, and that workers count together."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as some
from structlog.testing import CapturingLogger

from ccp.errors import ConfigurationError, NotAuthenticated, TooManyRequests, Unavailable
from ccp.server.access.client_address import RemoteAddress, TrustedProxies
from ccp.server.access.rate_limits import RateLimits
from ccp.server.access.token_bucket import Rate, SharedTokenBucket
from ccp.server.http.middleware import client_address
from ccp.server.http.routes.opnc import BASE
from ccp.server.settings import Settings
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import free_port, serving
from tests.server.http.guards.raw import connected
from tests.waiting import wait_until
from tests.world import Pool, start

SECOND = 1_000_000_000


class Clock:
    """Nanoseconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


# --- The arithmetic --------------------------------------------------------------------------------------------------


def test_burst_is_let_through_and_then_one_at_a_time() -> None:
    clock = Clock()
    bucket, rate = SharedTokenBucket.private(clock), Rate(SECOND // 10, 5)
    assert [bucket.acquire(b"a", rate) for _ in range(6)] == [0, 0, 0, 0, 0, 0.1]
    assert bucket.acquire(b"b", rate) == 0, "others are not concerned"
    clock.now += SECOND // 20
    assert bucket.acquire(b"a", rate) == pytest.approx(0.05)
    clock.now += SECOND // 20
    assert [bucket.acquire(b"a", rate) for _ in range(2)] == [0, 0.1]
    clock.now += 100 * SECOND
    assert [bucket.acquire(b"a", rate) for _ in range(6)] == [0, 0, 0, 0, 0, 0.1], "rest is not saved beyond the burst"


@given(
    per_second=some.integers(1, 1000),
    burst=some.integers(1, 50),
    pauses=some.lists(some.integers(0, SECOND // 5), max_size=200),
)
def test_rate_is_never_exceeded_by_more_than_the_burst(per_second: int, burst: int, pauses: list[int]) -> None:
    clock = Clock()
    bucket, rate = SharedTokenBucket.private(clock), Rate(SECOND // per_second, burst)
    began, let = clock.now, 0
    for pause in pauses:
        clock.now += pause
        expected = bucket.peek(b"a", rate)
        wait = bucket.acquire(b"a", rate)
        assert wait == expected
        let += wait == 0
        assert let <= burst + (clock.now - began) / rate.emission_interval + 1e-6
        if wait:
            before = clock.now
            clock.now += math.ceil(wait * 1e9)
            assert bucket.peek(b"a", rate) == 0, "no request is allowed before the reported delay has passed"
            clock.now = before


def test_debit_is_unconditional_but_at_most_a_second_burst() -> None:
    clock = Clock()
    bucket, rate = SharedTokenBucket.private(clock), Rate(SECOND, 10)
    for _ in range(9):
        bucket.debit(b"a", rate)
    assert bucket.peek(b"a", rate) == 0
    bucket.debit(b"a", rate)
    assert bucket.peek(b"a", rate) == 1
    for _ in range(1000):
        bucket.debit(b"a", rate)
    assert bucket.peek(b"a", rate) == 11


def test_rate_table_that_is_full_forgets_and_never_refuses_the_wrong_one() -> None:
    clock = Clock()
    bucket, rate = SharedTokenBucket.private(clock), Rate(SECOND, 2)
    for number in range(200_000):
        assert bucket.acquire(number.to_bytes(8, "big"), rate) == 0
    # A key that was counted last of all is still known.
    assert bucket.acquire((199_999).to_bytes(8, "big"), rate) == 0
    assert bucket.acquire((199_999).to_bytes(8, "big"), rate) > 0


TAKE_MANY = """
import sys; from pathlib import Path; from ccp.server.access.token_bucket import SharedTokenBucket, Rate
bucket, rate = SharedTokenBucket.shared(Path(sys.argv[1])), Rate(3600 * 10**9, 1000)
input()
print(sum(bucket.acquire(b"a", rate) == 0 for _ in range(5000)))
"""


def taken_by_two_processes(file: Path) -> int:
    """How many of 2,000 calls on one key two processes let pass."""
    SharedTokenBucket.prepare(file)
    assert file.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-c", TAKE_MANY, str(file)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    return sum(int(worker.communicate(timeout=60)[0]) for worker in workers)


def test_rate_table_is_shared_by_processes(tmp_path: Path) -> None:
    # At full speed on one key, which is when counts can be lost: a worker that is interrupted between reading a number
    # and writing it restores what the other one has counted meanwhile. Separate tables would always let 2,000 pass. A
    # busy machine interrupts often, so it gets more tries.
    passed = [taken_by_two_processes(tmp_path / "limits-0")]
    while passed[-1] > 1600 and len(passed) < 6:
        passed.append(taken_by_two_processes(tmp_path / f"limits-{len(passed)}"))
    assert min(passed) >= 1000
    assert passed[-1] <= 1600, passed


def test_rate_table_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        SharedTokenBucket.shared(tmp_path / "none")
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(ConfigurationError):
        SharedTokenBucket.shared(tmp_path / "short")
    for name in ("short", "none/limits"):
        with pytest.raises(ConfigurationError):
            SharedTokenBucket.prepare(tmp_path / name)


def test_rate_table_is_kept_unless_it_is_from_before_the_machine_started(tmp_path: Path) -> None:
    file, rate = tmp_path / "limits", Rate(3600 * SECOND, 1)
    SharedTokenBucket.prepare(file)
    assert SharedTokenBucket.shared(file).acquire(b"a", rate) == 0
    SharedTokenBucket.prepare(file)
    assert SharedTokenBucket.shared(file).acquire(b"a", rate) > 0
    os.utime(file, (0, 0))
    SharedTokenBucket.prepare(file)
    assert SharedTokenBucket.shared(file).acquire(b"a", rate) == 0


# --- Whom they are counted for ---------------------------------------------------------------------------------------

PROXIES = TrustedProxies(("127.0.0.0/8", "10.0.0.0/8", "2001:db8:1::/48"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address", "counted"),
    [
        ("203.0.113.7", "", "203.0.113.7", True),
        ("203.0.113.7", "198.51.100.1", "203.0.113.7", True),
        ("127.0.0.1", "", "127.0.0.1", False),
        ("127.0.0.1", "203.0.113.7", "203.0.113.7", True),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7", True),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7", True),
        ("127.0.0.1", "10.2.2.2,10.1.1.1", "10.2.2.2", False),
        ("127.0.0.1", "203.0.113.7:4711", "203.0.113.7", True),
        ("127.0.0.1", "[2001:db8::7]:4711", "2001:db8::7", True),
        ("127.0.0.1", "2001:db8::7", "2001:db8::7", True),
        ("127.0.0.1", "198.51.100.1, unknown", "127.0.0.1", False),
        ("127.0.0.1", "198.51.100.1, ", "127.0.0.1", False),
        ("127.0.0.1", "198.51.100.1, 10.0.0.1<script>", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "203.0.113.7", "203.0.113.7", True),
        ("2001:db8:1::1", "::ffff:203.0.113.7", "203.0.113.7", True),
        (None, "203.0.113.7", None, False),
    ],
)
def test_client_is_the_last_hop_that_a_trusted_proxy_vouches_for(
    peer: str | None, forwarded: str, address: str | None, counted: bool
) -> None:
    client = PROXIES.resolve(peer, forwarded)
    assert (client.address, client.rate_limit_key is not None) == (address, counted)


def test_rate_of_an_ipv6_client_is_counted_by_its_network() -> None:
    one, other = (PROXIES.resolve(f"2001:db8:7::{host}", "") for host in ("1", "ffff:1"))
    elsewhere = PROXIES.resolve("2001:db8:7:1::1", "")
    assert one.rate_limit_key == other.rate_limit_key != elsewhere.rate_limit_key


def test_secrets_that_wait_to_be_checked_are_limited() -> None:
    limits, client = RateLimits(None), RemoteAddress("203.0.113.7", b"1")
    waiting = [limits.login_attempt(client, f"party-{number}", "secret") for number in range(40)]
    with pytest.raises(Unavailable):  # noqa: PT012
        for each in waiting:
            each.__enter__()
        limits.login_attempt(client, "one-more", "secret")
    for each in waiting:
        each.__exit__(None, None, None)
    with limits.login_attempt(client, "one-more", "secret"):
        pass


def test_rate_of_login_failures_counts_wrong_secrets_alone() -> None:
    limits, client = RateLimits(Settings(login_failures_per_minute=2)), RemoteAddress("203.0.113.7", b"1")
    for error in (NotAuthenticated("no"), Unavailable("not now"), ValueError(), NotAuthenticated("no")):
        with pytest.raises(type(error)), limits.login_attempt(client, "party", "secret"):
            raise error
    with pytest.raises(TooManyRequests) as caught:
        limits.login_attempt(client, "party", "secret")
    assert 0 < caught.value.retry_after <= 60


# --- Over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool with small limits, behind a proxy on loopback that tests play."""
    with start(
        {"iso2": pkis["iso2"]},
        rate_limit_per_address=20,
        rate_limit_per_party=10,
        rate_limit_unauthenticated=1,
        login_failures_per_minute=5,
    ) as running:
        yield running


ADDRESSES = iter(f"203.0.113.{number}" for number in range(1, 255))


def of(address: str, **headers: str) -> dict[str, str]:
    return {"X-Forwarded-For": address, **headers}


def statuses(pool: Pool, count: int, headers: dict[str, str], path: str = "/health") -> list[int]:
    return [pool.http.get(path, headers=headers).status_code for _ in range(count)]


def test_address_asks_so_often_and_is_told_when_to_come_again(small: Pool) -> None:
    one, other = next(ADDRESSES), next(ADDRESSES)
    seen = statuses(small, 40, of(one))
    assert seen == [200] * 40
    deadline = time.monotonic() + 30
    while (answer := small.http.get("/health", headers=of(one))).status_code != 429:
        assert time.monotonic() < deadline
    body = answer.json()
    assert body["errorMessages"] == ["Too many requests from this address."]
    assert body["traceId"] == answer.headers["x-trace-id"]
    assert answer.headers["retry-after"] == "1"
    assert statuses(small, 5, of(other)) == [200] * 5
    while small.http.get("/health", headers=of(one)).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_party_asks_so_often_wherever_it_is(small: Pool) -> None:
    token = f"Bearer {small.token('oem')}"
    path = f"{BASE}/contractData/pcid/WEX0LIMITS0000000"
    seen = []
    for _ in range(4):
        seen += statuses(small, 10, of(next(ADDRESSES), Authorization=token), path)
    assert seen[:20] == [404] * 20
    assert 429 in seen
    other = f"Bearer {small.token('other_oem')}"
    assert statuses(small, 1, of(next(ADDRESSES), Authorization=other), path) == [403]


def test_token_guesses_are_refused_unverified_and_known_tokens_are_not(small: Pool) -> None:
    address = next(ADDRESSES)
    token = small.token("emsp")
    path = f"{BASE}/contractData/emaid/DEEXALIMITS001"
    known = of(address, Authorization=f"Bearer {token}")
    assert statuses(small, 1, known, path) == [404]
    seen = [
        small.http.get(path, headers=of(address, Authorization=f"Bearer {token[:-9]}{random.random():.7f}")).status_code
        for _ in range(30)
    ]
    assert seen[:19] == [401] * 19
    assert seen[-5:] == [429] * 5
    assert statuses(small, 3, known, path) == [404] * 3
    answer = small.http.get(path, headers=of(address))
    assert answer.json()["errorMessages"] == ["Too many requests without a valid token from this address."]
    assert statuses(small, 1, of(next(ADDRESSES)), path) == [401]


def log_in(pool: Pool, address: str, client_id: str, secret: str) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    return pool.http.post("/oauth/token", data=form, headers=of(address))


def test_rate_of_logins_lets_no_secret_be_guessed_and_no_party_be_locked_out(small: Pool) -> None:
    attacker, honest = next(ADDRESSES), next(ADDRESSES)
    secret = small.world.member("cps").secret
    seen = [log_in(small, attacker, "cps", f"guess {number}").status_code for number in range(9)]
    assert seen == [401] * 5 + [429] * 4
    # The right secret is rejected too: the response must not reveal whether a guess was right.
    answer = log_in(small, attacker, "cps", secret)
    assert answer.status_code == 429
    assert answer.json() == {
        "error": "temporarily_unavailable",
        "error_description": "Too many failed attempts to get a token; wait before the next one.",
    }
    assert 0 < int(answer.headers["retry-after"]) <= 60
    assert log_in(small, honest, "cps", secret).status_code == 200
    assert log_in(small, attacker, "oem", small.world.member("oem").secret).status_code == 200


def test_address_cannot_try_a_few_secrets_for_each_of_many_parties(small: Pool) -> None:
    attacker = next(ADDRESSES)
    seen = [log_in(small, attacker, f"party-{number}", "guess").status_code for number in range(40)]
    assert seen[:25] == [401] * 25
    assert seen[-5:].count(429) >= 3, "at most one in two seconds and a half"
    # One more is let through in a while, and whatever comes right after it is not.
    deadline = time.monotonic() + 30
    began = time.monotonic()
    while log_in(small, attacker, "another", "guess").status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        began = time.monotonic()
    status = log_in(small, attacker, "peer", small.world.member("peer").secret).status_code
    assert status == 429 or time.monotonic() - began > 2


def test_rate_of_logins_counts_guesses_at_the_same_time_too(small: Pool) -> None:
    attacker = next(ADDRESSES)
    seen: list[int] = []

    def guess() -> None:
        seen.append(log_in(small, attacker, "emsp", "guess").status_code)

    threads = [threading.Thread(target=guess) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) <= {401, 429, 503}
    answer = log_in(small, attacker, "emsp", "guess")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 12, "what was too much has to be waited for"


def test_trusted_proxies_ignore_another_one_and_log_it_once(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CapturingLogger()
    monkeypatch.setattr(client_address, "_log", logger)
    with start({"iso2": pkis["iso2"]}, rate_limit_per_address=5, trusted_proxies=("10.0.0.0/8",)) as pool:
        seen = [pool.http.get("/health", headers=of(next(ADDRESSES))).status_code for _ in range(15)]
    assert 429 in seen
    (call,) = logger.calls
    assert (call.method_name, call.kwargs) == ("warning", {"peer": "127.0.0.1"})


def test_refusal_says_in_the_audit_trail_where_it_came_from(small: Pool) -> None:
    address = next(ADDRESSES)
    assert small.http.get(f"{BASE}/contractData/emaid/DEEXALIMITS002", headers=of(address)).status_code == 401
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if small.sql("select count(*) from audit where subject like ?", f"%{address}%")[0][0]:
            return
        time.sleep(0.1)
    raise AssertionError("nothing in the trail")


# --- Workers ---------------------------------------------------------------------------------------------------------


def test_workers_count_together_and_leave_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "tmp").mkdir()
    (tmp_path / "ccp.toml").write_text("rate_limit_per_address = 10\n")
    url = f"http://127.0.0.1:{port}"
    with serving(url, "--port", port, "--workers", 2, cwd=tmp_path, log=tmp_path / "log", temporary=tmp_path / "tmp"):
        (folder,) = (tmp_path / "tmp").glob("opnc-ccp-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        wait_until(lambda: (tmp_path / "log").read_text().count('"worker ready"') == 2)
        seen = []
        began = time.monotonic()
        for _ in range(30):
            with connected(url) as raw:  # Connections of their own, so that both workers are met.
                raw.send("GET /health HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.1\r\n\r\n" * 10)
                for _ in range(10):
                    answer = raw.answer()
                    assert answer is not None
                    seen.append(answer.status)
        took = time.monotonic() - began
        let = seen.count(200)
    assert set(seen) == {200, 429}
    assert 20 <= let <= 20 + 10 * took + 2, "apart they would let twice as many through"
    assert not any((tmp_path / "tmp").glob("opnc-ccp-*"))


def test_rate_limit_file_is_not_needed_for_one_worker(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    port = free_port()
    log = tmp_path / "log"
    with serving(f"http://127.0.0.1:{port}", "--port", port, cwd=tmp_path, log=log, temporary=temporary) as http:
        assert http.get("/health").status_code == 200
        assert not any(temporary.iterdir())
