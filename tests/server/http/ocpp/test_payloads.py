"""POST /ocpp/v1/get15118EVCertificate: payloads of OCPP 2.0.1 and 2.1, in and out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp import exi
from ccp.exi import iso2
from ccp.ids import EMAID
from ccp.schemas.ocpp import PATH
from ccp.server.http.middleware import tracing
from ccp.server.http.routes import ocpp
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.ocpp.payloads import (
    ask,
    check_request,
    installed,
    message_of,
    payload,
    post,
    remaining_in,
    with_long_emaid,
)
from tests.waiting import wait_until
from tests.world import AT, SESSION, Pool, b64, expired_car, start

VERSIONS = ["2.0.1", "2.1"]
EDITIONS = ["iso2", "iso20", "ed448"]


class _EveryLevel(CapturingLogger):
    def is_enabled_for(self, level: int) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the pools of this process log of requests."""
    logger = _EveryLevel()
    monkeypatch.setattr(tracing, "_log", logger)
    monkeypatch.setattr(ocpp, "_log", logger)
    return logger.calls


def reason(answer: dict[str, Any]) -> str:
    """The reason code of a refusal."""
    assert answer["status"] == "Failed", answer
    code: str = answer["statusInfo"]["reasonCode"]
    return code


@pytest.mark.parametrize("version", [None, *VERSIONS])
@pytest.mark.parametrize("edition", EDITIONS)
def test_car_gets_its_contract(pool: Pool, edition: str, version: str | None) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    body = payload(car)
    check_request(body, version or "2.0.1")
    answer = ask(pool, body, version)
    assert installed(answer, car) == contract.emaid
    newer = edition != "iso2" and version == "2.1"
    assert sorted(answer) == ["exiResponse", *(["remainingContracts"] if newer else []), "status"]


def test_path_is_matched_in_any_case(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    headers = {"Authorization": f"Bearer {pool.token('cpo')}"}
    answer = pool.http.post("/OCPP/v1/get15118evCertificate", json=payload(car), headers=headers)
    assert installed(answer.json(), car) == contract.emaid


@pytest.mark.parametrize(
    ("edition", "spelling"),
    [
        ("iso2", "urn:iso:15118:2:2013:MsgDef"),
        ("iso2", "URN:ISO:15118:2:2013:MSGDEF"),
        ("iso2", "15118-2:2013:MsgDef"),
        ("iso2", "iso15118-2"),
        ("iso2", "urn:iso:15118:2"),
        ("iso20", "urn:iso:std:iso:15118:-20:CommonMessages"),
        ("iso20", "urn:iso:15118:20:2020:MsgDef"),
        ("iso20", "urn:iso:15118:20:2022:MsgDef"),
        ("iso20", "urn:iso:std:iso:15118:-20:commonmessages"),
        ("iso20", "ISO 15118-20:2022"),
    ],
)
def test_schema_version_is_read_in_every_spelling(
    pool: Pool, edition: str, spelling: str, log: list[CapturedCall]
) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    assert installed(ask(pool, payload(car, iso15118SchemaVersion=spelling)), car) == contract.emaid
    assert not [entry for entry in log if entry.args[:1] == ("schema version differs from message",)]


@pytest.mark.parametrize("spelling", ["urn:iso:15118:2:2013:MsgDef", "urn:din:70121:2012:MsgDef", "", "15118:2022"])
def test_message_decides_where_the_schema_version_is_wrong(pool: Pool, spelling: str, log: list[CapturedCall]) -> None:
    car = pool.car("iso20")
    contract = pool.publish(car)
    answer = post(pool, payload(car, iso15118SchemaVersion=spelling))
    assert installed(answer.json(), car) == contract.emaid
    (entry,) = [entry for entry in log if entry.args[:1] == ("schema version differs from message",)]
    assert entry.kwargs["trace_id"] == answer.headers["X-Trace-Id"]
    assert entry.kwargs["edition"] == car.namespace
    assert entry.kwargs["stated"] == ("urn:iso:15118:2:2013:MsgDef" if spelling.startswith("urn:iso") else None)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_car_without_a_contract_gets_the_negative_message(pool: Pool, edition: str, version: str) -> None:
    car = pool.car(edition)
    answer = ask(pool, payload(car), version)
    assert reason(answer) == "NotFound"
    assert answer["statusInfo"]["additionalInfo"] == "No contract is stored for the vehicle."
    message = message_of(answer, car)
    assert message.response_code in ("FAILED_NoCertificateAvailable", "WARNING_NoContractMatchingPCIDFound")
    header = message.parsed.message.Header
    assert header.SessionID == SESSION


def test_refusals_of_a_request_have_their_reason_code(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    stranger = Car.generate(pool.pki("stranger"), car.pcid, AT)
    own, other = (exi.decode(each.request(SESSION, AT)) for each in (car, pool.car()))
    assert isinstance(own, iso2.V2G_Message)
    assert isinstance(other, iso2.V2G_Message)
    for message, code, response in (
        (stranger.request(SESSION, AT), "InvalidCertChain", "FAILED_CertChainError"),
        (expired_car(pool.pki()).request(SESSION, AT), "CertExpired", "FAILED_CertificateExpired"),
        (exi.encode(own._replace(Header=other.Header)), "InvalidSignature", "FAILED_SignatureError"),
    ):
        answer = ask(pool, payload(car, message))
        assert (reason(answer), message_of(answer, car).response_code) == (code, response)


@pytest.mark.parametrize("message", [b"", b"abc", b"\x80\x98", b"\x80\x1c" + bytes(100)])
def test_message_that_cannot_be_read_is_refused_without_a_message(pool: Pool, message: bytes) -> None:
    for version in VERSIONS:
        answer = ask(pool, payload(pool.car(), message), version)
        assert (reason(answer), answer["exiResponse"]) == ("InvalidValue", "")
        assert answer["statusInfo"]["additionalInfo"].startswith("EXI format is invalid! ")


def test_text_that_is_not_base64_is_refused_without_a_message(pool: Pool) -> None:
    answer = ask(pool, payload(pool.car(), exiRequest="<V2G_Message>"))
    assert (reason(answer), answer["exiResponse"]) == ("InvalidValue", "")
    assert "it looks like XML" in answer["statusInfo"]["additionalInfo"]


def test_response_in_the_place_of_a_request_is_refused_without_a_message(pool: Pool) -> None:
    car = pool.car()
    answer = ask(pool, payload(car, pool.contract(car).message))
    assert (reason(answer), answer["exiResponse"]) == ("InvalidValue", "")


@pytest.mark.parametrize("version", VERSIONS)
def test_payload_for_an_update_is_refused_with_a_reason(pool: Pool, version: str) -> None:
    car = pool.car()
    pool.publish(car)
    answer = ask(pool, payload(car, action="Update"), version)
    assert reason(answer) == "UnsupportedRequest"
    assert message_of(answer, car).response_code == "FAILED"
    # A CertificateUpdateReq is none of the pool's messages.
    answer = ask(pool, payload(car, b"\x80\x98\x02" + bytes(200), action="Update"), version)
    assert (reason(answer), answer["exiResponse"]) == ("UnsupportedRequest", "")


# --- Lengths ---------------------------------------------------------------------------------------------------------


def padded(car: Car, characters: int) -> str:
    """A car's request with zero bytes after its end, which are tolerated, as so many characters of Base64."""
    message = car.request(SESSION, AT)
    return b64(message + bytes(characters // 4 * 3 - len(message)))


@pytest.mark.parametrize(("version", "limit"), [("2.0.1", 5600), ("2.1", 11_000)])
def test_request_beyond_the_length_of_its_version_is_refused(pool: Pool, version: str, limit: int) -> None:
    car = pool.car()
    contract = pool.publish(car)
    body = payload(car, exiRequest=padded(car, limit))
    check_request(body, version)
    assert installed(ask(pool, body, version), car) == contract.emaid
    answer = ask(pool, payload(car, exiRequest=padded(car, limit + 4)), version)
    assert reason(answer) == "TooLargeElement"
    assert str(limit + 4) in answer["statusInfo"]["additionalInfo"]
    assert message_of(answer, car).response_code == "FAILED"


def test_request_that_only_the_newer_version_allows_shows_its_version(pool: Pool) -> None:
    car = pool.car("iso20")
    pool.publish(car)
    assert "remainingContracts" not in ask(pool, payload(car))
    assert ask(pool, payload(car, exiRequest=padded(car, 5604)))["remainingContracts"] == 0
    assert ask(pool, payload(car, maximumContractCertificateChains=3))["remainingContracts"] == 0
    assert ask(pool, payload(car, prioritizedEMAIDs=["DEEXAC1234"]))["remainingContracts"] == 0
    # The query parameter takes precedence.
    assert "remainingContracts" not in ask(pool, payload(car, maximumContractCertificateChains=3), "2.0.1")


@pytest.mark.parametrize("name", ["ocpp2.1", "OCPP2.1", "2.1"])
def test_version_may_be_named_by_its_subprotocol(pool: Pool, name: str) -> None:
    car = pool.car("iso20")
    pool.publish(car)
    assert post(pool, payload(car), ocppVersion=name).json()["remainingContracts"] == 0


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_contract_beyond_what_the_station_takes_is_refused_and_not_cut(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    length = len(ask(pool, payload(car))["exiResponse"])
    assert installed(post(pool, payload(car), maxExiResponse=length).json(), car) == contract.emaid
    before = pool.sql("select count(*) from outbox")
    answer = post(pool, payload(car), maxExiResponse=length - 1).json()
    assert reason(answer) == "TooLargeElement"
    assert f"{length} characters" in answer["statusInfo"]["additionalInfo"]
    assert message_of(answer, car).response_code == "FAILED"
    assert pool.sql("select count(*) from outbox") == before


def test_payload_limits_the_length_of_the_response_by_its_version(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the two versions, with the length of a message that no test certificate reaches."""
    car = pool.car()
    contract = pool.publish(car)
    monkeypatch.setattr("ccp.server.pool.turns._characters", lambda *_: 7504)
    assert reason(ask(pool, payload(car), "2.0.1")) == "TooLargeElement"
    assert installed(ask(pool, payload(car), "2.1"), car) == contract.emaid
    monkeypatch.setattr("ccp.server.pool.turns._characters", lambda *_: 17_004)
    assert reason(ask(pool, payload(car), "2.1")) == "TooLargeElement"
    assert reason(post(pool, payload(car), ocppVersion="2.0.1", maxExiResponse=5600).json()) == "TooLargeElement"


# --- What the station states beside the message ----------------------------------------------------------------------


def test_prioritized_emaids_count_where_the_message_has_none(pool: Pool) -> None:
    car = pool.car("iso20")
    first, second = pool.publish(car).emaid, pool.publish(car).emaid
    assert installed(ask(pool, payload(car, prioritizedEMAIDs=["nonsense", second]), "2.1"), car) == second
    own = car.request(SESSION, AT, prioritized_emaids=(str(first),))
    assert installed(ask(pool, payload(car, own, prioritizedEMAIDs=[second]), "2.1"), car) == first


def test_payload_maximum_counts_where_the_message_has_none(pool: Pool) -> None:
    car = pool.car("iso20")
    for _ in range(3):
        pool.publish(car)
    none = car.request(SESSION, AT, max_chains=0)
    assert reason(ask(pool, payload(car, none), "2.1")) == "NotFound"
    assert ask(pool, payload(car, none, maximumContractCertificateChains=2), "2.1")["remainingContracts"] == 1
    one = car.request(SESSION, AT, max_chains=1)
    assert ask(pool, payload(car, one, maximumContractCertificateChains=3), "2.1")["remainingContracts"] == 0
    huge = payload(car, car.request(bytes(8), AT, max_chains=0), maximumContractCertificateChains=10**30)
    assert ask(pool, huge, "2.1")["remainingContracts"] == 2


def test_prioritized_emaid_longer_than_a_message_allows_costs_the_car_nothing(pool: Pool) -> None:
    """Messages are read with longer texts than are written."""
    car = pool.car("iso20")
    emaids = [pool.publish(car).emaid for _ in range(2)]
    message = with_long_emaid(car.request(SESSION, AT, prioritized_emaids=("x" * 255,)))
    answers = [ask(pool, payload(car, message), "2.1") for _ in range(2)]
    assert [(installed(answer, car), answer["remainingContracts"]) for answer in answers] == [
        (emaids[0], 1),
        (emaids[1], 0),
    ]


def test_iso2_car_gets_its_default_whatever_the_station_states(pool: Pool) -> None:
    car = pool.car()
    first, second = pool.publish(car).emaid, pool.publish(car).emaid
    body = payload(car, maximumContractCertificateChains=0, prioritizedEMAIDs=[second])
    answer = ask(pool, body, "2.1")
    assert installed(answer, car) == first
    assert "remainingContracts" not in answer


# --- Callers, errors of the call, and what the other operations have too ---------------------------------------------


@pytest.mark.parametrize("caller", ["emsp", "oem", "cps", "peer", None])
def test_operation_is_for_charge_point_operators(pool: Pool, caller: str | None) -> None:
    answer = post(pool, payload(pool.car()), caller)
    if caller is None:
        assert sentences(answer, 401)
    else:
        assert sentences(answer, 403) == ["Get15118EVCertificate is for the role cpo."]


def test_payload_that_is_refused_access_is_audited(pool: Pool) -> None:
    trace_id = post(pool, payload(pool.car()), "oem").headers["X-Trace-Id"]
    query = "select subject from audit where trace_id = ?"
    wait_until(lambda: pool.sql(query, trace_id))
    assert "Get15118EVCertificate" in pool.sql(query, trace_id)[0][0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"action": "install"}, "action : "),
        ({"action": None}, "action : "),
        ({"exiRequest": None}, "exiRequest : "),
        ({"exiRequest": 5}, "exiRequest : "),
        ({"iso15118SchemaVersion": "x" * 51}, "iso15118SchemaVersion : "),
        ({"maximumContractCertificateChains": -1}, "maximumContractCertificateChains : "),
        ({"maximumContractCertificateChains": 1.5}, "maximumContractCertificateChains : "),
        ({"maximumContractCertificateChains": True}, "maximumContractCertificateChains : "),
        ({"maximumContractCertificateChains": "2"}, "maximumContractCertificateChains : "),
        ({"maximumContractCertificateChains": "many"}, "maximumContractCertificateChains : "),
        ({"prioritizedEMAIDs": []}, "prioritizedEMAIDs : "),
        ({"prioritizedEMAIDs": ["DEEXAC1234"] * 9}, "prioritizedEMAIDs : "),
        ({"prioritizedEMAIDs": ["x" * 256]}, "prioritizedEMAIDs"),
        ({"customData": 1}, "customData : "),
    ],
)
def test_body_that_is_no_payload_is_400(pool: Pool, change: dict[str, Any], sentence: str) -> None:
    (found,) = sentences(post(pool, payload(pool.car(), **change)), 400)
    assert found.startswith(sentence)


def test_body_without_a_member_names_it(pool: Pool) -> None:
    assert sentences(post(pool, {"action": "Install", "exi_request": "x"}), 400)[0].startswith("iso15118SchemaVersion")
    assert sentences(post(pool, []), 400)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"ocppVersion": "1.6"}, "ocppVersion : "),
        ({"ocppversion": "2.1"}, "ocppversion: did you mean ocppVersion?"),
        ({"maxExiResponse": "10"}, "maxExiResponse : "),
        ({"broadcast": "yes"}, "broadcast : "),
        ({"anything": "1"}, "anything : unknown query parameter"),
    ],
)
def test_payload_with_a_wrong_query_parameter_is_400(pool: Pool, query: dict[str, str], sentence: str) -> None:
    assert sentences(post(pool, payload(pool.car()), **query), 400)[0].startswith(sentence)


def test_payload_of_other_methods_is_405(pool: Pool) -> None:
    answer = pool.http.get(PATH, headers={"Authorization": f"Bearer {pool.token('cpo')}"})
    assert sentences(answer, 405) == ["Method not allowed; use POST."]
    assert answer.headers["Allow"] == "POST"


def test_custom_data_and_unknown_members_are_ignored(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    body = payload(
        car, customData={"vendorId": "Example", "more": [1]}, later="x", maximumContractCertificateChains=None
    )
    assert installed(ask(pool, body), car) == contract.emaid


def test_request_is_logged_and_counted_with_its_outcome(pool: Pool, log: list[CapturedCall]) -> None:
    car = pool.car()
    refused = post(pool, payload(car)).headers["X-Trace-Id"]
    unread = post(pool, payload(car, b"abc")).headers["X-Trace-Id"]
    contract = pool.publish(car)
    delivered = post(pool, payload(car)).headers["X-Trace-Id"]
    lines = {entry.kwargs["trace_id"]: entry.kwargs for entry in log}
    assert [lines[each]["outcome"] for each in (refused, unread, delivered)] == ["no_contract", "exi", "ok"]
    assert {lines[each]["operation"] for each in (refused, unread, delivered)} == {"Get15118EVCertificate"}
    assert lines[delivered]["owner"] == EMAID(contract.emaid).provider
    metrics = pool.http.get("/metrics").text
    assert 'ccp_requests_total{operation="Get15118EVCertificate",outcome="no_contract",status="200"}' in metrics


def test_description_names_the_operation(pool: Pool) -> None:
    document = pool.http.get("/openapi.json").json()
    operation = document["paths"][PATH]["post"]
    assert operation["operationId"] == "Get15118EVCertificate"
    assert {"oauth2": ["cpo"]} in operation["security"]
    described = {parameter["name"] for parameter in operation["parameters"] if parameter.get("description")}
    assert {"ocppVersion", "maxExiResponse", "broadcast", "Idempotency-Key"} <= described
    assert "#/$defs" not in json.dumps(document)


@pytest.fixture(scope="module")
def failing(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose table of contracts cannot be read."""
    with start(pkis) as pool:
        pool.token("cpo")
        pool.sql("alter table contract rename to elsewhere")
        yield pool


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_payload_gets_a_temporary_failure_as_an_answer_for_the_car(
    failing: Pool, edition: str, version: str, log: list[CapturedCall]
) -> None:
    car = failing.car(edition)
    answer = post(failing, payload(car), ocppVersion=version)
    assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (200, True)
    body = answer.json()
    assert reason(body) == "Unavailable"
    assert body["statusInfo"]["additionalInfo"] == "temporary: The database does not answer now; try again."
    assert message_of(body, car).response_code == "FAILED"
    (line,) = [entry.kwargs for entry in log if entry.kwargs.get("trace_id") == answer.headers["X-Trace-Id"]]
    assert line["outcome"] == "database_unavailable"


def test_car_has_its_answer_in_time(pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch) -> None:
    with start({"iso2": pkis["iso2"]}) as pool:
        car = pool.car()
        pool.publish(car)
        monkeypatch.setattr(ocpp, "DELIVERY_TIMEOUT", 0.0)
        answer = ask(pool, payload(car))
        assert reason(answer) == "Unavailable"
        assert "in time" in answer["statusInfo"]["additionalInfo"]


# --- Other pools -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_payload_is_sent_to_other_pools_unless_the_caller_forbids_it(pkis: dict[str, PKI], edition: str) -> None:
    with start(pkis, pool_id="there") as there, start(pkis, pool_id="here", refresh_interval=0.05) as here:
        car = there.car(edition)
        emaids = [there.publish(car).emaid for _ in range(1 if edition == "iso2" else 3)]
        here.change(peers.add(Peer("there", there.base_url, "opnc", "peer", there.world.member("peer").secret), AT))
        body = payload(car)
        deadline = time.monotonic() + 30
        while (answer := ask(here, body, "2.1"))["status"] == "Failed" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert installed(answer, car) == emaids[0]
        forbidden = post(here, body, broadcast="false", ocppVersion="2.1").json()
        assert reason(forbidden) == "NotFound"
        forwarded = post(here, body, headers={"X-CCP-Hop": "another"}, ocppVersion="2.1").json()
        assert reason(forwarded) == "NotFound"
        addressed = {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "there"}
        if edition == "iso20":
            assert (answer["remainingContracts"], remaining_in(answer, car)) == (2, 2)
            rest = [post(here, body, headers=addressed, ocppVersion="2.1").json(), ask(here, body, "2.1")]
            assert [installed(each, car) for each in rest] == emaids[1:]
            assert [each["remainingContracts"] for each in rest] == [1, 0]
            # Other pools get the car's message only.
            other = bytes.fromhex("aabbccdd00112233")
            wanted = payload(car, session_id=other, prioritizedEMAIDs=[emaids[2], "unknown", emaids[1]])
            order = [installed(ask(here, wanted, "2.1"), car, other) for _ in range(3)]
            assert order == [emaids[2], emaids[1], emaids[0]]
        else:
            assert installed(post(here, body, headers=addressed).json(), car) == emaids[0]
