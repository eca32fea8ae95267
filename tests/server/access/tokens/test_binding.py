"""Certificate-bound tokens (RFC 8705), with the certificate from a proxy header or from the TLS handshake."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from ccp.ids import ProviderId
from ccp.server.access.client_secrets import hash_secret
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.http.client_certificate import parse_certificate_header
from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import parties
from ccp.testing.pki import PKI
from tests.cli.run import ccp_error
from tests.cli.served_sandbox import free_port, serving
from tests.server.access.tokens.client_certificates import CA, HEADER, NOW, OTHER, OURS, credential
from tests.server.access.tokens.issuer import fake_issuer, look, post, signed
from tests.server.http.api.answers import sentences
from tests.server.storage.made import write
from tests.world import Pool, start

# --- What a proxy writes ---------------------------------------------------------------------------------------------


def test_certificate_is_read_as_nginx_writes_it_and_as_rfc_9440_says() -> None:
    assert parse_certificate_header(OURS.escaped.encode()) == OURS.der
    assert parse_certificate_header(OURS.pem.replace(b"\n", b" ")) == OURS.der, "as older proxies fold it"
    assert parse_certificate_header(b":" + base64.b64encode(OURS.der) + b":") == OURS.der
    assert parse_certificate_header(b"  :" + base64.b64encode(OURS.der) + b": ") == OURS.der


@pytest.mark.parametrize(
    "value",
    [
        b"", b":", b"::", b":AA", b"AA:", b":A:", b":A A=:", b":!!!!:", b"(null)", b"none", b"%", b"%00%ff",
        b"-----BEGIN CERTIFICATE-----", b"-----BEGIN CERTIFICATE----------END CERTIFICATE-----",
        quote(OURS.pem + OTHER.pem).encode(), b"x" + OURS.pem, base64.b64encode(OURS.der),
        b":" + b"A" * 20_000 + b":", b":" + base64.b64encode(OURS.der) + b":;a=1",
    ],
)  # fmt: skip
def test_client_certificate_that_is_invalid_is_none(value: bytes) -> None:
    assert parse_certificate_header(value) is None


# --- Behind a proxy --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose proxy is the test."""
    with start({"iso2": pkis["iso2"]}, client_certificate_header=HEADER, certificate_bound_tokens=True) as running:
        yield running


def granted(pool: Pool, **headers: str) -> str:
    member = pool.world.member("emsp")
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": member.secret}
    answer = pool.http.post("/oauth/token", data=form, headers=headers)
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(jws.extract_compact(token.encode()).payload)
    return claims


def minted(pool: Pool, **more: Any) -> str:
    """A token that the pool's own key has signed."""
    ((pem, kid),) = pool.sql("select private_key, kid from token_key")
    now = int(time.time())
    claims = {"iss": pool.base_url, "aud": pool.base_url, "sub": "emsp", "iat": now, "exp": now + 60, **more}
    return signed(claims, ECKey.import_key(pem, {"kid": kid}))


def refused(answer: httpx.Response) -> None:
    assert sentences(answer, 401) == ["The access token is not valid (any more)."]


def test_token_that_is_bound_is_valid_with_its_certificate_only(behind: Pool) -> None:
    token = granted(behind, **{HEADER: OURS.escaped})
    assert claims_of(token)["cnf"] == {"x5t#S256": OURS.thumbprint}
    rfc_9440 = ":" + base64.b64encode(OURS.der).decode() + ":"
    for _ in range(2):  # Verified, then from the cache, in every order.
        refused(look(behind, token))
        assert look(behind, token, **{HEADER: OURS.escaped}).status_code == 404
        refused(look(behind, token, **{HEADER: OTHER.escaped}))
        assert look(behind, token, **{HEADER: rfc_9440}).status_code == 404
        refused(look(behind, token, **{HEADER: ""}))
        refused(look(behind, token, **{HEADER: "garbage"}))


def test_header_that_is_there_twice_tells_nothing(behind: Pool) -> None:
    token = granted(behind, **{HEADER: OURS.escaped})
    headers = [("Authorization", f"Bearer {token}"), (HEADER, OURS.escaped), (HEADER, OTHER.escaped)]
    path = f"{BASE}/contractData/emaid/DEEXAC12345678"
    refused(behind.http.get(path, headers=headers))
    refused(behind.http.get(path, headers=[headers[0], headers[2], headers[1]]))


def test_pool_says_that_its_tokens_are_bound(behind: Pool) -> None:
    described = behind.http.get("/.well-known/oauth-authorization-server").json()
    assert described["tls_client_certificate_bound_access_tokens"] is True


@pytest.mark.parametrize(
    "confirmation",
    [{}, None, "x", [], {"jkt": "a"}, {"x5t#S256": 5}, {"x5t#S256": None}, {"x5t#S256": OURS.thumbprint, "jkt": "a"}],
)
def test_token_with_an_unsupported_confirmation_is_refused(behind: Pool, confirmation: Any) -> None:
    refused(look(behind, minted(behind, cnf=confirmation), **{HEADER: OURS.escaped}))


def test_header_from_an_address_that_is_no_trusted_proxy_is_ignored(pkis: dict[str, PKI]) -> None:
    options: dict[str, Any] = {"client_certificate_header": HEADER, "certificate_bound_tokens": True}
    with start({"iso2": pkis["iso2"]}, trusted_proxies=("10.0.0.0/8", "fd00::/8"), **options) as running:
        forwarded = {HEADER: OURS.escaped, "X-Forwarded-For": "10.0.0.1", "Forwarded": "for=10.0.0.1"}
        bound = minted(running, cnf={"x5t#S256": OURS.thumbprint})
        refused(look(running, bound, **forwarded))


def test_certificate_header_is_ignored_without_the_setting(pool: Pool) -> None:
    for name in (HEADER, "Client-Cert", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "ccp.client_certificate"):
        assert "cnf" not in claims_of(granted(pool, **{name: OURS.escaped}))
    bound = signed_for(pool)
    refused(look(pool, bound, **{HEADER: OURS.escaped}))
    refused(look(pool, bound))


def signed_for(pool: Pool) -> str:
    return minted(pool, cnf={"x5t#S256": OURS.thumbprint})


def test_token_of_another_issuer_may_be_bound_too(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake:
        options: dict[str, Any] = {"issuers": (fake.entry(),), "client_certificate_header": HEADER}
        with start({"iso2": pkis["iso2"]}, **options) as running:
            token = fake.token(cnf={"x5t#S256": OURS.thumbprint})
            for _ in range(2):
                refused(post(running, token))
                refused(post(running, token, **{HEADER: OTHER.escaped}))
                assert post(running, token, **{HEADER: OURS.escaped}).status_code == 400


# --- Mutual TLS ------------------------------------------------------------------------------------------------------

SECRET = "a secret for a test, not for use"


@dataclass(frozen=True)
class Served:
    url: str
    folder: Path

    def client(self, name: str | None, version: ssl.TLSVersion | None = None) -> httpx.Client:
        """A client that shows a certificate of the folder, or none."""
        context = ssl.create_default_context(cafile=str(self.folder / "server-ca.pem"))
        if name is not None:
            context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return httpx.Client(base_url=self.url, verify=context, timeout=10)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`ccp serve` with two workers that asks every client for a certificate."""
    folder = tmp_path_factory.mktemp("mtls")
    server_ca = credential("Server CA")
    server_ca.save(folder, "server-ca")
    credential("server", server_ca).save(folder, "server")
    CA.save(folder, "ca")
    for name, holder in {"ours": OURS, "other": OTHER, "stranger": credential("stranger", credential("Else"))}.items():
        holder.save(folder, name)
    url = f"sqlite:///{folder}/ccp.db"
    schema.upgrade(url)
    emsp = Party("emsp", "emsp", frozenset({PartyRole.EMSP}), frozenset({ProviderId("DEEXA")}))
    write(url, parties.add(emsp, hash_secret(SECRET), NOW))
    port = free_port()
    (folder / "ccp.toml").write_text(
        f'database = "sqlite:///ccp.db"\nport = {port}\nworkers = 2\n'
        'certificate_bound_tokens = true\ntls_client_ca = "ca.pem"\n'
        'tls_cert = "server.pem"\ntls_key = "server.key"\n'
    )
    served = Served(f"https://127.0.0.1:{port}", folder)
    context = ssl.create_default_context(cafile=str(folder / "server-ca.pem"))
    context.load_cert_chain(folder / "ours.pem", folder / "ours.key")
    with serving(served.url, "--config", folder / "ccp.toml", verify=context, log=folder / "log"):
        yield served


def test_client_ca_keeps_clients_without_its_certificate_from_connecting(served: Served) -> None:
    for name in (None, "stranger"):
        with served.client(name) as http, pytest.raises(httpx.TransportError):
            http.get("/health")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_token_is_bound_to_the_certificate_of_the_connection(served: Served, version: ssl.TLSVersion) -> None:
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": SECRET}
    path = f"{BASE}/contractData/emaid/DEEXAC12345678"
    with served.client("ours", version) as ours, served.client("other", version) as other:
        token = ours.post("/oauth/token", data=form).json()["access_token"]
        assert claims_of(token)["cnf"] == {"x5t#S256": OURS.thumbprint}
        headers = {"Authorization": f"Bearer {token}"}
        for _ in range(6):
            assert ours.get(path, headers={**headers, "Connection": "close"}).status_code == 404
            refused(other.get(path, headers={**headers, "Connection": "close"}))
            # Nor by writing into a header what a proxy would.
            refused(other.get(path, headers={**headers, HEADER: OURS.escaped, "Client-Cert": OURS.escaped}))


def test_client_ca_option_is_checked_before_the_start(tmp_path: Path) -> None:
    certificate, key = credential("server").save(tmp_path, "server")
    (tmp_path / "garbage.pem").write_text("no certificate")
    for name in ("none.pem", "garbage.pem"):
        sentence = ccp_error(
            "serve", "--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", tmp_path / name,
            env={"CCP_DATABASE": f"sqlite:///{tmp_path}/ccp.db"},
        )  # fmt: skip
        assert sentence.startswith(f"The CAs of client certificates {tmp_path / name} cannot be used: ")
