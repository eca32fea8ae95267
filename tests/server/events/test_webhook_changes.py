"""Changes and removal of webhooks, and their deliveries by the API."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import webhooks as webhook_queries
from ccp.server.storage.queries.delivery_queue import AttemptOutcome
from tests.background_rounds import wait_for_round
from tests.cli.run import ccp_ok
from tests.server.events.webhook_api import (
    CREATED,
    DELETED,
    UPDATED,
    URL,
    call,
    copied,
    fanned_out,
    ok,
    subscribe,
    tried,
    without_secret,
)
from tests.server.events.webhook_calls import NOT_FOUND, UNKNOWN, ask
from tests.server.http.api.answers import sentences
from tests.world import Pool, new_emaid

pytestmark = pytest.mark.usefixtures("forget")


# --- Changing and removing -------------------------------------------------------------------------------------------


def test_webhook_edit_changes_given_fields_and_keeps_the_secret(pool: Pool) -> None:
    created = subscribe(pool, "fresh_oem", CREATED, DELETED, wmi=["WFA"], description="first", metadata={"a": 1})
    path, made = f"/{created['id']}", without_secret(created)

    def put(**members: Any) -> dict[str, Any]:
        members = {"url": URL, **members}
        answer = ok(call(pool, "fresh_oem", "PUT", path, json=members))
        after: dict[str, Any] = ok(call(pool, "fresh_oem", "GET", path))
        assert answer == after
        assert pool.sql("select secret from webhook where id = ?", created["id"]) == [(created["secret"],)]
        return after

    assert sentences(call(pool, "fresh_oem", "PUT", path, json={"status": "disabled"}), 400) == ["url : is missing"]
    assert put() == made
    assert put(description=None, metadata=None, status=None, events=None, wmis=None) == made
    assert put(status="disabled") == {**made, "status": "disabled"}
    assert put(url="https://hooks.example/new", status="enabled") == {**made, "url": "https://hooks.example/new"}
    assert put(wmis=["WFB"]) == {**made, "wmis": ["WFB"]}
    assert put(wmi=[]) == {**made, "wmis": ["WFA", "WFB"]}
    assert put(metadata={}, description="") == {**made, "wmis": ["WFA", "WFB"], "metadata": {}, "description": ""}
    assert put(enabledEvents=[UPDATED])["events"] == [UPDATED]
    assert put(signatureFormat="bare")["signatureFormat"] == "bare"
    assert put()["signatureFormat"] == "bare"
    assert put(signatureFormat="sha256")["signatureFormat"] == "sha256"
    refused = call(pool, "fresh_oem", "PUT", path, json={"url": URL, "signatureFormat": "md5"})
    assert sentences(refused, 400) == ["signatureFormat : must be 'sha256' or 'bare'"]


def test_webhook_edit_with_unchanged_ids_sets_no_filter(pool: Pool) -> None:
    made = subscribe(pool, "fresh_oem")
    assert made["wmis"] == ["WFA", "WFB"]
    again = ok(call(pool, "fresh_oem", "PUT", f"/{made['id']}", json={**made, "description": "the same otherwise"}))
    assert again["wmis"] == ["WFA", "WFB"]
    assert pool.sql("select wmis from webhook where id = ?", made["id"]) == [("[]",)]
    pinned = subscribe(pool, "fresh_oem", wmis=["WFB", "WFA"])
    assert json.loads(pool.sql("select wmis from webhook where id = ?", pinned["id"])[0][0]) == ["WFA", "WFB"]


def test_webhook_remove_deletes_deliveries_in_batches(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = subscribe(pool), subscribe(pool, "other_oem")
    fanned_out(pool, pool.publish(pool.car()))
    copied(pool, 2500)
    before: list[int] = []
    whole = webhook_queries.remove

    def measured(id: str) -> Query[bool]:
        before.append((yield "select count(*) from delivery where webhook_id = $1", (id,))[0][0])
        return (yield from whole(id))

    monkeypatch.setattr(webhook_queries, "remove", measured)
    assert call(pool, "other_oem", "DELETE", f"/{made['id']}").status_code == 404
    assert pool.sql("select count(*) from delivery where webhook_id = ?", made["id"]) == [(2501,)]
    assert call(pool, "oem", "DELETE", f"/{made['id']}").status_code == 200
    assert before == [0]
    assert pool.sql("select count(*) from delivery where webhook_id = ?", made["id"]) == [(0,)]
    assert call(pool, "other_oem", "GET", f"/{kept['id']}").status_code == 200


def test_webhook_changes_are_audited_without_secret_and_path(pool: Pool) -> None:
    def trail() -> list[tuple[str, str, str, dict[str, Any]]]:
        found = pool.sql("select actor, action, trace_id, subject from audit order by at")
        return [(*row[:3], json.loads(row[3])) for row in found if made["id"] in row[3]]

    made = subscribe(pool, "oem", CREATED)
    body = {"url": URL + "&more", "status": "disabled"}
    edited = call(pool, "oem", "PUT", f"/{made['id']}", json=body)
    assert edited.status_code == call(pool, "oem", "PUT", f"/{made['id']}", json=body).status_code == 200
    call(pool, "other_oem", "PUT", f"/{made['id']}", json=body)
    removed = call(pool, "oem", "DELETE", f"/{made['id']}")
    shown = {
        "endpoint": made["id"],
        "party": "oem",
        "host": "https://hooks.example",
        "events": [CREATED],
        "wmis": [],
        "provider_ids": [],
        "signature_format": "sha256",
    }
    change = {"changed": ["url", "enabled"], "before": {"enabled": True}, "after": {"enabled": False}}
    added, *others = trail()
    assert added[:2] + added[3:] == ("oem", "webhook.added", {**shown, "enabled": True})
    assert others == [
        (*("oem", "webhook.edited", edited.headers["x-trace-id"]), {"endpoint": made["id"], "party": "oem", **change}),
        ("oem", "webhook.removed", removed.headers["x-trace-id"], {**shown, "enabled": False}),
    ]
    whole = str(pool.sql("select subject from audit"))
    assert made["secret"] not in whole
    assert "in-the-address" not in whole
    assert ccp_ok("audit", "verify", env={"CCP_DATABASE": pool.settings.database}).status == 0


def test_webhook_remove_deletes_pending_deliveries(pool: Pool) -> None:
    made = subscribe(pool, "other_oem", CREATED)
    other = subscribe(pool, "other_oem", CREATED)
    fanned_out(pool, pool.publish(pool.car(wmi="WXB")))
    count = "select count(*) from delivery where webhook_id = ?"
    assert [pool.sql(count, each["id"]) for each in (made, other)] == [[(1,)], [(1,)]]
    answer = call(pool, "other_oem", "DELETE", f"/{made['id']}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert [pool.sql(count, each["id"]) for each in (made, other)] == [[(0,)], [(1,)]]
    for operation in ("GetEndpointById", "UpdateEndpointById", "GetEndpointDeliveries", "DeleteEndpointById"):
        assert sentences(ask(pool, "other_oem", operation, made["id"]), 404) == NOT_FOUND
    assert call(pool, "other_oem", "DELETE", f"/{other['id']}").status_code == 200


def test_webhook_is_active_at_once_in_its_own_process(pool: Pool) -> None:
    """Other processes see it within about a second. Delivery events are written only while a webhook subscribes."""
    event = "emsp.contract.delivered.to.oem"
    pool.sql("delete from outbox")
    cars = [pool.car() for _ in range(5)]
    for car in cars:
        pool.publish(car)
    pool.ask(cars[0])  # No webhook subscribes to this event.
    for car in cars:
        made = subscribe(pool, "emsp", event)
        pool.ask(car)
        assert call(pool, "emsp", "DELETE", f"/{made['id']}").status_code == 200
    pool.ask(cars[0])  # Nor of this, any more.
    deadline = time.monotonic() + 30
    select = "select pcid from outbox where kind = ? order by pcid"
    while len(found := pool.sql(select, event)) < len(cars):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    wait_for_round("delivered_events")  # Which writes what must not come.
    assert pool.sql(select, event) == [(car.pcid,) for car in cars]


def deliveries(pool: Pool, webhook: dict[str, Any], caller: str = "oem", **query: Any) -> dict[str, Any]:
    page: dict[str, Any] = ok(call(pool, caller, "GET", f"/{webhook['id']}/deliveries", params=query))
    assert set(page) == {"deliveries", "nextCursor"}
    return page


# --- Deliveries ------------------------------------------------------------------------------------------------------


def test_webhook_deliveries_show_each_outcome(pool: Pool) -> None:
    made = subscribe(pool)
    assert deliveries(pool, made) == {"deliveries": [], "nextCursor": None}
    car = pool.car()
    contract = pool.publish(car)
    fanned_out(pool, contract)
    (item,) = deliveries(pool, made)["deliveries"]
    assert str(uuid.UUID(item["eventId"])) == item["eventId"]
    times = {name: datetime.fromisoformat(item[name]) for name in ("timestamp", "nextAttempt")}
    assert all(timedelta() <= datetime.now(UTC) - each < timedelta(seconds=30) for each in times.values())
    waiting = {
        "eventId": item["eventId"],
        "eventType": CREATED,
        "pcid": car.pcid,
        "emaid": contract.emaid,
        "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef",
        "timestamp": item["timestamp"],
        "state": "waiting",
        "attempts": 0,
        "nextAttempt": item["nextAttempt"],
        "lastStatus": None,
        "lastError": None,
        "finishedAt": None,
    }
    assert item == waiting

    assert tried(pool, made["id"], AttemptOutcome.FAILED, error="hooks.example cannot be reached.") == 1
    (item,) = deliveries(pool, made)["deliveries"]
    again = datetime.fromisoformat(item.pop("nextAttempt")) - datetime.now(UTC)
    assert timedelta(minutes=59) < again <= timedelta(hours=1)
    failed = {**waiting, "attempts": 1, "lastError": "hooks.example cannot be reached."}
    assert item == {name: value for name, value in failed.items() if name != "nextAttempt"}

    pool.sql("update delivery set lease_until = 0 where event_id = ?", item["eventId"])
    assert tried(pool, made["id"], AttemptOutcome.REJECTED, 409, "It answered 409.") == 1
    (item,) = deliveries(pool, made)["deliveries"]
    assert datetime.now(UTC) - datetime.fromisoformat(item["finishedAt"]) < timedelta(seconds=30)
    assert (item["state"], item["attempts"], item["nextAttempt"]) == ("dead", 2, None)
    assert (item["lastStatus"], item["lastError"]) == (409, "It answered 409.")


def test_webhook_deliveries_are_paged_and_filtered(pool: Pool) -> None:
    made = subscribe(pool, "oem", CREATED, DELETED)
    published = [pool.publish(pool.car(), new_emaid()) for _ in range(3)]
    fanned_out(pool, *published)
    assert tried(pool, made["id"], AttemptOutcome.DELIVERED, 200) == 3
    for contract in published[:2]:
        assert pool.emsp.delete(f"/signedcontractdata/{contract.emaid}").status_code == 200
    fanned_out(pool)
    published.append(pool.publish(pool.car()))
    assert tried(pool, made["id"], AttemptOutcome.REJECTED, 400, "It answered 400.") == 2
    fanned_out(pool)

    whole = deliveries(pool, made)
    states = [item["state"] for item in whole["deliveries"]]
    assert states == ["waiting", "dead", "dead", "delivered", "delivered", "delivered"]
    assert whole["nextCursor"] is None
    times = [item["timestamp"] for item in whole["deliveries"]]
    assert times == sorted(times, reverse=True)
    for limit in (1, 2, 4, 6):
        pages, cursor = [], {}
        while True:
            page = deliveries(pool, made, limit=limit, **cursor)
            pages.append(page["deliveries"])
            if page["nextCursor"] is None:
                break
            cursor = {"cursor": page["nextCursor"]}
        assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
        assert [item for page in pages for item in page] == whole["deliveries"]
    for state in ("waiting", "delivered", "dead"):
        found = deliveries(pool, made, state=state, limit=1000)["deliveries"]
        assert found == [item for item in whole["deliveries"] if item["state"] == state]
    dead = deliveries(pool, made, state="dead", limit=1)
    assert deliveries(pool, made, state="dead", cursor=dead["nextCursor"])["deliveries"] == whole["deliveries"][2:3]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "lost"}, "state : must be 'waiting', 'delivered' or 'dead'"),
        ({"limit": "0"}, "limit : must be at least 1"),
        ({"limit": "1001"}, "limit : must be at most 1000"),
        ({"limit": "x"}, "limit : must be an integer"),
        ({"cursor": "x"}, r'cursor : must match "^[0-9]{1,16}\.[0-9a-f-]{36}$"'),
    ],
)
def test_webhook_deliveries_refuse_invalid_pages(pool: Pool, query: dict[str, str], expected: str) -> None:
    made = subscribe(pool)
    assert sentences(call(pool, "oem", "GET", f"/{made['id']}/deliveries", params=query), 400) == [expected]


def test_webhook_deliveries_accept_extreme_cursors(pool: Pool) -> None:
    made = subscribe(pool)
    fanned_out(pool, pool.publish(pool.car()))
    for start_at, found in (("9" * 16, 1), ("0", 0)):
        assert len(deliveries(pool, made, cursor=f"{start_at}.{UNKNOWN}")["deliveries"]) == found
