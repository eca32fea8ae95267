"""Back ends of charging stations that speak OPCP today get what they read, with the requests that they send."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from ccp.ids import Namespace
from ccp.server.storage.queries import parties
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.csms import First, Last, NoAnswer, Refused, send
from tests.world import AT, ISO2, ISO20, SESSION, Pool, b64, post_body, read, start

BACK_ENDS = [First, Last]


def back_end(kind: type[First] | type[Last], pool: Pool, party: str = "cpo") -> First | Last:
    return kind(pool.base_url, party, pool.world.member(party).secret)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_car_gets_its_contract_through_either(pool: Pool, kind: type[First] | type[Last]) -> None:
    car = pool.car()
    contract = pool.publish(car)
    csms = back_end(kind, pool)
    message = base64.b64decode(csms.ask(b64(car.request(SESSION, AT))), validate=True)
    assert car.install(message, SESSION, AT)[0] == contract.emaid
    assert len(csms.sent) == 2  # A token and the request, nothing again.
    csms.ask(b64(car.request(SESSION, AT)))
    assert len(csms.sent) == 3


def test_car_of_the_newer_edition_gets_its_contract_too(pool: Pool) -> None:
    car = pool.car("iso20")
    contract = pool.publish(car)
    csms = Last(pool.base_url, "cpo", pool.world.member("cpo").secret)
    message = base64.b64decode(csms.ask(b64(car.request(SESSION, AT)), ISO20))
    assert car.install(message, SESSION, AT)[0] == contract.emaid


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_car_without_a_contract_is_told_so_by_the_message(pool: Pool, kind: type[First] | type[Last]) -> None:
    car = pool.car()
    message = back_end(kind, pool).ask(b64(car.request(SESSION, AT)))
    response = read({"certificateInstallationRes": message}, ISO2)
    assert response.response_code == "FAILED_NoCertificateAvailable"
    assert response.parsed.message.Header.SessionID == SESSION


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_token_that_is_not_good_any_more_is_replaced(pool: Pool, kind: type[First] | type[Last]) -> None:
    car = pool.car()
    pool.publish(car)
    csms = back_end(kind, pool)
    csms.token = "Bearer an-old-one" if kind is Last else "an-old-one"
    csms.ask(b64(car.request(SESSION, AT)))
    assert len(csms.sent) == 3  # Refused, a token, again.


def test_back_end_gives_up_as_it_does_when_it_may_not(pool: Pool) -> None:
    first = First(pool.base_url, "emsp", pool.world.member("emsp").secret)
    with pytest.raises(Refused, match="403"):
        first.ask("AAAA")
    assert first.sent == ["token", "deliver", "token", "deliver", "token", "deliver"]
    last = Last(pool.base_url, "emsp", pool.world.member("emsp").secret)
    with pytest.raises(Refused, match="403"):
        last.ask("AAAA")
    assert last.sent == ["token", "POST", "token", "POST"]


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_back_end_gets_roots_that_it_can_read(pool: Pool, kind: type[First] | type[Last]) -> None:
    items = back_end(kind, pool).roots()
    certificates = [Certificate.load(base64.b64decode(item["caCertificate"], validate=True)) for item in items]
    v2g = {c.fingerprint for item, c in zip(items, certificates, strict=True) if item["rootType"] == "V2G"}
    assert pool.pki().v2g_root.certificate.fingerprint in v2g
    assert pool.pki("stranger").v2g_root.certificate.fingerprint not in {c.fingerprint for c in certificates}


def test_back_end_that_reads_a_single_object_finds_nothing_and_nothing_wrong(pool: Pool) -> None:
    """It looks for one object where the others have a list. No answer can serve both; it fails and hands on nothing."""
    car = pool.car()
    pool.publish(car)
    body = post_body(car.request(SESSION, AT), ISO2)
    headers = {"Authorization": f"Bearer {pool.token('cpo')}"}
    answer = pool.http.post("/v1/ccp/signedContractData", json=body, headers=headers).json()
    with pytest.raises(TypeError):
        answer["CCPResponse"]["emaidContent"]["messageDef"]["certificateInstallationRes"]


def test_token_as_api_key_is_tolerated_but_does_not_stand_for_one(pool: Pool) -> None:
    body = json.dumps(post_body(pool.car().request(SESSION, AT), ISO2))
    token = pool.token("cpo")

    def status(headers: dict[str, str]) -> int:
        headers = {"Content-Type": "application/json", **headers}
        return pool.http.post("/v1/ccp/signedContractData", content=body, headers=headers).status_code

    assert status({"Authorization": f"Bearer {token}", "x-api-key": token}) == 200
    assert status({"Authorization": f"Bearer {token}", "x-api-key": "something else"}) == 200
    assert status({"x-api-key": token}) == 401
    assert status({"Authorization": "Bearer wrong", "x-api-key": token}) == 401


def test_back_end_gets_each_request_answered_on_its_connection(pool: Pool) -> None:
    """One back end does not survive a connection that ends without an answer."""
    good = {"Authorization": f"Bearer {pool.token('cpo')}", "Content-Type": "application/json"}
    path = "/v1/ccp/signedContractData"
    for headers, body, status in (
        ({}, b"{}", 401),
        ({"Authorization": "Basic x"}, b"", 401),
        ({"Authorization": "Bearer \xff"}, b"{}", 401),
        (good, b"", 400),
        (good, b"not JSON", 400),
        (good, b"[]", 400),
        (good, b"[" * 100_000, 400),
        (good, b'{"certificateInstallationReq": 5, "xsdMsgDefNamespace": null}', 400),
        (good, b'{"certificateInstallationReq": "AAAA", "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef"}', 400),
        (good, b"x" * 400_000, 413),
        ({}, b"x" * 3_000_000, 401),
        (good, b"\xff\xfe", 400),
    ):
        try:
            answer = send(pool.base_url, "POST", path, headers, body)
        except (NoAnswer, ConnectionError) as exc:
            pytest.fail(f"no answer to {headers} {body[:40]!r}: {exc!r}")
        assert answer.status == status, (body[:40], answer.body)
        assert sorted(answer.json()) == ["errorMessages", "traceId"]
    assert send(pool.base_url, "GET", "/v1/ccp/nothing/there", good).status == 404
    assert send(pool.base_url, "PATCH", path, good).status == 405


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, opcp_no_contract_response="404") as running:
        yield running


def test_refusal_may_be_an_error_instead(strict: Pool) -> None:
    car = strict.car()
    headers = {"Authorization": f"Bearer {strict.token('cpo')}"}
    body = post_body(car.request(SESSION, AT), ISO2)
    answer = strict.http.post("/v1/ccp/signedContractData", json=body, headers=headers)
    assert answer.status_code == 404
    answer = strict.http.post("/v1/ccp/signedContractData", json=body, headers={**headers, "alwaysReturnEXI": "false"})
    assert sentences(answer, 404) == ["No contract is stored for the vehicle."]
    # OPNC is as ever.
    assert strict.post(car).status_code == 200
    first = First(strict.base_url, "cpo", strict.world.member("cpo").secret)
    with pytest.raises(Refused, match="404"):
        first.ask(b64(car.request(SESSION, AT)))


def test_party_that_is_disabled_is_refused(strict: Pool) -> None:
    car = strict.car()
    last = Last(strict.base_url, "other_oem", strict.world.member("other_oem").secret)
    with pytest.raises(Refused, match="403"):
        last.ask(b64(car.request(SESSION, AT)))
    strict.change(parties.disable("other_oem"))
    deadline = time.monotonic() + 30
    while last.token is not None and time.monotonic() < deadline:
        with contextlib.suppress(Refused):
            last.roots()
        time.sleep(0.1)
    with pytest.raises(Refused, match="401"):
        last.roots()


def test_dialect_can_be_left_out(pkis: dict[str, PKI]) -> None:
    with start(pkis, opcp=False) as pool:
        car = pool.car()
        pool.publish(car)
        headers = {"Authorization": f"Bearer {pool.token('cpo')}"}
        body = post_body(car.request(SESSION, AT), ISO2)
        assert sentences(pool.http.post("/v1/ccp/signedContractData", json=body, headers=headers), 404)
        assert sentences(pool.http.get("/v1/root/rootCerts", headers=headers), 404)
        assert pool.ask(car)
        assert not [path for path in pool.http.get("/openapi.json").json()["paths"] if path.startswith("/v1/")]
        assert Namespace.ISO2 == ISO2
