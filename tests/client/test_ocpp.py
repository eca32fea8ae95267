"""`get_15118_ev_certificate` of both clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ocpp.charge_point import camel_to_snake_case

from ccp.client import BadRequestError, Dialect, EVCertificate, MalformedResponseError, NotAuthorisedError, RetryPolicy
from ccp.errors import FieldError
from ccp.schemas.ocpp import PATH
from tests.client.either import KINDS, connect, credentials
from tests.scripted_server import Reply, json_reply, scripted
from tests.server.http.ocpp.payloads import check, payload
from tests.world import AT, SESSION, Pool


@pytest.mark.parametrize("dialect", list(Dialect))
@pytest.mark.parametrize("kind", KINDS)
def test_get_15118_ev_certificate_returns_a_typed_result(pool: Pool, kind: str, dialect: Dialect) -> None:
    car = pool.car("iso20")
    emaids = [pool.publish(car).emaid for _ in range(2)]
    body = payload(car)
    with connect(kind, pool.base_url, credentials=credentials(pool, "cpo"), dialect=dialect) as client:
        answers = [client.get_15118_ev_certificate(body, version="ocpp2.1") for _ in range(2)]
    for answer, emaid, remaining in zip(answers, emaids, (1, 0), strict=True):
        assert isinstance(answer, EVCertificate)
        assert (answer.accepted, answer.status, answer.remaining_contracts) == (True, "Accepted", remaining)
        assert car.install(answer.message, SESSION, AT)[0] == emaid
        assert (answer.reason_code, answer.reason) == (None, None)
        assert answer.trace_id
        check(answer.payload, "2.1")
        assert answer.arguments["exi_response"] == answer.exi_response


@pytest.mark.parametrize("kind", KINDS)
def test_get_15118_ev_certificate_returns_a_refusal_as_a_result(pool: Pool, kind: str) -> None:
    car = pool.car()
    with connect(kind, pool.base_url, credentials=credentials(pool, "cpo")) as client:
        answer = client.get_15118_ev_certificate(payload(car))
        assert (answer.accepted, answer.remaining_contracts) == (False, None)
        assert (answer.reason_code, answer.reason) == ("NotFound", "No contract is stored for the vehicle.")
        check(answer.payload, "2.0.1")
        assert answer.arguments["status_info"] == {"reason_code": "NotFound", "additional_info": answer.reason}
        unread = client.get_15118_ev_certificate(payload(car, b"abc"))
        assert (unread.accepted, unread.message) == (False, b"")


def test_get_15118_ev_certificate_takes_names_as_libraries_write_them(pool: Pool) -> None:
    car = pool.car("iso20")
    emaids = [pool.publish(car).emaid for _ in range(2)]
    body = payload(
        car,
        car.request(SESSION, AT, max_chains=1),
        maximumContractCertificateChains=1,
        prioritizedEMAIDs=[str(emaids[1])],
        customData={"vendorId": "Example"},
    )
    snake: dict[str, Any] = camel_to_snake_case(body)
    assert "prioritized_emai_ds" in snake
    with connect("sync", pool.base_url, credentials=credentials(pool, "cpo")) as client:
        for request in (body, snake, {**snake, "custom_data": None}):
            assert car.install(client.get_15118_ev_certificate(request).message, SESSION, AT)[0] == emaids[1]
        with pytest.raises(BadRequestError, match="exiRequest"):
            client.get_15118_ev_certificate({"action": "Install", "iso15118_schema_version": ""})


def test_get_15118_ev_certificate_repeats_a_lost_request_with_its_key() -> None:
    answer = json_reply({"status": "Accepted", "exiResponse": "gJg="})
    with scripted() as server:
        server.on(PATH, Reply(503), answer)
        with connect("sync", server.url, token="t", retry=RetryPolicy(backoff=0.001)) as client:
            client.get_15118_ev_certificate({"action": "Install"})
            client.get_15118_ev_certificate({"action": "Install"}, message_id="19223201")
        keys = [request.headers["idempotency-key"] for request in server.asked(PATH)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 32
    assert keys[2] == "19223201"


def test_get_15118_ev_certificate_sends_its_options_as_a_query() -> None:
    with scripted() as server:
        server.on(PATH, json_reply({"status": "Failed", "exiResponse": ""}))
        with connect("sync", server.url, token="t") as client:
            client.get_15118_ev_certificate({}, version="OCPP2.0.1", broadcast=False, max_exi_response=5600)
            for wrong in ({"version": "1.6"}, {"message_id": ""}, {"message_id": "ü"}, {"message_id": "x" * 256}):
                with pytest.raises(FieldError):
                    client.get_15118_ev_certificate({}, **wrong)
        (asked,) = server.asked(PATH)
    assert asked.target == f"{PATH}?ocppVersion=2.0.1&broadcast=false&maxExiResponse=5600"


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "{}",
        json.dumps({"status": "Accepted", "exiResponse": ""}),
        json.dumps({"status": "Accepted", "exiResponse": "%"}),
        json.dumps({"status": "Else", "exiResponse": "gJg="}),
        json.dumps({"status": "Failed", "exiResponse": "", "statusInfo": {"reasonCode": "x" * 21}}),
        json.dumps({"status": "Accepted", "exiResponse": "gJg=", "remainingContracts": -1}),
    ],
)
def test_get_15118_ev_certificate_rejects_another_response(body: str) -> None:
    with scripted() as server:
        server.on(PATH, Reply(200, body.encode()))
        with (
            connect("sync", server.url, token="t") as client,
            pytest.raises(MalformedResponseError),
        ):
            client.get_15118_ev_certificate({})


def test_get_15118_ev_certificate_raises_for_another_role(pool: Pool) -> None:
    with (
        connect("sync", pool.base_url, credentials=credentials(pool, "emsp")) as client,
        pytest.raises(NotAuthorisedError, match="Get15118EVCertificate"),
    ):
        client.get_15118_ev_certificate(payload(pool.car()))
