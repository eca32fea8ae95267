"""Audit rows of operations and commands: one for each change, none for a refused one."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.audit.actor import command_actor
from ccp.server.storage.queries import audit as queries
from ccp.server.storage.queries.audit import AuditRow, Filter
from ccp.testing.pki import PKI
from tests.background_rounds import wait_for_round
from tests.cli.run import ccp_ok
from tests.server.audit.made import verified
from tests.world import Pool, edition_of, new_emaid, new_pcid, opened, put_body, start

WEBHOOK_KEY = "a key of the tests"


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, pcp_webhook_secret=WEBHOOK_KEY) as running:
        yield running
        assert verdict(running).broken == ()


def verdict(pool: Pool) -> Any:
    async def run() -> Any:
        async with opened(pool.settings) as store:
            return await verified(store)

    return asyncio.run(run())


def rows(pool: Pool, *ids: str, **wanted: Any) -> list[AuditRow]:
    """The rows that name the ids, oldest first."""
    found: list[AuditRow] = pool.change(queries.search(Filter(ids=ids, **wanted), 1000))
    return found[::-1]


def only(pool: Pool, answer: httpx.Response, *ids: str) -> AuditRow:
    """The one row of a request."""
    trace_id = answer.headers["x-trace-id"]
    (row,) = [row for row in rows(pool, *ids) if row.trace_id == trace_id]
    return row


def soon(pool: Pool, answer: httpx.Response) -> AuditRow:
    """The one row of a refused request, which is written a moment after its answer."""
    deadline = time.monotonic() + 30
    while True:
        found = [row for row in rows(pool) if row.trace_id == answer.headers["x-trace-id"]]
        if found or time.monotonic() > deadline:
            (row,) = found
            return row
        time.sleep(0.05)


def subject(row: AuditRow) -> dict[str, Any]:
    assert row.subject is not None
    members: dict[str, Any] = json.loads(row.subject)
    return members


# --- The seven operations --------------------------------------------------------------------------------------------


def test_publication_leaves_one_row(pool: Pool) -> None:
    car = pool.car()
    contract = pool.contract(car)
    answer = pool.cps.put("/signedcontractdata", json=contract.body)
    row = only(pool, answer, contract.emaid)
    assert (row.actor, row.action, row.outcome) == ("cps", "contract.published", "ok")
    assert abs(row.when - datetime.now(UTC)) < timedelta(minutes=1)
    members = subject(row)
    assert members == {
        "emaid": contract.emaid,
        "pcid": car.pcid,
        "namespace": car.namespace,
        "root": pool.pki().v2g_root.certificate.fingerprint,
    }
    assert len(rows(pool, contract.emaid)) == 1


def test_publication_of_the_same_variant_is_replaced_and_of_another_one_published(pool: Pool) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    pool.publish(car, emaid)
    pool.publish(car, emaid, signer="other_iso2")
    assert [row.action for row in rows(pool, emaid)] == [
        "contract.published",
        "contract.replaced",
        "contract.published",
    ]


def test_publication_that_moves_a_contract_leaves_one_row_that_names_both_vehicles(pool: Pool) -> None:
    car, other = pool.car(), pool.car()
    emaid = pool.publish(car).emaid
    answer = pool.cps.put("/signedcontractdata", json=pool.contract(other, emaid).body)
    row = only(pool, answer, emaid)
    assert row.action == "contract.moved"
    assert (subject(row)["pcid"], subject(row)["moved_from"]) == (other.pcid, car.pcid)
    assert [row.action for row in rows(pool, car.pcid)] == ["contract.published", "contract.moved"]


def test_withdraw_leaves_one_row(pool: Pool) -> None:
    car = pool.car()
    emaid = pool.publish(car).emaid
    answer = pool.emsp.delete(f"/signedcontractdata/{emaid}")
    assert answer.status_code == 200
    row = only(pool, answer, emaid)
    assert (row.actor, row.action, subject(row)) == ("emsp", "contract.withdrawn", {"emaid": emaid, "pcid": car.pcid})


def test_change_of_the_default_leaves_one_row_and_one_that_changes_nothing_none(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    second = pool.publish(car).emaid
    path = f"/signedcontractdata/{second}/{car.pcid}/setdefault"
    row = only(pool, pool.oem.post(path), second)
    assert (row.actor, row.action, subject(row)) == ("oem", "contract.default", {"emaid": second, "pcid": car.pcid})
    count = len(rows(pool, second))
    assert pool.oem.post(path).status_code == 200
    assert len(rows(pool, second)) == count


def test_deliveries_dry_runs_and_reads_leave_no_row(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    before = len(rows(pool))
    pool.ask(car)
    assert pool.listed(car)
    assert pool.signed(contract.emaid, car).status_code == 200
    assert pool.emsp.get(f"/contractData/emaid/{contract.emaid}").status_code == 200
    again = pool.contract(car, contract.emaid)
    assert pool.cps.put("/signedcontractdata", params={"dryRun": "true"}, json=again.body).status_code == 200
    assert len(rows(pool)) == before


def test_requests_that_are_refused_or_not_found_leave_no_row(pool: Pool) -> None:
    car = pool.car()
    contract = pool.contract(car, signer="stranger")
    before = len(rows(pool))
    assert pool.cps.put("/signedcontractdata", json=contract.body).status_code == 400
    assert pool.cps.put("/signedcontractdata", json={}).status_code == 400
    assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 404
    assert pool.oem.post(f"/signedcontractdata/{contract.emaid}/{car.pcid}/setdefault").status_code == 400
    assert pool.post(car, headers={"alwaysReturnEXI": "false"}).status_code == 404
    assert len(rows(pool)) == before


# --- Refused access --------------------------------------------------------------------------------------------------


def test_id_of_another_party_leaves_a_row_with_the_caller_the_ids_and_the_trace(pool: Pool) -> None:
    emaid, pcid = new_emaid("NLEXB"), new_pcid("WXB")
    row = soon(pool, pool.emsp.get(f"/contractData/emaid/{emaid}"))
    assert (row.actor, row.action, row.outcome) == ("emsp", "access.refused", "not_authorised 403")
    assert subject(row) == {"operation": "GetContractDataByEmaid", "address": "127.0.0.1", "emaid": emaid}
    row = soon(pool, pool.oem.post(f"/signedcontractdata/{emaid}/{pcid}/setdefault"))
    assert (row.actor, subject(row)["emaid"], subject(row)["pcid"]) == ("oem", emaid, pcid)
    car = pool.car()
    row = soon(pool, pool.client("small_cps").put("/signedcontractdata", json=pool.contract(car, emaid).body))
    assert (row.actor, subject(row)["emaid"], subject(row)["pcid"]) == ("small_cps", emaid, car.pcid)


def test_request_without_a_good_token_leaves_a_row_of_nobody(pool: Pool) -> None:
    emaid = new_emaid()
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Bearer {pool.token('emsp')}x"}):
        answer = pool.client(None).delete(f"/signedcontractdata/{emaid}", headers=headers)
        assert answer.status_code == 401
        row = soon(pool, answer)
        assert (row.actor, row.action, row.outcome) == ("unknown", "access.refused", "not_authenticated 401")
        assert subject(row)["emaid"] == emaid


def test_client_secret_that_is_wrong_leaves_a_row_with_the_claimed_client_id(pool: Pool) -> None:
    form = {"grant_type": "client_credentials", "client_id": "emsp", "client_secret": "wrong secret 17"}
    answer = pool.http.post("/oauth/token", data=form)
    assert answer.status_code == 401
    row = soon(pool, answer)
    assert (row.actor, subject(row)["claimed"]) == ("unknown", "emsp")
    assert "wrong secret" not in json.dumps(row.members())


def test_event_with_a_wrong_signature_leaves_a_row_of_nobody(pool: Pool) -> None:
    answer = pool.http.post("/opnc/v1/ccp/events/pcp", json={}, headers={"X-Operator-Signature": "sha256=00"})
    assert answer.status_code == 403
    row = soon(pool, answer)
    assert (row.actor, subject(row)["operation"]) == ("unknown", "TakeProvisioningEvent")


def test_request_that_is_refused_leaves_one_row(pool: Pool) -> None:
    answer = pool.emsp.get(f"/contractData/emaid/{new_emaid('NLEXB')}")
    soon(pool, answer)
    wait_for_round("refused_access")  # Which writes what waits.
    assert len([row for row in rows(pool) if row.trace_id == answer.headers["x-trace-id"]]) == 1


# --- The Provisioning Certificate Pool, the schedule and commands ----------------------------------------------------


def test_vehicle_that_is_forgotten_leaves_a_row_for_each_contract_of_it(pool: Pool) -> None:
    car = pool.car()
    emaids = sorted(pool.publish(car).emaid for _ in range(2))
    event = {
        "eventType": "emsp.prov.cert.deleted",
        "timestamp": datetime.now(UTC).isoformat(),
        "payload": {"pcid": car.pcid},
    }
    body = json.dumps(event).encode()
    signature = hmac.new(WEBHOOK_KEY.encode(), body, hashlib.sha256).hexdigest()
    answer = pool.http.post("/opnc/v1/ccp/events/pcp", content=body, headers={"X-Operator-Signature": signature})
    assert answer.status_code == 200
    recorded = [row for row in rows(pool, car.pcid) if row.action == "vehicle.forgotten"]
    assert {(row.actor, row.trace_id) for row in recorded} == {("pcp", answer.headers["x-trace-id"])}
    assert sorted(subject(row)["emaid"] for row in recorded) == emaids
    assert {(subject(row)["event"], subject(row)["left"]) for row in recorded} == {("prov.cert.deleted", False)}


def config_of(pool: Pool, folder: Path) -> Path:
    config = folder / "ccp.toml"
    config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{pool.base_url}"\nlog_level = "error"\n')
    return config


def test_purge_by_command_leaves_a_row_and_a_dry_run_none(pool: Pool, tmp_path: Path) -> None:
    config = config_of(pool, tmp_path)
    emaid = pool.publish(pool.car()).emaid
    pool.expire(emaid)
    ccp_ok("purge", "--dry-run", "--config", config)
    assert [row.action for row in rows(pool, emaid)] == ["contract.published"]
    ccp_ok("purge", "--yes", "--config", config)
    row = rows(pool, emaid)[-1]
    assert (row.actor, row.action, subject(row)["reason"]) == (command_actor(), "contract.purged", "expired")
    assert row.trace_id is None


def test_purge_that_is_scheduled_is_recorded_for_the_pool(pkis: dict[str, PKI], tmp_path: Path) -> None:
    with start(pkis, purge_interval=1) as pool:
        emaid = pool.publish(pool.car()).emaid
        pool.expire(emaid)
        deadline = time.monotonic() + 30
        while len(found := rows(pool, emaid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [(row.actor, row.action) for row in found] == [
            ("cps", "contract.published"),
            ("pool", "contract.purged"),
        ]


def test_anchors_that_come_and_go_by_command_leave_rows(pool: Pool, pkis: dict[str, PKI], tmp_path: Path) -> None:
    config, root = config_of(pool, tmp_path), pkis["stranger"].emsp_root.certificate
    file = tmp_path / "root.pem"
    file.write_bytes(root.pem())
    ccp_ok("trust", "add", file, "--role", "emsp", "--config", config)
    ccp_ok("trust", "add", file, "--role", "emsp", "--label", "again", "--config", config)
    ccp_ok("trust", "remove", root.fingerprint, "--yes", "--config", config)
    recorded = rows(pool, root.fingerprint)
    assert [(row.actor, row.action) for row in recorded] == [
        (command_actor(), action) for action in ("anchor.added", "anchor.added", "anchor.removed")
    ]
    assert [subject(row).get("new") for row in recorded] == [True, False, None]
    assert subject(recorded[2])["roles"] == ["emsp"]


def test_parties_and_their_secrets_leave_rows_without_the_secrets(pool: Pool, tmp_path: Path) -> None:
    config = config_of(pool, tmp_path)
    secret = json.loads(ccp_ok("party", "add", "Audited", "--role", "cpo", "--json", "--config", config).out)[
        "client_secret"
    ]
    ccp_ok("party", "disable", "Audited", "--config", config)
    recorded = rows(pool, "audited")
    assert [(row.actor, row.action) for row in recorded] == [
        (command_actor(), "party.added"),
        (command_actor(), "party.disabled"),
    ]
    assert not any(secret in json.dumps(row.members()) for row in rows(pool))


def test_message_that_two_callers_publish_at_once_leaves_a_row_for_each(pool: Pool) -> None:
    car = pool.car()
    contract = pool.contract(car)
    body = put_body(contract.message, contract.emaid, car.pcid, str(car.namespace))

    async def both() -> list[httpx.Response]:
        headers = {"Authorization": f"Bearer {pool.token('cps')}"}
        async with httpx.AsyncClient(base_url=pool.base_url, headers=headers, timeout=10) as http:
            return await asyncio.gather(*(http.put("/opnc/v1/ccp/signedcontractdata", json=body) for _ in range(8)))

    answers = asyncio.run(both())
    assert {answer.status_code for answer in answers} == {201}
    recorded = rows(pool, contract.emaid)
    assert {row.trace_id for row in recorded} == {answer.headers["x-trace-id"] for answer in answers}
    assert [row.action for row in sorted(recorded, key=lambda row: row.number)] == [
        "contract.published",
        *["contract.replaced"] * 7,
    ]
    assert edition_of(car) == "iso2"
