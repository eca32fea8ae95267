"""Commands `ccp webhook` that rotate secrets, set the form of signatures and ping; other processes follow them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ccp.server.storage.queries import webhooks
from ccp.testing.pki import PKI
from tests.cli.run import COMMAND, CommandResult, ccp, ccp_error, ccp_ok, environment
from tests.server.events.receiver import Receiver, states
from tests.server.events.verifiers import Verifying, any_signature, go_style, java_style
from tests.server.events.webhook_api import subscribe
from tests.waiting import wait_until
from tests.world import Pool, start

LOOPBACK: dict[str, Any] = {
    "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",), "event_timeout": 5, "event_retries": 0,
}  # fmt: skip
ENVIRONMENT = {"CCP_EGRESS_ALLOW_NETWORKS": '["127.0.0.0/8"]', "CCP_EVENT_TIMEOUT": "5"}

pytestmark = pytest.mark.usefixtures("forget")


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    """A pool that sends events and does not notice within the tests what other processes change."""
    with start({"iso2": pkis["iso2"]}, refresh_interval=600, **{**LOOPBACK, "event_dispatch": True}) as running:
        yield running


def env(pool: Pool) -> dict[str, str]:
    return {"CCP_DATABASE": pool.settings.database, **ENVIRONMENT}


def webhook(pool: Pool, *arguments: object) -> CommandResult:
    return ccp_ok("webhook", *arguments, env=env(pool))


def test_webhook_rotate_secret_reaches_running_workers(pool: Pool, receiver: Receiver) -> None:
    """The worker's copy has the previous secret only, the partner has the new one only."""
    made = subscribe(pool, url=receiver.url + "/worker")
    partner = Verifying(java_style, made["secret"], refusal=400)
    receiver.decides("/worker", partner)
    rotated = json.loads(webhook(pool, "rotate-secret", made["id"], "--now", "--json").out)
    assert rotated == {"id": made["id"], "secret": rotated["secret"], "previous_secrets_valid_until": []}
    partner.secret = rotated["secret"]
    pool.publish(pool.car())
    wait_until(lambda: states(pool.settings.database, made["id"]) == [("delivered", 1, 200)])
    assert len(partner.refused) == 1


def test_webhook_rotate_secret_holds_after_a_restart(pkis: dict[str, PKI], receiver: Receiver) -> None:
    """The dispatcher starts after two rotations, in a process of its own."""
    with start({"iso2": pkis["iso2"]}, **LOOPBACK) as pool:
        made = subscribe(pool, url=receiver.url + "/restart")
        partner = Verifying(java_style, made["secret"])
        receiver.decides("/restart", partner)
        secrets = [made["secret"]]
        for _ in range(2):
            secrets.append(json.loads(webhook(pool, "rotate-secret", made["id"], "--json").out)["secret"])
        pool.publish(pool.car())
        command = [*COMMAND, "events", "dispatch"]
        with subprocess.Popen(command, env=environment(**env(pool)), stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: states(pool.settings.database, made["id"]) == [("delivered", 1, 200)])
            finally:
                process.terminate()
                log = process.communicate(timeout=20)[1]
        assert all(any_signature(partner.accepted[0], secret) for secret in secrets)
        assert [len(partner.accepted), len(partner.refused)] == [1, 2]
        (line,) = [json.loads(line) for line in log.splitlines() if '"event delivery attempted"' in line]
        assert (line["status"], line["previous_secret"]) == (200, True)
        assert not any(secret in log for secret in secrets)


def test_webhook_rotate_secret_prints_it_once(pool: Pool) -> None:
    made = subscribe(pool)
    lines = webhook(pool, "rotate-secret", made["id"], "--overlap", 60).lines
    stored = pool.change(webhooks.find(made["id"]))
    until_text = stored.previous_secrets[0].valid_until.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert lines == [
        f"webhook  {made['id']}",
        f"secret   {stored.secret}",
        "The secret is not shown again.",
        f"The previous one is valid until {until_text}.",
    ]
    shown = webhook(pool, "show", made["id"], "--json").out
    assert json.loads(shown)["previous_secrets_valid_until"] == [until_text]
    both = (made["secret"], stored.secret)
    assert not any(secret in shown + webhook(pool, "show", made["id"]).out for secret in both)
    trail = str(pool.sql("select subject from audit"))
    assert not any(secret in trail for secret in both)
    assert webhook(pool, "rotate-secret", made["id"], "--now").lines[-1] == "No older secret is valid."
    assert len(pool.change(webhooks.find(made["id"])).valid_secrets(datetime.now(UTC))) == 1


def test_webhook_rotate_secret_refuses_bad_input(pool: Pool) -> None:
    made = subscribe(pool)
    arguments = ("webhook", "rotate-secret", made["id"])
    assert ccp_error("webhook", "rotate-secret", "unknown", env=env(pool)) == "There is no webhook unknown."
    assert ccp_error(*arguments, "--overlap", 90_000, env=env(pool)) == "overlap : must be 0 to 86400 seconds"
    both = ccp_error(*arguments, "--overlap", 1, "--now", env=env(pool))
    assert both == "--now ends every older secret; it excludes --overlap."
    assert pool.change(webhooks.find(made["id"])).secret == made["secret"]


def test_webhook_signature_format_applies_to_events(pool: Pool, receiver: Receiver) -> None:
    """A receiver like the published Go sample."""
    made = subscribe(pool, url=receiver.url + "/format")
    receiver.decides("/format", Verifying(go_style, made["secret"]))
    set_format = ("set-signature-format", made["id"], "bare")
    assert json.loads(webhook(pool, *set_format, "--json").out) == {"id": made["id"], "signature_format": "bare"}
    assert webhook(pool, *set_format).out == f"The webhook {made['id']} gets signatures of the form bare.\n"
    assert json.loads(webhook(pool, "show", made["id"], "--json").out)["signature_format"] == "bare"
    assert json.loads(webhook(pool, "ping", made["id"], "--json").out)["status"] == 200
    (edit,) = pool.sql(
        "select subject from audit where action = 'webhook.edited' and subject like ?", f"%{made['id']}%"
    )
    assert json.loads(edit[0])["after"] == {"signature_format": "bare"}


def test_webhook_ping_shows_what_came_back(pool: Pool, receiver: Receiver) -> None:
    made = subscribe(pool, url=receiver.url + "/pinged")
    partner = Verifying(java_style, made["secret"])
    receiver.decides("/pinged", partner)
    assert webhook(pool, "ping", made["id"]).out.startswith("The receiver answered 200. It took ")
    webhook(pool, "rotate-secret", made["id"])
    assert webhook(pool, "ping", made["id"]).lines[1:] == ["The receiver accepts the previous secret only."]
    webhook(pool, "rotate-secret", made["id"], "--now")
    failed = ccp("webhook", "ping", made["id"], "--json", env=env(pool))
    shown = json.loads(failed.out)
    assert failed.status == 1
    assert shown == {
        "event_id": shown["event_id"],
        "delivered": False,
        "status": 401,
        "duration_ms": shown["duration_ms"],
        "error": "127.0.0.1 answered 401.",
        "previous_secret": False,
    }
    assert partner.refused[-1].event["eventId"] == shown["event_id"]
    trail = pool.sql("select actor, subject from audit where action = 'webhook.pinged' order by at")
    assert all(actor.startswith("cli:") for actor, _ in trail)
    assert json.loads(trail[-1][1]) == {
        "endpoint": made["id"], "party": "oem", "event_id": shown["event_id"], "status": 401,
    }  # fmt: skip
    assert ccp_error("webhook", "ping", "unknown", env=env(pool)).endswith("There is no webhook unknown.")


def test_webhook_commands_print_json(pool: Pool) -> None:
    made = subscribe(pool)
    for arguments, expected in (
        (("disable",), {"enabled": False}),
        (("enable",), {"enabled": True}),
        (("remove", "--yes"), {"removed": True}),
    ):
        shown = json.loads(webhook(pool, arguments[0], made["id"], *arguments[1:], "--json").out)
        assert shown == {"id": made["id"], **expected}
