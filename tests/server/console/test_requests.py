"""Every request of the console: headers, forged forms, errors, what is shown of texts from outside."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.server.console.browsing import Browser, Page
from tests.waiting import wait_until
from tests.world import Pool

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
PAGES = (
    "/overview", "/contested", "/search", "/why", "/refusals", "/parties", "/parties/oem", "/webhooks", "/partners",
    "/anchors", "/audit", "/health", "/sessions",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"


def check_headers(answer: httpx.Response) -> None:
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/login", *PAGES, "/nothing", "/login/oidc"])
def test_page_has_the_headers_of_the_console(browser: Browser, person: Browser, path: str) -> None:
    for one in (browser, person):
        answer = one.get(path)
        check_headers(answer)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-trace-id"]


@pytest.mark.parametrize("path", PAGES)
def test_page_loads_nothing_from_elsewhere_and_has_no_inline_code(person: Browser, path: str) -> None:
    answer = person.get(path)
    assert len(answer.content) < 100_000
    page = Page(answer.text)
    for tag, given in page.elements:
        assert not [name for name in given if name.startswith("on") or name == "style"], tag
        assert tag != "style"
        for name in ("src", "href", "action"):
            if given.get(name):
                assert str(given[name]).startswith(("/console", "#")), given
        if tag == "script":
            assert given.get("src")
    ids = [given["id"] for _, given in page.elements if given.get("id")]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.elements].count("h1") == 1
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.elements}


def test_static_file_is_cached_and_no_other_file_is_served(browser: Browser) -> None:
    link = next(given["href"] for tag, given in browser.page("/login").elements if tag == "link")
    answer = browser.get(str(link))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    check_headers(answer)
    for name in ("../__init__.py", "..%2f__init__.py", "application.py", "page.html", "nothing.css"):
        assert browser.get(f"/static/{name}").status_code in (303, 404)


OWN = "the address of the pool"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "file://"},
        {"Origin": OWN, "Sec-Fetch-Site": "cross-site"},
        {"Origin": OWN, "Sec-Fetch-Site": "same-site"},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_form_of_another_site_is_refused(pool: Pool, person: Browser, headers: dict[str, str]) -> None:
    sent = {name: pool.base_url if value == OWN else value for name, value in headers.items()}
    form = person.page("/overview").form("/logout")
    answer = person.post("/logout", form.fields, sent)
    assert answer.status_code == 403
    assert "was not sent by a page of this console" in answer.text
    secret = {"client_id": "admin", "client_secret": pool.world.member("admin").secret}
    assert person.post("/login", secret, sent).status_code == 403
    assert person.get("/overview").status_code == 200


@pytest.mark.parametrize("token", [None, "", "0" * 64, "ü"])
def test_form_without_the_token_of_the_session_is_refused(person: Browser, token: str | None) -> None:
    fields = {} if token is None else {"csrf_token": token}
    for path in ("/logout", "/sessions/0123456789abcdef/end"):
        answer = person.post(path, fields)
        assert answer.status_code == 403
        assert "does not belong to this session" in answer.text
    assert person.get("/overview").status_code == 200


def test_form_of_another_session_is_refused(pool: Pool, person: Browser) -> None:
    with Browser(pool.base_url) as other:
        other.log_in(pool, "second_admin")
        token = other.page("/overview").form("/logout").fields["csrf_token"]
    assert person.post("/logout", {"csrf_token": token}).status_code == 403


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"x" * 70_000, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=%d" % number for number in range(60)), "application/x-www-form-urlencoded", 400),
        (b"csrf_token=%ff%fe", "application/x-www-form-urlencoded", 400),
        (b"a=%00", "application/x-www-form-urlencoded", 400),
        (b"csrf_token=1&csrf_token=2", "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 400),
        (b"a=b", "text/plain", 400),
    ],
)
def test_form_that_cannot_be_read_is_refused(person: Browser, body: bytes, kind: str, status: int) -> None:
    headers = {"Origin": person.base_url, "Content-Type": kind}
    answer = person.http.post("/console/logout", content=body, headers=headers)
    assert answer.status_code == status
    assert "<h1>" in answer.text
    check_headers(answer)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_action_needs_a_post(person: Browser, method: str) -> None:
    answer = person.http.request(method, "/console/logout", headers={"Origin": person.base_url})
    assert answer.status_code == 404
    assert person.get("/overview").status_code == 200


def test_action_without_a_session_changes_nothing(browser: Browser) -> None:
    answer = browser.post("/sessions/0123456789abcdef/end", {"csrf_token": "x"})
    assert answer.headers["location"] == "/console/login?notice=session-ended"
    assert "nothing was changed" in browser.page(answer.headers["location"]).text


def test_page_that_does_not_exist_is_answered_as_a_page(person: Browser, browser: Browser) -> None:
    answer = person.get("/nothing/<script>")
    assert answer.status_code == 404
    assert "There is no page at this address." in Page(answer.text).text
    assert "<script>" not in answer.text
    assert browser.get("/nothing").headers["location"] == "/console/login"


def test_head_has_the_headers_of_a_page_and_no_body(person: Browser) -> None:
    answer = person.http.head("/console/overview")
    assert (answer.status_code, answer.content) == (200, b"")
    check_headers(answer)


def test_texts_from_outside_are_escaped(pool: Pool, browser: Browser, person: Browser) -> None:
    pool.sql("update trust_anchor set label = ?, source = ?", HOSTILE, HOSTILE)
    queries = {"notice": HOSTILE, "next": HOSTILE}
    pages = [
        person.get("/anchors"),
        person.get("/overview", params=queries),
        browser.get("/login", params=queries),
        browser.post("/login", {"client_id": HOSTILE, "client_secret": HOSTILE, "next": HOSTILE}),
    ]
    for answer in pages:
        assert "<script" not in answer.text
        assert "<img src=x" not in answer.text
        assert not re.search(r"<[^>]*\bonerror=", answer.text)
    assert HOSTILE in Page(pages[0].text).text  # As text.


def test_form_that_is_refused_is_audited_under_the_name_of_the_person(pool: Pool, person: Browser) -> None:
    assert person.post("/sessions/0123456789abcdef/end", {}).status_code == 403
    select = "select count(*) from audit where actor = 'admin' and action = 'access.refused' and outcome like '%403'"
    wait_until(lambda: pool.sql(select) > [(0,)])
