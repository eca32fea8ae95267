"""Log-in with an OpenID provider, against a real one on loopback, and the two roles."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc.jwk import RSAKey
from pydantic import ValidationError

from ccp.errors import NotAuthorised, NotFound
from ccp.ids import EMAID, PCID
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.console.identifiers import HandleCipher, IdDisplay
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.settings.console import ConsoleOIDCSettings
from ccp.testing.pki import PKI
from tests.scripted_server import Reply, json_reply
from tests.server.console.browsing import Browser, Page, admin
from tests.server.console.openid_provider import CLIENT_ID, SECRET, OpenIDProvider, openid_provider
from tests.tls_files import PrivateCA
from tests.world import Pool, opened, start

FAILED = "The log-in with the OpenID provider failed. Try again."


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> PrivateCA:
    return PrivateCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def shared(pkis: dict[str, PKI], ca: PrivateCA) -> Iterator[tuple[Pool, OpenIDProvider]]:
    """A pool and its provider, for the tests of this module."""
    with openid_provider(ca.server("provider")) as running, with_provider(pkis, running, ca) as pool:
        yield pool, running


@pytest.fixture
def pool(shared: tuple[Pool, OpenIDProvider]) -> Pool:
    shared[0].sql("delete from console_session")
    return shared[0]


@pytest.fixture
def provider(shared: tuple[Pool, OpenIDProvider]) -> OpenIDProvider:
    shared[1].reset()
    return shared[1]


@pytest.fixture
def browser(pool: Pool, provider: OpenIDProvider) -> Iterator[Browser]:
    with Browser(pool.base_url) as one:
        yield one


def with_provider(pkis: dict[str, PKI], provider: OpenIDProvider, ca: PrivateCA) -> Any:
    """A running pool whose console knows a provider."""
    options = {"console_oidc": settings(provider, ca), "rate_limit_unauthenticated": 0}
    return start(pkis, [admin()], console=True, **options)


def settings(provider: OpenIDProvider, ca: PrivateCA, **more: Any) -> dict[str, Any]:
    given = {
        "issuer": provider.issuer,
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "name": "Example login",
        "admin_roles": ["pool-admin"],
        "viewer_roles": ["pool-viewer"],
        "ca": str(ca.ca),
    }
    return {**given, **more}


def to_provider(browser: Browser) -> str:
    """Begin a log-in. Returns the URL to which the browser is sent."""
    answer = browser.get("/login/oidc")
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def back(ca: PrivateCA, url: str) -> str:
    """Log in at the provider. Returns the path and query to which it sends the browser."""
    answer = httpx.get(url, verify=ssl.create_default_context(cafile=str(ca.ca)))
    assert answer.status_code == 302, answer.text
    parts = urlsplit(answer.headers["location"])
    return f"{parts.path}?{parts.query}"


def log_in(browser: Browser, ca: PrivateCA) -> httpx.Response:
    return browser.get(back(ca, to_provider(browser)))


def test_openid_login_gives_the_role_of_the_claim(
    pool: Pool, browser: Browser, provider: OpenIDProvider, ca: PrivateCA
) -> None:
    page = browser.page("/login")
    assert "Log in with Example login" in page.text
    assert "/console/login/oidc" in page.links
    answer = log_in(browser, ca)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/")
    assert "console:jo admin" in browser.page("/overview").text
    subject = '{"role":"admin","subject":"4711"}'
    logged_in = pool.sql("select actor, subject from audit where action = 'console.logged.in'")
    assert ("console:jo", subject) in logged_in
    provider.user["roles"] = "pool-viewer other"
    log_in(browser, ca)
    assert "console:jo viewer" in browser.page("/overview").text


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        ({"roles": ["pool-viewer"]}, False),
        ({"preferred_username": "joanna"}, False),
        ({"sub": "another", "roles": ["pool-viewer"]}, True),  # Another person of the same name.
        ({}, True),
    ],
    ids=str,
)
def test_openid_login_with_other_claims_ends_earlier_sessions_of_the_person(
    pool: Pool, browser: Browser, provider: OpenIDProvider, ca: PrivateCA, changed: dict[str, Any], stays: bool
) -> None:
    log_in(browser, ca)
    assert "console:jo admin" in browser.page("/overview").text
    provider.user.update(changed)
    with Browser(pool.base_url) as second:
        assert log_in(second, ca).status_code == 303
        assert second.get("/overview").status_code == 200
    assert (browser.get("/overview").status_code == 200) is stays


def test_console_of_a_viewer_has_no_actions_and_no_pages_of_admins(
    pool: Pool, browser: Browser, provider: OpenIDProvider, ca: PrivateCA
) -> None:
    provider.user["roles"] = ["pool-viewer"]
    log_in(browser, ca)
    page = browser.page("/anchors")
    assert "/console/sessions" not in page.links
    assert browser.get("/sessions").status_code == 403
    token = page.form("/logout").fields["csrf_token"]
    with Browser(pool.base_url) as other:
        other.log_in(pool)
        for path in ("/sessions/0123456789abcdef/end",):
            answer = browser.post(path, {"csrf_token": token})
            assert (answer.status_code, "This needs the role admin." in answer.text) == (403, True)
        assert other.get("/overview").status_code == 200


def test_openid_login_uses_pkce_state_and_nonce(browser: Browser, provider: OpenIDProvider, ca: PrivateCA) -> None:
    first, second = (parse_qs(urlsplit(to_provider(browser)).query) for _ in range(2))
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) == 43
        assert first[name] != second[name]
    assert len({first[name][0] for name in ("state", "nonce", "code_challenge")}) == 3
    cookie = browser.http.cookies["ccp-login"]
    assert not any(value[0] in cookie for value in second.values())


def test_openid_login_counts_only_in_the_browser_that_began_it(
    pool: Pool, browser: Browser, provider: OpenIDProvider, ca: PrivateCA
) -> None:
    asked = provider.server.count("/realm/token")
    returned = back(ca, to_provider(browser))
    with Browser(pool.base_url) as victim:
        assert FAILED in victim.get(returned).text  # Without a cookie,
        to_provider(victim)
        assert FAILED in victim.get(returned).text  # and with that of another log-in.
        assert victim.get("/overview").status_code == 303
    assert provider.server.count("/realm/token") == asked


def test_openid_return_counts_once(browser: Browser, ca: PrivateCA) -> None:
    returned = back(ca, to_provider(browser))
    assert browser.get(returned).status_code == 303
    assert browser.get(returned).status_code == 403


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"},
        {"aud": "another client"},
        {"aud": ["another client"]},
        {"aud": [CLIENT_ID, "another client"]},
        {"aud": [CLIENT_ID, "another client"], "azp": "another client"},
        {"aud": None},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"iat": 1},
        {"iat": True},
        {"sub": None},
        {"sub": ""},
        {"preferred_username": None},
        {"preferred_username": "jo\nadmin"},
        {"preferred_username": "j" * 101},
        {"preferred_username": {"name": "jo"}},
        {"roles": None},
        {"roles": ["other"]},
        {"roles": {"pool-admin": True}},
        {"roles": ["pool-admin-not"]},
    ],
    ids=str,
)
def test_openid_claims_that_are_not_right_are_refused(
    pool: Pool, browser: Browser, provider: OpenIDProvider, ca: PrivateCA, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    answer = log_in(browser, ca)
    assert answer.status_code == 403
    assert FAILED in Page(answer.text).text
    assert "ccp-console" not in browser.http.cookies
    assert pool.sql("select * from console_session") == []


def test_openid_signature_is_verified(browser: Browser, provider: OpenIDProvider, ca: PrivateCA) -> None:
    stranger = RSAKey.generate_key(2048, {"kid": "first"})
    genuine, provider.key = provider.key, stranger
    assert log_in(browser, ca).status_code == 403
    provider.key, provider.header = genuine, {"alg": "PS512"}
    assert log_in(browser, ca).status_code == 403
    provider.header = {"typ": "at+jwt-not"}
    assert log_in(browser, ca).status_code == 403
    provider.header = {}
    assert log_in(browser, ca).status_code == 303


@pytest.mark.parametrize(
    "query",
    [
        "error=access_denied&state={state}", "code=x", "code=x&state=", "state={state}", "code=x&state=invented",
        "code=x&state={state}&iss=https%3A%2F%2Fother.example", "code=x&code=y&state={state}", "code=x&state={state}",
        "", "error=<script>&error_description=<script>alert(1)</script>&state={state}", "%ff=%00",
    ],
)  # fmt: skip
def test_openid_return_that_is_not_right_is_refused(browser: Browser, query: str) -> None:
    state = parse_qs(urlsplit(to_provider(browser)).query)["state"][0]
    answer = browser.get(f"/login/oidc/return?{query.format(state=state)}")
    assert (answer.status_code, FAILED in answer.text) == (403, True)
    assert "<script" not in answer.text


@pytest.mark.parametrize("cookie", ["", "x", "x.", "x.1", "x.99999999999", ".", "x.-5", "x.1e9", "ü.1"])
def test_openid_login_cookie_that_is_not_right_is_refused(browser: Browser, cookie: str) -> None:
    headers = {"Cookie": f"ccp-login={cookie}".encode()}
    assert browser.get("/login/oidc/return?code=x&state=y", headers=headers).status_code == 403


METADATA = "/realm/.well-known/openid-configuration"


@pytest.mark.parametrize(
    "script", [json_reply({"issuer": "https://other.example"}), json_reply([]), Reply(200, b"<html>"), Reply(500)]
)
def test_openid_provider_without_usable_metadata_is_reported(
    pkis: dict[str, PKI], ca: PrivateCA, script: Reply
) -> None:
    with openid_provider(ca.server()) as provider:
        provider.server.on(METADATA, script)
        with with_provider(pkis, provider, ca) as pool, Browser(pool.base_url) as browser:
            for _ in range(2):
                answer = browser.get("/login/oidc")
                assert (answer.status_code, "OpenID provider" in answer.text) == (502, True)
            assert provider.server.count(METADATA) == 1  # A failure counts for some seconds.
            assert browser.log_in(pool).status_code == 303  # The other way stays.


def test_openid_keys_that_are_replaced_are_fetched(
    pkis: dict[str, PKI], ca: PrivateCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.console.openid._KEYS_COOLDOWN", 0.0)
    with openid_provider(ca.server()) as provider, with_provider(pkis, provider, ca) as pool:
        for name in ("first", "second"):
            provider.key = RSAKey.generate_key(2048, {"kid": name})
            provider.published = [provider.key]
            with Browser(pool.base_url) as browser:
                assert log_in(browser, ca).status_code == 303


def test_openid_session_ends_when_the_settings_name_another_provider(
    pool: Pool, browser: Browser, ca: PrivateCA
) -> None:
    assert log_in(browser, ca).status_code == 303
    for changed in (None, ConsoleOIDCSettings(issuer="https://other.example", client_id="x")):
        config = pool.settings.model_copy(update={"console_oidc": changed})
        with (
            loopback() as (listening, url),
            running(config, listening),
            Browser(url, cookies={"ccp-console": browser.cookie}) as other,
        ):
            assert other.get("/overview").status_code == 303
    assert browser.get("/overview").status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "http://login.example"}, {"issuer": "login.example"}, {"algorithms": ["HS256"]},
        {"algorithms": ["none"]}, {"scopes": ["profile"]}, {"viewer_roles": ["admin"]}, {"client_secret": ""},
        {"client_secret": "x", "client_secret_file": "y"}, {"admin_role": ["x"]}, {"admin_roles": []},
    ],
    ids=str,
)  # fmt: skip
def test_console_oidc_settings_refuse_what_is_not_safe(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConsoleOIDCSettings(**{"issuer": "https://login.example", "client_id": "x", **wrong})


def test_ids_are_pseudonyms_for_a_viewer(pool: Pool) -> None:
    emaid, pcid = EMAID.parse("DEEXAC00000001"), PCID.parse("WEX0SANDBOX000001")

    async def check() -> None:
        async with opened(pool.settings) as store:
            pseudonyms, cipher = Pseudonyms(pool.settings), HandleCipher(store)
            await pseudonyms.open(store)
            await cipher.open()
            viewer, boss = (IdDisplay(pseudonyms, cipher, in_full=full) for full in (False, True))
            assert viewer.show(emaid) == f"DEEXA…{pseudonyms.pseudonym(emaid)}"
            assert (boss.show(emaid), boss.handle(pcid)) == (emaid, pcid)
            assert viewer.text(f"no {emaid} here") == f"no {pseudonyms.pseudonym(emaid)} here"
            handle = viewer.handle(emaid)
            assert viewer.handle(emaid) == handle != viewer.handle(EMAID.parse("DEEXAC00000002"))
            assert str(emaid) not in handle
            assert viewer.resolve(EMAID, handle) == boss.resolve(EMAID, handle) == emaid
            with pytest.raises(NotAuthorised):
                viewer.resolve(EMAID, str(emaid))
            for forged in (handle[:-2] + "AA", "~", "~ü", "~" + "A" * 40):
                with pytest.raises(NotFound):
                    viewer.resolve(EMAID, forged)
            with pytest.raises(NotFound):
                viewer.resolve(PCID, handle)  # A handle of another kind.

    asyncio.run(check())
