"""Attacks on sessions: ids, fixation, rights that come back, races, restarts, clocks and numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from ccp.server.console.sessions import Sessions
from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes.opnc import BASE
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.storage.queries import parties
from ccp.testing.pki import PKI
from tests.server.console.browsing import Browser, Page, admin, logged_in, outside
from tests.waiting import wait_until
from tests.world import Pool, opened, party, start

LIMITED: dict[str, Any] = {"console": True, "trusted_proxies": (), "rate_limit_unauthenticated": 1}
"""Twenty failures of an address, and one more each second."""
GARBAGE = ("invented", "x" * 66, "ü", "a" * 4000, f"{'a' * 43}.{'b' * 22}", "")


def with_cookie(url: str, cookie: str, path: str) -> httpx.Response:
    """A request of a browser with a session id."""
    with Browser(url) as one:
        return one.get(path, headers={"Cookie": f"ccp-console={cookie}".encode()})


def altered(cookie: str) -> str:
    """A session id that differs in one bit of its random part."""
    return ("b" if cookie[0] == "a" else "a") + cookie[1:]


@contextmanager
def second_worker(pool: Pool) -> Iterator[str]:
    """Another worker on the same database. Its URL."""
    with loopback() as (listening, url), running(pool.settings, listening):
        yield url


@pytest.mark.parametrize("cookie", [*GARBAGE, "altered"])
def test_session_id_that_was_not_issued_causes_no_query(pool: Pool, person: Browser, cookie: str) -> None:
    if cookie == "altered":
        cookie = altered(person.cookie)
    pool.sql("alter table console_session rename to elsewhere")
    try:
        assert outside(with_cookie(pool.base_url, cookie, "/overview"))
        assert person.get("/overview").status_code == 503  # An id that was issued is looked up.
    finally:
        pool.sql("alter table elsewhere rename to console_session")
    assert person.get("/overview").status_code == 200


def test_cookie_that_was_not_issued_costs_one_failure(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], **LIMITED) as pool:
        for number in range(14):
            cookie = f"invented{number}"
            assert outside(with_cookie(pool.base_url, cookie, "/overview"))
            assert with_cookie(pool.base_url, cookie, "/login").status_code == 200


def test_ended_sessions_lock_out_no_address(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], **LIMITED) as pool, logged_in(pool) as person:
        cookie, form = person.cookie, person.page("/overview").form("/logout")
        person.post("/logout", form.fields)
        for _ in range(30):
            assert outside(with_cookie(pool.base_url, cookie, "/overview"))
            assert with_cookie(pool.base_url, cookie, "/login").status_code == 200
        refused = {"Authorization": "Bearer invalid"}
        assert pool.http.get(f"{BASE}/contractData/emaid/DEEXAC12345678", headers=refused).status_code == 401


def test_session_is_served_at_an_address_with_failures_of_others(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], **LIMITED) as pool, logged_in(pool) as person:
        deadline = time.monotonic() + 20
        while with_cookie(pool.base_url, "invented", "/overview").status_code != 429:
            assert time.monotonic() < deadline
        assert person.get("/overview").status_code == 200
        with logged_in(pool) as other:
            assert other.get("/overview").status_code == 200


def test_session_that_was_planted_does_not_become_that_of_a_person(pool: Pool) -> None:
    with logged_in(pool, "second_admin") as attacker, Browser(pool.base_url) as victim:
        victim.http.cookies.set("ccp-console", attacker.cookie, domain="127.0.0.1", path="/")
        planted = attacker.cookie
        answer = victim.log_in(pool, "admin")
        assert answer.status_code == 303
        issued = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
        assert issued != planted
        assert outside(with_cookie(pool.base_url, planted, "/overview"))
        assert "admin" in with_cookie(pool.base_url, issued, "/overview").text


def test_session_ends_at_the_next_login_of_its_browser(pool: Pool, person: Browser) -> None:
    before = person.cookie
    assert person.log_in(pool).status_code == 303
    assert outside(with_cookie(pool.base_url, before, "/overview"))
    assert person.get("/overview").status_code == 200


@pytest.mark.parametrize("what", ["disable", "role"])
def test_session_does_not_come_back_with_the_rights_of_its_party(pkis: dict[str, PKI], what: str) -> None:
    with start(pkis, [admin(), party("boss", PartyRole.ADMIN)], console=True, refresh_interval=0.05) as pool:
        headers = {"Authorization": f"Bearer {pool.token('boss')}"}

        def change(method: str, path: str, body: Any = None) -> None:
            answer = pool.http.request(method, f"/admin/v1/parties/admin{path}", json=body, headers=headers)
            assert answer.status_code == 200, answer.text

        with logged_in(pool) as person:
            if what == "disable":
                change("POST", "/disable")
                change("POST", "/enable")
            else:
                change("PATCH", "", {"roles": ["cpo"]})
                change("PATCH", "", {"roles": ["admin"]})
            assert outside(person.get("/overview"))
        own = {"Authorization": f"Bearer {pool.token('admin')}"}
        wait_until(lambda: pool.http.get("/admin/v1/parties", headers=own).status_code == 200)  # The worker knows it.
        with logged_in(pool) as person:
            change("PATCH", "", {"roles": ["admin", "cpo"]})
            assert person.get("/overview").status_code == 200


@pytest.mark.parametrize("what", ["disabled", "no admin"])
def test_session_does_not_begin_after_its_party_lost_its_rights(
    pool: Pool, browser: Browser, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Between the check of the secret and the session: it would come back with the rights."""
    before = party("second_admin", PartyRole.ADMIN)
    lost = {"enabled": False} if what == "disabled" else {"roles": frozenset({PartyRole.CPO})}
    begin = Sessions.begin

    async def late(self: Sessions, *given: Any, **more: Any) -> str:
        async with opened(pool.settings) as store:
            await store.write(parties.update(before, replace(before, **lost)))
        return await begin(self, *given, **more)

    monkeypatch.setattr(Sessions, "begin", late)
    answer = browser.log_in(pool, "second_admin")
    monkeypatch.undo()
    pool.change(parties.update(replace(before, **lost), before))
    assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
    assert answer.headers["x-error-code"] == "client-credentials-invalid"
    assert "Client id or secret is wrong, or the party has not the role admin." in answer.text
    wait_until(lambda: browser.log_in(pool, "second_admin").status_code == 303)  # Once the worker knows the party anew.


def test_form_of_a_person_who_was_disabled_meanwhile_changes_nothing(pkis: dict[str, PKI]) -> None:
    with (
        start(pkis, [admin(), admin("boss")], console=True) as pool,
        logged_in(pool) as person,
        logged_in(pool, "boss") as boss,
        second_worker(pool) as url,
    ):
        form = person.page("/parties/oem").form("/parties/oem/disable")
        assert boss.act("/parties/admin", "/parties/admin/disable").status_code == 303
        headers = {"Origin": url, "Content-Type": "application/x-www-form-urlencoded"}
        with Browser(url, cookies={"ccp-console": person.cookie}) as elsewhere:
            answer = elsewhere.post(form.action, form.fields, headers)
        assert answer.headers["location"] == "/console/login?notice=session-ended"
        assert bool(pool.sql("select enabled from party where client_id = 'oem'")[0][0]) is True


def test_session_and_its_forms_survive_a_restart(pool: Pool, person: Browser) -> None:
    form = person.page("/parties/other_oem").form("/disable")
    cookies = {"ccp-console": person.cookie}
    for expected, action in (("party-disabled", "disable"), ("party-enabled", "enable")):
        # A worker that starts, and ends before the next one.
        with second_worker(pool) as url, Browser(url, cookies=cookies) as elsewhere:
            assert elsewhere.get("/overview").status_code == 200
            answer = elsewhere.post(f"/parties/other_oem/{action}", form.fields)
            assert answer.headers["location"].endswith(expected)


def test_sessions_that_end_in_several_requests_are_recorded_once(pool: Pool) -> None:
    with logged_in(pool, "second_admin") as person:
        fields = person.page("/overview").form("/logout").fields
        count = "select count(*) from audit where actor = 'second_admin' and action = 'console.logged.out'"
        ((before,),) = pool.sql(count)

        def log_out(_: int) -> int:
            with Browser(pool.base_url, cookies={"ccp-console": person.cookie}) as tab:
                return tab.post("/logout", fields).status_code

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(log_out, range(8))) == {303}
        assert pool.sql(count) == [(before + 1,)]
        assert outside(person.get("/overview"))


def test_logins_at_once_all_succeed_within_the_bound(pool: Pool) -> None:
    def log_in(number: int) -> str:
        with logged_in(pool, ("admin", "second_admin")[number % 2]) as one:
            return one.cookie

    with ThreadPoolExecutor(8) as threads:
        cookies = list(threads.map(log_in, range(24)))
    assert len(set(cookies)) == 24
    for name in ("admin", "second_admin"):
        with logged_in(pool, name) as last:
            assert last.get("/overview").status_code == 200
        assert pool.sql("select count(*) from console_session where actor = ?", name)[0][0] <= 10


SESSIONS = """
insert into console_session (id_hash, actor, client_id, role, credential, agent, created_at, seen_at, expires_at)
with recursive n(i) as (select 1 union all select i + 1 from n where i < 10000)
select 'hash' || i, 'console:person ' || i, null, 'viewer', 'x', 'x', cast(? as bigint) - i / 2, ?, ? from n
"""


def test_sessions_are_bounded_and_listed_in_pages(pool: Pool, person: Browser) -> None:
    now = int(time.time() * 1_000_000)
    pool.sql("delete from console_session where actor = 'second_admin'")
    pool.sql(SESSIONS, now, now, now + 3_600_000_000)
    with logged_in(pool, "second_admin") as one:
        assert pool.sql("select count(*) from console_session") == [(1000,)]
        listed: list[str] = []
        path: str | None = "/sessions"
        while path is not None:
            answer = one.get(path)
            assert len(answer.content) < 100_000
            listed += re.findall(r'<th scope="row"[^>]*>(console:person \d+)', answer.text)
            path = next((link for link in Page(answer.text).links if "after=" in link), None)
        stored = [actor for (actor,) in pool.sql("select actor from console_session where actor like 'console:%'")]
        assert sorted(listed) == sorted(stored)
        assert one.get("/sessions?after=x").status_code == 400
    pool.sql("delete from console_session where actor like 'console:%'")


class Clock:
    """The clock of the workers that run in this process."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("ccp.server.app.utc_now", made)
    return made


def test_session_counts_where_the_clock_is_a_little_behind(pkis: dict[str, PKI], clock: Clock) -> None:
    with start(pkis, [admin()], console=True) as pool, logged_in(pool) as person:
        clock.ahead = timedelta(seconds=-30)
        assert person.get("/overview").status_code == 200
        with logged_in(pool) as other:
            assert other.get("/overview").status_code == 200
        assert person.get("/overview").status_code == 200


def test_sessions_of_a_clock_that_was_ahead_do_not_count(pkis: dict[str, PKI], clock: Clock) -> None:
    with start(pkis, [admin()], console=True) as pool:
        clock.ahead = timedelta(days=400)
        early = [logged_in(pool) for _ in range(10)]
        assert early[-1].get("/overview").status_code == 200
        clock.ahead = timedelta(0)
        assert outside(early[-1].get("/overview"))
        with logged_in(pool) as first, logged_in(pool) as second:
            assert first.get("/overview").status_code == second.get("/overview").status_code == 200
        assert pool.sql("select count(*) from console_session") == [(2,)]
        for one in early:
            one.http.close()


def test_session_ends_while_the_clock_is_ahead(pkis: dict[str, PKI], clock: Clock) -> None:
    with start(pkis, [admin()], console=True) as pool, logged_in(pool) as person:
        for ahead in (timedelta(hours=1), timedelta(days=400)):
            clock.ahead = ahead
            assert outside(person.get("/overview"))
