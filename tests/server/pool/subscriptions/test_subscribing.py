"""ccp neighbour subscribe: webhooks of this pool at other systems, in both dialects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ccp.testing.pki import PKI
from tests.server.pool.subscriptions.system import (
    OPCP,
    OPNC,
    TOKEN,
    EventSystem,
    command,
    command_error,
    event_body,
    event_system,
    post_event,
    subscribe,
)
from tests.waiting import wait_until
from tests.world import Pool, start

ROOTS = ["root.cert.added", "root.cert.expired", "root.cert.revoked"]


@pytest.fixture
def system() -> Iterator[EventSystem]:
    with event_system(OPCP) as running:
        yield running


@pytest.fixture
def subscriber(pkis: dict[str, PKI], system: EventSystem) -> Iterator[Pool]:
    with start(
        pkis,
        refresh_interval=0.05,
        pcp_url=system.url,
        pcp_dialect="opcp",
        pcp_token=TOKEN,
        require_known_vehicle=False,
    ) as running:
        yield running


def stored(pool: Pool) -> list[tuple[Any, ...]]:
    return pool.sql("select source, url, endpoint_id, secret, events from subscription")


def knows(pool: Pool, system: EventSystem) -> None:
    """Wait until a worker accepts the events of the system's webhook."""
    wait_until(lambda: system.send("webhook.ping", {}).status_code == 200)


@pytest.mark.parametrize(
    ("base", "dialect", "path", "events"),
    [
        ("", "opcp", OPCP, [f"mo.prov.cert.{what}" for what in ("updated", "deleted", "factory.reset")]),
        ("/opnc/v1/pcp", "opnc", OPNC, [f"emsp.prov.cert.{what}" for what in ("updated", "deleted", "factory.reset")]),
    ],
)
def test_subscribe_creates_a_webhook_in_the_dialect(
    pkis: dict[str, PKI], base: str, dialect: str, path: str, events: list[str]
) -> None:
    with event_system(path) as system:
        options = {"pcp_url": system.url + base, "pcp_dialect": dialect, "pcp_token": TOKEN}
        with start(pkis, refresh_interval=0.05, require_known_vehicle=False, **options) as pool:
            out = command(pool, "ccp neighbour subscribe pcp --json").out
            ((source, url, endpoint, secret, names),) = stored(pool)
            assert system.webhook["enabledEvents"] == json.loads(names) == events
            assert system.webhook["status"] == "enabled"
            assert system.webhook["url"].startswith(f"{pool.base_url}/opnc/v1/ccp/events/")
            assert (source, url, endpoint) == ("pcp", system.url + path, system.webhook["id"])
            assert secret == system.webhook["secret"]
            knows(pool, system)
            listed = command(pool, "ccp neighbour subscriptions --json").out
            shown = command(pool, "ccp neighbour subscriptions").out
            assert json.loads(listed) == [json.loads(out)]
            assert json.loads(out)["events"] == events
            assert not any(secret in text for text in (out, listed, shown))
            ((action, subject),) = pool.sql("select action, subject from audit where action like 'subscription.%'")
            assert action == "subscription.added"
            assert secret not in subject


def test_subscribe_again_changes_nothing(subscriber: Pool, system: EventSystem) -> None:
    subscribe(subscriber, "pcp")
    before, webhook = stored(subscriber), dict(system.webhook)
    subscribe(subscriber, "pcp")
    assert stored(subscriber) == before
    assert {**system.webhook, "description": webhook["description"]} == webhook


def test_subscribe_again_repairs_a_webhook_that_was_removed(subscriber: Pool, system: EventSystem) -> None:
    subscribe(subscriber, "pcp")
    first = dict(system.webhook)
    system.webhooks.clear()
    subscribe(subscriber, "pcp")
    assert system.webhook["url"] == first["url"]
    assert system.webhook["secret"] != first["secret"]
    wait_until(lambda: system.send("webhook.ping", {}).status_code == 200)
    assert post_event(first["url"], first["secret"], event_body("webhook.ping", {})).status_code == 403


@pytest.mark.parametrize("shows", [{"POST", "GET"}, {"POST"}])
def test_subscribe_after_an_interruption_leaves_one_webhook(
    subscriber: Pool, system: EventSystem, shows: set[str]
) -> None:
    subscribe(subscriber, "pcp")
    subscriber.sql("update subscription set endpoint_id = null, secret = null")
    system.shows_secret = shows
    subscribe(subscriber, "pcp")
    assert len(system.webhooks) == 1
    knows(subscriber, system)


def test_subscribe_again_removes_a_second_webhook_for_its_address(subscriber: Pool, system: EventSystem) -> None:
    subscribe(subscriber, "pcp")
    kept = dict(system.webhook)
    system.webhooks["left over"] = {**kept, "id": "left over", "secret": "another"}
    system.webhooks["of another"] = {**kept, "id": "of another", "url": "https://another.example/hook"}
    subscribe(subscriber, "pcp")
    assert set(system.webhooks) == {kept["id"], "of another"}


def test_subscribe_renew_replaces_webhook_and_secret(subscriber: Pool, system: EventSystem) -> None:
    system.shows_secret = {"POST"}
    subscribe(subscriber, "pcp")
    system.webhook["secret"] = "replaced there"
    subscribe(subscriber, "pcp")
    assert system.send("webhook.ping", {}).status_code == 403
    subscribe(subscriber, "pcp --renew")
    knows(subscriber, system)
    actions = subscriber.sql("select action from audit where action like 'subscription.%' order by at, number")
    assert [action for (action,) in actions] == ["subscription.added", *["subscription.edited"] * 2]


def test_subscribe_takes_the_deprecated_name_where_the_current_one_is_unknown(
    subscriber: Pool, system: EventSystem
) -> None:
    system.known = {f"mo.prov.cert.{what}" for what in ("updated", "deleted", "updated.factory.reset")}
    subscribe(subscriber, "pcp")
    assert set(system.webhook["enabledEvents"]) == system.known
    system.known = {"something.else"}
    assert command_error(subscriber, "ccp neighbour subscribe pcp").startswith(
        "The event service of the Provisioning Certificate Pool answered with status 400: unknown: "
    )


def test_subscribe_without_a_secret_leaves_no_webhook(subscriber: Pool, system: EventSystem) -> None:
    system.shows_secret = set()
    assert command_error(subscriber, "ccp neighbour subscribe pcp") == (
        "The Provisioning Certificate Pool does not report the secret of the webhook. Agree on one with its operator, "
        "and give it in CCP_SUBSCRIPTION_SECRET."
    )
    assert system.webhooks == {}
    out = command(subscriber, "ccp neighbour subscribe pcp", CCP_SUBSCRIPTION_SECRET="an-agreed-secret").out
    assert "an-agreed-secret" not in out
    system.webhook["secret"] = "an-agreed-secret"
    knows(subscriber, system)


def test_subscribe_needs_a_configured_system_and_a_public_address(subscriber: Pool, system: EventSystem) -> None:
    assert command_error(subscriber, "ccp neighbour subscribe rcp") == (
        "There is no Root Certificate Pool in the configuration (rcp_url)."
    )
    assert command_error(subscriber, "ccp neighbour subscribe pool-z") == (
        "pool-z is neither rcp, nor pcp, nor a peer ('ccp peer list')."
    )
    assert "base_url" in command_error(subscriber, "ccp neighbour subscribe pcp", CCP_BASE_URL="")
    system.on(OPCP, json_error := system.default)
    assert json_error.status == 404
    assert command_error(subscriber, "ccp neighbour subscribe pcp").endswith("answered with status 404.")


def test_unsubscribe_removes_both_sides(subscriber: Pool, system: EventSystem) -> None:
    subscribe(subscriber, "pcp")
    knows(subscriber, system)
    webhook = dict(system.webhook)
    command(subscriber, "ccp neighbour unsubscribe pcp")
    assert (system.webhooks, stored(subscriber)) == ({}, [])
    ping = event_body("webhook.ping", {})
    wait_until(lambda: post_event(webhook["url"], webhook["secret"], ping).status_code == 404)
    assert command_error(subscriber, "ccp neighbour unsubscribe pcp") == "There is no subscription to pcp."


def test_unsubscribe_from_a_system_that_is_gone_is_local(subscriber: Pool, system: EventSystem) -> None:
    subscribe(subscriber, "pcp")
    system.forget()
    system.on(f"{OPCP}/*", lambda request: system.default.__class__(500))
    assert "status 500" in command_error(subscriber, "ccp neighbour unsubscribe pcp")
    assert len(stored(subscriber)) == 1
    command(subscriber, "ccp neighbour unsubscribe pcp --local")
    assert stored(subscriber) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://192.0.2.1/v1/webhook/endpoints", "must be an https URL"),
        ("https://pool:secret@example.org/v1", "without credentials"),
        ("ftp://example.org/v1", "must be an http or https URL"),
    ],
)
def test_subscribe_sends_no_credentials_to_an_address_that_settings_refuse(
    subscriber: Pool, system: EventSystem, url: str, reason: str
) -> None:
    sentence = command_error(subscriber, f"ccp neighbour subscribe pcp --event-url {url}")
    assert reason in sentence
    assert "secret" not in sentence
    assert stored(subscriber) == []


def test_peer_that_is_removed_cannot_send_events_any_more(subscriber: Pool) -> None:
    with event_system(OPNC) as peer:
        command(subscriber, f"ccp peer add pool-b {peer.url}", CCP_PEER_SECRET=TOKEN)
        subscribe(subscriber, "pool-b")
        knows(subscriber, peer)
        command(subscriber, "ccp peer remove pool-b --yes")
        wait_until(lambda: peer.send("webhook.ping", {}).status_code == 404)
        assert stored(subscriber) == []
        rows = subscriber.sql("select action from audit where action like '%.removed' order by number")
        assert sorted(row[0] for row in rows) == ["peer.removed", "subscription.removed"]
        sentence = command_error(subscriber, "ccp neighbour unsubscribe pool-b --local")
        assert sentence == "There is no subscription to pool-b."
