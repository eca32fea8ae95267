"""Pages of parties, webhooks, peers, audit trail and health: what they show, and that their actions act."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ccp.server.console.sessions import csrf_token
from ccp.server.storage.queries import peers, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.testing.pki import PKI
from tests.scripted_server import Reply, Scripted, scripted
from tests.server.console.browsing import Browser, Page, admin
from tests.server.events.receiver import webhook
from tests.waiting import wait_until
from tests.world import AT, Pool, new_emaid, new_pcid, start

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"
OPTIONS: dict[str, Any] = {
    "console": True,
    "refresh_interval": 0.05,
    "event_dispatch": True,
    "event_allow_http": True,
    "egress_allow_networks": ("127.0.0.0/8",),
    "event_pings_per_minute": 0,
}


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, [admin(), admin("second_admin")], **OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def receiver() -> Iterator[Scripted]:
    with scripted() as server:
        yield server


@pytest.fixture
def viewer(pool: Pool, person: Browser) -> Browser:
    """The same person with the role viewer."""
    pool.sql("update console_session set role = 'viewer'")
    return person


def made_webhook(pool: Pool, url: str, **more: Any) -> str:
    made = webhook(url, "oem", "oem.contract.created", **more)
    pool.change(webhooks.put(made))
    return made.id


def actions_of(pool: Pool, answer: httpx.Response) -> list[tuple[str, str]]:
    """Actor and action of the audit entries of a request."""
    return pool.sql("select actor, action from audit where trace_id = ?", answer.headers["x-trace-id"])


def test_parties_page_shows_every_party(pool: Pool, person: Browser) -> None:
    page = person.page("/parties")
    assert "other_oem" in page.text
    assert "/console/parties/oem" in page.links
    shown = person.page("/parties/oem").text
    assert "WEX" in shown
    assert "when it is replaced" in shown
    assert person.get("/parties/nothing").status_code == 404


def test_party_secret_is_replaced_and_shown_once(pool: Pool, person: Browser) -> None:
    answer = person.act("/parties/other_emsp", "/rotate-secret", overlap="0")
    assert answer.status_code == 200
    secret = re.search(r"<pre[^>]*>([\w-]{43})</pre>", answer.text)
    assert secret is not None
    assert answer.headers["cache-control"] == "no-store"
    form = {"grant_type": "client_credentials", "client_id": "other_emsp", "client_secret": secret[1]}
    assert pool.http.post("/oauth/token", data=form).status_code == 200
    form["client_secret"] = pool.world.member("other_emsp").secret
    assert pool.http.post("/oauth/token", data=form).status_code == 401
    assert secret[1] not in person.get("/parties/other_emsp").text
    assert actions_of(pool, answer) == [("admin", "secret.rotated")]
    assert person.act("/parties/other_emsp", "/rotate-secret", overlap="-1").status_code == 400


def test_party_is_disabled_and_enabled(pool: Pool, person: Browser) -> None:
    answer = person.act("/parties/small_cps", "/disable")
    assert answer.headers["location"] == "/console/parties/small_cps?notice=party-disabled"
    assert actions_of(pool, answer) == [("admin", "party.disabled")]
    assert "disabled" in person.page(answer.headers["location"]).text
    answer = person.act("/parties/small_cps", "/enable")
    assert actions_of(pool, answer) == [("admin", "party.enabled")]


def test_party_of_the_person_cannot_be_disabled(pool: Pool, person: Browser) -> None:
    assert not [form for form in person.page("/parties/admin").forms if form.action.endswith("/disable")]
    token = csrf_token(person.cookie)
    answer = person.post("/parties/admin/disable", {"csrf_token": token})
    assert (answer.status_code, "An admin cannot disable itself." in answer.text) == (400, True)


def test_webhook_is_pinged_and_its_events_are_sent_again(pool: Pool, person: Browser, receiver: Scripted) -> None:
    url = receiver.on("/hooks", Reply(400), Reply(200))
    webhook_id = made_webhook(pool, url)
    car = pool.car()
    emaid = pool.publish(car).emaid
    state = "select state from delivery where webhook_id = ?"
    wait_until(lambda: pool.sql(state, webhook_id) == [("dead",)])
    page = person.page(f"/webhooks/{webhook_id}")
    assert f"{emaid} {car.pcid}" in page.text
    assert "400" in page.text
    form = next(form for form in page.forms if form.fields.get("event_id"))
    answer = person.post(form.action, form.fields)
    assert answer.headers["location"] == f"/console/webhooks/{webhook_id}?notice=events-replayed"
    assert actions_of(pool, answer) == [("admin", "events.replayed")]
    wait_until(lambda: pool.sql(state, webhook_id) == [("delivered",)])
    assert person.post(form.action, form.fields).status_code == 404  # It is not dead any more.
    before = receiver.count("/hooks")
    answer = person.act(f"/webhooks/{webhook_id}", "/ping")
    assert actions_of(pool, answer) == [("admin", "webhook.pinged")]
    assert "accepted" in Page(answer.text).text
    assert receiver.count("/hooks") == before + 1
    pool.change(webhooks.remove(webhook_id))


def test_webhook_event_of_another_webhook_is_not_sent_again(pool: Pool, person: Browser, receiver: Scripted) -> None:
    first, second = (made_webhook(pool, receiver.on(path, Reply(400))) for path in ("/first", "/second"))
    pool.publish(pool.car())
    wait_until(lambda: len(pool.sql("select 1 from delivery where state = 'dead'")) >= 2)
    ((event_id,),) = pool.sql("select event_id from delivery where webhook_id = ?", second)
    token = csrf_token(person.cookie)
    answer = person.post(f"/webhooks/{first}/replay", {"csrf_token": token, "event_id": event_id})
    assert answer.status_code == 404
    for webhook_id in (first, second):
        pool.change(webhooks.remove(webhook_id))


def test_webhook_events_are_sent_again_in_portions_and_listed_in_pages(pool: Pool, person: Browser) -> None:
    webhook_id = made_webhook(pool, "https://hooks.example/many", enabled=False)
    pcids = sorted({new_pcid() for _ in range(1100)})
    for number, pcid in enumerate(pcids):
        pool.sql(
            "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
            "queued_at, lease_until, attempts, state) "
            "values (?, 1, 0, ?, ?, 'oem.contract.created', '', '', '{}', ?, 1, 1, 1, 'dead')",
            pcid, webhook_id, f"event-{number:04}", number,
        )  # fmt: skip
    page = person.page(f"/webhooks/{webhook_id}?state=dead")
    older = person.page(next(link for link in page.links if "before=" in link))
    assert ("event-1075" in page.text, "event-1074" in page.text) == (True, False)
    assert ("event-1074" in older.text, "event-1049" in older.text) == (True, False)
    assert f"/console/vehicles/{pcids[1099]}" in page.links
    for wrong in ("x", "9999-12-31T23:59:59-23:00 a", "2026-01-01"):
        assert person.get(f"/webhooks/{webhook_id}", params={"before": wrong}).status_code in (200, 400)
    answer = person.act(f"/webhooks/{webhook_id}", "/replay")
    assert actions_of(pool, answer) == [("admin", "events.replayed")] * 3
    state = "select state, count(*) from delivery where webhook_id = ? group by state"
    assert pool.sql(state, webhook_id) == [("waiting", 1100)]
    pool.sql("delete from delivery where webhook_id = ?", webhook_id)
    pool.change(webhooks.remove(webhook_id))


def test_webhook_secret_is_replaced(pool: Pool, person: Browser) -> None:
    webhook_id = made_webhook(pool, "https://hooks.example/x")
    answer = person.act(f"/webhooks/{webhook_id}", "/rotate-secret", ends="now")
    (stored,) = pool.sql("select secret from webhook where id = ?", webhook_id)[0]
    assert stored in answer.text
    assert actions_of(pool, answer) == [("admin", "webhook.secret.rotated")]
    assert stored not in person.get(f"/webhooks/{webhook_id}").text
    for action, enabled in (("/disable", 0), ("/enable", 1)):
        answer = person.act(f"/webhooks/{webhook_id}", action)
        assert actions_of(pool, answer) == [("admin", "webhook.edited")]
        assert pool.sql("select enabled from webhook where id = ?", webhook_id) == [(enabled,)]
    pool.change(webhooks.remove(webhook_id))


def test_webhook_page_of_a_viewer_has_pseudonyms_and_no_actions(pool: Pool, viewer: Browser) -> None:
    emaid, pcid = new_emaid(), new_pcid()
    webhook_id = made_webhook(pool, "https://hooks.example/a-secret-path", description=f"for {emaid}")
    pool.sql(
        "insert into delivery (pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, "
        "queued_at, lease_until, attempts, state, last_error) "
        "values (?, 1, 0, ?, 'an-event', 'oem.contract.created', ?, '', '{}', 1, 1, 1, 1, 'dead', ?)",
        pcid, webhook_id, emaid, f"no {emaid}",
    )  # fmt: skip
    answer = viewer.get(f"/webhooks/{webhook_id}")
    page = Page(answer.text)
    assert answer.status_code == 200
    for secret in (emaid, pcid, "a-secret-path"):
        assert secret not in answer.text
    assert re.search(r"DEEXA…[0-9a-f]{16} WEX…[0-9a-f]{16}", page.text)
    assert [form.action for form in page.forms if form.method == "post"] == ["/console/logout"]
    token = page.form("/logout").fields["csrf_token"]
    for action in ("ping", "replay", "rotate-secret", "disable", "enable"):
        assert viewer.post(f"/webhooks/{webhook_id}/{action}", {"csrf_token": token}).status_code == 403
    for path in ("/parties/oem/disable", "/parties/oem/rotate-secret", "/peers/x/disable", "/health/examine"):
        assert viewer.post(path, {"csrf_token": token}).status_code == 403
    assert viewer.get("/audit/export").status_code == 403
    for path in ("/parties/oem", "/webhooks"):
        assert emaid not in viewer.get(path).text
    pool.change(webhooks.remove(webhook_id))


def test_partners_page_shows_and_disables_peers_without_their_secrets(pool: Pool, person: Browser) -> None:
    pool.change(peers.add(Peer("DE*PEER", "https://peer.example", client_id="me", secret="top secret"), AT))
    answer = person.get("/partners")
    assert "DE*PEER" in answer.text
    assert "top secret" not in answer.text
    assert "top secret" not in person.get("/peers/DE*PEER").text
    acted = person.act("/peers/DE*PEER", "/peers/DE%2APEER/disable")
    assert acted.headers["location"] == "/console/peers/DE%2APEER?notice=peer-disabled"
    assert actions_of(pool, acted) == [("admin", "peer.disabled")]
    assert actions_of(pool, person.act("/peers/DE*PEER", "/peers/DE%2APEER/enable")) == [("admin", "peer.enabled")]
    assert person.get("/peers/nothing").status_code == 404


def test_partners_page_tests_a_peer(pool: Pool, person: Browser, receiver: Scripted) -> None:
    url = receiver.on("/opnc", Reply(503)).removesuffix("/opnc")
    pool.change(peers.add(Peer("DE*TRIED", url, token="a-token"), AT))
    answer = person.act("/peers/DE*TRIED", "/peers/DE%2ATRIED/test")
    assert answer.status_code == 200
    assert "fails DE*TRIED" in Page(answer.text).text
    assert actions_of(pool, answer) == [("admin", "peer.tested")]
    token = csrf_token(person.cookie)
    for path in ("/peers/nothing/test", "/services/rcp/test", "/services/nothing/test"):
        assert person.post(path, {"csrf_token": token}).status_code == 404
    pool.sql("update console_session set role = 'viewer'")
    assert person.post("/peers/DE*TRIED/test", {"csrf_token": token}).status_code == 403
    assert "Background tasks" in person.page("/health").text


def test_audit_page_filters_and_downloads(pool: Pool, person: Browser) -> None:
    emaid = pool.publish(pool.car()).emaid
    page = person.page("/audit?days=7&actor=cps&action=contract.published&outcome=ok")
    assert emaid in page.text
    assert "No row matches." in person.page("/audit?actor=another").text
    export = next(link for link in page.links if "/audit/export" in link)
    answer = person.get(export)
    rows = [json.loads(line) for line in answer.text.splitlines()]
    assert {row["actor"] for row in rows} == {"cps"}
    assert answer.headers["content-disposition"].startswith('attachment; filename="audit-')
    for wrong in ("days=2", "days=", "until=x", "until=0001-01-01", "until=9999-12-31T23:59:59-23:00", "until=%00"):
        assert person.get(f"/audit?{wrong}").status_code == 400, wrong


def test_audit_page_finds_an_id_in_any_notation(pool: Pool, person: Browser) -> None:
    contract = pool.publish(pool.car())
    emaid = contract.emaid
    pool.publish(pool.car())
    for text in (str(emaid), f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}".lower(), contract.body["pcid"]):
        page = person.page(f"/audit?id={text}")
        assert page.text.count("contract.published") == 2, text  # A row, and the choice of the filter.
        assert emaid in page.text
    assert person.get("/audit?id=nonsense%20").status_code == 400
    pool.sql("update console_session set role = 'viewer'")
    assert person.get(f"/audit?id={emaid}").status_code == 403


def test_audit_search_examines_a_limited_number_of_rows_and_goes_on(
    pool: Pool, person: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.console.pages.audit.EXAMINED", 50)
    now = int(time.time() * 1_000_000)
    for number in range(120):
        pool.sql(
            "insert into audit (lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash) "
            "values (99, ?, ?, ?, 'party.edited', 'ok', null, '{}', '', '', '')",
            number, now - number, "rare" if number == 90 else "many",
        )  # fmt: skip
    page = person.page("/audit?actor=rare")
    assert "No row matches among the newest 50 rows of the period." in page.text
    page = person.page(next(link for link in page.links if "before=" in link and "audit?" in link))
    assert "rare party.edited" in page.text
    assert person.page("/audit?actor=many").text.count("many party.edited") <= 50
    pool.sql("delete from audit where lane = 99")


def test_audit_trail_is_verified_in_the_background(pool: Pool, person: Browser) -> None:
    pool.publish(pool.car())
    answer = person.act("/audit", "/audit/verify")
    assert answer.headers["location"] == "/console/audit?notice=verification-started"
    assert actions_of(pool, answer) == [("admin", "audit.verification.started")]
    wait_until(lambda: "every row is as it was recorded" in person.page("/audit").text)
    ((lane, number),) = pool.sql("select lane, number from audit order by at desc limit 1")
    pool.sql("update audit set actor = 'another' where lane = ? and number = ?", lane, number)
    person.act("/audit", "/audit/verify")
    wait_until(lambda: f"Shard {lane}, row {number}:" in person.page("/audit").text)
    assert "The trail differs from what was recorded" in person.page("/audit").text
    pool.sql("update console_session set role = 'viewer'")
    form = person.page("/audit").form("/logout")
    assert person.post("/audit/verify", form.fields).status_code == 403


def test_audit_verification_of_a_worker_that_ended_can_be_repeated(pool: Pool, person: Browser) -> None:
    payload = {"by": "admin", "started": time.time() - 90, "rows": 3, "expected": 9, "erased": 0, "broken": [],
               "finished": None}  # fmt: skip
    for lease, words in ((time.time() + 30, "3 of 9 rows verified"), (time.time() - 30, "was interrupted")):
        pool.sql(
            "insert into statistics (name, counted_at, lease_until, payload) values ('audit_verification', 0, ?, ?) "
            "on conflict (name) do update set lease_until = excluded.lease_until, payload = excluded.payload",
            int(lease * 1_000_000), json.dumps(payload),
        )  # fmt: skip
        page = person.page("/audit")
        assert words in page.text
        token = page.form("/logout").fields["csrf_token"]
        answer = person.post("/audit/verify", {"csrf_token": token})
        assert answer.status_code == (429 if lease > time.time() else 303)


def test_audit_page_of_a_viewer_has_pseudonyms(pool: Pool, viewer: Browser) -> None:
    contract = pool.publish(pool.car())
    answer = viewer.get("/audit?actor=cps&action=contract.published")
    assert answer.status_code == 200
    assert "contract.published" in answer.text
    assert contract.emaid not in answer.text
    assert contract.body["pcid"] not in answer.text


def test_audit_page_shows_older_rows(pool: Pool, person: Browser) -> None:
    now = int(time.time() * 1_000_000)
    for number in range(150):
        pool.sql(
            "insert into audit (lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash) "
            "values (99, ?, ?, 'many', 'party.edited', 'ok', null, '{}', '', '', '')",
            number, now - number * 1_000_000,
        )  # fmt: skip
    first = person.page("/audit?actor=many")
    second = person.page(next(link for link in first.links if "before=" in link and "audit?" in link))
    third = person.page(next(link for link in second.links if "before=" in link and "audit?" in link))
    assert [page.text.count("many party.edited") for page in (first, second, third)] == [50, 50, 50]
    pool.sql("delete from audit where lane = 99")


def test_health_page_examines_the_pool(pool: Pool, person: Browser) -> None:
    assert "This worker is ready" in person.page("/health").text
    answer = person.act("/health", "/health/examine")
    assert answer.status_code == 200
    assert "Findings" in Page(answer.text).text
    assert len(answer.content) < 100_000


def test_overview_page_counts_contracts(pool: Pool, person: Browser) -> None:
    wait_until(lambda: "Contracts have not been counted yet" not in person.get("/overview").text)
    text = person.page("/overview").text
    assert re.search(r"Contracts \d+ counted", text)
    assert "Contested vehicles" in text


def test_texts_of_partners_are_escaped_on_every_page(pool: Pool, person: Browser) -> None:
    webhook_id = made_webhook(pool, "https://hooks.example/x", description=HOSTILE, metadata={"a": HOSTILE})
    pool.sql("update party set name = ? where client_id = 'peer'", HOSTILE)
    pool.sql("update delivery set last_error = ?", HOSTILE)
    pool.sql("update audit set actor = ?, outcome = ? where action = 'access.refused'", HOSTILE, HOSTILE)
    pool.sql("update webhook set url = 'https://hooks.example/' || ? where id = ?", HOSTILE, webhook_id)
    for path in (
        "/parties", "/parties/peer", "/parties/oem", "/webhooks", f"/webhooks/{webhook_id}", "/audit", "/overview",
        "/partners", "/health", f"/audit?actor={HOSTILE}", f"/parties?after={HOSTILE}", f"/webhooks?after={HOSTILE}",
        f"/webhooks/{webhook_id}?state={HOSTILE}",
    ):  # fmt: skip
        answer = person.get(path)
        assert answer.status_code in (200, 400), path
        assert "<script" not in answer.text, path
        assert "<img src=x" not in answer.text, path
        assert len(answer.content) < 100_000, path
    pool.change(webhooks.remove(webhook_id))
