"""Sessions are bound to the client certificate of the log-in: over real TLS, and behind a proxy that passes it on."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ccp.server.access.client_secrets import hash_secret
from ccp.server.storage.queries import parties
from ccp.testing.pki import PKI
from tests.cli.served_sandbox import free_port, serving
from tests.databases import with_schema
from tests.server.access.tokens.client_certificates import CA, HEADER, NOW, OTHER, OURS, Credential, credential
from tests.server.console.browsing import Browser, admin, outside
from tests.server.storage.made import sql, write
from tests.world import Pool, start

SECRET = "a-secret-of-the-tests-with-32-characters"
COOKIE = "__Host-ccp-console"


@dataclass(frozen=True)
class Served:
    """A pool of two workers that asks every client for a certificate."""

    url: str
    folder: Path

    def browser(self, holder: Credential | None, cookie: str | None = None) -> Browser:
        context = ssl.create_default_context(cafile=str(self.folder / "server-ca.pem"))
        if holder is not None:
            certificate, key = holder.save(self.folder, f"client-{holder.certificate.serial_number}")
            context.load_cert_chain(certificate, key)
        return Browser(self.url, verify=context, cookies={} if cookie is None else {COOKIE: cookie})

    def log_in(self, holder: Credential) -> str:
        """Log in with the certificate of a client. Returns the session id."""
        with self.browser(holder) as browser:
            answer = browser.post("/login", {"client_id": "admin", "client_secret": SECRET})
            assert (answer.status_code, answer.headers["location"]) == (303, "/console/"), answer.text
            return str(browser.http.cookies[COOKIE])

    def is_inside(self, holder: Credential | None, cookie: str) -> bool:
        """Whether a session id counts on a new connection with a certificate."""
        with self.browser(holder, cookie) as browser:
            answer = browser.get("/overview")
            assert answer.status_code == 200 or outside(answer)
            return answer.status_code == 200


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("console-tls")
    server_ca = credential("Server CA")
    server_ca.save(folder, "server-ca")
    credential("server", server_ca).save(folder, "server")
    CA.save(folder, "ca")
    url = with_schema(f"sqlite:///{folder}/ccp.db")
    write(url, parties.add(admin(), hash_secret(SECRET), NOW))
    port = free_port()
    (folder / "ccp.toml").write_text(
        f'database = "sqlite:///ccp.db"\nport = {port}\nworkers = 2\nconsole = true\n'
        f'certificate_bound_tokens = true\nbase_url = "https://127.0.0.1:{port}"\n'
        'tls_client_ca = "ca.pem"\ntls_cert = "server.pem"\ntls_key = "server.key"\n'
    )
    served = Served(f"https://127.0.0.1:{port}", folder)
    context = ssl.create_default_context(cafile=str(folder / "server-ca.pem"))
    context.load_cert_chain(*OURS.save(folder, "ours"))
    with serving(served.url, "--config", folder / "ccp.toml", verify=context, log=folder / "log"):
        yield served


def test_session_counts_with_the_certificate_of_its_login_only(served: Served) -> None:
    cookie = served.log_in(OURS)
    for _ in range(4):  # In either worker.
        assert served.is_inside(OURS, cookie)
        assert not served.is_inside(OTHER, cookie)
    with served.browser(None, cookie) as without, pytest.raises(httpx.TransportError):
        without.get("/overview")
    assert served.is_inside(OURS, cookie)


def test_session_does_not_count_with_a_renewed_certificate(served: Served) -> None:
    cookie, renewed = served.log_in(OURS), credential("emsp", CA)
    assert not served.is_inside(renewed, cookie)
    assert served.is_inside(renewed, served.log_in(renewed))


def test_session_form_with_another_certificate_changes_nothing(served: Served) -> None:
    cookie = served.log_in(OURS)
    with served.browser(OURS, cookie) as ours, served.browser(OTHER, cookie) as other:
        form = ours.page("/overview").form("/logout")
        assert outside(other.post("/parties/admin/rotate-secret", {**form.fields, "overlap": "0"}))
        other.post("/logout", form.fields)
        assert ours.get("/overview").status_code == 200
    assert sql(f"sqlite:///{served.folder}/ccp.db", "select count(*) from party_secret") == [(1,)]


def test_session_header_of_a_client_is_no_certificate(served: Served) -> None:
    cookie = served.log_in(OURS)
    with served.browser(OTHER, cookie) as other:
        for name in (HEADER, "Client-Cert", "X-SSL-Client-Cert"):
            assert outside(other.get("/overview", headers={name: OURS.escaped}))


@pytest.fixture(scope="module")
def behind(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose proxy is the test, and whose clients may come without a certificate."""
    with start(pkis, [admin()], console=True, client_certificate_header=HEADER) as running:
        yield running


def test_session_behind_a_proxy_is_bound_to_the_certificate_that_it_passes_on(behind: Pool) -> None:
    ours, other = {HEADER: OURS.escaped}, {HEADER: OTHER.escaped}
    with Browser(behind.base_url) as browser:
        browser.http.headers.update(ours)
        assert browser.log_in(behind).status_code == 303
        cookies = {"ccp-console": browser.cookie}
    for headers, counts in ((ours, True), (other, False), ({}, False), ({HEADER: ""}, False), ({HEADER: "x"}, False)):
        with Browser(behind.base_url, cookies=cookies) as one:
            assert outside(one.get("/overview", headers=headers)) is not counts, headers


def test_session_without_a_certificate_does_not_count_with_one(behind: Pool) -> None:
    with Browser(behind.base_url) as browser:
        assert browser.log_in(behind).status_code == 303
        assert browser.get("/overview").status_code == 200
        assert outside(browser.get("/overview", headers={HEADER: OURS.escaped}))


def test_session_needs_a_certificate_where_tokens_are_bound(pkis: dict[str, PKI]) -> None:
    options = {"client_certificate_header": HEADER, "certificate_bound_tokens": True, "console": True}
    with start(pkis, [admin()], **options) as pool, Browser(pool.base_url) as browser:
        refused = browser.log_in(pool)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        browser.http.headers.update({HEADER: OURS.escaped})
        assert browser.log_in(pool).status_code == 303
