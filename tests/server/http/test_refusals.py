"""Records of refused deliveries: what is kept, who sees it, and what it is bounded by; and the counters of requests."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp.ids import EMAID, PCID
from ccp.server.app import build_services
from ccp.server.storage.queries import erasure, refusals
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.server.http.ocpp.payloads import payload
from tests.server.http.ocpp.payloads import post as post_ocpp
from tests.server.http.opcp.requests import call
from tests.waiting import wait_until
from tests.world import AT, SESSION, Pool, expired_car, new_emaid, new_pcid, post_body, start

OWN = "/opnc/v1/event/refusals"


@pytest.fixture(scope="module")
def keeping(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that keeps refused requests."""
    with start(pkis, keep_refused_requests=True) as running:
        yield running


def listed(pool: Pool, **query: Any) -> list[dict[str, Any]]:
    answer = pool.http.get("/admin/v1/refusals", params=query, headers=bearer(pool, "everything"))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["refusals"]
    return found


def own(pool: Pool, party: str, **query: Any) -> list[dict[str, Any]]:
    answer = pool.http.get(OWN, params=query, headers=bearer(pool, party))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["refusals"]
    return found


def bearer(pool: Pool, party: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {pool.token(party)}"}


def recorded(pool: Pool, trace_id: str) -> dict[str, Any]:
    """The record of a refusal, once it is written."""
    wait_until(lambda: bool(listed(pool, trace_id=trace_id)))
    (found,) = listed(pool, trace_id=trace_id)
    return found


@pytest.mark.parametrize("dialect", ["opnc", "opcp", "ocpp"])
def test_refusal_of_every_dialect_keeps_its_reason(pool: Pool, dialect: str) -> None:
    car = expired_car(pool.pki())
    message = car.request(SESSION, AT)
    body = post_body(message, str(car.namespace))
    if dialect == "opnc":
        answer = pool.cpo.post("/signedcontractdata", json=body)
    elif dialect == "opcp":
        answer = call(pool, "cpo", "POST", "/ccp/signedContractData", json=body)
    else:
        answer = post_ocpp(pool, payload(car, message))
    found = recorded(pool, answer.headers["x-trace-id"])
    assert found["at"].endswith("Z")
    assert abs((datetime.fromisoformat(found["at"]) - datetime.now(UTC)).total_seconds()) < 60
    assert {
        name: found[name] for name in ("client_id", "dialect", "status", "pcid", "edition", "digest", "request")
    } == {
        "client_id": "cpo",
        "dialect": dialect,
        "status": 200,
        "pcid": str(car.pcid),
        "edition": str(car.namespace),
        "digest": hashlib.sha256(message).hexdigest(),
        "request": None,
    }
    assert found["code"] == answer.headers["x-error-code"] == "provisioning-certificate-expired"
    assert found["check"] == "chain of the provisioning certificate to an OEM root"
    assert "expired at" in found["reason"]
    assert found["responsible"] == "OEM"
    assert found["action"]


def test_refusal_of_an_unreadable_message_and_of_an_oem_is_recorded(pool: Pool) -> None:
    unread = pool.cpo.post("/signedcontractdata", json=post_body(b"\x80\x98", "urn:iso:15118:2:2013:MsgDef"))
    found = recorded(pool, unread.headers["x-trace-id"])
    assert (found["status"], found["code"], found["pcid"]) == (400, "message-unreadable", None)
    emaid, pcid = new_emaid(), new_pcid()
    missing = pool.oem.get(f"/signedcontractdata/{emaid}/{pcid}")
    found = recorded(pool, missing.headers["x-trace-id"])
    assert (found["code"], found["pcid"], found["emaid"]) == ("contract-not-found", pcid, emaid)


def test_refusals_are_filtered_and_paged(pool: Pool) -> None:
    car, other = pool.car(), expired_car(pool.pki())
    ids = [pool.post(car).headers["x-trace-id"] for _ in range(3)]
    last = pool.post(other).headers["x-trace-id"]
    recorded(pool, last)
    spelled = "-".join((car.pcid[:3], car.pcid[3:8].lower(), car.pcid[8:]))
    assert [each["trace_id"] for each in listed(pool, pcid=spelled)] == ids[::-1]
    assert not listed(pool, pcid=str(car.pcid), code="provisioning-certificate-expired")
    assert not listed(pool, pcid=str(car.pcid), client_id="oem")
    assert not listed(pool, pcid=str(car.pcid), until="2020-01-01T00:00:00Z")
    assert len(listed(pool, pcid=str(car.pcid), since="2020-01-01T00:00:00Z")) == 3
    seen, cursor = [], None
    while True:
        query = {"pcid": str(car.pcid), "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = pool.http.get("/admin/v1/refusals", params=query, headers=bearer(pool, "everything")).json()
        seen += [each["trace_id"] for each in page["refusals"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "query",
    [{"pcid": "short"}, {"code": "unheard-of"}, {"cursor": "x"}, {"since": "today"}, {"until": "0001-01-01T00:00:00Z"}],
)
def test_refusals_need_valid_filters(pool: Pool, query: dict[str, str]) -> None:
    for path in ("/admin/v1/refusals", OWN):
        assert pool.http.get(path, params=query, headers=bearer(pool, "everything")).status_code == 400


def test_refusals_are_for_admins_and_owners_only(pool: Pool) -> None:
    for party in ("cpo", "oem", "emsp", "cps", "peer"):
        for path in ("/admin/v1/refusals", "/admin/v1/statistics"):
            assert pool.http.get(path, headers=bearer(pool, party)).status_code == 403
    for party in ("cpo", "cps", "peer"):
        assert pool.http.get(OWN, headers=bearer(pool, party)).status_code == 403
    assert pool.http.get(OWN).status_code == 401


def test_refusals_of_own_vehicles_and_contracts_only_are_seen(pool: Pool) -> None:
    car, foreign = pool.car(), pool.car(wmi="WXB")
    emaids = sorted([pool.publish(car).emaid, pool.publish(car, new_emaid("NLEXB")).emaid])
    for emaid in emaids:
        pool.expire(emaid)
    trace_id = pool.post(car).headers["x-trace-id"]
    other_id = pool.post(foreign).headers["x-trace-id"]
    recorded(pool, other_id)
    assert recorded(pool, trace_id)["emaids"] == emaids
    (oems,) = own(pool, "oem", pcid=str(car.pcid))
    assert (oems["traceId"], oems["code"], oems["emaids"]) == (trace_id, "no-valid-contract", [])
    assert "cpo" not in json.dumps(oems)
    for party, emaid in (("emsp", emaids[0]), ("other_emsp", emaids[1])):
        (found,) = own(pool, party, pcid=str(car.pcid))
        assert (found["traceId"], found["emaids"]) == (trace_id, [emaid])
        assert [each["traceId"] for each in own(pool, party, emaid=emaid)] == [trace_id]
    assert not own(pool, "other_oem", pcid=str(car.pcid))
    assert not own(pool, "other_emsp", emaid=emaids[0])
    assert not own(pool, "oem", pcid=str(foreign.pcid))
    assert [each["traceId"] for each in own(pool, "other_oem", pcid=str(foreign.pcid))] == [other_id]
    assert trace_id not in {each["traceId"] for each in own(pool, "other_oem", limit=200)}


def test_refusal_without_a_message_is_seen_by_the_emsp_of_the_contract(pool: Pool) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    pool.expire(emaid)
    answer = pool.cpo.post(
        "/signedcontractdata",
        json=post_body(car.request(SESSION, AT), str(car.namespace)),
        headers={"alwaysReturnEXI": "false"},
    )
    assert answer.status_code == 404
    assert recorded(pool, answer.headers["x-trace-id"])["emaids"] == [emaid]
    (found,) = own(pool, "emsp", emaid=emaid)
    assert (found["traceId"], found["code"]) == (answer.headers["x-trace-id"], "no-valid-contract")


def test_refusal_of_an_oem_is_not_seen_by_the_maker_whose_vehicle_it_named(pool: Pool) -> None:
    refused = pool.oem.get(f"/contractData/pcid/{new_pcid('WXB')}").headers["x-trace-id"]
    assert recorded(pool, refused)["code"] == "id-not-registered"
    assert refused not in {each["traceId"] for each in own(pool, "other_oem", limit=200)}


def test_refusal_with_a_code_of_a_newer_release_is_listed(pool: Pool, tmp_path: Any) -> None:
    """During a rolling upgrade, a newer worker stores codes that this release does not know."""
    trace_id = pool.oem.get(f"/signedcontractdata/{new_emaid()}/{new_pcid()}").headers["x-trace-id"]
    recorded(pool, trace_id)
    pool.sql("update refusal set code = 'reason-of-tomorrow' where id = ?", trace_id)
    (found,) = listed(pool, trace_id=trace_id)
    assert (found["code"], found["responsible"]) == ("reason-of-tomorrow", "pool operator")
    (of_owner,) = (each for each in own(pool, "oem", limit=200) if each["traceId"] == trace_id)
    assert of_owner["code"] == "reason-of-tomorrow"
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\n', "utf-8")
    assert "This release does not know the code" in ccp_ok("why", trace_id, "--config", config).out


def test_refused_request_is_kept_only_by_the_setting_and_answered_again(keeping: Pool, tmp_path: Any) -> None:
    car = keeping.car()
    trace_id = keeping.post(car).headers["x-trace-id"]
    assert recorded(keeping, trace_id)["request"] is not None
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{keeping.settings.database}"\nbase_url = "{keeping.base_url}"\n', "utf-8")
    (found,) = json.loads(ccp_ok("why", trace_id, "--json", "--config", config).out)
    assert found["now"]["code"] == "no-contract-for-vehicle"
    assert {check["verdict"] for check in found["now"]["checks"]["checks"]} == {"passed"}
    contract = keeping.publish(car)
    text = ccp_ok("why", str(car.pcid).lower(), "--config", config).out
    assert f"now        contract {contract.emaid}" in text
    assert "to do      eMSP: " in text
    assert "No contract is stored for the vehicle." in text


def test_refusals_are_erased_with_a_vehicle_and_with_a_contract(keeping: Pool) -> None:
    car = keeping.car()
    emaid = keeping.publish(car).emaid
    keeping.expire(emaid)
    trace_id = keeping.post(car).headers["x-trace-id"]
    recorded(keeping, trace_id)

    def erase(named: EMAID | PCID) -> Any:
        return keeping.change(erasure.erase(named, (), AT, "test", notify=False))

    assert erase(emaid).refusals == 1
    assert not listed(keeping, trace_id=trace_id)
    trace_id = keeping.post(car).headers["x-trace-id"]
    recorded(keeping, trace_id)
    assert erase(car.pcid).refusals == 1
    assert not listed(keeping, pcid=str(car.pcid))
    assert not keeping.sql("select * from refusal_contract where emaid = ?", str(emaid))


def statistics(pool: Pool, **query: str) -> dict[tuple[str, str | None, str | None], int]:
    answer = pool.http.get("/admin/v1/statistics", params=query, headers=bearer(pool, "everything"))
    assert answer.status_code == 200, answer.text
    found: dict[tuple[str, str | None, str | None], int] = {}
    for each in answer.json()["counts"]:
        key = each["dialect"], each["operation"], each["code"]
        found[key] = found.get(key, 0) + each["requests"]
    return found


def test_statistics_count_requests_by_dialect_operation_and_code(pkis: dict[str, PKI]) -> None:
    with start(pkis) as pool:
        car = pool.car()
        pool.publish(car)
        deliver = "GetSignedContractDataByCertificateInstallationReq"
        for _ in range(3):
            assert pool.post(car).status_code == 200
        pool.post(pool.car())
        post_ocpp(pool, payload(car))
        pool.http.get("/nowhere")
        wanted = {
            ("opnc", deliver, None): 3,
            ("opnc", deliver, "no-contract-for-vehicle"): 1,
            ("opnc", "AddSignedContractData", None): 1,
            ("ocpp", "Get15118EVCertificate", None): 1,
            ("other", None, "path-not-found"): 1,
        }
        wait_until(lambda: wanted.items() <= statistics(pool).items())
        assert wanted.items() <= statistics(pool, per="day").items()
        assert not statistics(pool, since="2020-01-01T00:00:00Z", until="2020-01-31T00:00:00Z")


@pytest.mark.parametrize(
    ("since", "until", "status"),
    [
        ("2020-01-02T00:00:00Z", "2020-01-01T00:00:00Z", 400),
        ("2020-01-01T00:00:00Z", "2022-01-01T00:00:00Z", 400),
        ("0001-01-01T00:00:00+14:00", "0001-01-02T00:00:00Z", 400),
        ("9999-12-31T00:00:00-14:00", "9999-12-31T23:59:59-14:00", 400),
        ("9999-12-01T00:00:00Z", "9999-12-31T23:59:59Z", 200),
        ("1970-01-01T00:00:00+14:00", "1970-01-01T00:00:00Z", 200),
    ],
)
def test_statistics_need_a_period_of_a_year_at_most(pool: Pool, since: str, until: str, status: int) -> None:
    query = {"since": since, "until": until}
    answer = pool.http.get("/admin/v1/statistics", params=query, headers=bearer(pool, "everything"))
    assert answer.status_code == status, answer.text


def test_refusal_that_is_written_after_an_erasure_is_removed_too(keeping: Pool) -> None:
    """A worker writes the records of the last second later; the command waits for them."""
    car = keeping.car()
    late = refusals.Refusal(
        "0f0f0f0f-0000-4000-8000-000000000001", AT, "cpo", "x", "opnc", 200, None, car.pcid, None, None,
        "no-contract-for-vehicle", None, "No contract.",
    )  # fmt: skip
    erased = "select count(*) from audit where action = 'data.erased'"

    async def run() -> int:
        built = build_services(keeping.settings)
        await built.store.open()
        try:
            before = keeping.sql(erased)
            task = asyncio.create_task(
                built.pool.erase(car.pcid, datetime.now(UTC), actor="test", notify=False, settle=0.7)
            )
            await asyncio.to_thread(wait_until, lambda: keeping.sql(erased) != before)
            await built.store.write(refusals.record([late]))
            assert len(listed(keeping, pcid=str(car.pcid))) == 1
            return (await task).refusals
        finally:
            await built.store.close()

    assert asyncio.run(run()) == 1
    assert not listed(keeping, pcid=str(car.pcid))
