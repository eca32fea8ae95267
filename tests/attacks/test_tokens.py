"""Issuers that withdraw their keys or collide, two Authorization headers, tokens that have to be bound."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.access.trusted_issuers import party_from_claims
from ccp.server.http.routes.opnc import BASE
from ccp.server.settings.issuers import IssuerSettings
from ccp.testing.pki import PKI
from tests.cli.run import ccp_error
from tests.scripted_server import Reply
from tests.server.access.tokens.client_certificates import HEADER, OTHER, OURS
from tests.server.access.tokens.issuer import FakeIssuer, bearer, encoded, fake_issuer, key, key_set, look, post
from tests.server.http.api.answers import sentences
from tests.world import Pool, start

INVALID = ["The access token is not valid (any more)."]


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


# --- An issuer that withdraws its keys -------------------------------------------------------------------------------

_ENCRYPTION = {**key("RS256", "enc").as_dict(private=False), "use": "enc"}
WITHOUT_KEYS = {
    "an empty set": b'{"keys": []}',
    "keys of unknown types": json.dumps({"keys": [{"kty": "oct", "k": encoded(b"0" * 32)}, {"kty": "AKP"}]}).encode(),
    "no set": b"{}",
    "null": b'{"keys": null}',
    "keys that do not sign": json.dumps({"keys": [_ENCRYPTION]}).encode(),
}


def trusting(pkis: dict[str, PKI], fake: FakeIssuer, **options: Any) -> Any:
    issuers = (fake.entry(**options),)
    return start({"iso2": pkis["iso2"]}, issuers=issuers, egress_allow_networks=("127.0.0.0/8",))


@pytest.mark.parametrize("name", WITHOUT_KEYS)
def test_keys_that_an_issuer_withdraws_end_after_one_refresh_interval(pkis: dict[str, PKI], name: str) -> None:
    with fake_issuer() as fake, trusting(pkis, fake, jwks_refresh_interval=2, jwks_refresh_cooldown=0.1) as running:
        cached, fresh = fake.token(), fake.token(sub="never seen before")
        assert post(running, cached).status_code == 400, "let in, and told that the body is empty"
        asked = fake.asked
        fake.says(Reply(body=WITHOUT_KEYS[name]))
        eventually(lambda: fake.asked > asked)
        began = time.monotonic()
        assert post(running, cached).status_code == 400, "an issuer may be in the middle of a change"
        eventually(lambda: post(running, cached).status_code == 401)
        assert time.monotonic() - began > 1, "not at once"
        assert sentences(post(running, cached), 401) == INVALID
        assert sentences(post(running, fresh), 401) == INVALID
        fake.says(Reply(body=key_set(*fake.keys)))
        eventually(lambda: post(running, fresh).status_code == 400)


def test_keys_end_in_time_also_when_the_issuer_goes_down_after_it_withdrew_them(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, trusting(pkis, fake, jwks_refresh_interval=2, jwks_refresh_cooldown=0.1) as running:
        token = fake.token()
        assert post(running, token).status_code == 400
        asked = fake.asked
        fake.says(Reply(body=b'{"keys": []}'))
        eventually(lambda: fake.asked > asked)
        fake.says(Reply(status=503))
        eventually(lambda: post(running, token).status_code == 401)


def test_keys_stay_when_the_issuer_publishes_them_again_within_the_interval(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, trusting(pkis, fake, jwks_refresh_interval=3, jwks_refresh_cooldown=0.1) as running:
        token = fake.token()
        assert post(running, token).status_code == 400
        asked = fake.asked
        fake.says(Reply(body=b'{"keys": []}'))
        eventually(lambda: fake.asked > asked)
        fake.says(Reply(body=key_set(*fake.keys)))
        asked = fake.asked
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert post(running, token).status_code == 400
            time.sleep(0.1)
        assert fake.asked > asked


# --- Issuers whose callers would have the same client ids -----------------------------------------------------------


def entry(issuer: str, **options: Any) -> IssuerSettings:
    given = {"issuer": issuer, "jwks_url": "https://kc.example/keys", "algorithms": ["ES256"], "roles": ["cpo"]}
    return IssuerSettings(**{**given, **options})


def loaded(*entries: IssuerSettings) -> None:
    settings.load(issuers=entries, base_url="https://ccp.example.com")


def test_issuer_realms_of_one_host_name_their_callers_apart() -> None:
    realms = [entry(f"https://kc.example/realms/{name}") for name in "ab"]
    loaded(*realms)
    ids = [party_from_claims(realm, {"sub": "service"}).client_id for realm in realms]
    assert ids == ["https://kc.example/realms/a:service", "https://kc.example/realms/b:service"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (entry("https://a.example", prefix="partner"), entry("https://b.example", prefix="partner")),
        (entry("https://a.example", prefix="partner"), entry("https://b.example", prefix="PARTNER")),
        (entry("https://kc.example/realms/a"), entry("https://KC.example/realms/A")),
        (entry("https://a.example", prefix="https"), entry("https://b.example")),
        (entry("https://kc.example/a"), entry("https://kc.example/a:b")),
        (entry("urn:example:idp"), entry("urn:example:idp:two")),
        (entry("urn:example:idp"), entry("https://b.example", prefix="urn")),
    ],
)
def test_issuers_whose_client_ids_would_collide_are_refused_at_start(
    one: IssuerSettings, other: IssuerSettings
) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(ConfigurationError, match="collide"):
            loaded(*pair)


@pytest.mark.parametrize("issuer", ["cli", "CLI", "cli:root", "Cli:x"])
def test_issuer_cannot_name_its_callers_as_the_audit_trail_names_commands(issuer: str) -> None:
    with pytest.raises(ValueError, match="cli is reserved for commands in the audit trail"):
        entry(issuer)


def test_issuers_that_collide_keep_serve_from_starting_in_one_sentence(tmp_path: Path) -> None:
    tables = "".join(
        f'[[issuers]]\nissuer = "https://{name}.example"\nprefix = "partner"\nroles = ["cpo"]\n'
        f'jwks_url = "https://{name}.example/keys"\nalgorithms = ["ES256"]\n'
        for name in "ab"
    )
    (tmp_path / "ccp.toml").write_text('base_url = "https://ccp.example.com"\n' + tables)
    sentence = ccp_error("serve", "--config", tmp_path / "ccp.toml")
    assert sentence.startswith("issuers: client ids of https://a.example and https://b.example collide")


# --- Two Authorization headers ---------------------------------------------------------------------------------------

TWICE = ["The header Authorization must be there once."]
PATHS = [
    ("POST", f"{BASE}/signedcontractdata"),
    ("PUT", f"{BASE}/signedcontractdata"),
    ("GET", f"{BASE}/contractData/emaid/DEEXAC12345678"),
    ("DELETE", f"{BASE}/signedcontractdata/DEEXAC12345678"),
    ("POST", "/v1/ccp/signedContractData"),
    ("GET", "/v1/ccp/lookupContract/DEEXAC12345678"),
    ("GET", "/opnc/v1/event/endpoints"),
    ("GET", "/admin/v1/parties"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_request_with_two_authorization_headers_is_400(pool: Pool, method: str, path: str) -> None:
    good = f"Bearer {pool.token('everything')}"
    for first, second in ((good, good), (good, "Bearer x"), ("Bearer x", good), (good, "")):
        answer = pool.http.request(method, path, headers=[("Authorization", first), ("authorization", second)])
        assert sentences(answer, 400) == TWICE


def test_token_request_with_two_authorization_headers_is_400(pool: Pool) -> None:
    secret = pool.world.member("emsp").secret
    basic = httpx.BasicAuth("emsp", secret)._auth_header
    form = {"grant_type": "client_credentials"}
    for second in (basic, "Basic eDp5", "Bearer x"):
        headers = [("Authorization", basic), ("Authorization", second)]
        answer = pool.http.post("/oauth/token", data=form, headers=headers)
        assert answer.status_code == 400
        assert answer.json() == {"error": "invalid_request", "error_description": TWICE[0]}
    assert pool.http.post("/oauth/token", data=form, headers={"Authorization": basic}).status_code == 200


# --- Tokens that have to be bound to a certificate -------------------------------------------------------------------


@pytest.fixture(scope="module")
def binding(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose proxy is the test."""
    with start({"iso2": pkis["iso2"]}, client_certificate_header=HEADER, certificate_bound_tokens=True) as running:
        yield running


def asked_for(pool: Pool, *certificates: str, secret: str | None = None) -> httpx.Response:
    secret = secret or pool.world.member("emsp").secret
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": secret}
    return pool.http.post("/oauth/token", data=form, headers=[(HEADER, value) for value in certificates])


NEEDED = "A client certificate is needed: access tokens of this pool are bound to one."
UNREADABLE = "The client certificate that came with the request cannot be read."
SEVERAL = "The proxy passed on 2 client certificates; exactly one is needed."


@pytest.mark.parametrize(
    ("certificates", "sentence"),
    [
        ((), NEEDED),
        (("",), NEEDED),
        (("garbage",), UNREADABLE),
        (("(null)",), UNREADABLE),
        ((OURS.escaped[:-40],), UNREADABLE),
        ((quote(OURS.pem + OTHER.pem),), UNREADABLE),
        ((":AAAA:",), UNREADABLE),
        ((f":{encoded(OURS.der)[:400]}:",), UNREADABLE),
        ((OURS.escaped, OURS.escaped), SEVERAL),
        ((OURS.escaped, OTHER.escaped), SEVERAL),
        (("", OURS.escaped), SEVERAL),
    ],
)
def test_token_is_not_issued_without_one_readable_certificate(
    binding: Pool, certificates: tuple[str, ...], sentence: str
) -> None:
    answer = asked_for(binding, *certificates)
    assert answer.status_code == 401
    assert answer.json() == {"error": "invalid_client", "error_description": sentence}


def test_token_is_bound_to_a_given_certificate(binding: Pool) -> None:
    answer = asked_for(binding, OURS.escaped)
    assert answer.status_code == 200
    token = answer.json()["access_token"]
    assert look(binding, token, **{HEADER: OURS.escaped}).status_code == 404
    assert look(binding, token, **{HEADER: OTHER.escaped}).status_code == 401
    assert look(binding, token).status_code == 401


def test_client_certificate_that_is_missing_tells_nothing_of_the_secret(binding: Pool) -> None:
    for _ in range(60):  # More than the failures that a client id and an address are let.
        assert asked_for(binding, secret="wrong").json()["error_description"] == NEEDED
    assert asked_for(binding, OURS.escaped).status_code == 200


def test_certificate_header_from_elsewhere_binds_nothing_and_gets_no_token(pkis: dict[str, PKI]) -> None:
    options: dict[str, Any] = {"client_certificate_header": HEADER, "certificate_bound_tokens": True}
    with start({"iso2": pkis["iso2"]}, trusted_proxies=("10.0.0.0/8",), **options) as running:
        answer = asked_for(running, OURS.escaped)
        assert answer.status_code == 401
        assert answer.json() == {"error": "invalid_client", "error_description": NEEDED}
        headers = bearer("x", **{HEADER: OURS.escaped})
        assert running.http.get(f"{BASE}/contractData/emaid/DEEXAC12345678", headers=headers).status_code == 401
