"""Pages of refused deliveries: the record of a trace id, the list with its filters, and what a viewer sees."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from ccp.errors.codes import BY_VALUE
from ccp.server.storage.queries.vehicle_lock import microseconds
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_ok
from tests.server.console.browsing import Browser, Page, admin, logged_in
from tests.waiting import wait_until
from tests.world import AT, SESSION, Pool, expired_car, new_emaid, new_pcid, post_body, start

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"


@pytest.fixture(scope="module")
def keeping(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool that keeps refused requests and serves its documentation."""
    site = tmp_path_factory.mktemp("site")
    (site / "index.html").write_text("<h1>Documentation</h1>", "utf-8")
    options = {"console": True, "refresh_interval": 0.05, "documentation_directory": site}
    with start(pkis, [admin()], keep_refused_requests=True, **options) as running:
        yield running


def refused(pool: Pool, car: Car) -> str:
    """Refuse a car. Returns the trace id, once the record is written."""
    trace_id = pool.post(car).headers["x-trace-id"]
    wait_until(lambda: bool(pool.sql("select 1 from refusal where id = ?", trace_id)))
    return str(trace_id)


def made(pool: Pool, number: int, **columns: object) -> None:
    """Store records of one second each, newest last."""
    for place in range(number):
        row = {
            "id": f"{place:08x}-0000-4000-8000-{place:012x}", "at": microseconds(AT + timedelta(seconds=place)),
            "client_id": "flood", "operation": "x", "dialect": "opnc", "status": 200, "edition": None, "pcid": None,
            "wmi": None, "emaid": None, "digest": None, "code": "no-valid-contract", "check_name": None,
            "reason": "No.", "request": None, **columns,
        }  # fmt: skip
        names, places = ", ".join(row), ", ".join("?" * len(row))
        pool.sql(f"insert into refusal ({names}) values ({places})", *row.values())


def test_why_tells_the_story_of_a_trace_id(pool: Pool, person: Browser) -> None:
    car = expired_car(pool.pki())
    trace_id = refused(pool, car)
    page = person.page(f"/why?q={trace_id.upper()}")
    code = BY_VALUE["provisioning-certificate-expired"]
    for text in (
        "expired at", code.value, code.meaning, code.action, "chain of the provisioning certificate to an OEM root",
        "cpo", "OPNC", "ISO 15118-2", str(car.pcid), trace_id, "The request was not kept",
    ):  # fmt: skip
        assert text in page.text, text
    assert f"/console/vehicles/{car.pcid}" in page.links
    assert not [link for link in page.links if link.startswith("/docs")]
    assert re.search(r"SHA-256 of the message [0-9a-f]{64}", page.text)


def test_why_examines_a_kept_request_as_the_command_does(keeping: Pool, tmp_path: Path) -> None:
    car = keeping.car()
    trace_id = refused(keeping, car)
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{keeping.settings.database}"\nbase_url = "{keeping.base_url}"\n', "utf-8")
    with logged_in(keeping) as person:
        page = person.page(f"/why?q={trace_id}")
        assert "The request is valid, but the car gets no contract." in page.text
        assert "CertificateInstallationReq" in page.text
        assert "/docs/reference/errors/no-contract-for-vehicle.html" in page.links
        assert "now        no-contract-for-vehicle" in ccp_ok("why", trace_id, "--config", config).out
        emaid = keeping.publish(car).emaid
        before = keeping.sql("select count(*) from outbox")
        page = person.page(f"/why?q={trace_id}")
        assert "The request is valid, and the car gets a contract." in page.text
        assert f"/console/contracts/{emaid}" in page.links
        assert len(page.source) < 100_000
        assert f"now        contract {emaid}" in ccp_ok("why", trace_id, "--config", config).out
        expired = refused(keeping, expired_car(keeping.pki()))
        assert "The car gets no contract: the pool refuses its request." in person.page(f"/why?q={expired}").text
        printed = ccp_ok("why", expired, "--config", config).out
        assert "now        provisioning-certificate-expired" in printed
    assert keeping.sql("select count(*) from outbox") == before


def test_why_finds_the_refusals_of_a_vehicle_and_of_a_contract(pool: Pool, person: Browser, tmp_path: Path) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    pool.expire(emaid)
    ids = [refused(pool, car) for _ in range(2)]
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\n', "utf-8")
    for text in (f"{car.pcid[:3]}-{car.pcid[3:].lower()}", str(emaid)):
        page = person.page(f"/why?q={text}")
        assert "Earlier refusals" in page.text
        assert f"Trace id {ids[1]}" in page.text
        assert f"/console/why?q={ids[0]}" in page.links
        assert ids[1] in ccp_ok("why", text, "--config", config).out
    for path in (f"/vehicles/{car.pcid}", f"/contracts/{emaid}"):
        page = person.page(path)
        assert [link[-36:] for link in page.links if "/why?q=" in link] == ids[::-1]
        assert "Nothing is stored about deliveries." in page.text
    asked = new_emaid()
    refusal = pool.oem.get(f"/signedcontractdata/{asked}/{new_pcid()}").headers["x-trace-id"]
    wait_until(lambda: bool(pool.sql("select 1 from refusal where id = ?", refusal)))
    assert f"Trace id {refusal}" in person.page(f"/why?q={asked}").text


def test_why_says_what_it_means_that_nothing_is_found(pool: Pool, person: Browser, tmp_path: Path) -> None:
    unknown = "00000000-1111-4222-8333-444444444444"
    for text in (unknown, str(new_pcid()), str(new_emaid())):
        answer = person.get("/why", params={"q": text})
        page = Page(answer.text)
        assert answer.status_code == 404
        assert text in page.text
        for part in ("30 days (refusal_retention)", "only refused deliveries", "Another pool", "without a valid token"):
            assert part in page.text
    for text in ("nonsense", HOSTILE, "~nothing", "\x00"):
        answer = person.get("/why", params={"q": text})
        assert (answer.status_code, "<script>" in answer.text) == (400, False), text
    config = tmp_path / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\n', "utf-8")
    assert ccp("why", unknown, "--config", config).status == 1


def test_vehicle_page_of_an_unknown_vehicle_shows_its_refusals(pool: Pool, person: Browser) -> None:
    car = pool.car()
    trace_id = refused(pool, car)
    answer = person.get("/search", params={"q": str(car.pcid)})
    assert answer.headers["location"] == f"/console/vehicles/{car.pcid}"
    assert f"/console/why?q={trace_id}" in person.page(f"/vehicles/{car.pcid}").links


def test_vehicle_page_shows_what_is_stored_of_deliveries(pool: Pool, person: Browser) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    pool.sql(
        "insert into handed_out (pcid, client_id, request, contracts, expires_at) values (?, 'cpo', 'x', ?, ?)",
        str(car.pcid), f'[["{emaid}", false]]', microseconds(AT),
    )  # fmt: skip
    pool.sql(
        "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
        "queued_at, lease_until, attempts, state) values (?, 9, 0, 'w', 'e', 'emsp.contract.delivered.to.oem', ?, '', "
        "'{}', 1, 1, 1, 1, 'delivered')",
        str(car.pcid), str(emaid),
    )  # fmt: skip
    for path in (f"/vehicles/{car.pcid}", f"/contracts/{emaid}"):
        text = person.page(path).text
        assert "handed out one by one to cpo" in text
        assert "event emsp.contract.delivered.to.oem" in text


def test_refusals_page_filters_and_pages(pool: Pool, person: Browser) -> None:
    pool.sql("delete from refusal")
    made(pool, 120)
    path, seen = "/refusals?caller=flood", []
    for wanted in (50, 50, 20):
        page = person.page(path)
        found = [link[-36:] for link in page.links if "/why?q=" in link]
        assert len(found) == wanted
        seen += found
        path = next((link for link in page.links if "after=" in link), "")
    assert path == ""
    assert seen == [f"{place:08x}-0000-4000-8000-{place:012x}" for place in reversed(range(120))]
    pool.sql("update refusal set dialect = 'ocpp', edition = 'urn:iso:15118:2:2013:MsgDef' where id like '0000000a%'")
    time = f"{AT + timedelta(seconds=10):%Y-%m-%dT%H:%M:%S}"
    for query in (
        {"dialect": "ocpp"}, {"edition": "urn:iso:15118:2:2013:MsgDef"}, {"since": time, "until": time},
        {"dialect": "ocpp", "caller": "flood", "code": "no-valid-contract"},
    ):  # fmt: skip
        answer = person.get("/refusals", params=query)
        assert [link[-36:-28] for link in Page(answer.text).links if "/why?q=" in link] == ["0000000a"], query
    for query in ({"code": "message-unreadable"}, {"caller": "\x00nobody"}, {"since": "2999-01-01T00:00"}):
        assert "No refused delivery matches." in person.get("/refusals", params=query).text
    for name in ("code", "dialect", "edition", "since", "until", "after", "id"):
        answer = person.get("/refusals", params={name: HOSTILE})
        assert (answer.status_code, "<script>" in answer.text) == (400, False), name
    for query in ({"since": "0001-01-01T00:00+23:59"}, {"after": "9" * 30 + "."}, {"until": "9999-12-31T23:59-23:59"}):
        assert person.get("/refusals", params=query).status_code == 400


def test_refusals_page_searches_a_bounded_number_of_records(
    pool: Pool, person: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.storage.queries.refusals.SEARCHED", 10)
    pool.sql("delete from refusal")
    made(pool, 25)
    pool.sql("update refusal set dialect = 'ocpp' where id like '00000000-%'")
    path, pages = "/refusals?dialect=ocpp", 0
    while path:
        page = person.page(path)
        pages += 1
        found = [link[-36:] for link in page.links if "/why?q=" in link]
        path = next((link for link in page.links if "after=" in link), "")
        assert ("older ones may match" in page.text) == bool(path)
    assert (pages, found) == (3, ["00000000-0000-4000-8000-000000000000"])


def test_refusals_page_escapes_what_a_caller_controls(pool: Pool, person: Browser) -> None:
    pool.sql("delete from refusal")
    made(
        pool, 50, reason=HOSTILE * 9, client_id=HOSTILE, check_name=HOSTILE, edition=HOSTILE, code="of-a-later-release"
    )
    for path in ("/refusals", "/why?q=00000001-0000-4000-8000-000000000001"):
        answer = person.get(path)
        assert answer.status_code == 200
        assert "<script>" not in answer.text
        assert len(answer.content) < 100_000
    pool.sql("delete from refusal")


def test_refusals_of_a_viewer_have_pseudonyms(keeping: Pool) -> None:
    car = keeping.car()
    emaid = keeping.publish(car).emaid
    keeping.expire(emaid)
    trace_id = refused(keeping, car)
    refused(keeping, car)
    with logged_in(keeping) as person:
        cut = re.findall(r"<code>([A-Za-z0-9+/]+)… \(\d+ characters\)", person.get(f"/why?q={trace_id}").text)
        assert max(map(len, cut)) <= 48  # 36 bytes of a certificate do not reach the PCID in its subject.
        keeping.sql("update console_session set role = 'viewer'")
        page = person.page("/refusals")
        vehicle = next(link for link in page.links if "/vehicles/~" in link)
        handle = vehicle.rpartition("/")[2]
        paths = ("/refusals", f"/refusals?id={handle}", f"/why?q={trace_id}", f"/why?q={handle}", vehicle)
        for path in paths:
            answer = person.get(path)
            assert answer.status_code == 200, path
            for secret in (str(car.pcid), str(emaid), base64.b64encode(car.request(SESSION, AT)).decode()[:200]):
                assert secret not in answer.text, path
        assert trace_id in person.get(f"/refusals?id={handle}").text
        for text in (str(car.pcid), str(emaid)):
            answer = person.get("/why", params={"q": text})
            assert answer.status_code == 403
            assert "needs the role admin" in answer.text
            assert person.get("/refusals", params={"id": text}).status_code == 403
    keeping.sql("delete from console_session")


def test_audit_rows_of_refused_requests_link_to_why(pool: Pool, person: Browser) -> None:
    car = pool.car()
    answer = pool.oem.post("/signedcontractdata", json=post_body(car.request(SESSION, AT), str(car.namespace)))
    assert answer.status_code == 403
    trace_id = answer.headers["x-trace-id"]
    wait_until(lambda: bool(pool.sql("select 1 from audit where trace_id = ?", trace_id)))
    assert f"/console/why?q={trace_id}" in person.page("/audit?action=access.refused").links


def test_refusals_of_one_trace_are_all_shown_and_paged(pool: Pool, person: Browser) -> None:
    pool.sql("delete from refusal")
    made(pool, 52)
    trace_id = "00000001-0000-4000-8000-000000000001"
    pool.sql("update refusal set id = ? where id like '00000002-%'", f"{trace_id}.2")
    page = person.page(f"/why?q={trace_id}")
    assert "used the trace id for several requests" in page.text
    assert f"/console/why?q={trace_id}" in page.links
    first = person.page("/refusals?caller=flood")
    older = next(link for link in first.links if "after=" in link)
    assert f"{trace_id}.2" in older
    assert [link[-36:-28] for link in person.page(older).links if "/why?q=" in link] == ["00000001", "00000000"]
    query = {"cursor": older.partition("after=")[2], "limit": "5", "client_id": "flood"}
    bearer = {"Authorization": f"Bearer {pool.token('everything')}"}
    answer = pool.http.get("/admin/v1/refusals", params=query, headers=bearer)
    assert [each["trace_id"][:8] for each in answer.json()["refusals"]] == ["00000001", "00000000"]
    pool.sql("delete from refusal")
