"""Log-in with a client secret, sessions and their end, over real HTTP."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

import httpx
import pytest

from ccp.server.domain.parties import PartyRole
from ccp.server.sandbox.local_pool import loopback, running
from ccp.testing.pki import PKI
from tests.server.console.browsing import Browser, Page, admin, logged_in, outside
from tests.waiting import wait_until
from tests.world import Pool, party, start

REFUSED = "Client id or secret is wrong, or the party has not the role admin."


def ago(pool: Pool, column: str, span: timedelta) -> None:
    """Move a time of every session to the past."""
    moved = int(span.total_seconds() * 1_000_000)
    pool.sql(f"update console_session set {column} = {column} - ?", moved)


def test_console_is_off_by_default(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()]) as pool:
        assert pool.http.get("/console/login").status_code == 404
        assert pool.http.get("/console/").status_code == 404


def test_login_opens_the_page_that_was_asked_for(pool: Pool, browser: Browser) -> None:
    asked = browser.get("/anchors?role=v2g")
    assert outside(asked)
    form = browser.page(asked.headers["location"]).form("/login")
    assert form.fields["next"] == "/console/anchors?role=v2g"
    given = {"client_id": "admin", "client_secret": pool.world.member("admin").secret}
    answer = browser.post("/login", {**form.fields, **given})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/anchors?role=v2g")
    assert "Trust anchors" in browser.page("/anchors").text


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/", "//evil.example/console/", "/console//evil.example", "/opnc/v1", "/console/\\evil",
        "/console/?x=\r\nSet-Cookie: a=b", "javascript:alert(1)", "/console/" + "a" * 600,
        "/console/../opnc/v1", "/console/%2E./opnc/v1", "/console/..", "/console/a/%2e%2e?x=1",
    ],
)  # fmt: skip
def test_login_sends_to_no_other_place(pool: Pool, browser: Browser, target: str) -> None:
    answer = browser.log_in(pool, next=target)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")


def test_login_refuses_with_one_sentence(pool: Pool, browser: Browser) -> None:
    cases = [
        {"client_id": "admin", "client_secret": "wrong"},
        {"client_id": "unknown", "client_secret": "wrong"},
        {"client_id": "emsp", "client_secret": pool.world.member("emsp").secret},  # Valid, but no admin.
        {"client_id": "admin", "client_secret": ""},
        {"client_id": "a" * 101, "client_secret": "b"},
        {"client_id": "admin", "client_secret": "b" * 1001},
        {"client_id": "ädmin\u2028", "client_secret": "b"},
    ]
    pages = set()
    for case in cases:
        answer = browser.post("/login", case)
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        pages.add((Page(answer.text).text, answer.headers["x-error-code"]))
    ((text, code),) = pages
    assert REFUSED in text
    assert code == "client-credentials-invalid"


def test_login_cookie_is_for_this_browser_and_this_host_only(pool: Pool, browser: Browser) -> None:
    header = browser.log_in(pool).headers["set-cookie"]
    assert re.fullmatch(r"ccp-console=[\w-]{43}\.[\w-]{22}; HttpOnly; Path=/; SameSite=lax", header)


def test_login_cookie_is_secure_where_the_pool_is_reached_by_tls(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], console=True, base_url="https://pool.example") as pool, Browser(pool.base_url) as one:
        one.http.base_url = httpx.URL(f"http://127.0.0.1:{pool.http.base_url.port}")
        header = one.log_in(pool).headers["set-cookie"]
        assert re.fullmatch(r"__Host-ccp-console=[\w-]{43}\.[\w-]{22}; HttpOnly; Path=/; SameSite=lax; Secure", header)


def test_session_id_is_not_in_the_database_and_new_at_each_login(pool: Pool, browser: Browser) -> None:
    browser.log_in(pool)
    first = browser.cookie
    browser.log_in(pool)
    assert browser.cookie != first
    stored = pool.sql("select * from console_session")
    assert stored
    assert first not in str(stored)
    assert browser.cookie not in str(stored)


def test_session_ends_at_logout(pool: Pool, person: Browser) -> None:
    cookie = person.cookie
    answer = person.act("/overview", "/logout")
    assert answer.headers["location"] == "/console/login?notice=logged-out"
    assert "You are logged out." in person.page(answer.headers["location"]).text
    with Browser(pool.base_url, cookies={"ccp-console": cookie}) as thief:
        assert outside(thief.get("/overview"))


def test_session_is_bound_to_the_browser(pool: Pool, person: Browser) -> None:
    with Browser(pool.base_url, "curl/8", cookies={"ccp-console": person.cookie}) as thief:
        assert outside(thief.get("/overview"))
    assert person.get("/overview").status_code == 200


@pytest.mark.parametrize(("column", "span"), [("seen_at", 1801), ("created_at, expires_at", 28_801)])
def test_session_expires(pool: Pool, person: Browser, column: str, span: int) -> None:
    assert person.get("/overview").status_code == 200
    for each in column.split(", "):
        ago(pool, each, timedelta(seconds=span))
    assert outside(person.get("/overview"))
    answer = person.post("/logout")
    assert answer.headers["location"] == "/console/login?notice=logged-out"


def test_session_in_use_does_not_become_idle(pool: Pool, person: Browser) -> None:
    ago(pool, "seen_at", timedelta(seconds=1700))
    assert person.get("/overview").status_code == 200
    ago(pool, "seen_at", timedelta(seconds=1700))
    assert person.get("/overview").status_code == 200


def test_session_is_valid_in_every_worker(pool: Pool, person: Browser, pkis: dict[str, PKI]) -> None:
    shared = {"database": pool.settings.database, "console": True, "base_url": pool.base_url}
    with loopback() as (listening, url):
        settings = pool.settings.model_copy(update=shared)
        with running(settings, listening), Browser(url, cookies={"ccp-console": person.cookie}) as other:
            assert other.get("/overview").status_code == 200
            person.act("/overview", "/logout")
            assert outside(other.get("/overview"))


@pytest.mark.parametrize("what", ["disable", "role", "secret"])
def test_session_ends_with_the_rights_of_its_party(pkis: dict[str, PKI], what: str) -> None:
    two = [admin("admin"), party("boss", PartyRole.ADMIN)]
    with start(pkis, two, console=True, refresh_interval=0.05) as pool, logged_in(pool) as person:
        assert person.get("/overview").status_code == 200
        headers = {"Authorization": f"Bearer {pool.token('boss')}"}
        change = {
            "disable": ("POST", "/disable", None),
            "role": ("PATCH", "", {"roles": ["cpo"]}),
            "secret": ("POST", "/rotate-secret", {"overlap": 0}),
        }
        method, path, body = change[what]
        answer = pool.http.request(method, f"/admin/v1/parties/admin{path}", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert outside(person.get("/overview"))  # At once: the session's rights are read with it.
        assert outside(person.get("/anchors"))


def test_session_lives_on_while_the_old_secret_does(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], console=True) as pool, logged_in(pool) as person:
        headers = {"Authorization": f"Bearer {pool.token('admin')}"}
        rotated = pool.http.post("/admin/v1/parties/admin/rotate-secret", json={"overlap": 3600}, headers=headers)
        assert rotated.status_code == 200
        assert person.get("/overview").status_code == 200


def test_sessions_of_one_person_are_bounded(pool: Pool) -> None:
    with logged_in(pool) as first:
        for _ in range(10):
            logged_in(pool).http.close()
        assert outside(first.get("/overview"))
    assert pool.sql("select count(*) from console_session where actor = 'admin'") == [(10,)]


def test_login_is_throttled_like_the_token_endpoint(pkis: dict[str, PKI]) -> None:
    options = {"trusted_proxies": (), "login_failures_per_minute": 3}
    with start(pkis, [admin()], console=True, **options) as pool, Browser(pool.base_url) as browser:
        wrong = {"client_id": "admin", "client_secret": "wrong"}
        assert [browser.post("/login", wrong).status_code for _ in range(4)] == [403, 403, 403, 429]
        limited = browser.log_in(pool)
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) > 0
        assert "Too many failed attempts" in limited.text
        form = {"grant_type": "client_credentials", **wrong}
        assert pool.http.post("/oauth/token", data=form).status_code == 429  # One budget for both.


def test_session_ids_that_are_invented_are_throttled(pkis: dict[str, PKI]) -> None:
    with start(pkis, [admin()], console=True, trusted_proxies=(), rate_limit_unauthenticated=1) as pool:
        found = set()
        for number in range(25):
            with Browser(pool.base_url, cookies={"ccp-console": f"invented{number}"}) as browser:
                found.add(browser.get("/overview").status_code)
        assert found == {303, 429}


def test_login_and_logout_are_in_the_audit_trail(pool: Pool, browser: Browser) -> None:
    browser.log_in(pool, "second_admin")
    browser.act("/overview", "/logout")
    browser.post("/login", {"client_id": "second_admin", "client_secret": "wrong"})
    select = "select action, outcome from audit where actor = 'second_admin' order by number"
    assert pool.sql(select) == [("console.logged.in", "ok"), ("console.logged.out", "ok")]
    refused = "select subject from audit where action = 'access.refused' and outcome like '%403'"
    wait_until(lambda: any('"claimed":"second_admin"' in row[0] for row in pool.sql(refused)))


def test_admin_ends_the_session_of_another_person(pool: Pool, person: Browser) -> None:
    pool.sql("delete from console_session where actor = 'second_admin'")
    with logged_in(pool, "second_admin") as other:
        (created,) = pool.sql("select id_hash from console_session where actor = 'second_admin'")[-1]
        key = hashlib.sha256(f"key {created}".encode()).hexdigest()[:16]
        answer = person.act("/sessions", f"/sessions/{key}/end")
        assert answer.headers["location"] == "/console/sessions?notice=session-removed"
        assert "The session has ended." in person.page(answer.headers["location"]).text
        assert outside(other.get("/overview"))
        assert person.act("/sessions", "/logout").status_code == 303
        rows = pool.sql("select actor, subject from audit where action = 'console.session.ended'")
        assert rows == [("admin", '{"person":"second_admin"}')]
