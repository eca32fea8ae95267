"""Commands `ccp events` and `ccp webhook`."""

from __future__ import annotations

import hashlib
import hmac
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ccp.server.storage.engine.time_limits import TimeLimits
from ccp.server.storage.queries import parties
from ccp.server.storage.queries.delivery_queue import AttemptOutcome
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, CommandResult, ccp_error, ccp_ok, environment
from tests.scripted_server import Reply, scripted
from tests.server.events.webhook_api import CREATED, DELETED, call, copied, fanned_out, subscribe, tried
from tests.world import Contract, Pool, start

WHY = "hooks.example cannot be reached."

pytestmark = pytest.mark.usefixtures("forget")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, event_allow_http=True, egress_allow_networks=("127.0.0.0/8",)) as running:
        yield running


def run(pool: Pool, *arguments: object) -> CommandResult:
    return ccp_ok("events", *arguments, env={"CCP_DATABASE": pool.settings.database})


def webhook(pool: Pool, *arguments: object) -> CommandResult:
    return ccp_ok("webhook", *arguments, env={"CCP_DATABASE": pool.settings.database})


def refused(pool: Pool, *arguments: object) -> str:
    return ccp_error("events", *arguments, env={"CCP_DATABASE": pool.settings.database})


def listed(pool: Pool, *arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(pool, "list", *arguments, "--json").out)["deliveries"]
    return found


def dead(pool: Pool, webhook: dict[str, Any], count: int = 1) -> list[Contract]:
    """So many events that the webhook has not taken, and will not be sent again."""
    contracts = [pool.publish(pool.car()) for _ in range(count)]
    fanned_out(pool, *contracts)
    assert tried(pool, webhook["id"], AttemptOutcome.GIVEN_UP, error=WHY) == count
    return contracts


def test_events_list_is_empty_without_events(pool: Pool) -> None:
    assert run(pool, "list").lines[-1] == "0 not dispatched yet, 0 waiting, 0 dead."
    assert json.loads(run(pool, "list", "--json").out) == {
        "backlog": {"outbox": 0, "waiting": 0, "dead": 0, "oldest": None},
        "deliveries": [],
    }
    assert json.loads(webhook(pool, "list", "--json").out) == []


def test_events_list_shows_dead_deliveries_first(pool: Pool) -> None:
    made = subscribe(pool)
    (contract,) = dead(pool, made)
    waiting = pool.publish(pool.car())
    fanned_out(pool, waiting)
    unseen = pool.publish(pool.car())
    (item,) = listed(pool)
    assert item == {
        "event_id": item["event_id"],
        "event": CREATED,
        "at": item["at"],
        "emaid": contract.emaid,
        "pcid": contract.body["pcid"],
        "namespace": "urn:iso:15118:2:2013:MsgDef",
        "endpoint": made["id"],
        "party": "oem",
        "url": "https://hooks.example/ccp?token=…",
        "state": "dead",
        "attempts": 1,
        "next_attempt": None,
        "last_status": None,
        "last_error": WHY,
        "finished_at": item["finished_at"],
    }
    header, line, count = run(pool, "list").lines
    assert header.split("  ")[0] == "event id"
    for shown in (item["event_id"], item["at"], contract.emaid, contract.body["pcid"], "oem", "dead", WHY):
        assert shown in line
    oldest = json.loads(run(pool, "list", "--json").out)["backlog"]["oldest"]
    assert count == f"1 not dispatched yet, 1 waiting, the oldest since {oldest}, 1 dead."
    assert (datetime.now(UTC) - datetime.fromisoformat(oldest)).total_seconds() < 60

    assert [each["emaid"] for each in listed(pool, "--state", "waiting")] == [waiting.emaid]
    assert [each["emaid"] for each in listed(pool, "--state", "all")] == [waiting.emaid, contract.emaid]
    assert [each["emaid"] for each in listed(pool, "--state", "all", "--limit", 1)] == [waiting.emaid]
    assert listed(pool, "--state", "delivered") == listed(pool, "--endpoint", "another") == []
    assert [each["emaid"] for each in listed(pool, "--endpoint", made["id"])] == [contract.emaid]
    assert unseen.emaid not in run(pool, "list", "--state", "all").out


def test_webhook_list_shows_backlog_without_secrets(pool: Pool) -> None:
    busy, calm = subscribe(pool), subscribe(pool, "emsp", "mo.contract.queued.to.oem", providerIds=["DEEXA"])
    idle = subscribe(pool, "other_oem", status="disabled")
    dead(pool, busy, 2)
    fanned_out(pool, pool.publish(pool.car()))
    done = webhook(pool, "list", "--json")
    shown = {each["id"]: each for each in json.loads(done.out)}
    assert [shown[each["id"]]["party"] for each in (busy, calm, idle)] == ["oem", "emsp", "other_oem"]
    assert [(shown[each["id"]]["waiting"], shown[each["id"]]["dead"]) for each in (busy, calm)] == [(1, 2), (0, 0)]
    assert (shown[calm["id"]]["events"], shown[calm["id"]]["provider_ids"]) == (
        ["mo.contract.queued.to.oem"],
        ["DEEXA"],
    )
    assert (shown[busy["id"]]["enabled"], shown[idle["id"]]["enabled"]) == (True, False)
    assert (shown[busy["id"]]["oldest"] is None, shown[calm["id"]]["oldest"]) == (False, None)
    lines = {line.split()[0]: line for line in webhook(pool, "list").lines[1:]}
    assert set(lines) == set(shown)
    assert lines[busy["id"]].endswith("2")
    assert " disabled " in lines[idle["id"]]
    for made in (busy, calm, idle):
        for text in (done.out, webhook(pool, "list").out, run(pool, "list", "--state", "all", "--json").out):
            assert made["secret"] not in text


def test_webhook_show_prints_its_subscription_without_its_secret(pool: Pool) -> None:
    made = subscribe(pool)
    done = webhook(pool, "show", made["id"], "--json")
    members = json.loads(done.out)
    assert (members["id"], members["enabled"], members["waiting"]) == (made["id"], True, 0)
    assert members["created_at"].endswith("Z")
    secret = pool.sql("select secret from webhook")[0][0]
    assert secret not in done.out + webhook(pool, "show", made["id"]).out
    env = {"CCP_DATABASE": pool.settings.database}
    assert ccp_error("webhook", "show", "unknown", env=env) == "There is no webhook unknown."


def test_webhook_disable_enable_and_remove_are_recorded(pool: Pool) -> None:
    made = subscribe(pool)
    dead(pool, made, 2)
    for _ in range(2):
        assert webhook(pool, "disable", made["id"]).out == f"The webhook {made['id']} is disabled.\n"
    assert json.loads(webhook(pool, "show", made["id"], "--json").out)["enabled"] is False
    webhook(pool, "enable", made["id"])
    webhook(pool, "remove", made["id"], "--yes")
    assert pool.sql("select count(*) from delivery") == [(0,)]
    assert json.loads(webhook(pool, "list", "--json").out) == []
    select = "select action, subject from audit where action like 'webhook.%' order by at"
    rows = [(action, json.loads(subject)) for action, subject in pool.sql(select)][-3:]
    assert [action for action, _ in rows] == ["webhook.edited", "webhook.edited", "webhook.removed"]
    assert rows[0][1] == {
        "endpoint": made["id"], "party": rows[0][1]["party"], "changed": ["enabled"], "before": {"enabled": True},
        "after": {"enabled": False},
    }  # fmt: skip
    assert rows[2][1]["host"].startswith("https://")


def test_webhook_list_shows_disabled_parties(pool: Pool) -> None:
    subscribe(pool, "other_emsp", "root.cert.added")
    pool.change(parties.disable("other_emsp"))
    assert "party disabled" in webhook(pool, "list").out
    assert json.loads(webhook(pool, "list", "--json").out)[0]["party_enabled"] is False


def test_events_show_prints_the_body(pool: Pool) -> None:
    made = subscribe(pool)
    (contract,) = dead(pool, made)
    (item,) = listed(pool)
    shown = json.loads(run(pool, "show", item["event_id"], "--json").out)
    payload = shown.pop("payload")
    assert shown == item
    assert (payload["emaid"], payload["pcid"]) == (contract.emaid, contract.body["pcid"])
    lines = dict(line.split(maxsplit=1) for line in run(pool, "show", item["event_id"]).lines if " " in line.strip())
    assert (lines["event_id"], lines["party"], lines["last_error"]) == (item["event_id"], "oem", WHY)
    assert refused(pool, "show", "x\x1b[1m\0") == r"There is no delivery of an event x\x1b[1m\x00."


def test_events_replay_keeps_the_event_id(pool: Pool) -> None:
    made = subscribe(pool)
    dead(pool, made, 2)
    first, second = listed(pool)
    assert run(pool, "replay", first["event_id"]).lines == ["1 delivery waits again."]
    assert [each["event_id"] for each in listed(pool)] == [second["event_id"]]
    (again,) = listed(pool, "--state", "waiting")
    assert (again["event_id"], again["attempts"]) == (first["event_id"], 0)
    assert tried(pool, made["id"], AttemptOutcome.DELIVERED, 200) == 1
    assert run(pool, "replay", "--endpoint", made["id"]).lines == ["1 delivery waits again."]
    assert tried(pool, made["id"], AttemptOutcome.GIVEN_UP, error=WHY) == 1
    assert run(pool, "replay", "--all").lines == ["1 delivery waits again."]
    assert run(pool, "replay", "--all").lines == ["0 deliveries wait again."]


def test_events_drop_removes_dead_deliveries(pool: Pool) -> None:
    made, other = subscribe(pool), subscribe(pool)
    contracts = [pool.publish(pool.car()) for _ in range(3)]
    fanned_out(pool, *contracts)
    for each in (made, other):
        assert tried(pool, each["id"], AttemptOutcome.REJECTED, 400, "hooks.example answered 400.") == 3
    ids = [each["event_id"] for each in listed(pool, "--endpoint", made["id"])]
    assert run(pool, "drop", "--yes", ids[0], ids[1], ids[0]).lines == ["2 deliveries dropped."]
    assert [each["event_id"] for each in listed(pool, "--endpoint", made["id"])] == ids[2:]
    assert run(pool, "drop", "--yes", "--endpoint", made["id"]).lines == ["1 delivery dropped."]
    assert len(listed(pool)) == 3
    assert run(pool, "drop", "--yes", "--all").lines == ["3 deliveries dropped."]
    assert run(pool, "list").lines[-1] == "0 not dispatched yet, 0 waiting, 0 dead."


def test_events_drop_handles_many_deliveries(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    dead(pool, subscribe(pool))
    copied(pool, 30_000)
    monkeypatch.setattr("ccp.server.storage.engine.time_limits.COMMANDS", TimeLimits(write=0.2))
    assert run(pool, "drop", "--yes", "--all").lines == ["30001 deliveries dropped."]


@pytest.mark.parametrize("command", [("replay",), ("drop", "--yes")], ids=lambda command: command[0])
def test_events_replay_and_drop_are_all_or_nothing(pool: Pool, command: tuple[str, ...]) -> None:
    made = subscribe(pool, "oem", CREATED, DELETED)
    dead(pool, made)
    fanned_out(pool, pool.publish(pool.car()))
    (given_up,), (waiting,) = listed(pool), listed(pool, "--state", "waiting")
    only = "only dead ones are replayed or dropped."
    before = pool.sql("select * from delivery order by event_id")
    ids = given_up["event_id"], waiting["event_id"]
    assert refused(pool, *command, *ids) == f"The event {waiting['event_id']} is waiting; {only}"
    assert refused(pool, *command, given_up["event_id"], "unheard-of") == f"The event unheard-of is not known; {only}"
    assert refused(pool, *command, "--endpoint", "unheard-of") == "There is no webhook unheard-of."
    for arguments in ((), (ids[0], "--all"), ("--all", "--endpoint", made["id"]), (ids[0], "--endpoint", made["id"])):
        assert refused(pool, *command, *arguments) == "Give event ids, or --endpoint, or --all."
    assert pool.sql("select * from delivery order by event_id") == before


def test_events_commands_are_audited(pool: Pool) -> None:
    pool.sql("select 1")
    made = subscribe(pool)
    dead(pool, made, 2)
    first, second = (each["event_id"] for each in listed(pool))
    run(pool, "replay", first)
    run(pool, "drop", "--yes", second)
    run(pool, "replay", "--endpoint", made["id"])
    run(pool, "drop", "--yes", "--all")
    select = "select actor, action, subject from audit where action like 'events.%' order by at"
    rows = [(*row[:2], json.loads(row[2])) for row in pool.sql(select)][-4:]
    assert {row[0].partition(":")[0] for row in rows} == {"cli"}
    assert [row[1:] for row in rows] == [
        ("events.replayed", {"events": [first], "deliveries": 1}),
        ("events.dropped", {"events": [second], "deliveries": 1}),
        ("events.replayed", {"endpoint": made["id"], "deliveries": 0}),
        ("events.dropped", {"endpoint": "all", "deliveries": 0}),
    ]
    assert ccp_ok("audit", "verify", env={"CCP_DATABASE": pool.settings.database}).status == 0


def test_events_dispatch_runs_until_signalled(pool: Pool, tmp_path: Path) -> None:
    with scripted() as maker, open(tmp_path / "log", "wb") as log:
        maker.on("/hook", Reply(204))
        made = subscribe(pool, "oem", CREATED, url=f"{maker.url}/hook")
        env = environment(
            CCP_DATABASE=pool.settings.database,
            CCP_EVENT_ALLOW_HTTP="true",
            CCP_EGRESS_ALLOW_NETWORKS='["127.0.0.0/8"]',
        )
        process = subprocess.Popen([*COMMAND, "events", "dispatch"], stdout=log, stderr=log, env=env)
        try:
            contract = pool.publish(pool.car())
            deadline = time.monotonic() + 60
            while not (page := call(pool, "oem", "GET", f"/{made['id']}/deliveries?state=delivered").json())[
                "deliveries"
            ]:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    (sent,) = maker.asked("/hook")
    event = json.loads(sent.body)
    assert (event["eventType"], event["payload"]["emaid"]) == (CREATED, contract.emaid)
    assert event["eventId"] == page["deliveries"][0]["eventId"]
    signature = hmac.new(made["secret"].encode(), sent.body, hashlib.sha256).hexdigest()
    assert sent.headers["x-operator-signature"] == f"sha256={signature}"
    output = (tmp_path / "log").read_text()
    assert output.startswith("opnc-ccp dispatches events (database sqlite:///")
    assert "Traceback" not in output
    assert made["secret"] not in output
