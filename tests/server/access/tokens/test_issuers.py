"""Trusted issuers: tokens with real keys, a key set over HTTP, and a real pool."""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import ECKey, RSAKey

from ccp.server.http.routes.opnc import BASE
from ccp.server.settings.issuers import IssuerSettings
from ccp.testing.pki import PKI
from tests.background_rounds import wait_for_round
from tests.scripted_server import ENDLESS, Reply
from tests.server.access.tokens.issuer import (
    AUDIENCE,
    KEYS,
    FakeIssuer,
    encoded,
    fake_issuer,
    key,
    key_set,
    look,
    post,
    signed,
)
from tests.server.http.api.answers import sentences
from tests.world import Pool, start

# Of the tests' own signing: short keys are made, and EdDSA is called by the name that RFC 9864 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")

INVALID = ["The access token is not valid (any more)."]
ALL = ("ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256", "PS256")


@contextmanager
def pool_with(pkis: dict[str, PKI], *issuers: IssuerSettings, **options: Any) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, issuers=issuers, egress_allow_networks=("127.0.0.0/8",), **options) as running:
        yield running


@pytest.fixture(scope="module")
def issuer() -> Iterator[FakeIssuer]:
    with fake_issuer() as fake:
        yield fake


@pytest.fixture(scope="module")
def trusting(pkis: dict[str, PKI], issuer: FakeIssuer) -> Iterator[Pool]:
    """A pool that takes the issuer's tokens. Tests that publish other keys have a pool and an issuer of their own."""
    with pool_with(pkis, issuer.entry()) as running:
        yield running


def refused(answer: httpx.Response) -> None:
    assert sentences(answer, 401) == INVALID
    assert answer.headers["www-authenticate"].startswith("Bearer")


# --- What is taken ---------------------------------------------------------------------------------------------------


def test_trusted_issuer_token_grants_the_roles_and_ids_of_its_claims(trusting: Pool, issuer: FakeIssuer) -> None:
    station = issuer.token()
    for _ in range(2):  # Verified, then from the cache.
        assert post(trusting, station).status_code == 400, "authenticated; the body is empty"
        assert look(trusting, station).status_code == 403
    provider = issuer.token(roles=["emsp"], providers=["DE-EXA"])
    assert look(trusting, provider).status_code == 404
    assert look(trusting, provider, "NLEXB").status_code == 403
    assert post(trusting, provider).status_code == 403


def test_caller_with_a_token_of_an_issuer_does_what_a_registered_one_does(trusting: Pool, issuer: FakeIssuer) -> None:
    car = trusting.car()
    contract = trusting.contract(car)
    headers = {"Authorization": f"Bearer {issuer.token(roles=['emsp'], providers='DEEXA')}"}
    path = f"{trusting.base_url}{BASE}"
    assert httpx.put(f"{path}/signedcontractdata", json=contract.body, headers=headers).status_code == 201
    shown = httpx.get(f"{path}/contractData/emaid/{contract.emaid}", headers=headers)
    assert shown.json()["contractDataCollection"][0]["emaid"] == contract.emaid
    maker = {"Authorization": f"Bearer {issuer.token(roles=['oem'], wmis=['WEX'])}"}
    assert httpx.get(f"{path}/contractData/pcid/{car.pcid}", headers=maker).status_code == 200


def test_algorithms_that_are_allowed_verify(pkis: dict[str, PKI]) -> None:
    keys = {algorithm: key(algorithm, algorithm) for algorithm in ALL}
    with fake_issuer(*keys.values()) as fake, pool_with(pkis, fake.entry(algorithms=ALL)) as running:
        for algorithm, by in keys.items():
            assert post(running, fake.token(by, algorithm)).status_code == 400, algorithm


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["urn:another", AUDIENCE]},
        {"nbf": lambda now: now - 5},
        {"nbf": lambda now: now + 10},
        {"iat": lambda now: now + 10},
        {"iat": None},
        {"exp": lambda now: now + 60.5},
        {"roles": "cpo openid profile"},
        {"roles": ["cpo", "offline_access", "another-service-admin"]},
    ],
)
def test_token_whose_claims_are_good_in_another_way_is_taken(
    trusting: Pool, issuer: FakeIssuer, changes: dict[str, Any]
) -> None:
    assert post(trusting, issuer.token(**changes)).status_code == 400


@pytest.mark.parametrize("header", [{"typ": None}, {"typ": "JWT"}, {"typ": "application/at+jwt"}, {"x-of-theirs": 1}])
def test_headers_that_issuers_write_are_taken(trusting: Pool, issuer: FakeIssuer, header: dict[str, Any]) -> None:
    assert post(trusting, signed(issuer.claims(), issuer.keys[0], **header)).status_code == 400


def test_token_without_kid_is_verified_with_the_only_key_that_there_is(trusting: Pool, issuer: FakeIssuer) -> None:
    assert post(trusting, signed(issuer.claims(), issuer.keys[0], kid=None)).status_code == 400


def test_keys_may_lie_in_a_file(pkis: dict[str, PKI], tmp_path: Path) -> None:
    with fake_issuer() as fake:
        (tmp_path / "keys.json").write_bytes(key_set(*fake.keys))
        entry = fake.entry(jwks_url=None, jwks_file=tmp_path / "keys.json", jwks_refresh_interval=1)
        with pool_with(pkis, entry) as running:
            assert post(running, fake.token()).status_code == 400
            fresh = key()
            refused(post(running, fake.token(fresh)))
            (tmp_path / "keys.json").write_text("not written to its end")
            wait_for_round("issuer_keys", failed=True)
            assert post(running, fake.token()).status_code == 400, "keys of before stay"
            (tmp_path / "keys.json").write_bytes(key_set(fresh))
            deadline = time.monotonic() + 30
            while post(running, fake.token(fresh)).status_code != 400:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert fake.asked == 0


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": None},
        {"iss": "https://idp.example.com"},
        {"iss": "https://idp.example.com/realms/pnc/"},
        {"iss": ["https://idp.example.com/realms/pnc"]},
        {"aud": None},
        {"aud": "urn:another"},
        {"aud": []},
        {"aud": [AUDIENCE.upper()]},
        {"aud": {AUDIENCE: True}},
        {"exp": None},
        {"exp": lambda now: now - 1},
        {"exp": "2999-01-01"},
        {"exp": True},
        {"exp": -1},
        {"exp": 10**30},
        {"nbf": lambda now: now + 3600},
        {"nbf": "now"},
        {"iat": lambda now: now + 3600},
        {"iat": [1]},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\nb"},
        {"sub": "x" * 200},
        {"roles": 7},
        {"roles": [["cpo"]]},
        {"roles": {"cpo": True}},
        {"providers": ["DEEX"]},
        {"providers": ["DEEXA", ""]},
        {"providers": ["DEEXA' or 1=1"]},
        {"wmis": ["WE"]},
        {"wmis": "WEX W\u00c4X"},
        {"operators": ["DE*EX"]},
        {"operators": 5},
        {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
    ],
)  # fmt: skip
def test_token_with_wrong_claims_is_refused(trusting: Pool, issuer: FakeIssuer, changes: dict[str, Any]) -> None:
    refused(post(trusting, issuer.token(**changes)))


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
        {"b64": True},
        {"b64": False, "crit": ["b64"]},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": "secevent+jwt"},
    ],
)
def test_token_with_a_header_that_changes_what_it_means_is_refused(
    trusting: Pool, issuer: FakeIssuer, header: dict[str, Any]
) -> None:
    refused(post(trusting, signed(issuer.claims(), issuer.keys[0], **header)))


def test_token_that_was_changed_after_signing_is_refused(trusting: Pool, issuer: FakeIssuer) -> None:
    header, claims, signature = issuer.token().split(".")
    other = encoded(json.dumps(issuer.claims(roles=["emsp"], providers=["DEEXA"])).encode())
    for forged in (
        f"{header}.{other}.{signature}",
        f"{header}.{claims}.{signature[:-4]}AAAA",
        f"{header}.{claims}.",
        f"{header}.{claims}",
        f"{header}..{signature}",
    ):
        refused(look(trusting, forged))


def test_token_without_signature_is_refused_whatever_it_calls_its_algorithm(trusting: Pool, issuer: FakeIssuer) -> None:
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        for kid in ({}, {"kid": issuer.keys[0].kid}):
            head = encoded(json.dumps({"alg": algorithm, **kid}).encode())
            refused(post(trusting, f"{head}.{encoded(json.dumps(issuer.claims()).encode())}."))


@pytest.mark.parametrize("made", ["ES256", "RS256"])
def test_token_under_the_public_key_as_a_shared_secret_is_refused(pkis: dict[str, PKI], made: str) -> None:
    with fake_issuer(key(made)) as fake, pool_with(pkis, fake.entry(algorithms=ALL)) as running:
        public = fake.keys[0]
        assert isinstance(public, ECKey | RSAKey)
        document = key_set(public)
        for secret in (public.as_pem(private=False), public.as_der(private=False), document, b""):
            for algorithm, digest in (("HS256", "sha256"), ("HS512", "sha512")):
                head = encoded(json.dumps({"alg": algorithm, "kid": public.kid}).encode())
                signed_part = f"{head}.{encoded(json.dumps(fake.claims()).encode())}"
                refused(post(running, f"{signed_part}.{encoded(hmac.digest(secret, signed_part.encode(), digest))}"))
        assert post(running, fake.token(algorithm=made)).status_code == 400


def test_algorithm_that_the_operator_did_not_allow_is_refused(pkis: dict[str, PKI]) -> None:
    strong = key("ES512")
    with fake_issuer(key("RS256"), strong) as fake, pool_with(pkis, fake.entry(algorithms=["PS256"])) as running:
        assert post(running, fake.token(algorithm="PS256")).status_code == 400
        refused(post(running, fake.token(algorithm="RS256")))
        refused(post(running, fake.token(strong, "ES512")))


def test_key_of_another_curve_or_kind_than_the_algorithm_is_not_used(pkis: dict[str, PKI]) -> None:
    small, large = key("ES256", "one"), key("ES384", "two")
    with fake_issuer(small, large) as fake, pool_with(pkis, fake.entry(algorithms=ALL)) as running:
        assert post(running, fake.token(large, "ES384")).status_code == 400
        # Signed by one key under its own algorithm, while the header names the other key.
        refused(post(running, signed(fake.claims(), small, kid="two")))
        refused(post(running, signed(fake.claims(), large, "ES384", kid="one")))
        # And the header's algorithm is not the one that the key was used with.
        _, claims, signature = fake.token(small).split(".")
        for algorithm in ("ES384", "EdDSA", "RS256"):
            other = encoded(json.dumps({"alg": algorithm, "kid": "one"}).encode())
            refused(post(running, f"{other}.{claims}.{signature}"))


def test_key_says_itself_what_it_may_be_used_for(pkis: dict[str, PKI]) -> None:
    encryption, other, good = key("RS256", "enc"), key("RS256", "ps"), key("RS256", "good")
    members = [
        {**encryption.as_dict(private=False), "use": "enc"},
        {**other.as_dict(private=False), "alg": "PS256"},
        {**good.as_dict(private=False), "use": "sig", "alg": "RS256", "x-theirs": [1]},
    ]
    with fake_issuer(encryption, other, good) as fake:
        fake.says(Reply(body=json.dumps({"keys": members}).encode()))
        with pool_with(pkis, fake.entry(algorithms=["RS256"])) as running:
            assert post(running, fake.token(good, "RS256")).status_code == 400
            refused(post(running, fake.token(encryption, "RS256")))
            refused(post(running, fake.token(other, "RS256")))


def test_keys_of_a_set_that_are_unusable_are_ignored(pkis: dict[str, PKI]) -> None:
    short = RSAKey.import_key(rsa.generate_private_key(65537, 2047), {"kid": "short"})
    good = key("RS256", "good")
    leaked = key("ES256", "leaked")
    members = [
        short.as_dict(private=False),
        {"kty": "oct", "kid": "shared", "k": encoded(b"0" * 32)},
        {"kty": "EC", "crv": "P-256", "kid": "off", "x": encoded(b"1" * 32), "y": encoded(b"2" * 32)},
        {"kty": "EC", "crv": "P-000", "kid": "what", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "kid": "length", "x": "AA"},
        {"kty": "RSA", "kid": "none", "n": "", "e": "AQAB"},
        {"kty": "RSA", "kid": "huge", "n": "B" * 100_000, "e": "AQAB"},
        {"kty": "AKP", "kid": "later", "pub": "AA"},
        leaked.as_dict(private=True),
        "not even an object",
        good.as_dict(private=False),
    ]
    with fake_issuer(short, good, leaked) as fake:
        fake.says(Reply(body=json.dumps({"keys": members}).encode()))
        with pool_with(pkis, fake.entry(algorithms=ALL)) as running:
            assert post(running, fake.token(good, "RS256")).status_code == 400
            refused(post(running, fake.token(short, "RS256")))
            refused(post(running, fake.token(leaked, "ES256")))
            head = encoded(json.dumps({"alg": "HS256", "kid": "shared"}).encode())
            signed_part = f"{head}.{encoded(json.dumps(fake.claims()).encode())}"
            refused(post(running, f"{signed_part}.{encoded(hmac.digest(b'0' * 32, signed_part.encode(), 'sha256'))}"))


def test_keys_that_a_token_brings_or_points_to_are_never_looked_at(trusting: Pool, issuer: FakeIssuer) -> None:
    own = key("ES256", "attacker")
    issuer.server.on("/attacker", Reply(body=key_set(own)))
    before = issuer.server.count("/attacker")
    address = f"{issuer.server.url}/attacker"
    for header in (
        {"jwk": own.as_dict(private=False)},
        {"jku": address},
        {"x5u": address},
        {"x5c": ["MIIB"]},
        {"jku": address, "kid": issuer.keys[0].kid},
        {"jwk": own.as_dict(private=False), "kid": None},
    ):
        refused(post(trusting, signed(issuer.claims(), own, **header)))
    assert issuer.server.count("/attacker") == before == 0


def test_issuer_vouches_for_its_own_tokens_only(pkis: dict[str, PKI]) -> None:
    """Even where two issuers call a key by the same name."""
    first_key, second_key = key(kid="1"), key(kid="1")
    with fake_issuer(first_key) as first, fake_issuer(second_key, name="https://other.example.com") as second:
        entries = (first.entry(roles=["cpo"], role_claim=None), second.entry(roles=["emsp"], role_claim=None))
        with pool_with(pkis, *entries) as running:
            assert post(running, first.token()).status_code == 400
            assert post(running, second.token()).status_code == 403
            assert look(running, second.token(providers="DEEXA")).status_code == 404
            refused(post(running, signed(first.claims(), second_key)))
            refused(post(running, signed(second.claims(), first_key)))
            own = running.base_url
            for by in (first_key, second_key):
                refused(look(running, signed(first.claims(iss=own, aud=own, sub="emsp", client_id="emsp"), by)))


def test_pools_own_key_signs_for_no_issuer(trusting: Pool, issuer: FakeIssuer) -> None:
    ((pem, kid),) = trusting.sql("select private_key, kid from token_key")
    own = ECKey.import_key(pem, {"kid": kid})
    refused(post(trusting, signed(issuer.claims(), own)))


# --- Keys that change, and issuers that are down ---------------------------------------------------------------------


def test_new_key_is_fetched_when_a_token_names_it(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, pool_with(pkis, fake.entry(jwks_refresh_cooldown=0.2)) as running:
        assert post(running, fake.token()).status_code == 400
        asked = fake.asked
        fake.keys.insert(0, key())
        time.sleep(0.25)
        assert post(running, fake.token()).status_code == 400
        assert post(running, fake.token(fake.keys[1])).status_code == 400
        assert fake.asked == asked + 1


def test_key_that_is_withdrawn_ends_cached_tokens_at_the_next_refresh(
    pkis: dict[str, PKI],
) -> None:
    with fake_issuer() as fake, pool_with(pkis, fake.entry(jwks_refresh_interval=1)) as running:
        token = fake.token()
        assert post(running, token).status_code == 400
        fake.keys[:] = [key()]
        deadline = time.monotonic() + 30
        while post(running, token).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_unknown_keys_refresh_the_issuer_within_the_cooldown_only_once(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, pool_with(pkis, fake.entry(jwks_refresh_cooldown=1)) as running:
        good = fake.token()
        assert post(running, good).status_code == 400
        before = fake.asked
        began = time.monotonic()
        tokens = [signed(fake.claims(sub=f"s{n}"), fake.keys[0], kid=f"unknown-{n}") for n in range(200)]

        def flood(share: Sequence[str]) -> None:
            with httpx.Client(base_url=running.base_url, timeout=10) as http:
                for token in share:
                    answer = http.post(f"{BASE}/signedcontractdata", headers={"Authorization": f"Bearer {token}"})
                    assert answer.status_code == 401

        threads = [threading.Thread(target=flood, args=(tokens[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        allowed = 1 + int(time.monotonic() - began)
        assert fake.asked - before <= allowed
        assert post(running, good).status_code == 400


NONSENSE = [
    Reply(status=500),
    Reply(status=302, headers={"Location": KEYS + "/moved"}),
    ENDLESS,
    Reply(body=b'{"keys": []}'),
    Reply(body=b'{"keys": 5}'),
    Reply(body=b"[]"),
    Reply(body=b""),
    Reply(body=b"<html>maintenance</html>"),
    Reply(body=b"[" * 100_000),
    Reply(body=b'{"keys": [' + b",".join([b"{}"] * 200) + b"]}"),
]


def test_keys_of_before_stay_while_the_issuer_answers_nonsense(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, pool_with(pkis, fake.entry(jwks_refresh_cooldown=0.2)) as running:
        assert post(running, fake.token()).status_code == 400
        moved = key(kid="new")
        fake.server.on(KEYS + "/moved", Reply(body=key_set(moved)))
        for number, reply in enumerate(NONSENSE):
            fake.says(reply)
            time.sleep(0.25)
            asked = fake.asked
            refused(post(running, fake.token(moved)))
            assert fake.asked == asked + 1
            assert post(running, fake.token(sub=f"another-{number}")).status_code == 400
        assert fake.server.count(KEYS + "/moved") == 0


def test_issuer_that_hangs_delays_only_its_own_callers_by_two_seconds(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake, pool_with(pkis, fake.entry(jwks_refresh_cooldown=0.2)) as running:
        assert post(running, fake.token()).status_code == 400
        fake.says(Reply(body=key_set(key()), delay=30))
        time.sleep(0.25)
        waited: list[float] = []

        def wait() -> None:
            began = time.monotonic()
            refused(httpx.post(f"{running.base_url}{BASE}/signedcontractdata", timeout=20, headers=unknown))
            waited.append(time.monotonic() - began)

        unknown = {"Authorization": f"Bearer {fake.token(key())}"}
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        assert post(running, fake.token(sub="others")).status_code == 400
        assert look(running, running.token("emsp")).status_code == 404
        assert thread.is_alive() or time.monotonic() - began < 1
        thread.join()
        assert 1.5 < waited[0] < 15, "not the 30 seconds that the issuer takes"


def test_issuer_without_fetched_keys_gives_503(pkis: dict[str, PKI]) -> None:
    with fake_issuer() as fake:
        fake.says(Reply(status=503))
        with pool_with(pkis, fake.entry(jwks_refresh_cooldown=0.2)) as running:
            answer = post(running, fake.token())
            assert sentences(answer, 503) == ["The keys of the token's issuer are not available now."]
            assert answer.headers["retry-after"]
            assert look(running, running.token("emsp")).status_code == 404, "the pool's own parties are served"
            fake.says(Reply(body=key_set(*fake.keys)))
            time.sleep(0.25)
            assert post(running, fake.token()).status_code == 400


def test_address_that_is_not_the_operators_to_name_is_no_issuers(trusting: Pool, issuer: FakeIssuer) -> None:
    """An unknown issuer in a token causes no request."""
    before = len(issuer.server.received)
    refused(post(trusting, signed(issuer.claims(iss=issuer.server.url), key())))
    refused(post(trusting, signed(issuer.claims(iss=issuer.server.url + KEYS), key())))
    assert len(issuer.server.received) == before
