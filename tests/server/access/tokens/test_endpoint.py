"""Token endpoint over HTTP: audience, scope, key set and metadata."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from joserfc import jws, jwt
from joserfc.jwk import KeySet

from tests.server.access.tokens.issuer import bearer, look, post
from tests.world import Pool

FORM = {"grant_type": "client_credentials"}


def ask(pool: Pool, name: str, **more: str) -> httpx.Response:
    form = {**FORM, "client_id": name, "client_secret": pool.world.member(name).secret, **more}
    return pool.http.post("/oauth/token", data=form)


def granted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def refused(answer: httpx.Response, error: str, status: int = 400) -> None:
    """In the shape of RFC 6749 clause 5.2, and not cacheable."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["error"] == error
    assert set(body) == {"error", "error_description"}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(jws.extract_compact(token.encode()).payload)
    return claims


# --- Audience --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/opnc/v1/ccp", "/v1/ccp/", "?a=b"])
def test_pools_own_address_and_everything_under_it_is_an_audience(pool: Pool, path: str) -> None:
    token = granted(ask(pool, "emsp", audience=pool.base_url + path))["access_token"]
    assert claims_of(token)["aud"] == pool.base_url
    assert look(pool, token).status_code == 404


def test_audience_is_compared_as_addresses_are_and_comes_in_json_too(pool: Pool) -> None:
    granted(ask(pool, "emsp", audience=pool.base_url.replace("http", "HTTP")))
    member = pool.world.member("emsp")
    body = {**FORM, "client_id": "emsp", "client_secret": member.secret, "audience": pool.base_url}
    granted(pool.http.post("/oauth/token", json=body))


@pytest.mark.parametrize(
    "audience",
    [
        "https://any.where",
        "ccp",
        "",
        "http://127.0.0.1",
        "http://127.0.0.1:port",
        "https://[",
        "//127.0.0.1",
        "urn:a:b",
    ],
)
def test_audience_of_another_server_is_an_invalid_target(pool: Pool, audience: str) -> None:
    refused(ask(pool, "emsp", audience=audience), "invalid_target")


def test_address_that_only_begins_like_ours_is_another_audience(pool: Pool) -> None:
    port = pool.base_url.rpartition(":")[2]
    for audience in (
        pool.base_url + ".example.com",
        pool.base_url + "@example.com",
        f"http://emsp@127.0.0.1:{port}",
        f"https://127.0.0.1:{port}",
        pool.base_url + "0",
    ):
        refused(ask(pool, "emsp", audience=audience), "invalid_target")


# --- Scope -----------------------------------------------------------------------------------------------------------


def test_token_without_scope_has_all_roles_and_the_answer_names_them(pool: Pool) -> None:
    assert granted(ask(pool, "emsp"))["scope"] == "emsp"
    body = granted(ask(pool, "everything"))
    assert body["scope"] == "admin ccp cpo cps emsp metrics oem"
    assert "scope" not in claims_of(body["access_token"])
    assert look(pool, body["access_token"], "DEALL").status_code == 404
    assert post(pool, body["access_token"]).status_code == 400


def test_scope_narrows_the_token_to_those_roles_of_the_party(pool: Pool) -> None:
    body = granted(ask(pool, "everything", scope="oem cpo"))
    assert body["scope"] == "cpo oem"
    assert claims_of(body["access_token"])["scope"] == "cpo oem"
    for _ in range(2):  # Verified, then from the cache.
        assert look(pool, body["access_token"], "DEALL").status_code == 403
        assert post(pool, body["access_token"]).status_code == 400
    narrow = granted(ask(pool, "everything", scope="emsp"))["access_token"]
    assert look(pool, narrow, "DEALL").status_code == 404
    assert post(pool, narrow).status_code == 403


def test_scope_that_is_empty_is_none(pool: Pool) -> None:
    for scope in ("", " "):
        assert granted(ask(pool, "emsp", scope=scope))["scope"] == "emsp"


@pytest.mark.parametrize("scope", ["cpo", "emsp cpo", "EMSP", "nothing", "emsp,cpo", "*", "admin"])
def test_scope_that_is_no_role_or_not_the_partys_is_invalid(pool: Pool, scope: str) -> None:
    refused(ask(pool, "emsp", scope=scope), "invalid_scope")


def test_scope_is_checked_after_the_secret(pool: Pool) -> None:
    answers = [
        pool.http.post("/oauth/token", data={**FORM, "client_id": "emsp", "client_secret": "wrong", "scope": scope})
        for scope in ("emsp", "cpo", "nothing")
    ]
    for answer in answers:
        refused(answer, "invalid_client", 401)
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert answer.json() == answers[0].json()


# --- Keys and description --------------------------------------------------------------------------------------------


def test_published_keys_verify_the_pools_tokens_and_are_public_keys_alone(pool: Pool) -> None:
    answer = pool.http.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jwk-set+json"
    for member in answer.json()["keys"]:
        assert set(member) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
        assert (member["kty"], member["crv"], member["use"], member["alg"]) == ("EC", "P-256", "sig", "ES256")
    decoded = jwt.decode(pool.token("emsp"), KeySet.import_key_set(answer.json()), algorithms=["ES256"])
    assert decoded.header["typ"] == "at+jwt"
    assert decoded.claims["client_id"] == decoded.claims["sub"] == "emsp"


def test_pool_describes_itself_as_an_authorisation_server(pool: Pool) -> None:
    answer = pool.http.get("/.well-known/oauth-authorization-server")
    assert answer.status_code == 200
    described = answer.json()
    assert described["issuer"] == pool.base_url
    assert described["grant_types_supported"] == ["client_credentials"]
    assert described["tls_client_certificate_bound_access_tokens"] is False
    member = pool.world.member("emsp")
    form = {**FORM, "client_id": "emsp", "client_secret": member.secret}
    token = granted(httpx.post(described["token_endpoint"], data=form))["access_token"]
    assert claims_of(token)["iss"] == described["issuer"]
    keys = KeySet.import_key_set(httpx.get(described["jwks_uri"]).json())
    jwt.decode(token, keys, algorithms=["ES256"])


@pytest.mark.parametrize("path", ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server"])
def test_published_keys_are_cacheable_for_the_key_activation_delay(pool: Pool, path: str) -> None:
    answer = pool.http.get(path)
    assert answer.headers["cache-control"] == "public, max-age=30"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert pool.http.post(path).status_code == 405


def test_scheme_without_a_token_of_ours_names_no_reason(pool: Pool) -> None:
    answer = pool.http.get("/opnc/v1/ccp/contractData/emaid/DEEXAC12345678", headers=bearer("a.b.c"))
    assert answer.json()["errorMessages"] == ["The access token is not valid (any more)."]
