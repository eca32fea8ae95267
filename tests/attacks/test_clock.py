"""A clock that is 400 days ahead for a while: nothing is purged, no token outlives it, and no event waits for years."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp.cli import serve as cli_serve
from ccp.errors import Unavailable
from ccp.ids import EMAID, PCID
from ccp.server.access import authorization_server, token_keys
from ccp.server.domain.parties import TOKEN_NOT_VALID
from ccp.server.runtime import clock
from ccp.server.runtime.clock import ClockGuard
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import revocation, signing_keys
from ccp.server.storage.queries.contracts import microseconds, publish
from ccp.server.storage.queries.webhooks import put as put_webhook
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_ok
from tests.cli.served_sandbox import free_port, serving
from tests.databases import Server, with_schema
from tests.server.access.tokens.issuer import fake_issuer, post
from tests.server.events.receiver import Receiver, receiving, webhook
from tests.server.events.webhook_api import CREATED, UPDATED
from tests.server.http.api.answers import sentences
from tests.server.storage.made import new_database, opened, read, sql, variant, write
from tests.waiting import wait_until
from tests.world import AT, Pool, start

JUMP = timedelta(days=400)
AHEAD = "The clock of this machine was set 9600 hours ahead since the pool started; nothing is purged."


class Clock:
    """The clock of a pool that runs in this process."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@contextmanager
def jumping(pkis: dict[str, PKI], **options: Any) -> Iterator[tuple[Pool, Clock]]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp.server.app.utc_now", clock)
        with start({"iso2": pkis["iso2"]}, rate_limit_unauthenticated=0, **options) as running:
            yield running, clock


def ready(pool: Pool) -> list[str]:
    """Why the pool is not ready; nothing where it is."""
    answer = pool.http.get("/health/ready")
    reasons: list[str] = answer.json().get("reasons", [])
    assert (answer.status_code == 200) is (not reasons)
    return reasons


def failures(pool: Pool, task: str) -> float:
    """How often a background task has failed."""
    text = pool.http.get("/metrics").text
    name = f'ccp_task_failures_total{{task="{task}"}} '
    return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


ENGINES = ["sqlite", "postgresql"]


@pytest.fixture(params=ENGINES)
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "sqlite":
        return {}
    server: Server = request.getfixturevalue("postgres")
    return {"database": server.database()}


def test_purge_stops_while_the_clock_is_ahead_and_resumes_after_it(
    pkis: dict[str, PKI], database: dict[str, Any]
) -> None:
    options: dict[str, Any] = {
        "purge_interval": 1, "event_dispatch": True, "event_allow_http": True,
        "egress_allow_networks": ("127.0.0.0/8",),
        "event_retry_delay": 2, "event_retries": 100, "event_retention": 1, **database,  # Sweeps are as frequent.
    }  # fmt: skip
    with receiving() as receiver, jumping(pkis, **options) as (pool, clock):
        pool.change(put_webhook(webhook(receiver.url + "/up")))
        receiver.says("/down", 503)
        pool.change(put_webhook(webhook(receiver.url + "/down")))
        valid = (AT - timedelta(days=1), AT + timedelta(days=100))
        car = pool.car()
        contract = pool.publish(car, valid=valid)
        receiver.wait("/up", 1, 60)
        receiver.wait("/down", 1, 60)
        honest = pool.token("cpo")
        assert ready(pool) == []

        clock.ahead = JUMP
        assert ready(pool) == [AHEAD]
        form = {
            "grant_type": "client_credentials",
            "client_id": "cpo",
            "client_secret": pool.world.member("cpo").secret,
        }
        future = pool.http.post("/oauth/token", data=form).json()["access_token"]
        assert post(pool, future).status_code == 400, "valid as long as the clock stands so: let in, the body is empty"
        tried = failures(pool, "purge")
        wait_until(lambda: failures(pool, "purge") >= tried + 2, 60)
        late = pool.car()
        receiver.says("/up", 503)
        pool.cps.headers["Authorization"] = f"Bearer {fresh_token(pool, 'cps')}"
        stays = pool.publish(late, valid=(AT - timedelta(days=1), AT + timedelta(days=800)))

        wait_until(lambda: bool(reported(receiver, late.pcid)), 60)
        wait_until(lambda: (microseconds(AT + JUMP),) < max(pool.sql("select lease_until from delivery")), 60)

        before_return = len(reported(receiver, late.pcid))
        clock.ahead = timedelta(0)
        receiver.says("/up", 200)
        wait_until(lambda: ready(pool) == [], 60)
        for _ in range(2):
            assert sentences(post(pool, future), 401) == [TOKEN_NOT_VALID], "from the cache"
        assert post(pool, honest).status_code == 400
        pool.cps.headers["Authorization"] = f"Bearer {pool.token('cps')}"
        assert pool.stored(contract.emaid) == pool.stored(stays.emaid) == 1
        assert [item["emaid"] for item in pool.ask(car)] == [contract.emaid]
        # What was to be tried again in 2028 is tried now.
        wait_until(lambda: CREATED in reported(receiver, late.pcid)[before_return:], 60)
        assert pool.sql("select count(*) from delivery where state = 'dead'") == [(0,)], "nor was anything given up"
        pool.publish(late, stays.emaid, valid=valid)
        wait_until(lambda: reported(receiver, late.pcid)[-1] == UPDATED, 60)


def reported(receiver: Receiver, pcid: str) -> list[str]:
    """What was said of a vehicle, each attempt."""
    return [sent.kind for sent in receiver.asked("/up") if sent.pcid == pcid]


def fresh_token(pool: Pool, name: str) -> str:
    form = {"grant_type": "client_credentials", "client_id": name, "client_secret": pool.world.member(name).secret}
    token: str = pool.http.post("/oauth/token", data=form).json()["access_token"]
    return token


def test_token_from_the_future_is_refused_by_a_worker_that_never_saw_it(pkis: dict[str, PKI]) -> None:
    with jumping(pkis) as (pool, clock):
        clock.ahead = JUMP
        future = fresh_token(pool, "cpo")
        clock.ahead = timedelta(0)
        assert sentences(post(pool, future), 401) == [TOKEN_NOT_VALID]
        clock.ahead = timedelta(seconds=30)  # As clocks of several machines may differ.
        near = fresh_token(pool, "cpo")
        clock.ahead = timedelta(0)
        assert post(pool, near).status_code == 400


def test_token_of_another_issuer_from_the_future_is_not_valid_for_being_remembered(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake:
        issuers = (fake.entry(),)
        with jumping(pkis, issuers=issuers, egress_allow_networks=("127.0.0.0/8",)) as (pool, clock):
            days = JUMP.total_seconds()
            future = fake.token(iat=lambda now: now + days, exp=lambda now: now + days + 3600)
            assert sentences(post(pool, future), 401) == [TOKEN_NOT_VALID]
            clock.ahead = JUMP
            assert post(pool, future).status_code == 400
            clock.ahead = timedelta(0)
            assert sentences(post(pool, future), 401) == [TOKEN_NOT_VALID]


def test_key_of_the_future_does_not_keep_keys_from_being_rotated(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    old = token_keys.new_key(AT - timedelta(days=31))
    write(url, signing_keys.ensure(old))
    write(
        url,
        signing_keys.rotate(token_keys.new_key(AT + JUMP), AT + JUMP + timedelta(days=1), AT - timedelta(days=30)),
    )
    after = AT - timedelta(days=30)
    made = token_keys.new_key(AT)
    assert write(url, signing_keys.rotate_old(made, after, AT + timedelta(days=1), AT)) is True
    assert write(url, signing_keys.rotate_old(token_keys.new_key(AT), after, AT + timedelta(days=1), AT)) is False
    assert signing_keys.current_key(read(url, signing_keys.list_all()), AT + timedelta(minutes=1)) == made


def test_keys_are_neither_rotated_nor_removed_by_an_implausible_clock(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    write(url, signing_keys.ensure(token_keys.new_key(AT - timedelta(days=31))))
    write(
        url,
        signing_keys.rotate(
            token_keys.new_key(AT - timedelta(days=31)), AT + timedelta(days=1), AT - timedelta(days=31)
        ),
    )
    before = read(url, signing_keys.list_all())

    async def run(ahead: timedelta) -> None:
        async with opened(url) as store:
            clocks = Clock()
            guard = ClockGuard(clocks)
            clocks.ahead = ahead
            authority = authorization_server.AuthorizationServer(store, issuer="https://ccp.example.com", lifetime=3600)
            await authority.key_rotation_task(30 * 86_400, guard.checked).run()

    with pytest.raises(Unavailable, match="nothing is purged"):
        asyncio.run(run(JUMP))
    assert read(url, signing_keys.list_all()) == before
    asyncio.run(run(timedelta(0)))
    assert len(read(url, signing_keys.list_all())) == len(before) + 1


def test_crls_and_certificates_that_a_clock_put_off_for_years_are_due_now(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    url = database.get("database") or new_database(tmp_path)
    far, soon = microseconds(AT + JUMP), microseconds(AT + timedelta(hours=20))
    until_then = int((AT + JUMP).timestamp())
    for name, when in (("far", far), ("soon", soon)):
        sql(
            url,
            "insert into crl (issuer, url, issuer_certificate, this_update, next_update, fetched_at, refresh_at) "
            "values (?, 'http://crl.example', ?, 1, 1, 1, ?)",
            name, b"x", when,
        )  # fmt: skip
        sql(
            url,
            "insert into watched_certificate values (?, '1', ?, ?, ?, ?)",
            name,
            name.encode(),
            b"x",
            until_then,
            when,
        )
    retry = AT + timedelta(minutes=2)
    assert len(write(url, revocation.due_crls(AT, retry, 10))) == 1
    assert [each.certificate for each in write(url, revocation.due_certificates(AT, retry, 10))] == [b"far"]
    assert write(url, revocation.due_crls(AT, retry, 10)) == []
    assert write(url, revocation.due_certificates(AT, retry, 10)) == []
    assert sorted(sql(url, "select refresh_at from crl")) == [(microseconds(retry),), (soon,)]


# --- The database's clock, and processes -----------------------------------------------------------------------------


def test_clock_that_differs_from_the_databases_is_implausible_from_the_start(postgres: Server) -> None:
    url = postgres.database()

    async def ask(ahead: timedelta) -> datetime:
        store = connect(url)
        await store.open()
        try:
            return await ClockGuard(lambda: datetime.now(UTC) + ahead, store.time).checked()
        finally:
            await store.close()

    asyncio.run(ask(timedelta(0)))
    for ahead in (JUMP, -JUMP):
        with pytest.raises(Unavailable, match=r"9[56]\d\d hours (ahead of|behind) the database server's"):
            asyncio.run(ask(ahead))


LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
needs_faketime = pytest.mark.skipif(not LIBRARY.exists(), reason="libfaketime is not installed")


@contextmanager
def under_faketime(folder: Path) -> Iterator[Path]:
    """A file that says how far the clock of processes started now is ahead."""
    statement = folder / "clock"
    statement.write_text("+0d\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(LIBRARY))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(statement))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        patch.setenv("DONT_FAKE_MONOTONIC", "1")
        yield statement


@needs_faketime
def test_server_whose_machine_jumps_ahead_keeps_its_contracts_and_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ccp.db"
    with_schema(url)
    for number in range(5):
        write(url, publishing(number))
    port = free_port()
    (tmp_path / "ccp.toml").write_text(f'database = "sqlite:///ccp.db"\nport = {port}\npurge_interval = 1\n')
    log = tmp_path / "log"
    with (
        under_faketime(tmp_path) as statement,
        serving(f"http://127.0.0.1:{port}", "--config", tmp_path / "ccp.toml", log=log) as http,
    ):
        assert "clock" not in " ".join(http.get("/health/ready").json().get("reasons", []))
        statement.write_text("+400d\n")
        wait_until(
            lambda: any("nothing is purged" in reason for reason in http.get("/health/ready").json().get("reasons", []))
        )
        wait_until(lambda: log.read_text().count('"task":"purge"') + log.read_text().count('"task": "purge"') >= 2, 30)
        statement.write_text("+0d\n")
        wait_until(lambda: "clock plausible again" in log.read_text())
    assert '"clock implausible"' in log.read_text()
    assert sql(url, "select count(*) from contract") == [(5,)]


def publishing(number: int) -> Query[Any]:
    now = datetime.now(UTC).replace(microsecond=0)
    contract = variant(
        EMAID(f"DEEXAC{number:08d}"), PCID(f"WEX0TEST{number:09d}"),
        valid_from=now - timedelta(days=1), valid_to=now + timedelta(days=100),
    )  # fmt: skip
    return publish(contract, now)


# --- Commands --------------------------------------------------------------------------------------------------------


def database_clock_ahead(url: str, days: int) -> None:
    """Give a database's sessions a clock of their own: the server's, and some days more."""
    sql(
        url,
        "create or replace function public.clock_timestamp() returns timestamptz language sql volatile "
        f"as $$ select pg_catalog.clock_timestamp() + interval '{days} days' $$",
    )
    name = url.rpartition("/")[2].partition("?")[0]
    sql(url, f'alter database "{name}" set search_path = public, pg_catalog')


@pytest.mark.parametrize("days", [400, -400])
def test_commands_remove_nothing_by_a_clock_that_the_database_contradicts(
    tmp_path: Path, postgres: Server, days: int
) -> None:
    url, config = postgres.database(), tmp_path / "ccp.toml"
    config.write_text(f'database = "{url}"\nbase_url = "https://ccp.example.com"\n')
    now = datetime.now(UTC)
    write(url, publish(variant(valid_to=now - timedelta(days=30)), now))
    write(url, signing_keys.ensure(token_keys.new_key(now - timedelta(days=90))))
    write(url, signing_keys.rotate(token_keys.new_key(now - timedelta(days=60)), now - timedelta(days=30), now))
    tables = ("contract", "outbox", "token_key", "audit")

    def state() -> list[Any]:
        return [sorted(sql(url, f"select * from {table}"), key=str) for table in tables]

    before = state()
    database_clock_ahead(url, days)
    sentence = f"The clock of this machine is 9600 hours {'behind' if days > 0 else 'ahead of'} the database server's"
    for command in (("purge", "--yes"), ("keys", "rotate"), ("keys", "rotate", "--json")):
        done = ccp(*command, "--config", config)
        assert (done.status, done.out_bytes) == (1, b""), done
        assert sentence in done.err.splitlines()[-1]
        assert state() == before
    # What is only looked at is shown.
    assert "1 contract(s) would be removed" in ccp_ok("purge", "--dry-run", "--config", config).out
    database_clock_ahead(url, 0)
    assert "1 contract(s) removed" in ccp_ok("purge", "--yes", "--config", config).out
    ccp_ok("keys", "rotate", "--config", config)
    assert len(sql(url, "select kid from token_key")) == 2  # One has ended, one verifies, one is new.


def test_commands_with_sqlite_have_no_second_clock_to_ask(tmp_path: Path) -> None:
    url, config = new_database(tmp_path), tmp_path / "ccp.toml"
    config.write_text(f'database = "{url}"\nbase_url = "https://ccp.example.com"\n')
    ccp_ok("keys", "rotate", "--config", config)
    ccp_ok("purge", "--yes", "--config", config)
    assert len(sql(url, "select kid from token_key")) == 1


# --- Processes that begin while the clock is wrong -------------------------------------------------------------------


def test_worker_that_begins_while_the_clock_is_ahead_purges_nothing(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(clock._BEGAN, "")
    clock.hand_over(datetime.now(UTC))
    monkeypatch.setattr("ccp.server.app.utc_now", lambda: datetime.now(UTC) + JUMP)
    with start({"iso2": pkis["iso2"]}, rate_limit_unauthenticated=0, purge_interval=1) as pool:
        wait_until(lambda: failures(pool, "purge") > 0)
        assert ready(pool) == [AHEAD]


def test_serve_hands_its_clock_over_to_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ccp.toml").write_text(f'database = "sqlite:///{tmp_path}/ccp.db"\n')
    monkeypatch.setenv("CCP_CONFIG", str(tmp_path / "ccp.toml"))
    monkeypatch.setenv(clock._BEGAN, "")
    seen: list[ClockGuard] = []
    monkeypatch.setattr(cli_serve, "_run", lambda *_: seen.append(ClockGuard(lambda: datetime.now(UTC) + JUMP)))
    cli_serve.serve(None, None, None, None, None, None, None, None)
    assert seen[0].reasons() == [AHEAD]
