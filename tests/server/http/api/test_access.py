"""Who may do what: tokens, roles, the ids that a party owns, and the token endpoint."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.queries import anchors, parties
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.world import AT, ISO2, Pool, new_emaid, new_pcid, opened, post_body, start

OPERATIONS = {
    "GetContractDataByEmaid": ("GET", "/contractData/emaid/{emaid}"),
    "GetContractDataByPcid": ("GET", "/contractData/pcid/{pcid}"),
    "Deliver": ("POST", "/signedcontractdata"),
    "AddSignedContractData": ("PUT", "/signedcontractdata"),
    "GetSignedContractData": ("GET", "/signedcontractdata/{emaid}/{pcid}"),
    "SetDefault": ("POST", "/signedcontractdata/{emaid}/{pcid}/setdefault"),
    "Delete": ("DELETE", "/signedcontractdata/{emaid}"),
}
MAY = {
    "GetContractDataByEmaid": {"emsp"},
    "GetContractDataByPcid": {"oem"},
    "Deliver": {"cpo", "peer"},
    "AddSignedContractData": {"emsp", "cps", "small_cps"},
    "GetSignedContractData": {"oem"},
    "SetDefault": {"oem"},
    "Delete": {"emsp"},
}
PARTIES = ["emsp", "cpo", "oem", "cps", "small_cps", "peer"]
INVALID = "The access token is not valid (any more)."


def call(pool: Pool, operation: str, client: httpx.Client, **options: Any) -> httpx.Response:
    """An operation on a contract and a vehicle that are not there; the body is as good as it can be."""
    method, path = OPERATIONS[operation]
    if operation in ("Deliver", "AddSignedContractData") and "json" not in options:
        car = pool.car()
        request = post_body(car.request(b"\1", AT), ISO2)
        options["json"] = request if operation == "Deliver" else pool.contract(car).body
    return client.request(method, BASE + path.format(emaid=new_emaid(), pcid=new_pcid()), **options)


def unauthorised(answer: httpx.Response) -> list[str]:
    messages = sentences(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    return messages


# --- Tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer no.token.here",
        "Bearer ...",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJlbXNwIn0.",
        "Basic ZW1zcDpzZWNyZXQ=",
        "Digest username=emsp",
        "Bearer " + "A" * 4000,
    ],
)
def test_operations_are_not_open_to_a_caller_without_a_token(
    pool: Pool, operation: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    assert unauthorised(call(pool, operation, pool.http, headers=headers))


@pytest.mark.parametrize(
    "token",
    [
        b"MQ.MQ.MQ",
        b"e30.e30.e30",
        b"W10.W10.W10",
        b"bnVsbA.bnVsbA.",
        b"eyJhbGciOm51bGx9.e30.MQ",
        b"eyJhbGciOiJFUzI1NiIsImtpZCI6W119.e30.MQ",
        b"eyJhbGciOiJFUzI1NiIsImNyaXQiOlsiYSJdfQ.e30.MQ",
        b"\xff\xfe.\x80.\x81",
        b"a.b.c.d.e",
        b"eyJhbGciOiJFUzI1NiJ9.e30." + b"A" * 86,
    ],
)
def test_token_of_any_bytes_is_refused_and_nothing_worse_happens(pool: Pool, token: bytes) -> None:
    unauthorised(
        pool.http.get(f"{BASE}/contractData/emaid/{new_emaid()}", headers={b"Authorization": b"Bearer " + token})
    )


@pytest.fixture(scope="module")
def key(pool: Pool) -> ECKey:
    """The key that the pool signs its tokens with."""
    ((private_key, kid),) = pool.sql("select private_key, kid from token_key")
    return ECKey.import_key(private_key, {"kid": kid})


def claims(pool: Pool, **changes: Any) -> dict[str, Any]:
    now = int(time.time())
    own = {"iss": pool.base_url, "aud": pool.base_url, "sub": "emsp", "client_id": "emsp", "iat": now, "exp": now + 60}
    return {name: value for name, value in {**own, **changes}.items() if value is not None}


def minted(key: Any, members: dict[str, Any], algorithm: str = "ES256", **header: Any) -> str:
    return jwt.encode({"alg": algorithm, "kid": key.kid, **header}, members, key, algorithms=[algorithm])


def with_token(pool: Pool, token: str) -> httpx.Response:
    return pool.http.get(f"{BASE}/contractData/emaid/{new_emaid()}", headers={"Authorization": f"Bearer {token}"})


def test_token_that_is_minted_as_the_pool_does_it_is_taken(pool: Pool, key: ECKey) -> None:
    sentences(with_token(pool, minted(key, claims(pool))), 404)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": int(time.time()) - 1},
        {"exp": None},
        {"exp": "never"},
        {"exp": 1e300},
        {"aud": "https://another.pool"},
        {"aud": None},
        {"aud": []},
        {"iss": "https://another.pool"},
        {"iss": None},
        {"sub": None},
        {"sub": "unknown"},
        {"sub": 5},
        {"sub": ["emsp"]},
    ],
)
def test_token_with_wrong_claims_is_refused(pool: Pool, key: ECKey, changes: dict[str, Any]) -> None:
    assert unauthorised(with_token(pool, minted(key, claims(pool, **changes)))) == [INVALID]


def test_token_signed_by_another_key_is_refused(pool: Pool, key: ECKey) -> None:
    other = ECKey.generate_key("P-256", {"kid": key.kid})
    assert unauthorised(with_token(pool, minted(other, claims(pool)))) == [INVALID]
    assert unauthorised(with_token(pool, minted(ECKey.generate_key("P-256", auto_kid=True), claims(pool)))) == [INVALID]


def test_token_whose_claims_were_changed_after_signing_is_refused(pool: Pool, key: ECKey) -> None:
    header, _, signature = minted(key, claims(pool)).split(".")
    forged = base64.urlsafe_b64encode(json.dumps(claims(pool, sub="oem")).encode()).rstrip(b"=").decode()
    assert unauthorised(with_token(pool, f"{header}.{forged}.{signature}")) == [INVALID]


def test_token_under_the_public_key_as_a_shared_secret_is_refused(pool: Pool, key: ECKey) -> None:
    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    for secret in (key.as_pem(private=False), key.as_der(private=False), b""):
        header = {"alg": "HS256", "kid": key.kid}
        signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims(pool)).encode())}"
        mac = hmac.digest(secret, signed.encode(), "sha256")
        assert unauthorised(with_token(pool, f"{signed}.{encoded(mac)}")) == [INVALID]


def test_token_that_is_issued_ends_with_its_lifetime(pool: Pool) -> None:
    async def issue(at: datetime) -> str:
        async with opened(pool.settings) as store:
            authority = AuthorizationServer(store, issuer=pool.base_url, lifetime=3600)
            await authority.refresh_keys(at)
            return (await authority.issue("emsp", pool.world.member("emsp").secret, at))[0]

    now = datetime.now(UTC)
    assert unauthorised(with_token(pool, asyncio.run(issue(now - timedelta(seconds=3601))))) == [INVALID]
    sentences(with_token(pool, asyncio.run(issue(now - timedelta(seconds=3500)))), 404)


def test_token_that_was_good_is_refused_once_it_has_expired(pool: Pool, key: ECKey) -> None:
    expires = int(time.time()) + 4
    token = minted(key, claims(pool, exp=expires))
    sentences(with_token(pool, token), 404)
    while (answer := with_token(pool, token)).status_code == 404:
        assert time.time() < expires + 20
        time.sleep(0.1)
    assert unauthorised(answer) == [INVALID]
    assert time.time() >= expires


def test_scheme_of_a_token_is_matched_without_regard_to_case(pool: Pool) -> None:
    for scheme in ("bearer", "BEARER", "Bearer"):
        headers = {"Authorization": f"{scheme} {pool.token('emsp')}"}
        sentences(pool.http.get(f"{BASE}/contractData/emaid/{new_emaid()}", headers=headers), 404)


# --- Roles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_is_open_to_its_roles_and_to_no_other(pool: Pool, operation: str, party: str) -> None:
    headers = {"Authorization": f"Bearer {pool.token(party)}"}
    answer = call(pool, operation, pool.http, headers=headers)
    if party in MAY[operation]:
        assert answer.status_code in (200, 201, 404) or operation == "SetDefault"
        assert answer.status_code not in (401, 403)
    else:
        (sentence,) = sentences(answer, 403)
        assert "is for the role" in sentence


def test_emsp_reaches_its_own_contracts_only(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car, new_emaid("NLEXB"))
    for method, path in (
        ("GET", f"/contractData/emaid/{contract.emaid}"),
        ("DELETE", f"/signedcontractdata/{contract.emaid}"),
    ):
        (sentence,) = sentences(pool.emsp.request(method, path), 403)
        assert "is not registered for the caller" in sentence
        assert pool.client("other_emsp").request(method, path).status_code == 200


def test_emsp_publishes_for_its_own_providers_only(pool: Pool) -> None:
    car = pool.car()
    contract = pool.contract(car, new_emaid("NLEXB"))
    sentences(pool.emsp.put("/signedcontractdata", json=contract.body), 403)
    sentences(pool.client("small_cps").put("/signedcontractdata", json=contract.body), 403)
    assert pool.stored(contract.emaid) == 0
    assert pool.client("other_emsp").put("/signedcontractdata", json=contract.body).status_code == 201


def test_cps_publishes_for_every_provider_it_is_registered_for(pool: Pool) -> None:
    mine, other = pool.contract(pool.car()), pool.contract(pool.car(), new_emaid("FRXYZ"))
    assert pool.client("small_cps").put("/signedcontractdata", json=mine.body).status_code == 201
    sentences(pool.client("small_cps").put("/signedcontractdata", json=other.body), 403)
    assert pool.cps.put("/signedcontractdata", json=other.body).status_code == 201


def test_oem_reaches_its_own_vehicles_only(pool: Pool) -> None:
    car = pool.car(wmi="WXB")
    contract = pool.publish(car)
    for method, path in (
        ("GET", f"/contractData/pcid/{car.pcid}"),
        ("GET", f"/signedcontractdata/{contract.emaid}/{car.pcid}"),
        ("POST", f"/signedcontractdata/{contract.emaid}/{car.pcid}/setdefault"),
    ):
        (sentence,) = sentences(pool.oem.request(method, path), 403)
        assert "WMI" in sentence
        assert pool.client("other_oem").request(method, path).status_code == 200


def test_contract_of_another_party_looks_like_an_unknown_contract(pool: Pool) -> None:
    foreign = pool.publish(pool.car(wmi="WXB"))
    own = new_pcid()

    def seen(emaid: str) -> tuple[int, list[str]]:
        answer = pool.oem.get(f"/signedcontractdata/{emaid}/{own}")
        return answer.status_code, sentences(answer, 404)

    assert seen(foreign.emaid) == seen(new_emaid())
    answers = [pool.oem.post(f"/signedcontractdata/{emaid}/{own}/setdefault") for emaid in (foreign.emaid, new_emaid())]
    assert sentences(answers[0], 400) == sentences(answers[1], 400)


def test_cpo_cannot_tell_whose_car_has_contracts_without_its_signature(pool: Pool) -> None:
    assert pool.cpo.get(f"/contractData/pcid/{new_pcid()}").status_code == 403


# --- Parties that come and go ----------------------------------------------------------------------------------------


@pytest.fixture
def lonely(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose parties a test may change."""
    with start({"iso2": pkis["iso2"]}) as running:
        yield running


def test_party_that_is_disabled_is_refused_within_five_seconds_and_gets_no_token(lonely: Pool) -> None:
    path = f"/contractData/emaid/{new_emaid()}"
    assert lonely.emsp.get(path).status_code == 404
    lonely.change(parties.disable("emsp"))
    began = time.monotonic()
    while (answer := lonely.emsp.get(path)).status_code != 401:
        assert time.monotonic() - began < 5
        time.sleep(0.05)
    assert unauthorised(answer) == [INVALID]
    form = {
        "grant_type": "client_credentials",
        "client_id": "emsp",
        "client_secret": lonely.world.member("emsp").secret,
    }
    assert lonely.http.post("/oauth/token", data=form).status_code == 401
    assert lonely.oem.get(f"/contractData/pcid/{new_pcid()}").status_code == 404


def test_root_that_is_added_is_trusted_within_five_seconds(lonely: Pool, pkis: dict[str, PKI]) -> None:
    contract = lonely.contract(lonely.car(), signer=pkis["other_iso2"])
    assert lonely.cps.put("/signedcontractdata", json=contract.body).status_code == 400
    for role, certificate in pkis["other_iso2"].trust_list():
        lonely.change(anchors.add(trusted_certificate(certificate, role, "test", AT)))
    began = time.monotonic()
    while lonely.cps.put("/signedcontractdata", json=contract.body).status_code != 201:
        assert time.monotonic() - began < 5
        time.sleep(0.05)


# --- The token endpoint ----------------------------------------------------------------------------------------------


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def granted(pool: Pool, answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert sorted(body) == ["access_token", "expires_in", "scope", "token_type"]
    assert body["token_type"] == "Bearer"
    assert type(body["expires_in"]) is int
    assert body["expires_in"] == pool.settings.token_lifetime > 60
    sentences(with_token(pool, body["access_token"]), 404)


def refused(answer: httpx.Response, status: int, error: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert sorted(body) == ["error", "error_description"]
    assert body["error"] == error
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.fixture
def form(pool: Pool) -> dict[str, str]:
    secret = pool.world.member("emsp").secret
    return {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": secret}


def test_token_is_given_for_a_form_for_json_and_for_http_basic(pool: Pool, form: dict[str, str]) -> None:
    granted(pool, pool.http.post("/oauth/token", data=form))
    granted(pool, pool.http.post("/oauth/token", json=form))
    secret = form.pop("client_secret")
    granted(pool, pool.http.post("/oauth/token", data=form, headers=basic("emsp", secret)))
    del form["client_id"]
    granted(pool, pool.http.post("/oauth/token", data=form, headers=basic("emsp", secret)))
    granted(pool, pool.http.post("/oauth/token", json=form, headers=basic("emsp", secret)))


@pytest.mark.parametrize("more", [{"resource": "x", "x": ""}, {"scope": ""}])
def test_parameters_that_are_not_known_are_passed_over(pool: Pool, form: dict[str, str], more: dict[str, str]) -> None:
    granted(pool, pool.http.post("/oauth/token", data={**form, **more}))
    granted(pool, pool.http.post("/oauth/token", json={**form, **more}))


def test_secret_that_is_wrong_and_a_client_that_is_unknown_get_the_same_words(pool: Pool, form: dict[str, str]) -> None:
    answers = [
        pool.http.post("/oauth/token", data={**form, "client_secret": "wrong"}),
        pool.http.post("/oauth/token", data={**form, "client_id": "unknown"}),
        pool.http.post("/oauth/token", data={**form, "client_secret": pool.world.member("oem").secret}),
        pool.http.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=basic("emsp", "wrong")),
    ]
    for answer in answers:
        refused(answer, 401, "invalid_client")
        assert answer.json() == answers[0].json()


@pytest.mark.parametrize("left_out", ["client_id", "client_secret"])
def test_credentials_that_are_left_out_or_empty_are_refused(pool: Pool, form: dict[str, str], left_out: str) -> None:
    refused(pool.http.post("/oauth/token", data={**form, left_out: ""}), 401, "invalid_client")
    del form[left_out]
    refused(pool.http.post("/oauth/token", data=form), 401, "invalid_client")
    refused(pool.http.post("/oauth/token", json=form), 401, "invalid_client")


@pytest.mark.parametrize("grant", ["password", "authorization_code", "", "CLIENT_CREDENTIALS"])
def test_grant_type_of_another_kind_is_refused(pool: Pool, form: dict[str, str], grant: str) -> None:
    refused(pool.http.post("/oauth/token", data={**form, "grant_type": grant}), 400, "unsupported_grant_type")


def test_request_without_a_grant_type_is_invalid(pool: Pool, form: dict[str, str]) -> None:
    del form["grant_type"]
    refused(pool.http.post("/oauth/token", data=form), 400, "invalid_request")


@pytest.mark.parametrize("name", ["grant_type", "client_id", "client_secret", "audience"])
def test_parameter_that_is_there_twice_is_refused(pool: Pool, form: dict[str, str], name: str) -> None:
    pairs = [*form.items(), (name, "again"), (name, "again")]
    content = "&".join(f"{key}={value}" for key, value in pairs)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    refused(pool.http.post("/oauth/token", content=content, headers=headers), 400, "invalid_request")


def test_client_authenticates_in_one_way_only(pool: Pool, form: dict[str, str]) -> None:
    answer = pool.http.post("/oauth/token", data=form, headers=basic("emsp", form["client_secret"]))
    refused(answer, 400, "invalid_request")


@pytest.mark.parametrize("credentials", ["emsp", "%%%", "ZW1zcA==", "/////w=="])
def test_credentials_that_are_not_http_basic_are_refused(pool: Pool, credentials: str) -> None:
    headers = {"Authorization": f"Basic {credentials}"}
    answer = pool.http.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=headers)
    refused(answer, 401, "invalid_client")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b""),
        ("application/json", b"[]"),
        ("application/json", b'"text"'),
        ("application/json", b"{"),
        ("application/json", b'{"grant_type": 1}'),
        ("application/json", b'{"grant_type": "client_credentials", "client_id": {}}'),
        ("application/json", b'{"client_id": "\\ud800"}'),
        ("application/x-www-form-urlencoded", b"\xff"),
        ("application/x-www-form-urlencoded", b"a=%FF"),
        ("application/x-www-form-urlencoded", b"&".join(b"a%d=" % n for n in range(30))),
    ],
)
def test_body_that_is_neither_form_nor_json_is_invalid(pool: Pool, kind: str, body: bytes) -> None:
    answer = pool.http.post("/oauth/token", content=body, headers={"Content-Type": kind})
    refused(answer, 400, "invalid_request")


def test_ids_and_secrets_of_any_kind_are_refused_and_nothing_worse(pool: Pool, form: dict[str, str]) -> None:
    for text in ("\0", "ü" * 1000, "' or 1=1 --", "a" * 10_000, "\U0001f697"):
        refused(pool.http.post("/oauth/token", json={**form, "client_id": text}), 401, "invalid_client")
        refused(pool.http.post("/oauth/token", json={**form, "client_secret": text}), 401, "invalid_client")


def test_token_request_that_is_too_large_is_refused(pool: Pool, form: dict[str, str]) -> None:
    sentences(pool.http.post("/oauth/token", data={**form, "x": "x" * pool.settings.max_body}), 413)


def test_token_endpoint_takes_post_only(pool: Pool) -> None:
    for method in ("GET", "PUT", "HEAD", "OPTIONS"):
        answer = pool.http.request(method, "/oauth/token")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_tokens_differ_from_one_another(pool: Pool, form: dict[str, str]) -> None:
    tokens = {pool.http.post("/oauth/token", data=form).json()["access_token"] for _ in range(3)}
    assert len(tokens) == 3
