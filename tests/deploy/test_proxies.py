"""The shipped nginx and Caddy files, each run as a real proxy in front of a real pool."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jws

from ccp.testing.pki import PKI
from tests.deploy.proxies import Proxy, caddy, nginx
from tests.server.access.tokens.client_certificates import CA, HEADER, OTHER, OURS, credential
from tests.waiting import wait_until
from tests.world import Pool, start

BASE = "/opnc/v1/ccp"


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, client_certificate_header=HEADER, certificate_bound_tokens=True) as made:
        yield made


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    folder.chmod(0o755)
    (folder / "ca.pem").write_bytes(CA.pem)
    certificate, key = credential("proxy", CA).save(folder, "proxy")
    certificate.rename(folder / "fullchain.pem")
    key.rename(folder / "privkey.pem")
    run: Callable[[str, Path], object] = request.param
    with run(pool.base_url.removeprefix("http://"), folder) as made:  # type: ignore[attr-defined]
        yield made


def look(http: httpx.Client, token: str, **headers: str) -> httpx.Response:
    """Ask for a contract that does not exist: 404 with a valid token, 401 otherwise."""
    path = f"{BASE}/contractData/emaid/DEEXAC12345678"
    return http.get(path, headers={"Authorization": f"Bearer {token}", **headers})


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(jws.extract_compact(token.encode()).payload)
    return claims


def log_in(http: httpx.Client, pool: Pool, **headers: str) -> httpx.Response:
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": pool.world.member("emsp").secret}
    return http.post("/oauth/token", data=form, headers=headers)


def test_proxy_passes_requests_and_answers(proxy: Proxy, pool: Pool) -> None:
    with proxy.client(OURS) as http:
        found = look(http, log_in(http, pool).json()["access_token"])
    assert found.status_code == 404
    assert found.headers["x-trace-id"] == found.json()["traceId"]


def test_proxy_binds_tokens_to_the_client_certificate_of_the_connection(proxy: Proxy, pool: Pool) -> None:
    with proxy.client(OURS) as http:
        token = log_in(http, pool).json()["access_token"]
        assert claims_of(token)["cnf"] == {"x5t#S256": OURS.thumbprint}
        assert look(http, token).status_code == 404
        assert look(http, token, **{HEADER: OTHER.escaped}).status_code == 404, "the client's own header does not count"
    with proxy.client(OTHER) as http:
        assert look(http, token).status_code == 401
        assert look(http, token, **{HEADER: OURS.escaped}).status_code == 401


def test_proxy_lets_no_client_without_a_certificate_name_one_in_a_header(proxy: Proxy, pool: Pool) -> None:
    with proxy.client(OURS) as http:
        token = log_in(http, pool).json()["access_token"]
    rfc_9440 = ":" + base64.b64encode(OURS.der).decode() + ":"
    with proxy.client() as http:
        for forged in (OURS.escaped, rfc_9440, ""):
            assert log_in(http, pool, **{HEADER: forged}).status_code == 401
            assert look(http, token, **{HEADER: forged}).status_code == 401


def test_proxy_names_the_address_of_its_client_whatever_the_client_says(proxy: Proxy, pool: Pool) -> None:
    with proxy.client() as http:
        form = {"grant_type": "client_credentials", "client_id": "missing-1", "client_secret": "wrong"}
        forged = {"X-Forwarded-For": "203.0.113.5", "Forwarded": "for=203.0.113.6", "X-Real-IP": "203.0.113.7"}
        assert http.post("/oauth/token", data=form, headers=forged).status_code == 401

    def rows() -> str:
        return "".join(str(row) for row in pool.sql("select * from audit"))

    wait_until(lambda: "missing-1" in rows())
    assert '"address":"127.0.0.1"' in rows()
    assert not re.search(r"203\.0\.113\.", rows())


def test_proxy_refuses_a_body_that_the_pool_would_refuse(proxy: Proxy, pool: Pool) -> None:
    with proxy.client(OURS) as http:
        headers = {"Authorization": f"Bearer {log_in(http, pool).json()['access_token']}"}
        try:
            status = http.put(f"{BASE}/signedcontractdata", content=b"x" * 300_000, headers=headers).status_code
        except httpx.WriteError:  # Refused and closed before the client had sent everything.
            return
    assert status == 413


def test_proxy_does_not_show_metrics(proxy: Proxy, pool: Pool) -> None:
    assert pool.http.get("/metrics").status_code == 200
    with proxy.client() as http:
        assert http.get("/metrics").status_code == 404
        assert http.get("/metrics/").status_code != 200
        assert http.get("/./metrics").status_code == 404
        assert http.get("/%6detrics").status_code in (401, 403, 404)
