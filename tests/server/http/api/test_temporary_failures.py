"""A vehicle's request that cannot be answered now: the vehicle gets FAILED, and its station may try again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.server.http.middleware import tracing
from ccp.server.pool.delivery import Delivery
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.world import AT, SESSION, Pool, post_body, read, start

SILENT = "The database does not answer now; try again."
LATE = "The pool cannot answer in time now; try again."
DIALECTS = ["opnc", "opcp"]


@pytest.fixture(scope="module")
def failing(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool whose table of contracts cannot be read."""
    with start(pkis) as pool:
        pool.token("cpo")
        pool.sql("alter table contract rename to elsewhere")
        yield pool


class _EveryLevel(CapturingLogger):
    def is_enabled_for(self, level: int) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the pools of this process log of requests."""
    logger = _EveryLevel()
    monkeypatch.setattr(tracing, "_log", logger)
    return logger.calls


def ask(pool: Pool, dialect: str, car: Car, always: str | None = None) -> httpx.Response:
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    headers = {"alwaysReturnEXI": always} if always else {}
    path = "/ccp/signedContractData"
    if dialect == "opcp":
        return call(pool, "cpo", "POST", path, json=body, headers=headers)
    return pool.cpo.post("/signedcontractdata", json=body, headers=headers)


def station_message(answer: httpx.Response, car: Car) -> str:
    """What the station reads beside the negative message, which is of this session and says FAILED."""
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    body: Any = answer.json()
    if "CCPResponse" in body:
        item = body["CCPResponse"]["emaidContent"][0]["messageDef"]
    else:
        (item,) = body["signedContractDataCollection"]
        assert item["pcid"] == car.pcid
    assert item["emaid"] == "ZZZZZ000000000"
    message = read(item, str(car.namespace))
    assert message.response_code == "FAILED"
    text: str = item["metaData"]
    return text


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_vehicle_gets_its_message_while_the_database_fails(failing: Pool, dialect: str, edition: str) -> None:
    car = failing.car(edition)
    for always in (None, "true"):
        assert station_message(ask(failing, dialect, car, always), car) == f"temporary: {SILENT}"
    refused = ask(failing, dialect, car, "false")
    assert sentences(refused, 503) == [SILENT]
    assert int(refused.headers["Retry-After"]) >= 1


def test_temporary_failure_is_counted_and_logged_with_its_own_outcome(failing: Pool, log: list[CapturedCall]) -> None:
    def counted() -> float:
        lines = failing.http.get("/metrics").text.splitlines()
        wanted = [line for line in lines if 'outcome="database_unavailable"' in line and 'status="200"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in wanted if "_total" in line)

    before, car = counted(), failing.car()
    named = ask(failing, "opnc", car).headers["X-Trace-Id"]
    assert counted() == before + 1
    (line,) = [entry.kwargs for entry in log if entry.kwargs.get("trace_id") == named]
    assert (line["outcome"], line["status"], line["reason"]) == ("database_unavailable", 200, SILENT)


def test_message_that_cannot_be_read_is_400_whatever_else_fails(failing: Pool) -> None:
    body = {"certificateInstallationReq": "AAAA", "xsdMsgDefNamespace": str(failing.car().namespace)}
    assert sentences(failing.cpo.post("/signedcontractdata", json=body), 400)[0] == "EXI format is invalid!"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vehicle_has_its_answer_in_time_whatever_is_slow(
    pkis: dict[str, PKI], dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.sleep(30)  # A check that hangs; the time limit cancels it.

    slow: Callable[..., Any] = hang
    with start({"iso2": pkis["iso2"]}) as pool:
        car = pool.car()
        contract = pool.publish(car)
        monkeypatch.setattr("ccp.server.http.signed_contract_data.DELIVERY_TIMEOUT", 0.3)
        with monkeypatch.context() as hanging:
            hanging.setattr(Delivery, "_check_current_key", slow)
            assert station_message(ask(pool, dialect, car), car) == f"temporary: {LATE}"
            assert sentences(ask(pool, dialect, car, "false"), 503) == [LATE]
        monkeypatch.setattr("ccp.server.http.signed_contract_data.DELIVERY_TIMEOUT", 30)
        assert contract.emaid in ask(pool, dialect, car).text


def test_time_in_which_a_caller_sends_its_body_does_not_count(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    with start({"iso2": pkis["iso2"]}) as pool:
        car = pool.car()
        contract = pool.publish(car)
        body = post_body(car.request(SESSION, AT), str(car.namespace))
        message = httpx.Request("POST", "http://x", json=body).content

        def slowly() -> Iterator[bytes]:
            yield message[:100]
            time.sleep(1.1)  # Longer than the limit.
            yield message[100:]

        monkeypatch.setattr("ccp.server.http.signed_contract_data.DELIVERY_TIMEOUT", 1.0)
        answer = pool.cpo.post("/signedcontractdata", content=slowly(), headers={"Content-Type": "application/json"})
        assert contract.emaid in answer.text
