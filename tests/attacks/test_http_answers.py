"""What HTTP asks of answers: challenges, HEAD, the right path, and a description that says where and how to call."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from ccp.server.domain.authorization import role_table
from ccp.server.domain.parties import PartyRole
from ccp.server.http.routes import oauth, subscribed_events
from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.guards.raw import connected
from tests.world import Pool, start

E, P = "DEALLH00000001", "ALL0HEAD000000001"


@pytest.fixture(scope="module")
def served(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}) as running:
        yield running


def bearer(pool: Pool, party: str = "everything") -> dict[str, str]:
    return {"Authorization": f"Bearer {pool.token(party)}"}


# --- 401 -------------------------------------------------------------------------------------------------------------

PROTECTED = [
    ("PUT", f"{BASE}/signedcontractdata"),
    ("POST", f"{BASE}/signedcontractdata"),
    ("GET", f"{BASE}/contractData/emaid/{E}"),
    ("DELETE", f"/v1/ccp/signedContractData/{E}"),
    ("GET", "/opnc/v1/event/endpoints"),
    ("PATCH", "/admin/v1/parties/cpo"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_answer_names_the_error_in_its_challenge_only_where_a_token_was_given(
    served: Pool, method: str, path: str
) -> None:
    for authorization, challenge in (
        (None, "Bearer"),
        ("Bearer", "Bearer"),
        ("Basic " + base64.b64encode(b"cpo:secret").decode(), "Bearer"),
        ("Bearer x", 'Bearer error="invalid_token"'),
        ("bearer " + served.token("cpo")[:-6] + "AAAAAA", 'Bearer error="invalid_token"'),
    ):
        headers = {} if authorization is None else {"Authorization": authorization}
        answer = served.http.request(method, path, headers=headers)
        assert sentences(answer, 401)
        assert answer.headers["www-authenticate"] == challenge, authorization


# --- HEAD ------------------------------------------------------------------------------------------------------------


def gets(pool: Pool) -> list[str]:
    paths = pool.http.get("/openapi.json").json()["paths"]
    ids = {"emaid": E, "pcid": P, "id": P, "rootCertificateId": P, "client_id": "cpo", "party_id": "missing"}
    ids |= {"ca": "cpo", "iso-version": "ISO15118-2", "algorithm": "secp256r1"}
    own = [path.format(**ids) for path, item in paths.items() if "get" in item]
    return [*own, "/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", oauth.JWKS_PATH,
            oauth.METADATA_PATH]  # fmt: skip


def test_head_is_answered_as_get_without_body(served: Pool) -> None:
    paths = gets(served)
    assert len(paths) > 15
    changing = {"x-trace-id", "content-length", "date"}
    for path in paths:
        for headers in (bearer(served), {}):
            get = served.http.get(path, headers=headers)
            head = served.http.head(path, headers=headers)
            assert head.status_code == get.status_code, path
            assert head.content == b""
            assert head.headers.keys() == get.headers.keys()
            for name in head.headers.keys() - changing:
                assert head.headers[name] == get.headers[name], (path, name)
            if path not in ("/metrics", "/openapi.json"):
                assert head.headers["content-length"] == str(len(get.content))


def test_connection_continues_after_head(served: Pool) -> None:
    """No byte of a body is sent, which would be taken for the next answer."""
    with connected(served.base_url) as raw:
        for _ in range(3):
            raw.send("HEAD /health/live HTTP/1.1\r\nHost: x\r\n\r\nHEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        raw.send("GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while chunk := raw.socket.recv(65_536):
            received += chunk
    heads = received.split(b"HTTP/1.1 ")[1:]
    assert [head[:3] for head in heads] == [b"200", b"404"] * 3 + [b"200"]
    assert all(head.endswith(b"\r\n\r\n") for head in heads[:-1])
    assert heads[-1].endswith(b'{"status":"alive"}')


def test_head_causes_no_delivery_event(served: Pool) -> None:
    car = served.car()
    contract = served.publish(car)
    path = f"{BASE}/signedcontractdata/{contract.emaid}/{car.pcid}"
    webhook = {"url": "https://hooks.example/x", "enabledEvents": ["emsp.contract.delivered.to.oem"]}
    made = served.http.post("/opnc/v1/event/endpoints", json=webhook, headers=bearer(served, "emsp"))
    assert made.status_code == 201
    query = "select count(*) from outbox where emaid = ? and kind like '%delivered%'"

    def reported() -> int:
        count: int = served.sql(query, str(contract.emaid))[0][0]
        return count

    head = served.http.head(path, headers=bearer(served, "oem"))
    assert head.status_code == 200
    assert served.http.get(path, headers=bearer(served, "oem")).status_code == 200
    deadline = time.monotonic() + 10
    while not reported() and time.monotonic() < deadline:
        time.sleep(0.02)
    # Written in the order of the requests: that of the HEAD would have been there before.
    assert reported() == 1


def test_allow_header_names_every_method_of_a_path(served: Pool) -> None:
    for path, methods in (
        (f"{BASE}/contractData/emaid/{E}", ["GET", "HEAD"]),
        (f"{BASE}/signedcontractdata/{E}", ["DELETE"]),
        (f"/v1/ccp/signedContractData/{E}", ["DELETE", "GET", "HEAD"]),
        (f"/opnc/v1/event/endpoints/{E}", ["DELETE", "GET", "HEAD", "PUT"]),
        ("/opnc/v1/event/endpoints", ["GET", "HEAD", "POST"]),
        ("/admin/v1/parties/cpo", ["GET", "HEAD", "PATCH"]),
        ("/health", ["GET", "HEAD"]),
        ("/oauth/token", ["POST"]),
    ):
        answer = served.http.request("TRACE", path)
        *rest, last = methods
        alternatives = f"{', '.join(rest)} or {last}" if rest else last
        assert sentences(answer, 405) == [f"Method not allowed; use {alternatives}."]
        assert answer.headers["allow"].split(", ") == methods, path


# --- The right path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{BASE}/signedcontractdata",
        f"{BASE}/signedcontractdata/{E}",
        f"{BASE}/signedcontractdata/{E}/{P}",
        f"{BASE}/signedcontractdata/{E}/{P}/setdefault",
        f"{BASE}/contractData/emaid/{E}",
        f"{BASE}/contractData/pcid/{P}",
        "/v1/ccp/signedContractData",
        f"/v1/ccp/signedContractData/{E}",
        f"/v1/ccp/lookupContract/{E}",
        "/v1/root/rootCerts",
        "/opnc/v1/event/endpoints",
        "/admin/v1/parties",
        "/admin/v1/parties/cpo",
        "/oauth/token",
        "/health",
        "/metrics",
    ],
)
def test_path_with_a_trailing_slash_is_404_with_the_right_path(served: Pool, path: str) -> None:
    for slashes in ("/", "//"):
        for method in ("GET", "PUT", "POST"):
            answer = served.http.request(method, path + slashes, headers=bearer(served))
            assert sentences(answer, 404) == [f"There is nothing at this path; the right path is {path}."]


def test_path_that_is_suggested_is_percent_encoded(served: Pool) -> None:
    answer = served.http.get(f"{BASE}/contractData/emaid/%1B%5B31m%E2%80%AE%22/")
    (found,) = sentences(answer, 404)
    assert found == f"There is nothing at this path; the right path is {BASE}/contractData/emaid/%1B%5B31m%E2%80%AE%22."
    assert sentences(served.http.get("/nowhere/"), 404) == ["There is nothing at this path."]


# --- The description -------------------------------------------------------------------------------------------------


def test_description_says_where_the_pool_is_and_how_to_authenticate(served: Pool) -> None:
    described = served.http.get("/openapi.json").json()
    assert described["servers"] == [{"url": served.settings.public_url}]
    schemes = described["components"]["securitySchemes"]
    assert schemes["bearer"]["type"] == "http"
    assert schemes["bearer"]["scheme"] == "bearer"
    flow = schemes["oauth2"]["flows"]["clientCredentials"]
    assert set(flow["scopes"]) == {role.value for role in PartyRole}
    # What it says works: a token from there, with the scope that an operation names, at the server and path.
    member = served.world.member("oem")
    form = {"grant_type": "client_credentials", "client_id": "oem", "client_secret": member.secret, "scope": "oem"}
    token = httpx.post(flow["tokenUrl"], data=form).json()["access_token"]
    url = described["servers"][0]["url"] + f"{BASE}/contractData/pcid/WEX0HEAD000000001"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"})
    assert sentences(answer, 404) == ["No contract for the given PCID found."]


def test_operations_all_name_the_roles_that_may_call_them(served: Pool) -> None:
    described = served.http.get("/openapi.json").json()
    allowed: dict[str, set[str]] = {}
    for operation, role, _ in role_table():
        allowed.setdefault(operation.value, set()).add(role.value)
    seen = 0
    for path, item in described["paths"].items():
        for method, operation in item.items():
            if path in (f"{BASE}/events/pcp", subscribed_events.PATH):
                assert operation["security"] == []
                continue
            wanted = operation["security"]
            scopes = [each["oauth2"] for each in wanted if "oauth2" in each]
            assert all(len(each) == 1 for each in scopes), (method, path)
            roles = allowed[operation["operationId"].removeprefix("OPCP").removesuffix("Production")]
            assert {each[0] for each in scopes} == roles, (method, path)
            assert wanted[-1] == {"bearer": []}
            seen += 1
    assert seen > 25
    assert "NaN" not in json.dumps(described)
