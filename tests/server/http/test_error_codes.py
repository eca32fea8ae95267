"""The header X-Error-Code: the stable code of every refusal, in every dialect, and in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.errors.codes import ErrorCode
from ccp.server.http.middleware import tracing
from ccp.server.settings import OPCPNoContractResponse
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.http.ocpp.payloads import payload
from tests.server.http.ocpp.payloads import post as post_ocpp
from tests.server.http.opcp.requests import call
from tests.world import AT, SESSION, Pool, again, b64, expired_car, new_emaid, new_pcid, post_body, start

HEADER = "x-error-code"


class _EveryLevel(CapturingLogger):
    def is_enabled_for(self, level: int) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the pools of this process log of requests."""
    logger = _EveryLevel()
    monkeypatch.setattr(tracing, "_log", logger)
    return logger.calls


@pytest.fixture(scope="module")
def published_opcp(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that answers in OPCP with the published 404."""
    with start(pkis, opcp_no_contract_response=OPCPNoContractResponse.NOT_FOUND) as running:
        yield running


def _stranger(pool: Pool) -> Car:
    return Car.generate(pool.pki("stranger"), new_pcid(), AT)


def _expired(pool: Pool) -> Car:
    return expired_car(pool.pki())


def _without_valid_contract(pool: Pool) -> Car:
    car = pool.car()
    pool.expire(pool.publish(car).emaid)
    return car


CARS: dict[ErrorCode, Callable[[Pool], Car]] = {
    ErrorCode.NO_CONTRACT_FOR_VEHICLE: lambda pool: pool.car(),
    ErrorCode.NO_VALID_CONTRACT: _without_valid_contract,
    ErrorCode.PROVISIONING_CHAIN_UNTRUSTED: _stranger,
    ErrorCode.PROVISIONING_CERTIFICATE_EXPIRED: _expired,
}


@pytest.mark.parametrize("code", CARS)
def test_error_code_is_in_the_negative_answer_of_every_dialect(
    pool: Pool, log: list[CapturedCall], code: ErrorCode
) -> None:
    car = CARS[code](pool)
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    answers = [
        pool.post(car),
        pool.post(car, headers={"alwaysReturnEXI": "false"}),
        call(pool, "cpo", "POST", "/ccp/signedContractData", json=body),
        call(pool, "cpo", "POST", "/ccp/signedContractData", json=body, headers={"alwaysReturnEXI": "false"}),
        post_ocpp(pool, payload(car)),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 404, 200]
    assert {answer.headers[HEADER] for answer in answers} == {code.value}
    lines = {each.kwargs["trace_id"]: each.kwargs for each in log}
    assert {lines[answer.headers["x-trace-id"]]["code"] for answer in answers} == {code.value}


def test_error_code_is_in_the_published_404_of_opcp(published_opcp: Pool) -> None:
    car = published_opcp.car()
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    answer = call(published_opcp, "cpo", "POST", "/ccp/signedContractData", json=body)
    assert answer.status_code == 404
    assert "CCPResponse" in answer.json()
    assert answer.headers[HEADER] == "no-contract-for-vehicle"


def test_success_has_no_code(pool: Pool, log: list[CapturedCall]) -> None:
    car = pool.car()
    pool.publish(car)
    answers = [pool.post(car), post_ocpp(pool, payload(car)), pool.http.get("/health/live")]
    assert not any(HEADER in answer.headers for answer in answers)
    assert not any("code" in each.kwargs for each in log)


def test_signature_of_the_vehicle_has_a_code_of_its_own(pool: Pool) -> None:
    car = pool.car()
    forged = replace(car, provisioning=replace(car.provisioning, key=again(pool.pki(), car).key))
    assert pool.post(forged).headers[HEADER] == "request-signature-invalid"


PUBLICATIONS: dict[ErrorCode, Callable[[Pool], httpx.Response]] = {
    ErrorCode.EMAID_MISMATCH: lambda pool: pool.put(pool.contract(pool.car(), body={"emaid": new_emaid()})),
    ErrorCode.ROOT_MISMATCH: lambda pool: pool.put(
        pool.contract(pool.car(), body={"cpsV2GRootCertificateFingerprint": "00" * 32})
    ),
    ErrorCode.CPS_CHAIN_UNTRUSTED: lambda pool: pool.put(pool.contract(pool.car(), signer="stranger")),
    ErrorCode.MESSAGE_UNREADABLE: lambda pool: pool.put(
        pool.contract(pool.car(), body={"certificateInstallationRes": b64(b"\x80\x98\x02")})
    ),
    ErrorCode.FIELD_INVALID: lambda pool: pool.put(pool.contract(pool.car(), body={"pcid": "short"})),
    ErrorCode.ID_NOT_REGISTERED: lambda pool: pool.put(
        pool.contract(pool.car(), new_emaid("NLEXB")), caller="small_cps"
    ),
    ErrorCode.ROLE_MISSING: lambda pool: pool.put(pool.contract(pool.car()), caller="cpo"),
}


@pytest.mark.parametrize("code", PUBLICATIONS)
def test_error_code_is_in_a_refused_publication(pool: Pool, code: ErrorCode) -> None:
    answer = PUBLICATIONS[code](pool)
    assert (answer.status_code, answer.headers[HEADER]) == (code.status, code.value), answer.text


def _form(**members: str) -> dict[str, str]:
    return {"grant_type": "client_credentials", "client_id": "cpo", "client_secret": "wrong", **members}


OTHERS: dict[str, tuple[ErrorCode, Callable[[Pool], httpx.Response]]] = {
    "contract": (ErrorCode.CONTRACT_NOT_FOUND, lambda pool: pool.emsp.get(f"/contractData/emaid/{new_emaid()}")),
    "contracts": (ErrorCode.CONTRACT_NOT_FOUND, lambda pool: pool.oem.get(f"/contractData/pcid/{new_pcid()}")),
    "withdraw": (ErrorCode.CONTRACT_NOT_FOUND, lambda pool: pool.emsp.delete(f"/signedcontractdata/{new_emaid()}")),
    "signed": (
        ErrorCode.CONTRACT_NOT_FOUND,
        lambda pool: pool.oem.get(f"/signedcontractdata/{new_emaid()}/{new_pcid()}"),
    ),
    "other oem": (ErrorCode.ID_NOT_REGISTERED, lambda pool: pool.oem.get(f"/contractData/pcid/{new_pcid('WXB')}")),
    "no token": (ErrorCode.TOKEN_MISSING, lambda pool: pool.client(None).get(f"/contractData/pcid/{new_pcid()}")),
    "bad token": (
        ErrorCode.TOKEN_INVALID,
        lambda pool: pool.client(None).get("/contractData/pcid/x", headers={"Authorization": "Bearer x.y.z"}),
    ),
    "sender": (
        ErrorCode.SENDER_MISMATCH,
        lambda pool: pool.oem.get(f"/contractData/pcid/{new_pcid()}", headers={"OPNC-from-party-type": "emsp"}),
    ),
    "addressed pool": (
        ErrorCode.POOL_NOT_FOUND,
        lambda pool: pool.oem.get(
            f"/contractData/pcid/{new_pcid()}",
            headers={"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "elsewhere"},
        ),
    ),
    "path": (ErrorCode.PATH_NOT_FOUND, lambda pool: pool.http.get("/nowhere")),
    "method": (ErrorCode.METHOD_NOT_ALLOWED, lambda pool: pool.cpo.patch("/signedcontractdata")),
    "coding": (
        ErrorCode.MEDIA_TYPE_UNSUPPORTED,
        lambda pool: pool.cpo.post("/signedcontractdata", content=b"{}", headers={"Content-Encoding": "gzip"}),
    ),
    "large": (
        ErrorCode.BODY_TOO_LARGE,
        lambda pool: pool.cpo.post("/signedcontractdata", content=b" " * (pool.settings.max_body + 1)),
    ),
    "secret": (ErrorCode.CLIENT_CREDENTIALS_INVALID, lambda pool: pool.http.post("/oauth/token", data=_form())),
    "basic": (
        ErrorCode.CLIENT_CREDENTIALS_INVALID,
        lambda pool: pool.http.post("/oauth/token", data={"grant_type": "client_credentials"}),
    ),
    "grant": (
        ErrorCode.TOKEN_REQUEST_INVALID,
        lambda pool: pool.http.post("/oauth/token", data=_form(grant_type="password")),
    ),
    "scope": (
        ErrorCode.SCOPE_NOT_HELD,
        lambda pool: pool.http.post(
            "/oauth/token", data=_form(client_secret=pool.world.member("cpo").secret, scope="admin")
        ),
    ),
    "admin": (ErrorCode.ROLE_MISSING, lambda pool: call(pool, "cpo", "GET", "/../admin/v1/parties")),
    "party": (
        ErrorCode.PARTY_NOT_FOUND,
        lambda pool: call(pool, "everything", "GET", "/../admin/v1/parties/unknown"),
    ),
    "webhook": (
        ErrorCode.WEBHOOK_NOT_FOUND,
        lambda pool: call(pool, "oem", "DELETE", "/../opnc/v1/event/endpoints/00000000-0000-0000-0000-000000000000"),
    ),
    "enrolment": (
        ErrorCode.ENROLMENT_NOT_FOUND,
        lambda pool: call(pool, "cpo", "GET", "/../.well-known/est/cpo/cacerts"),
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_error_code_is_in_a_refusal_of_every_api(pool: Pool, name: str) -> None:
    code, send = OTHERS[name]
    answer = send(pool)
    assert (answer.status_code, answer.headers.get(HEADER)) == (code.status, code.value), answer.text


def test_error_code_does_not_tell_an_unknown_client_from_a_wrong_secret(pool: Pool) -> None:
    answers = [pool.http.post("/oauth/token", data=_form(client_id=name)) for name in ("cpo", "unheard-of")]
    assert len({(answer.status_code, answer.headers[HEADER], answer.text) for answer in answers}) == 1


def test_error_code_does_not_tell_another_ones_contract_from_none(pool: Pool) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    paths = [f"/signedcontractdata/{emaid}/{new_pcid()}", f"/signedcontractdata/{new_emaid()}/{car.pcid}"]
    answers = [pool.oem.get(path) for path in paths]
    assert len({(answer.status_code, answer.headers[HEADER]) for answer in answers}) == 1


def test_description_lists_the_codes_of_every_refusal(pool: Pool) -> None:
    document: dict[str, Any] = pool.http.get("/openapi.json").json()
    listed = document["components"]["headers"]["X-Error-Code"]["schema"]["enum"]
    assert listed == [code.value for code in ErrorCode]
    reference = {"X-Error-Code": {"$ref": "#/components/headers/X-Error-Code"}}
    described = 0
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert response["headers"] == reference, (method, path, status)
                    described += 1
    assert described > 100
    assert document["paths"]["/ocpp/v1/get15118EVCertificate"]["post"]["responses"]["200"]["headers"] == reference
